"""Draws of one sampler, read from whatever holds them: ``MCMC``, ArviZ data, dictionaries."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from numpyro_rwpo.diagnostics.posterior import coordinate_names
from numpyro_rwpo.runs.mcmc import is_rwpo, read_finished_run


class GradientCount(NamedTuple):
    """Gradient evaluations of one run.

    Attributes:
        number: how many; ``None`` if unknown.
        includes_warmup: whether those of warm-up are counted.
    """

    number: int | None
    includes_warmup: bool = True


class Draws(NamedTuple):
    """Draws of one sampler.

    Attributes:
        label: name of the sampler in tables and figures.
        values: draws side by side, (chains, draws, num_coordinates).
        names: names of the coordinates.
        is_noise_free: whether these are noise-free particles and not draws of a Markov chain.
        seconds: wall time that the draws took; ``None`` if unknown.
        gradients: gradient evaluations that the draws took.
    """

    label: str
    values: np.ndarray
    names: list[str]
    is_noise_free: bool
    seconds: float | None
    gradients: GradientCount


def default_labels(runs: tuple[Any, ...]) -> list[str]:
    """Names of the kernels, numbered where they repeat; ``draws`` for anything else."""
    names = [type(run.sampler).__name__ if hasattr(run, "sampler") else "draws" for run in runs]
    return [
        f"{name} {k}" if names.count(name) > 1 else name for k, name in enumerate(names, start=1)
    ]


def _is_draws(value: Any) -> bool:
    """Whether a value is the draws of one array, rather than a container of such."""
    is_array = jax.tree_util.all_leaves([value])
    return is_array or not all(np.ndim(leaf) >= 2 for leaf in jax.tree.leaves(value))


def flat_sites(samples: Any) -> dict[str, Any]:
    """Draws by name, where deterministic sites may be dictionaries, tuples or lists of arrays.

    Each array of such a site gets a name of its own: ``effect.x`` for ``samples["effect"]["x"]``,
    ``effect.0`` for ``samples["effect"][0]``, or ``effect['x']`` where another site is called
    ``effect.x``. Empty containers have no draws.

    Args:
        samples: arrays (chains, draws, ...) by site, or any pytree of arrays; ``x`` is the name of
            an array alone.
    """
    if not isinstance(samples, Mapping):
        paths = jax.tree_util.tree_leaves_with_path(samples)
        return {_path_name(path) or "x": leaf for path, leaf in paths}
    draws: dict[str, Any] = {}
    for site, value in samples.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=_is_draws):
            name = f"{site}.{_path_name(path)}" if path else str(site)
            is_taken = bool(path) and name in samples
            draws[f"{site}{jax.tree_util.keystr(path)}" if is_taken else name] = leaf
    return draws


def _path_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _real_arrays(draws: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of real numbers: complex ones in two parts; what holds no numbers is left out."""
    arrays: dict[str, np.ndarray] = {}
    for name, values in draws.items():
        array = np.asarray(values)
        if array.dtype.kind == "c":
            arrays |= {f"{name}.real": array.real, f"{name}.imag": array.imag}
        elif array.dtype.kind in "biuf":
            arrays[str(name)] = array
    return arrays


def samples_of(run: Any) -> dict[str, np.ndarray]:
    """Draws by name, each (chains, draws, ...): real numbers, and every noise-free particle once.

    Names are those of :func:`flat_sites`.

    Raises:
        TypeError: ``run`` is neither an ``MCMC`` nor ArviZ data nor a dictionary.
        ValueError: it has not been run.
    """
    if hasattr(run, "get_samples") and hasattr(run, "sampler"):
        samples = _mcmc_samples(run)
    elif isinstance(run, dict):
        samples = flat_sites(run)
    elif isinstance(run, Mapping) and "posterior" in run:
        data = run["posterior"]
        dims = ("chain", "draw", ...)
        samples = {str(k): data[k].transpose(*dims).values for k in data.data_vars}
    else:
        raise TypeError(
            "`compare_runs` takes MCMC objects, InferenceData or DataTree with a group "
            "'posterior', or dictionaries of draws (chains, draws, ...); got "
            f"{type(run).__name__}."
        )
    return _real_arrays(samples)


def _mcmc_samples(mcmc: Any) -> Mapping[str, Any]:
    if mcmc.last_state is None:
        raise ValueError("A run has no draws yet; call `mcmc.run(...)` first.")
    samples = mcmc.get_samples(group_by_chain=True)
    if hasattr(samples, "_asdict"):
        samples = samples._asdict()
    draws = flat_sites(samples)
    if not is_rwpo(mcmc):
        return draws
    distinct = read_finished_run(mcmc).distinct
    return {name: values[:, distinct] for name, values in draws.items()}


def is_noise_free(run: Any) -> bool:
    """Whether a run is one of ``RWPO(..., corrected=False)``."""
    return is_rwpo(run) and not read_finished_run(run).settings.corrected


def gradients_of(run: Any) -> GradientCount:
    """Gradient evaluations of an ``MCMC``, where they are known."""
    if not hasattr(run, "get_extra_fields") or run.last_state is None:
        return GradientCount(None)
    total = getattr(run.last_state, "num_gradients", None)
    if total is not None:
        return GradientCount(int(np.sum(total)))
    steps = run.get_extra_fields().get("num_steps")
    return GradientCount(None) if steps is None else GradientCount(int(np.sum(steps)), False)


def _parts(site: str, names: list[str]) -> list[str]:
    """The name itself or, of a site that holds several arrays, the names of all of them."""
    inner = [name for name in names if name.startswith((f"{site}.", f"{site}["))]
    return inner if inner and site not in names else [site]


def common_sites(
    posteriors: list[dict[str, np.ndarray]], labels: list[str], sites: list[str] | None
) -> list[str]:
    """The sites to compare, after checking that every run has them in the same shape.

    Raises:
        ValueError: a site is missing, or of different shapes, or has fewer than four draws.
    """
    common = [name for name in posteriors[0] if all(name in other for other in posteriors)]
    names = common if sites is None else [name for site in sites for name in _parts(site, common)]
    missing = sorted(set(names) - set(common))
    if missing or not names:
        raise ValueError(
            f"The runs must have the compared sites in common; {missing or 'all'} are missing in "
            f"at least one of {labels}, which share {sorted(common)}."
        )
    for name in names:
        shapes = [posterior[name].shape for posterior in posteriors]
        # ArviZ's split R-hat and ESS need two draws in each half of a chain.
        if any(len(s) < 2 or s[1] < 4 or s[2:] != shapes[0][2:] for s in shapes):
            raise ValueError(
                f"Site '{name}' must have draws of shape (chains, draws, ...) with at least 4 "
                f"draws and the same trailing shape in all runs; got {shapes}. Group draws by "
                "chain: `mcmc.get_samples(group_by_chain=True)`."
            )
    return names


def columns(samples: dict[str, np.ndarray], sites: list[str]) -> tuple[np.ndarray, list[str]]:
    """Sites side by side, (chains, draws, num_coordinates), and the names of the coordinates."""
    values, names = [], []
    for site in sites:
        draws = samples[site]
        values.append(draws.reshape(*draws.shape[:2], -1))
        names += coordinate_names(site, draws.shape[2:])
    return np.concatenate(values, axis=2).astype(np.float64), names


def is_constant(values: np.ndarray) -> np.ndarray:
    """Which coordinates of draws (chains, draws, num_coordinates) never change."""
    return values.min((0, 1)) == values.max((0, 1))
