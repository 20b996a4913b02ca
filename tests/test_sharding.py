"""Particles shared out over devices: the draws of one device, whatever the number of devices.

Devices are virtual ones of the CPU, in processes of their own, because their number is fixed when
JAX starts. Double precision, and the same start for all, so that rounding has no time to grow into
other acceptances.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import shrunken_means
from jax.sharding import Mesh

from numpyro_rwpo import RWPO
from numpyro_rwpo.placement import ONE_PLACE, check_mesh

PRELUDE = '''
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from helpers import lasso_regression, regression_data
from numpyro.infer import MCMC
from numpyro_rwpo import RWPO

jax.config.update("jax_enable_x64", True)
X, y = (np.asarray(x, float) for x in regression_data())

def draws(attention, mesh, num_chains=2, X=X, **options):
    """Draws of warm-up and sampling, from the same start: only that magnifies rounding at once."""
    sizes = {"num_warmup": 40, "num_chains": num_chains, "chain_method": "vectorized"}
    light = {"num_particles": 32, "attention": attention}
    alone = RWPO(lasso_regression, **light)
    key = jax.random.split(jax.random.key(0), num_chains) if num_chains > 1 else jax.random.key(0)
    args = ((X,), {"y": y})
    state = jax.jit(lambda state: alone.sample(state, *args))(alone.init(key, 40, None, *args))
    kernel = RWPO(lasso_regression, mesh=mesh, **light, **options)
    mcmc = MCMC(kernel, num_samples=103, **sizes)
    mcmc.post_warmup_state = state
    mcmc.progress_bar = True  # compiles one step
    fields = ("potential_energy", "num_gradients")
    mcmc.run(state.rng_key, X, y=y, extra_fields=fields)
    particles = mcmc.last_state.ensemble.particles
    assert mcmc.last_state.iteration == 64
    if mesh is not None:
        axis = options.get("particle_axis", "particles")
        assert particles.sharding.spec[int(num_chains > 1)] == axis, particles.sharding
        assert particles.addressable_shards[0].data.shape[-2] == 32 // mesh.shape[axis]
    samples = mcmc.get_samples(group_by_chain=True) | mcmc.get_extra_fields(group_by_chain=True)
    return {name: np.asarray(values) for name, values in samples.items()}
'''

VIRTUAL_DEVICES = """
attention, num_chains, *numbers = sys.argv[2:]
results = {}
for number in [0, *map(int, numbers)]:
    mesh = Mesh(jax.devices()[:number], ("particles",)) if number else None
    for name, values in draws(attention, mesh, int(num_chains)).items():
        results[f"{number}/{name}"] = values
np.savez(sys.argv[1], **results)
"""


def environment(num_devices: int) -> dict[str, str]:
    root = Path(__file__).parents[1]
    paths = [str(root), str(root / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        "PYTHONWARNINGS": "ignore",
    }


def run_script(script: str, *arguments: str, num_devices: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *arguments],
        env=environment(num_devices),
        capture_output=True,
        timeout=900,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]


def assert_same_draws(path: Path, numbers: list[int]) -> None:
    with np.load(path) as archive:
        results = dict(archive)
    names = [name[2:] for name in results if name.startswith("0/")]
    assert "weights" in names
    for name in names:
        for number in numbers:
            np.testing.assert_allclose(
                results[f"{number}/{name}"], results[f"0/{name}"], rtol=1e-6, atol=1e-6
            )


def test_two_devices(tmp_path: Path) -> None:
    path = tmp_path / "draws.npz"
    run_script(VIRTUAL_DEVICES, str(path), "copula", "1", "2", num_devices=2)
    assert_same_draws(path, [2])


@pytest.mark.slow
@pytest.mark.parametrize("num_chains", [1, 2])
@pytest.mark.parametrize("attention", ["copula", "marginal", "joint"])
def test_same_draws_on_1_2_4_and_8_devices(attention: str, num_chains: int, tmp_path: Path) -> None:
    path = tmp_path / "draws.npz"
    arguments = (str(path), attention, str(num_chains), "1", "2", "4", "8")
    run_script(VIRTUAL_DEVICES, *arguments, num_devices=8)
    assert_same_draws(path, [1, 2, 4, 8])


DATA_TOO = """
mesh = Mesh(np.reshape(jax.devices(), (2, 2)), ("observations", "chosen"))
shared = jax.device_put(X, NamedSharding(mesh, PartitionSpec("observations")))
results = {}
for number, options in enumerate(({"mesh": None},
                                  {"mesh": mesh, "particle_axis": "chosen", "X": shared})):
    results |= {f"{number}/{k}": v for k, v in draws("copula", **options).items()}
np.savez(sys.argv[1], **results)
"""


@pytest.mark.slow
def test_data_over_the_other_axis(tmp_path: Path) -> None:
    path = tmp_path / "draws.npz"
    run_script(DATA_TOO, str(path), num_devices=4)
    assert_same_draws(path, [1])


DISTRIBUTED = """
port, number, index, path, attention = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", int(number), int(index))
assert len(jax.devices()) == int(number) and len(jax.local_devices()) == 1
mesh = Mesh(jax.devices(), ("particles",))
results = {f"1/{k}": v for k, v in draws(attention, mesh).items()}
if int(index) == 0:
    np.savez(path, **results)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "attention"), [(2, "copula"), (4, "copula"), (2, "joint")])
def test_processes_that_talk_to_each_other(number: int, attention: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together, alone = tmp_path / "together.npz", tmp_path / "alone.npz"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRELUDE + DISTRIBUTED, str(port), str(number), str(index)]
            + [str(together), attention],
            env=environment(1),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(number)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * number, errors
    run_script(VIRTUAL_DEVICES, str(alone), attention, "2", num_devices=1)
    results = {**np.load(alone), **np.load(together)}
    np.savez(tmp_path / "both.npz", **results)
    assert_same_draws(tmp_path / "both.npz", [1])


# --------------------------------------------------------------------------------- arguments


def one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), ("particles",))


@pytest.mark.parametrize(
    ("mesh", "axis", "error", "match"),
    [
        (8, None, TypeError, r"`mesh` must be a jax.sharding.Mesh .*; got 8"),
        (None, "particles", ValueError, "got 'particles' without a mesh"),
        (one_device, "chains", ValueError, r"one of the axes of `mesh`, \('particles',\)"),
    ],
)
def test_wrong_meshes(mesh: Any, axis: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        RWPO(shrunken_means, mesh=mesh() if callable(mesh) else mesh, particle_axis=axis)


def test_two_axes_need_a_name() -> None:
    mesh = Mesh(np.reshape(jax.devices()[:2], (2, 1)), ("a", "b"))
    with pytest.raises(ValueError, match=r"\('a', 'b'\); got None"):
        RWPO(shrunken_means, mesh=mesh)
    assert check_mesh(mesh, "b").axis == "b"
    assert check_mesh(None, None) is ONE_PLACE


def test_particles_that_cannot_be_shared_out_equally() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("particles",))
    kernel = RWPO(shrunken_means, num_particles=9, mesh=mesh)
    with pytest.raises(ValueError, match="multiple of the 2 devices .* 'particles'; got 9"):
        kernel.init(jax.random.key(0), 4, None, (np.zeros(3, np.float32), 1.0), {})
