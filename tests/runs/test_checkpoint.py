"""Saving a run and going on from it: same draws, whole files, clear errors."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import light_kernel, shrunken_means
from numpyro.infer import MCMC, NUTS

import numpyro_rwpo
from numpyro_rwpo import RWPO, load_state, run_in_pieces, save_state
from numpyro_rwpo.dynamics.factors import LowRank
from numpyro_rwpo.dynamics.flows import ExactFlow
from numpyro_rwpo.runs import checkpoint
from numpyro_rwpo.support import archive

DATA, SCALE = np.array([0.5, -1.0, 2.0], np.float32), 0.7
NUM_WARMUP, NUM_SAMPLES = 12, 20


def small(**options: Any) -> RWPO:
    return light_kernel(shrunken_means, **{"num_particles": 8, **options})


def make_mcmc(kernel: RWPO | None = None, **changes: Any) -> MCMC:
    settings = {
        "num_warmup": NUM_WARMUP,
        "num_samples": NUM_SAMPLES,
        "num_chains": 2,
        "chain_method": "vectorized",
        **changes,
    }
    mcmc = MCMC(kernel or small(), **settings)
    mcmc.progress_bar = True  # compiles one step and not the whole loop, on every run
    return mcmc


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit, structure and dtypes included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def checkpoint_kernel() -> RWPO:
    """A kernel whose programs are compiled once."""
    return small()


@pytest.fixture(scope="module")
def warmed(checkpoint_kernel: RWPO) -> MCMC:
    """After warm-up, and then twice `NUM_SAMPLES` draws."""
    mcmc = make_mcmc(checkpoint_kernel)
    mcmc.warmup(jax.random.key(0), DATA, SCALE)
    return mcmc


@pytest.fixture(scope="module")
def saved(warmed: MCMC, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "run.npz"
    save_state(warmed, path)
    return path


# ----------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.key(1, impl="rbg")])
@pytest.mark.parametrize("as_state", [True, False])
def test_state_comes_back(warmed: MCMC, as_state: bool, key: jax.Array, tmp_path: Path) -> None:
    mcmc = make_mcmc()
    keys = jax.random.split(key, 2)
    mcmc._last_state = warmed.post_warmup_state._replace(rng_key=keys)
    assert isinstance(mcmc.last_state.move.flow, ExactFlow)
    save_state(mcmc.last_state if as_state else mcmc, tmp_path / "run")
    assert_same(load_state(tmp_path / "run", mcmc), mcmc.last_state)


def test_old_style_keys_come_back(warmed: MCMC, tmp_path: Path) -> None:
    state = warmed.post_warmup_state
    state = state._replace(rng_key=jax.random.key_data(state.rng_key))
    save_state(state, tmp_path / "run.npz")
    assert_same(load_state(tmp_path / "run.npz"), state)


@pytest.mark.parametrize(
    ("dense_mass", "dim", "form"),
    [
        (False, 3, "diagonal"),
        ("auto", 20, "low rank"),  # more coordinates than half the particles
        ("auto", 3, "dense"),
    ],
)
def test_state_with_any_flow_comes_back(
    dense_mass: bool | str, dim: int, form: str, tmp_path: Path
) -> None:
    """Flows are named tuples of different fields, and their factors arrays or named tuples."""
    kernel = small(num_particles=16, dense_mass=dense_mass, laplace_sites=None)
    model_args = (np.resize(DATA, dim), SCALE)
    state = kernel.init(jax.random.key(0), NUM_WARMUP, None, model_args, {})
    factor = state.move.flow.factor
    if form == "low rank":
        assert isinstance(factor, LowRank)
    else:
        assert factor.ndim == 1 + (form == "dense")
    save_state(state, tmp_path / "run.npz")
    assert_same(load_state(tmp_path / "run.npz"), state)


def test_resumed_run_gives_the_same_draws(warmed: MCMC, saved: Path) -> None:
    warmed.run(warmed.post_warmup_state.rng_key, DATA, SCALE)
    expected = warmed.get_samples(group_by_chain=True)
    mcmc = make_mcmc()
    mcmc.post_warmup_state = load_state(saved, mcmc)
    mcmc.run(mcmc.post_warmup_state.rng_key, DATA, SCALE)
    assert_same(mcmc.get_samples(group_by_chain=True), expected)
    assert_same(mcmc.last_state, warmed.last_state)


class Pair(NamedTuple):
    first: Any
    second: Any


def pair_potential(values: Any) -> jax.Array:
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(values)) / 2


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(2, np.float32),
        {"b": [np.zeros(2, np.float32), None], "a": (np.zeros((), np.float32),)},
        Pair(np.zeros(2, np.float32), {"x": np.zeros(1, np.float32)}),
    ],
    ids=["array", "containers", "named tuple"],
)
def test_draws_of_any_structure(values: Any, warmed: MCMC, tmp_path: Path) -> None:
    state = warmed.post_warmup_state._replace(z=values)
    if isinstance(values, Pair):  # a state as it comes from such a run
        kernel = light_kernel(potential_fn=pair_potential, num_particles=8)
        state = kernel.init(jax.random.key(0), 4, values, (), {})
    save_state(state, tmp_path / "run.npz")
    assert_same(load_state(tmp_path / "run.npz", init_params=values), state)


def test_unknown_structure_needs_init_params(warmed: MCMC, tmp_path: Path) -> None:
    values = Pair(np.zeros(2, np.float32), np.zeros(1, np.float32))
    save_state(warmed.post_warmup_state._replace(z=values), tmp_path / "run.npz")
    with pytest.raises(ValueError, match=r"`init_params` must be values like those .*; got None"):
        load_state(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="`init_params` must be values like those"):
        load_state(tmp_path / "run.npz", init_params=values.first)


def test_double_precision(x64: None, tmp_path: Path) -> None:
    state = small().init(jax.random.key(0), 4, None, (DATA.astype(float), SCALE), {})
    assert state.ensemble.particles.dtype == np.float64
    save_state(state, tmp_path / "run.npz")
    assert_same(load_state(tmp_path / "run.npz"), state)
    with jax.enable_x64(False), pytest.raises(ValueError, match="double precision, which is not"):
        load_state(tmp_path / "run.npz")


# --------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("mcmc", "match"),
    [
        (lambda: make_mcmc(num_warmup=13), "'?num_warmup was 12 and is 13"),
        (lambda: make_mcmc(num_chains=3), "num_chains was 2 and is 3"),
        (lambda: make_mcmc(small(num_particles=9)), "num_particles was 8 and is 9"),
        (
            lambda: make_mcmc(small(attention="marginal")),
            "attention was 'joint' and is 'marginal'",
        ),
        (
            lambda: make_mcmc(small(laplace_sites=["theta"])),
            r"laplace_sites was 'auto' and is \['theta'\]",
        ),
    ],
)
def test_other_settings_are_refused(mcmc: Callable[[], MCMC], match: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=match):
        load_state(saved, mcmc())


def other_sites(data: Any, scale: Any) -> None:
    numpyro.sample("mu", dist.Laplace(0, scale).expand([3]))


def more_sites(data: Any, scale: Any) -> None:
    numpyro.sample("theta", dist.Laplace(0, scale).expand([5]))


@pytest.mark.parametrize("model", [other_sites, more_sites])
def test_another_model_is_refused(model: Callable[..., None], saved: Path) -> None:
    mcmc = make_mcmc(light_kernel(model, num_particles=8))
    mcmc.post_warmup_state = load_state(saved, mcmc)
    with pytest.raises(ValueError, match=r"state .* must be of the same model.*'theta': \(3,\)"):
        mcmc.run(mcmc.post_warmup_state.rng_key, DATA, SCALE)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`run` must be a numpyro.infer.MCMC whose kernel is RWPO"):
        save_state(MCMC(NUTS(shrunken_means), num_warmup=1, num_samples=1), tmp_path / "run.npz")
    with pytest.raises(TypeError, match="got dict"):
        save_state({}, tmp_path / "run.npz")
    with pytest.raises(ValueError, match="`run` has no state yet"):
        save_state(make_mcmc(), tmp_path / "run.npz")


def test_files_of_other_kinds_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    with pytest.raises(FileNotFoundError):
        load_state(path)
    whole = saved.read_bytes()
    marker = tmp_path / "unpickled"
    payload = pickle.dumps(Unpickled(str(marker)))
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    contents = [b"", whole[: len(whole) // 2], bytes(damaged), b"words", payload]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a file written by numpyro_rwpo"):
            load_state(path)
    np.savez(path, header=np.array([Unpickled(str(marker))], object), allow_pickle=True)
    with pytest.raises(ValueError, match="must be a file written by numpyro_rwpo"):
        load_state(path)
    assert not marker.exists()
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="must be a file written by numpyro_rwpo"):
        load_state(path)


class Unpickled:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def rewrite(saved: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The saved file with a changed header and changed arrays."""
    with np.load(saved) as archive_:
        arrays = dict(archive_)
    header = json.loads(str(arrays.pop("header")))
    change({"header": header, "arrays": arrays})
    np.savez(path, header=np.array(json.dumps(header)), **arrays)


def test_versions(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    rewrite(saved, path, lambda parts: parts["header"].update(format=archive.FORMAT + 1))
    with pytest.raises(ValueError, match="has format 2 .* reads format 1"):
        load_state(path)
    rewrite(saved, path, lambda parts: parts["header"].update(version="0.0.1"))
    with pytest.warns(UserWarning, match=r"written by numpyro-rwpo 0\.0\.1"):
        load_state(path)
    rewrite(saved, path, lambda parts: parts["arrays"].pop("step_size"))
    with pytest.raises(ValueError, match="the field 'step_size' is missing"):
        load_state(path)
    rewrite(saved, path, lambda parts: parts["arrays"].update(extra=np.zeros(1, np.float32)))
    with pytest.raises(ValueError, match=r"the fields \['extra'\] are unknown"):
        load_state(path)


# ------------------------------------------------------------------------------ full disks


def fail(code: int) -> Callable[..., None]:
    def raise_error(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    return raise_error


@pytest.mark.parametrize("where", ["savez", "fsync", "replace"])
def test_failed_write_keeps_the_old_file(
    where: str, warmed: MCMC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.npz"
    save_state(warmed, path)
    before = path.read_bytes()
    module = archive.np if where == "savez" else archive.os
    monkeypatch.setattr(module, where, fail(errno.ENOSPC))
    with pytest.raises(OSError, match=r"run.npz': the disk is full; the file .* is unchanged") as e:
        save_state(warmed, path)
    assert e.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.npz"]
    with pytest.raises(OSError, match="the disk is full; no file was made"):
        save_state(warmed, tmp_path / "other.npz")


def test_full_disk(warmed: MCMC, tmp_path: Path) -> None:
    """A real one: the size of files is limited while the checkpoint is written."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "run.npz"
    save_state(warmed, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(OSError, match="File too large; the file .* is unchanged"):
            save_state(warmed, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.npz"]


def test_no_folder(warmed: MCMC, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory; no file was made"):
        save_state(warmed, tmp_path / "missing" / "run.npz")


# ------------------------------------------------------------------------------- in pieces


@pytest.mark.parametrize(
    ("thinning", "fields"),
    [
        (1, ()),
        pytest.param(2, ("num_steps", "potential_energy"), marks=pytest.mark.slow),
    ],
)
def test_pieces_are_one_run(
    thinning: int, fields: tuple[str, ...], checkpoint_kernel: RWPO, tmp_path: Path
) -> None:
    whole = make_mcmc(checkpoint_kernel, thinning=thinning)
    whole.run(jax.random.key(0), DATA, SCALE, extra_fields=fields)
    for _ in range(2):  # the second finds all done
        mcmc = make_mcmc(checkpoint_kernel, thinning=thinning)
        options: dict[str, Any] = {"draws_per_piece": 8, "extra_fields": fields}
        run_in_pieces(mcmc, tmp_path / "run", jax.random.key(0), DATA, SCALE, **options)
        assert mcmc.num_samples == NUM_SAMPLES
        assert mcmc.post_warmup_state is None
        assert_same(mcmc.last_state, whole.last_state)
        for get in ("get_samples", "get_extra_fields"):
            for grouped in (False, True):
                expected = getattr(whole, get)(group_by_chain=grouped)
                assert_same(getattr(mcmc, get)(group_by_chain=grouped), expected)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"state.npz", "draws_000.npz", "draws_001.npz", "draws_002.npz"}
    assert numpyro_rwpo.diagnose(mcmc) is not None


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "when", [pytest.param(k, marks=pytest.mark.slow) if k != 2 else k for k in range(5)]
)
def test_interrupted_pieces_go_on(
    when: int, checkpoint_kernel: RWPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file's replacement the interruption hits: state, draws, state, draws, state."""
    whole = make_mcmc(checkpoint_kernel)
    whole.run(jax.random.key(0), DATA, SCALE)
    replacements = iter(range(100))
    replace = os.replace

    def interrupt(*args: Any) -> None:
        if next(replacements) == when:
            raise Interrupted
        replace(*args)

    monkeypatch.setattr(archive.os, "replace", interrupt)
    mcmc = make_mcmc(checkpoint_kernel)
    arguments = (tmp_path, jax.random.key(0), DATA, SCALE)
    with pytest.raises(Interrupted):
        run_in_pieces(mcmc, *arguments, draws_per_piece=10)
    run_in_pieces(mcmc, *arguments, draws_per_piece=10)
    assert_same(mcmc.get_samples(), whole.get_samples())


@pytest.mark.slow
def test_more_draws_are_added(tmp_path: Path) -> None:
    whole = make_mcmc(num_samples=30)
    whole.run(jax.random.key(0), DATA, SCALE)
    for num_samples in (20, 30):
        mcmc = make_mcmc(num_samples=num_samples)
        run_in_pieces(mcmc, tmp_path, jax.random.key(0), DATA, SCALE, draws_per_piece=10)
    assert_same(mcmc.get_samples(), whole.get_samples())


def test_pieces_of_other_sizes_are_refused(checkpoint_kernel: RWPO, tmp_path: Path) -> None:
    mcmc = make_mcmc(checkpoint_kernel)
    arguments = (mcmc, tmp_path, jax.random.key(0), DATA, SCALE)
    for size in (0, 2.5, "all"):
        with pytest.raises(ValueError, match="`draws_per_piece` .* must be positive multiples"):
            run_in_pieces(*arguments, draws_per_piece=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiples of `mcmc.thinning`, 3; got 5 and 20"):
        run_in_pieces(make_mcmc(thinning=3), *arguments[1:], draws_per_piece=5)
    run_in_pieces(*arguments, draws_per_piece=10)
    with pytest.raises(ValueError, match="the same `draws_per_piece`"):
        run_in_pieces(*arguments, draws_per_piece=8)
    (tmp_path / "draws_001.npz").unlink()
    with pytest.raises(ValueError, match=r"the files of pieces \[1\] are missing"):
        run_in_pieces(*arguments, draws_per_piece=10)
    with pytest.raises(ValueError, match="no more draws than asked for"):
        run_in_pieces(make_mcmc(num_samples=10), *arguments[1:], draws_per_piece=10)


def test_extra_fields_of_pieces_are_arrays(checkpoint_kernel: RWPO, tmp_path: Path) -> None:
    mcmc = make_mcmc(checkpoint_kernel)
    options: dict[str, Any] = {"draws_per_piece": 10, "extra_fields": ("ensemble",)}
    with pytest.raises(ValueError, match="`extra_fields` of a run in pieces must be arrays"):
        run_in_pieces(mcmc, tmp_path, jax.random.key(0), DATA, SCALE, **options)


def test_no_pickle_in_sight() -> None:
    for module in (archive, checkpoint):
        text = Path(str(module.__file__)).read_text()
        assert "import pickle" not in text
        assert "allow_pickle=True" not in text
