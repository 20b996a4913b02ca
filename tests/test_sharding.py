"""Particles shared out over devices: the draws of one device, whatever the number of devices.

Phases are compared one by one, in double precision, on the two virtual CPU devices of all tests.
Whole runs are compared where nothing magnifies rounding: from the start on for a normal posterior,
from the first ensemble on for a lasso, whose quasi-Newton paths turn the last digit of a potential
into another choice among equally good approximations. These need processes of their own, because
the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import shrunken_means
from jax.sharding import Mesh
from numpyro.infer import MCMC

from benchmarks import devices
from benchmarks.communication import traffic
from numpyro_rwpo import RWPO, laplace_prior
from numpyro_rwpo.dynamics.adaptation import adapt
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate
from numpyro_rwpo.dynamics.estimates import Adaptation, initial_adaptation, learn_moments, make_flow
from numpyro_rwpo.dynamics.moves import hamiltonian_sweep
from numpyro_rwpo.dynamics.pathfinder import quasi_newton_start
from numpyro_rwpo.dynamics.settings import Numbers, Settings
from numpyro_rwpo.dynamics.transport import initial_progress, transport_step
from numpyro_rwpo.heads.correlation import fit_correlation
from numpyro_rwpo.heads.online_softmax import streamed_attention
from numpyro_rwpo.heads.registry import find_head
from numpyro_rwpo.heads.ring import ring_attention
from numpyro_rwpo.model.target import Differentiation, Target
from numpyro_rwpo.support.sharding import ONE_PLACE, Placement, check_mesh

RESULTS = Path(devices.__file__).parent / "results"
DIM = 5
SETTINGS = devices.settings_of(64, DIM, "copula", ONE_PLACE)
LOW_RANK = SETTINGS._replace(dense=False, rank=2)


def two_devices() -> Placement:
    return check_mesh(Mesh(np.array(jax.devices()[:2]), ("particles",)), None)


def coupled(x: jax.Array, centering: jax.Array) -> jax.Array:
    """Smooth, convex, not normal, infinite where the first coordinate is above 3."""
    return jnp.log(jnp.cosh(x)).sum() + x.sum() ** 2 / 4 - jnp.log(jnp.maximum(3 - x[0], 0.0))


def lasso(placement: Placement) -> Target:
    prior = laplace_prior(jnp.full(DIM, 2.0))
    return Differentiation(1.0, False).target(coupled, prior)._replace(placement=placement)


def positions(num_particles: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(num_particles, DIM)) / 2


def start(target: Target, ensemble: Ensemble, _: Adaptation) -> Any:
    """Of a smooth posterior."""
    smooth = target._replace(full_prior=None)
    return quasi_newton_start(jax.random.key(0), ensemble.particles, smooth)


def step(target: Target, ensemble: Ensemble, adaptation: Adaptation, attention: str) -> Any:
    """Moments, then a step of the flow and what is evaluated after it."""
    learned = learn_moments(adaptation, ensemble, target)
    moved, progress = transport_step(
        ensemble,
        initial_progress(ensemble.smooth.dtype),
        learned.preconditioner,
        target,
        attention=find_head(attention),
        relative_time=0.1,
    )
    # Some of them where the potential is infinite.
    return evaluate(moved.particles.at[::9, 0].set(4.0), target), progress, learned


def update(
    target: Target, ensemble: Ensemble, adaptation: Adaptation, settings: Settings, turn: int
) -> Any:
    """A sweep with the flow whose turn it is, and what is learned from it."""
    adaptation = learn_moments(adaptation, ensemble, target)._replace(updates=jnp.array(turn))
    return adapt(jax.random.key(1), ensemble, adaptation, target, settings, Numbers(0.8, 0.1))


PHASES = {
    "start": start,
    "copula": partial(step, attention="copula"),
    "marginal": partial(step, attention="marginal"),
    "joint": partial(step, attention="joint"),
    "low-rank": partial(step, attention="copula"),
    "harmonic": partial(update, settings=SETTINGS, turn=0),
    "harmonic, low-rank": partial(update, settings=LOW_RANK, turn=0),
    "exact": partial(update, settings=SETTINGS, turn=1),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("start", marks=pytest.mark.slow),
        "copula",
        pytest.param("marginal", marks=pytest.mark.slow),
        pytest.param("joint", marks=pytest.mark.slow),
        "low-rank",
        "harmonic",
        pytest.param("harmonic, low-rank", marks=pytest.mark.slow),
        "exact",
    ],
)
def test_phase_on_two_devices(phase: str) -> None:
    particles = jnp.asarray(positions(64))
    settings = LOW_RANK if "low-rank" in phase else SETTINGS
    adaptation = initial_adaptation(DIM, particles.dtype, settings)
    smooth, gradient = lasso(ONE_PLACE).value_and_grad(particles)

    def on(placement: Placement) -> Any:
        ensemble = placement.rows(Ensemble(particles, smooth, gradient))
        return jax.jit(partial(PHASES[phase], lasso(placement)))(ensemble, adaptation)

    alone, shared = on(ONE_PLACE), on(two_devices())
    arrays = jax.tree.leaves(shared)
    assert any(len(x.addressable_shards[0].data) < len(x) for x in arrays if x.shape[:1] == (64,))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), alone, shared
    )


@pytest.mark.usefixtures("x64")
def test_factor_model_on_two_devices() -> None:
    """More coordinates than particles, one in three with a common factor."""
    rng = np.random.default_rng(3)
    normal = rng.normal(size=(16, 30)) + 3 * rng.normal(size=(16, 1)) * (np.arange(30) % 3 == 0)

    def pulled(placement: Placement) -> jax.Array:
        rows = placement.rows(jnp.asarray(normal))
        return jax.jit(lambda x: placement.rows(fit_correlation(x).pull(x)))(rows)

    alone, shared = pulled(ONE_PLACE), pulled(two_devices())
    assert len(shared.addressable_shards[0].data) == 8
    assert np.abs(alone).max() > 0.1  # there is a factor
    np.testing.assert_allclose(alone, shared, rtol=1e-10, atol=1e-10)


def test_ring_attention() -> None:
    num_particles = 1200  # 600 keys on a device are not whole blocks
    rng = np.random.default_rng(2)
    queries, keys = rng.normal(size=(2, num_particles, 3)).astype(np.float32)
    bias = rng.normal(size=(num_particles, 1)).astype(np.float32)
    scale = np.array([0.3, 1.0, 2.0], np.float32)
    ring = partial(ring_attention, mesh=two_devices().mesh, axis="particles")
    expected = streamed_attention(jnp.asarray(queries), jnp.asarray(keys), bias, scale)
    for got, want in zip(jax.jit(ring)(queries, keys, bias, scale), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------- communication


def sent(function: Callable[..., Any], num_particles: int) -> dict[str, int]:
    """Bytes that one of two devices gets in a compiled step, beside those of rare branches."""
    placement = two_devices()
    target = lasso(placement)
    rows = placement.rows(jnp.zeros((num_particles, DIM), jnp.float32))
    ensemble = Ensemble(rows, placement.rows(jnp.zeros(num_particles)), rows)
    adaptation = initial_adaptation(DIM, rows.dtype, SETTINGS)
    compiled = jax.jit(partial(function, target)).lower(ensemble, adaptation).compile()
    return traffic(compiled.as_text()).always


def one_step(target: Target, ensemble: Ensemble, adaptation: Adaptation, attention: str) -> Any:
    progress, metric = initial_progress(ensemble.smooth.dtype), adaptation.preconditioner
    options = {"attention": find_head(attention), "relative_time": 0.1}
    return transport_step(ensemble, progress, metric, target, **options)


def one_sweep(target: Target, ensemble: Ensemble, adaptation: Adaptation, flow: str) -> Any:
    step_size, num_steps = jnp.full((), 0.5), jnp.full((), 3)
    made = make_flow(flow, adaptation, target)
    return hamiltonian_sweep(jax.random.key(1), ensemble, made, step_size, num_steps, target)


@pytest.mark.parametrize("flow", ["exact", "harmonic"])
def test_a_sweep_sends_nothing(flow: str) -> None:
    assert sum(sent(partial(one_sweep, flow=flow), 64).values()) == 0


def test_the_copula_sends_sums_whatever_the_number_of_particles() -> None:
    counts = sent(partial(one_step, attention="copula"), 4096)
    # Histograms, correlations, and means, variances and range of the coordinates.
    assert 4 * DIM * (65 + DIM) <= counts["all-reduce"] <= 4 * DIM * (65 + DIM + 8)
    assert counts["all-gather"] == 4 * 512  # speeds, for their median
    assert counts["collective-permute"] == counts["all-to-all"] == counts["reduce-scatter"] == 0


def test_the_ring_sends_every_particle_once() -> None:
    counts = sent(partial(one_step, attention="joint"), 2048)  # whole blocks on each device
    assert counts["collective-permute"] == 4 * 2048 * (DIM + 1)
    assert counts["all-reduce"] <= 4 * DIM * 8


def test_traffic_counts_loops_and_keeps_branches_apart() -> None:
    placement = two_devices()

    def program(x: jax.Array, flag: jax.Array) -> jax.Array:
        total = jax.lax.fori_loop(
            0, 7, lambda _, c: placement.whole(placement.rows(jnp.sin(x + c[None])).sum(0)), x[0]
        )
        return jax.lax.cond(flag, lambda t: t + placement.whole(jnp.cos(x).sum(0)), jnp.sin, total)

    x = placement.rows(jnp.ones((4, 3)))
    text = jax.jit(program).lower(x, jnp.array(True)).compile().as_text()
    always, branches, _ = traffic(text)
    assert always["all-reduce"] in (7 * 12, 7 * 12 + 12)  # the first row may be one more
    assert branches["all-reduce"] == 12


def test_counted_for_a_thousand_devices() -> None:
    """The committed counts: tables from them, and what grows with particles and devices."""
    records = json.loads((RESULTS / "devices.json").read_text())["records"]
    assert devices.page(records) + "\n" == (RESULTS / "devices.md").read_text()
    copula = [r for r in records if r["attention"] == "copula" and r["num_devices"] > 1]
    assert max(r["num_devices"] for r in copula) == 1024
    assert not any(sum(r["refresh"]["bytes"].values()) for r in copula)
    for piece in ("step", "update"):
        sizes = [sum(r[piece]["bytes"].values()) for r in copula]
        assert max(sizes) < 1.01 * min(sizes)  # an ensemble grows 128 times
        dim = copula[0]["dim"]
        assert max(sizes) < 4 * (3 * dim**2 + 256 * dim)


# ------------------------------------------------------------------------------------ whole runs

PRELUDE = '''
import functools, sys
import jax, numpy as np
import numpyro, numpyro.distributions as dist
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from helpers import lasso_regression, regression_data
from numpyro.infer import MCMC
from numpyro_rwpo import RWPO

jax.config.update("jax_enable_x64", True)
X, y = (np.asarray(x, float) for x in regression_data())
FIELDS = ("potential_energy", "diverging")

def normal_regression(X, y=None):
    weights = numpyro.sample("weights", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ weights, 1.0), obs=y)

def run(model, attention, num_chains, mesh, first, X=X, **options):
    """Warm-up and draws; from the state after the first iteration, or from the start."""
    key = jax.random.split(jax.random.key(0), num_chains) if num_chains > 1 else jax.random.key(0)
    kernel = RWPO(model, num_particles=32, attention=attention, mesh=mesh, **options)
    sizes = {"num_warmup": 40, "num_chains": num_chains, "chain_method": "vectorized"}
    mcmc = MCMC(kernel, num_samples=103, **sizes)
    mcmc.progress_bar = True  # compiles one step
    if first is not None:
        placed = kernel.init(key, 40, None, (X,), {"y": y})
        if jax.process_count() == 1:  # spares a compilation; JAX cannot do it among processes
            first = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), first, placed)
        mcmc.post_warmup_state = first
    mcmc.run(key if first is None else first.rng_key, X, y=y, extra_fields=FIELDS)
    assert mcmc.last_state.iteration == (103 if first is None else 64)
    particles = mcmc.last_state.ensemble.particles
    if mesh is not None:
        axis = options.get("particle_axis", "particles")
        assert particles.addressable_shards[0].data.shape[-2] == 32 // mesh.shape[axis]
    samples = mcmc.get_samples(group_by_chain=True) | mcmc.get_extra_fields(group_by_chain=True)
    return {name: np.asarray(values) for name, values in samples.items()}

@functools.cache
def after_start(attention, num_chains):
    key = jax.random.split(jax.random.key(0), num_chains) if num_chains > 1 else jax.random.key(0)
    alone = RWPO(lasso_regression, num_particles=32, attention=attention)
    args = ((X,), {"y": y})
    return jax.jit(lambda state: alone.sample(state, *args))(alone.init(key, 40, None, *args))

def draws(attention, mesh, num_chains=1, X=X, **options):
    """Draws of both runs by name, of one chain only those of the lasso."""
    runs = {lasso_regression: after_start(attention, num_chains)}
    if num_chains > 1:
        runs[normal_regression] = None
    results = {}
    for model, first in runs.items():
        samples = run(model, attention, num_chains, mesh, first, X, **options)
        results |= {f"{model.__name__} {name}": values for name, values in samples.items()}
    return results
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
        timeout=1800,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]


def assert_same_draws(path: Path, numbers: list[int]) -> None:
    with np.load(path) as archive:
        results = dict(archive)
    names = [name[2:] for name in results if name.startswith("0/")]
    assert "lasso_regression weights" in names
    for name in names:
        for number in numbers:
            np.testing.assert_allclose(
                results[f"{number}/{name}"], results[f"0/{name}"], rtol=1e-8, atol=1e-8
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "num_chains", "numbers"),
    [
        ("copula", 2, [1, 2, 4, 8]),
        ("joint", 1, [1, 2, 4, 8]),
        ("joint", 2, [4]),
        ("marginal", 1, [8]),
    ],
)
def test_same_draws_whatever_the_number_of_devices(
    attention: str, num_chains: int, numbers: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "draws.npz"
    arguments = (str(path), attention, str(num_chains), *map(str, numbers))
    run_script(VIRTUAL_DEVICES, *arguments, num_devices=8)
    assert_same_draws(path, numbers)


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
    run_script(VIRTUAL_DEVICES, str(alone), attention, "1", num_devices=1)
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


def test_pickled_placement() -> None:
    mesh = Mesh(np.reshape(jax.devices()[:2], (2, 1)), ("a", "b"))
    for placement in (check_mesh(mesh, "b"), ONE_PLACE):
        assert pickle.loads(pickle.dumps(placement)) == placement


def test_particles_that_cannot_be_shared_out_equally() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("particles",))
    kernel = RWPO(shrunken_means, num_particles=9, mesh=mesh)
    with pytest.raises(ValueError, match="multiple of the 2 devices .* 'particles'; got 9"):
        kernel.init(jax.random.key(0), 4, None, (np.zeros(3, np.float32), 1.0), {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPyro's way to run in parallel
def test_parallel_chains_have_a_device_each() -> None:
    kernel = RWPO(shrunken_means, num_particles=8, mesh=two_devices().mesh)
    mcmc = MCMC(kernel, num_warmup=4, num_samples=4, num_chains=2, chain_method="parallel")
    with pytest.raises(ValueError, match="'parallel'. would put whole chains: use 'vectorized'"):
        mcmc.run(jax.random.key(0), np.zeros(3, np.float32), 1.0)
