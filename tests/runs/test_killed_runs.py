"""Runs that are killed at random moments give, when started again, the draws they always would."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
import jax, numpy as np
from numpyro.infer import MCMC
from helpers import shrunken_means
from numpyro_rwpo import RWPO, run_in_pieces

kernel = RWPO(shrunken_means, num_particles=8, attention="marginal", dense_mass=False)
mcmc = MCMC(kernel, num_warmup=20, num_samples=10_000, num_chains=2, chain_method="vectorized")
mcmc.progress_bar = True
data = np.array([0.5, -1.0, 2.0], np.float32), np.float32(0.7)
run_in_pieces(mcmc, sys.argv[1], jax.random.key(0), *data, draws_per_piece=50)
np.save(sys.argv[2], mcmc.get_samples(group_by_chain=True)["theta"])
"""


def start(folder: Path, draws: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(draws)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
    )


def finish(folder: Path, draws: Path) -> np.ndarray:
    process = start(folder, draws)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return np.asarray(np.load(draws))


def pieces(folder: Path) -> list[Path]:
    return sorted(folder.glob("draws_*.npz"))


@pytest.mark.slow
def test_killed_ten_times(tmp_path: Path) -> None:
    expected = finish(tmp_path / "whole", tmp_path / "whole.npy")
    times = [path.stat().st_mtime for path in pieces(tmp_path / "whole")]
    seconds = times[-1] - times[0]
    # Moments that nobody chose, all over sampling; what is asserted holds for any.
    moments = np.random.default_rng().uniform(0, seconds / 10, 10)
    folder, numbers = tmp_path / "killed", []
    for moment in moments:
        process = start(folder, tmp_path / "killed.npy")
        before = len(pieces(folder))
        while len(pieces(folder)) == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moment)
        process.kill()
        process.communicate()
        numbers.append(len(pieces(folder)))
    draws = finish(folder, tmp_path / "killed.npy")
    print(f"pieces on the disk when killed: {numbers}")
    assert numbers == sorted(numbers)
    assert 0 < numbers[0] < len(times)
    np.testing.assert_array_equal(draws, expected)
