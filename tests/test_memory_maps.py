"""Many runs in one process: compiled programs are freed, and a warning comes before the abort.

XLA aborts the process when it has used up its memory maps, 65,530 on Linux. Each compiled program
takes some.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rwpo.model.preparation import MAX_PROGRAMS, CompiledOnce
from numpyro_rwpo.support import memory

ROOT = Path(__file__).parents[1]
HAS_MAPS = memory.memory_maps() is not None

# One run per data set, each of a shape of its own; prints the number of maps after every run.
LOOP = """
import sys
import jax, numpy as np, numpyro, numpyro.distributions as dist
from numpyro.infer import MCMC
from numpyro_rwpo import RWPO
from numpyro_rwpo.support.memory import memory_maps

def model(X, y):
    beta = numpyro.sample("beta", dist.Laplace(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, 1.0).to_event(1), obs=y)

number, progress_bar, clear_every = int(sys.argv[1]), sys.argv[2] == "bar", int(sys.argv[3])
rng = np.random.default_rng(0)
draws = []
print(memory_maps()[0])
for k in range(number):
    X = rng.normal(size=(20 + k, 3)).astype(np.float32)
    y = X[:, 0] + rng.normal(size=20 + k).astype(np.float32)
    kernel = RWPO(model, num_particles=16, dense_mass=False)
    mcmc = MCMC(kernel, num_warmup=20, num_samples=20, progress_bar=progress_bar)
    mcmc.run(jax.random.key(k), X, y)
    draws.append(mcmc.get_samples()["beta"])
    print(memory_maps()[0], flush=True)
    if clear_every and (k + 1) % clear_every == 0:
        jax.clear_caches()
assert all(np.isfinite(x).all() for x in draws)
"""


def maps_of_loop(number: int, progress_bar: bool, clear_every: int) -> list[int]:
    """Memory maps before the loop and after each of its runs, in a process of its own."""
    bar = "bar" if progress_bar else "none"
    command = [sys.executable, "-c", LOOP, str(number), bar, str(clear_every)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    maps = [int(line) for line in result.stdout.split()]
    print(f"{number} data sets, progress bar {bar}, maps: {maps}")
    return maps


def num_programs(name: str) -> int:
    """Programs of `CompiledOnce`, called after their function, that are loaded in this process."""
    gc.collect()
    loaded = jax.local_devices()[0].client.live_executables()
    return sum(x.hlo_modules()[0].name == f"jit_{name}" for x in loaded)


def test_programs_of_many_shapes_and_kernels_are_freed() -> None:
    """Only the last ones are kept; one of these runs again without being traced."""
    traced = []

    def many_sines(constants: int, x: jax.Array, args: tuple, kwargs: dict) -> jax.Array:
        traced.append(x.shape)
        return jnp.sin(x).sum() + constants

    kept = [CompiledOnce(many_sines) for _ in range(2)]
    for size in range(1, MAX_PROGRAMS + 3):
        for program in kept:
            assert program(size, jnp.zeros(size), (), {}) == size
    assert 1 < num_programs("many_sines") <= MAX_PROGRAMS
    count = len(traced)
    kept[1](MAX_PROGRAMS + 2, jnp.zeros(MAX_PROGRAMS + 2), (), {})
    assert len(traced) == count
    kept[1](1, jnp.zeros(1), (), {})
    assert len(traced) == count + 1


def test_warning_before_the_maps_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to do; where there are enough maps, or none are counted, nothing is said."""
    monkeypatch.setattr(memory, "memory_maps", lambda: (60_000, 65_530))
    with pytest.warns(UserWarning, match=r"60,000 of 65,530.*jax\.clear_caches\(\)"):
        memory.check_memory_maps()
    for maps in ((50_000, 65_530), None):
        monkeypatch.setattr(memory, "memory_maps", lambda maps=maps: maps)
        memory.check_memory_maps()


@pytest.mark.skipif(not HAS_MAPS, reason="only Linux counts memory maps")
def test_maps_are_counted() -> None:
    used, limit = memory.memory_maps() or (0, 0)
    assert 10 < used < limit


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MAPS, reason="only Linux counts memory maps")
def test_maps_stop_growing_with_a_progress_bar() -> None:
    """NumPyro keeps its last eight loops, this package the last programs of its own."""
    start, *maps = maps_of_loop(24, progress_bar=True, clear_every=0)
    assert maps[-1] - maps[-9] < 0.25 * (maps[7] - start)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MAPS, reason="only Linux counts memory maps")
def test_a_hundred_and_twenty_data_sets_without_a_progress_bar() -> None:
    """NumPyro keeps all its loops then; `jax.clear_caches()` frees them, as the FAQ says."""
    start, *maps = maps_of_loop(120, progress_bar=False, clear_every=10)
    # Twice as many as there are before the first clearing, after ten runs.
    assert max(maps) < start + 2 * (maps[9] - start)
    # The first run after each clearing has as many maps as the first of all.
    first = np.array(maps[::10])
    assert np.ptp(first) < 0.2 * first[0]
