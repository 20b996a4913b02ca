"""Computes a reference evidence for ``tests/evidence/test_calibration.py`` by nested sampling.

The model is a logistic lasso. The script needs ``pip install dynesty``, which is not a dependency
of the tests. From the repository root, ``python benchmarks/posteriors/evidence/nested.py`` writes
``logistic_lasso.json`` into the folder of the script.
"""

import json
from pathlib import Path
from typing import Any

import dynesty
import numpy as np
from scipy.stats import laplace

NUM_ROWS, DIM, SEED, NUM_LIVE = 40, 3, 7, 2000


def main() -> None:
    rng = np.random.default_rng(SEED)
    X = np.round(rng.normal(size=(NUM_ROWS, DIM)), 3)
    logits = X @ np.array([1.5, -1.0, 0.0])
    y = rng.binomial(1, 1 / (1 + np.exp(-logits)))

    def log_likelihood(beta: Any) -> float:
        eta = X @ beta
        return float(np.sum(y * eta - np.logaddexp(0, eta)))

    sampler = dynesty.NestedSampler(
        log_likelihood, laplace.ppf, DIM, nlive=NUM_LIVE, rstate=np.random.default_rng(SEED)
    )
    sampler.run_nested(dlogz=0.001, print_progress=False)
    result = sampler.results
    stored = {
        "log_evidence": float(result.logz[-1]),
        "standard_error": float(result.logzerr[-1]),
        "settings": {"num_live": NUM_LIVE, "seed": SEED, "dynesty": dynesty.__version__},
        "X": X.tolist(),
        "y": y.tolist(),
    }
    (Path(__file__).parent / "logistic_lasso.json").write_text(json.dumps(stored) + "\n")
    print(stored["log_evidence"], stored["standard_error"])


if __name__ == "__main__":
    main()
