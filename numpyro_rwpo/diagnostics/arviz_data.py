"""``to_arviz``: a run as ArviZ data, with what ``az.from_numpyro`` cannot know.

ArviZ 0.x gives an ``InferenceData``, 1.x an xarray ``DataTree``; the groups are the same.
"""

import copy
from typing import Any

import jax
import numpy as np

from numpyro_rwpo.diagnostics.diagnosis import diagnose
from numpyro_rwpo.runs.mcmc import chain_states, checked_state, num_distinct_draws

_WARMUP_GROUPS = {"posterior": "warmup_posterior", "sample_stats": "warmup_sample_stats"}
_PARTICLES = "ensemble.particles"  # extra field with the whole ensemble of every iteration
_ENSEMBLE = "warmup_ensemble"


def to_arviz(
    mcmc: Any, *, warmup: Any = None, evidence: bool = True, seed: int = 0, **options: Any
) -> Any:
    """Convert a run to ArviZ data.

    Beyond ``az.from_numpyro``:

    * ``sample_stats`` has ``acceptance_rate``, ``n_steps``, ``step_size``, ``lp`` under ArviZ's
      names where they were collected as ``extra_fields``; ``step_size`` and the number of steps
      of a draw are there in any case. No ``tree_depth``: there are no trees;
    * the attributes of ``posterior`` say how it was made, and hold the log evidence and Pareto
      k-hat of the fitted density (``evidence=True``);
    * after ``mcmc.warmup(..., collect_warmup=True)`` the draws are in ``warmup_posterior``; with
      ``extra_fields=("ensemble.particles",)`` the trajectory of the ensembles is in
      ``warmup_ensemble``, as ``particles`` (chain, draw, particle, coordinate), in the
      coordinates in which the ensembles move;
    * with ``correction=None`` the draws are the distinct particles: repeats are left out.

    Args:
        mcmc: a NumPyro ``MCMC`` with an ``RWPO`` kernel, after ``run``, or after ``warmup`` with
            ``collect_warmup=True``.
        warmup: what ``to_arviz`` returned after the warm-up, to be put into the same data.
        evidence: whether to estimate k-hat and evidence, which takes some seconds.
        seed: of the random numbers that takes.
        **options: for ``az.from_numpyro``, e.g. ``coords`` and ``dims``.

    Returns:
        ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x).

    Raises:
        TypeError: ``mcmc`` is not such an object, or ``warmup`` has no warm-up groups.
        ValueError: ``mcmc`` has not been run.

    Example:
        >>> mcmc.warmup(key, X, y, collect_warmup=True, extra_fields=("ensemble.particles",))
        ... # doctest: +SKIP
        >>> before = to_arviz(mcmc)  # doctest: +SKIP
        >>> mcmc.run(key, X, y)  # doctest: +SKIP
        >>> data = to_arviz(mcmc, warmup=before)  # doctest: +SKIP
    """
    import arviz as az

    state, settings = chain_states(mcmc)
    if warmup is not None and not any(name in _groups(warmup) for name in _WARMUP_GROUPS.values()):
        raise TypeError(
            "`warmup` must be what `to_arviz` returned after `mcmc.warmup(..., "
            f"collect_warmup=True)`; got {type(warmup).__name__} with groups {_groups(warmup)}."
        )
    data = az.from_numpyro(_as_arviz_reads_it(mcmc), **options)
    groups = {name: data[name].copy() for name in _groups(data)}
    groups = {name: _as_dataset(group) for name, group in groups.items()}
    if int(np.max(state.iteration)) <= 0:
        groups = {_WARMUP_GROUPS.get(name, name): group for name, group in groups.items()}
        particles = mcmc.get_extra_fields(group_by_chain=True).get(_PARTICLES)
        if particles is not None:
            groups[_ENSEMBLE] = _trajectory(np.asarray(particles))
        return _combine(groups, data)
    groups["sample_stats"] = _sample_stats(groups.get("sample_stats"), groups["posterior"], state)
    groups["posterior"].attrs.update(_attributes(mcmc, settings, evidence, seed))
    for name in (*_WARMUP_GROUPS.values(), _ENSEMBLE):
        if warmup is not None and name in _groups(warmup):
            groups[name] = _as_dataset(warmup[name])
    return _combine(groups, data)


def _as_arviz_reads_it(mcmc: Any) -> Any:
    """A shallow copy of an ``MCMC`` that holds what belongs into ``posterior`` and its stats.

    Particles that repeat are cut off; whole ensembles have a group of their own; ``num_steps`` gets
    ArviZ's name here, because from NumPyro's ArviZ 0.x computes the depth of a tree.
    """
    is_sampled = int(np.max(mcmc.last_state.iteration)) > 0
    number = num_distinct_draws(mcmc) if is_sampled else None
    states = {name: x for name, x in mcmc._states.items() if name != _PARTICLES}
    states = {"n_steps" if name == "num_steps" else name: x for name, x in states.items()}
    states = jax.tree.map(lambda x: x[:, :number], states)
    view = copy.copy(mcmc)
    view._states, view._states_flat = states, None
    kept = jax.tree.leaves(states)[0].shape[1]
    view.num_samples = kept * mcmc.thinning  # ArviZ divides by the thinning again
    return view


def _groups(data: Any) -> list[str]:
    """Names of the groups of an ``InferenceData`` or ``DataTree``."""
    groups = getattr(data, "children", None) or (
        data.groups() if callable(getattr(data, "groups", None)) else []
    )
    return [str(name).lstrip("/") for name in groups]


def _as_dataset(group: Any) -> Any:
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def _combine(groups: dict[str, Any], like: Any) -> Any:
    """Groups as data of the class of ``like``."""
    import xarray as xr

    if isinstance(like, xr.DataTree):
        return xr.DataTree.from_dict(groups)
    return type(like)(warn_on_custom_groups=False, **groups)


def _trajectory(particles: np.ndarray) -> Any:
    import xarray as xr

    dims = ("chain", "draw", "particle", "coordinate")
    coords = {dim: np.arange(size) for dim, size in zip(dims, particles.shape, strict=True)}
    return xr.Dataset({"particles": (dims, particles)}, coords)


def _sample_stats(stats: Any, posterior: Any, state: Any) -> Any:
    """ArviZ's sample stats, with step size and steps of a draw, which sampling never changes."""
    import xarray as xr

    coords = {"chain": posterior["chain"], "draw": posterior["draw"]}
    stats = xr.Dataset(coords=coords) if stats is None else stats
    shape = (posterior.sizes["chain"], posterior.sizes["draw"])
    for name, values in [("step_size", state.step_size), ("n_steps", state.refresh.num_steps)]:
        if name not in stats:
            column = np.asarray(values).reshape(-1, 1)
            stats[name] = (("chain", "draw"), np.broadcast_to(column, shape).copy())
    return stats


def _attributes(mcmc: Any, settings: Any, evidence: bool, seed: int) -> dict[str, Any]:
    """What the posterior's attributes say; plain values, so that NetCDF can hold them."""
    from numpyro_rwpo._version import __version__

    state, _ = checked_state(mcmc)
    attributes: dict[str, Any] = {
        "inference_library_rwpo": f"numpyro-rwpo {__version__}",
        "sampler": "RWPO",
        "correction": "metropolis" if settings.corrected else "none: noise-free particles",
        "attention": settings.attention.name,
        "num_particles": int(state.ensemble.particles.shape[1]),
        "num_warmup": settings.num_warmup,
        "num_gradients": int(np.sum(state.num_gradients)),
    }
    if evidence:
        report = diagnose(mcmc, seed=seed)
        figures = report.figures["evidence"]
        attributes |= {
            "pareto_k_hat": report.figures["coverage"]["k_hat"],
            "log_evidence": figures["log_evidence"],
            "log_evidence_standard_error": figures["standard_error"],
            "log_evidence_method": figures["method"],
            "findings": "\n".join(finding.sentence for finding in report.findings),
        }
    return attributes
