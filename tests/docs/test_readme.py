"""What the README shows runs, and what it counts is counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import arviz as az
import jax
from helpers import lasso_regression, regression_data
from numpyro.infer import MCMC, NUTS

import numpyro_rwpo
from benchmarks.samplers import SAMPLERS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NUMBERS = {"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14}


def test_code_blocks_run(capsys: Any) -> None:
    """As they stand, but for the numbers of draws."""
    X, y = regression_data()
    nuts = MCMC(NUTS(lasso_regression), num_warmup=20, num_samples=20)
    nuts.run(jax.random.key(0), X, y)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    code = "\n".join(blocks)
    shorter = code.replace("num_warmup=200, num_samples=1000", "num_warmup=20, num_samples=20")
    assert shorter != code
    names = {
        "az": az,
        "jax": jax,
        "numpyro_rwpo": numpyro_rwpo,
        "model": lasso_regression,
        "X": X,
        "y": y,
        "mcmc_nuts": nuts,
    }
    exec(compile(shorter, "README.md", "exec"), names)
    assert "RWPO: 4 chains of 20 draws" in capsys.readouterr().out
    assert names["idata"]["posterior"].sizes["chain"] == 4


def test_number_of_samplers() -> None:
    written = re.search(r"Compare RWPO with (\w+) other samplers", README)
    assert written is not None
    assert NUMBERS[written[1]] == len(SAMPLERS) - 1


def test_local_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        links = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text())
        missing = [x for x in links if "://" not in x and not (ROOT / x).exists()]
        assert not missing, f"{name}: {missing}"
