"""``to_arviz``: a run as ArviZ data, with what ``az.from_numpyro`` does not know of.

ArviZ 0.x gives an ``InferenceData``, 1.x an xarray ``DataTree``; the groups are the same.
"""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from numpyro_rwpo._version import __version__
from numpyro_rwpo.diagnostics.diagnosis import diagnose
from numpyro_rwpo.diagnostics.draws import flat_sites
from numpyro_rwpo.runs.mcmc import Run, collected_fields, read_run, with_fields

if TYPE_CHECKING:
    from xarray import Dataset

# Attributes of a group: plain values, so that NetCDF can hold them.
Attributes = dict[str, str | int | float]

_WARMUP_GROUPS = {"posterior": "warmup_posterior", "sample_stats": "warmup_sample_stats"}
_PARTICLES = "ensemble.particles"  # extra field with the whole ensemble of every iteration
_ENSEMBLE = "warmup_ensemble"


def to_arviz(
    mcmc: Any, *, warmup: Any = None, evidence: bool = True, seed: int = 0, **options: Any
) -> Any:
    """Convert a run to ArviZ data.

    Beyond ``az.from_numpyro``:

    * ``sample_stats`` has ``step_size`` and ``n_steps`` of every draw, and, where they were
      collected as ``extra_fields``, ``acceptance_rate`` and ``lp``. There is no ``tree_depth``.
    * The attributes of ``posterior`` say how the draws were made, and with ``evidence=True`` hold
      the log evidence and the Pareto k-hat of the fitted density.
    * After ``mcmc.warmup(..., collect_warmup=True)`` the draws, which are particles as warm-up left
      them, are in ``warmup_posterior``. With ``extra_fields=("ensemble.particles",)`` the whole
      ensembles are in ``warmup_ensemble``, as ``particles`` (chain, draw, particle, coordinate), in
      unconstrained coordinates.
    * Each array of a deterministic site that is a dictionary, tuple or list is a variable, such as
      ``effect.x`` for ``samples["effect"]["x"]``.
    * With ``corrected=False`` every noise-free particle is there once.

    Args:
        mcmc: a NumPyro ``MCMC`` with an ``RWPO`` kernel, after ``run``, or after ``warmup`` with
            ``collect_warmup=True``.
        warmup: what ``to_arviz`` returned after the warm-up, to be included in the data.
        evidence: whether to estimate k-hat and evidence, which takes some seconds.
        seed: seed of the random numbers for that.
        **options: options of ``az.from_numpyro`` such as ``coords`` and ``dims``.

    Returns:
        ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x).

    Raises:
        TypeError: ``mcmc`` is not such an object, or ``warmup`` has no warm-up groups.
        ValueError: ``mcmc`` has not been run.

    Example:
        >>> mcmc.warmup(key, X, y, collect_warmup=True)  # doctest: +SKIP
        >>> before = to_arviz(mcmc)  # doctest: +SKIP
        >>> mcmc.run(key, X, y)  # doctest: +SKIP
        >>> data = to_arviz(mcmc, warmup=before)  # doctest: +SKIP
    """
    run = read_run(mcmc)
    _check_warmup(warmup)
    data, groups = _converted(mcmc, run, options)
    if run.is_warmup:
        groups = {_WARMUP_GROUPS.get(name, name): group for name, group in groups.items()}
        if _PARTICLES in run.extra_fields:
            groups[_ENSEMBLE] = _trajectory(np.asarray(run.extra_fields[_PARTICLES]))
        return _combine(groups, data)
    groups["sample_stats"] = _sample_stats(groups.get("sample_stats"), groups["posterior"], run)
    groups["posterior"].attrs.update(_attributes(run))
    if evidence:
        groups["posterior"].attrs.update(_evidence_attributes(mcmc, seed))
    for name in (*_WARMUP_GROUPS.values(), _ENSEMBLE):
        if warmup is not None and name in _group_names(warmup):
            groups[name] = _as_dataset(warmup[name])
    return _combine(groups, data)


def _check_warmup(warmup: Any) -> None:
    """Raise ``TypeError`` unless ``warmup`` is ``None`` or has a group of warm-up draws."""
    if warmup is None:
        return
    names = _group_names(warmup)
    if not any(name in names for name in _WARMUP_GROUPS.values()):
        raise TypeError(
            "`warmup` must be what `to_arviz` returned after `mcmc.warmup(..., "
            f"collect_warmup=True)`; got {type(warmup).__name__} with groups {names}."
        )


def _converted(mcmc: Any, run: Run, options: dict[str, Any]) -> tuple[Any, dict[str, "Dataset"]]:
    """What ``az.from_numpyro`` makes of the draws that belong into the data, and its groups.

    Repeated particles are left out, and so are whole ensembles, which have a group of their own.
    """
    import arviz as az

    distinct = slice(None) if run.is_warmup else run.distinct
    # ArviZ 0.x computes the depth of a tree from NumPyro's `num_steps`, so that field gets the name
    # here that ArviZ would give it.
    fields = {
        "n_steps" if name == "num_steps" else name: jax.tree.map(lambda x: x[:, distinct], values)
        for name, values in collected_fields(mcmc).items()
        if name != _PARTICLES
    }
    # ArviZ 0.x would stack the arrays of a tuple and put a dictionary into an array of objects.
    draws = mcmc.sampler.sample_field
    if isinstance(fields[draws], dict):
        fields[draws] = flat_sites(fields[draws])
    data = az.from_numpyro(with_fields(mcmc, fields), **options)
    return data, {name: _as_dataset(data[name].copy()) for name in _group_names(data)}


def _group_names(data: Any) -> list[str]:
    """Names of the groups of an ``InferenceData`` or ``DataTree``."""
    groups = getattr(data, "children", None) or (
        data.groups() if callable(getattr(data, "groups", None)) else []
    )
    return [str(name).lstrip("/") for name in groups]


def _as_dataset(group: Any) -> "Dataset":
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def _combine(groups: dict[str, "Dataset"], like: Any) -> Any:
    """Groups as data of the class of ``like``."""
    import xarray as xr

    if isinstance(like, xr.DataTree):
        return xr.DataTree.from_dict(groups)
    return type(like)(warn_on_custom_groups=False, **groups)


def _trajectory(particles: np.ndarray) -> "Dataset":
    """The ensembles of every iteration, (chains, draws, num_particles, dim), as a group."""
    import xarray as xr

    dims = ("chain", "draw", "particle", "coordinate")
    coords = {dim: np.arange(size) for dim, size in zip(dims, particles.shape, strict=True)}
    return xr.Dataset({"particles": (dims, particles)}, coords)


def _sample_stats(stats: "Dataset | None", posterior: "Dataset", run: Run) -> "Dataset":
    """Sample stats with step size and number of steps, which are the same for all draws."""
    import xarray as xr

    coords = {"chain": posterior["chain"], "draw": posterior["draw"]}
    stats = xr.Dataset(coords=coords) if stats is None else stats
    shape = (posterior.sizes["chain"], posterior.sizes["draw"])
    by_chain = {"step_size": run.state.step_size, "n_steps": run.state.num_steps}
    for name, values in by_chain.items():
        if name not in stats:
            column = np.asarray(values).reshape(-1, 1)
            stats[name] = (("chain", "draw"), np.broadcast_to(column, shape).copy())
    return stats


def _attributes(run: Run) -> Attributes:
    """How the draws were made."""
    settings = run.settings
    return {
        "inference_library_rwpo": f"numpyro-rwpo {__version__}",
        "sampler": "RWPO",
        "correction": "metropolis" if settings.corrected else "none: noise-free particles",
        "attention": settings.attention.name,
        "num_particles": run.num_particles,
        "num_warmup": settings.num_warmup,
        "num_gradients": int(np.sum(run.state.num_gradients)),
    }


def _evidence_attributes(mcmc: Any, seed: int) -> Attributes:
    """The log evidence, k-hat, and the findings and remarks of ``diagnose``."""
    report = diagnose(mcmc, seed=seed)
    evidence = report.measurements.evidence
    return {
        "pareto_k_hat": report.measurements.coverage.k_hat,
        "log_evidence": evidence.log_evidence,
        "log_evidence_standard_error": evidence.standard_error,
        "log_evidence_method": evidence.method,
        "findings": "\n".join(finding.sentence for finding in report.findings),
        "remarks": "\n".join(remark.sentence for remark in report.remarks),
    }
