"""A finished run in unconstrained space: its draws, and the log density that they are from.

The density is NumPyro's own log density of the user's model, with all normalizing constants, and
nothing that the sampler computed enters it. The coordinates are those in which the ensembles moved:
Laplace sites with a latent scale are standardized where the ensembles had them standardized
(:mod:`numpyro_rwpo.model.laplace_sites`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer.util import unconstrain_fn

from numpyro_rwpo.model.laplace_sites import LaplaceSplit
from numpyro_rwpo.model.model_source import flat_prior
from numpyro_rwpo.model.potential_source import prior_from_leaves
from numpyro_rwpo.model.prior_registry import BUILT_IN_PRIORS, PriorRegistry
from numpyro_rwpo.model.site_bits import is_centered
from numpyro_rwpo.model.split_check import checked_split
from numpyro_rwpo.model.tracing import default_key, inspect_trace, is_latent
from numpyro_rwpo.priors.laplace import no_prior
from numpyro_rwpo.priors.protocol import AnyPrior
from numpyro_rwpo.runs.mcmc import Run

ValueAndGradient = Callable[[Any], tuple[np.ndarray, np.ndarray]]


class Posterior(NamedTuple):
    """Draws and their log density, in flat unconstrained coordinates.

    Attributes:
        draws: draws in unconstrained space, (chains, draws, dim).
        names: names of the coordinates, for example ``"beta[3]"``.
        evaluate: joint log density of parameters and data, times the inverse temperature, and its
            gradient, at positions (n, dim): (n,) and (n, dim), in double precision.
        prior: the Laplace prior, tempered, fields (dim,); its rates are 0 where there is none.
        is_normalized: whether the log density has all its constants, which it lacks for a potential
            function and where a site is improper.
    """

    draws: np.ndarray
    names: list[str]
    evaluate: ValueAndGradient
    prior: AnyPrior
    is_normalized: bool


def _in_blocks(log_density: Callable[[jax.Array], jax.Array]) -> ValueAndGradient:
    """The density and its gradient over (n, dim), compiled once and evaluated block by block."""
    # The last block is padded, so that one compiled program serves any number of positions. At this
    # size, the padding of a few thousand positions costs little, and the memory is that of a few
    # hundred evaluations.
    size = 500
    block = jax.jit(jax.vmap(jax.value_and_grad(log_density)))

    def evaluate(positions: Any) -> tuple[np.ndarray, np.ndarray]:
        positions = np.asarray(positions)
        number = len(positions)
        padded = np.pad(positions, ((0, -number % size), (0, 0)), mode="edge")
        parts = [block(part) for part in padded.reshape(-1, size, positions.shape[1])]
        values, gradients = (np.concatenate(column) for column in zip(*parts, strict=True))
        return values[:number].astype(np.float64), gradients[:number].astype(np.float64)

    return evaluate


def coordinate_names(prefix: str, shape: tuple[int, ...]) -> list[str]:
    """Names of the scalar coordinates of a site: ``x``, or ``x[0]``, ``x[0, 1]``, ..."""
    if not shape:
        return [prefix]
    return [f"{prefix}[{', '.join(map(str, index))}]" for index in np.ndindex(*shape)]


def _flatten(values: Any) -> np.ndarray:
    """The leaves of a pytree, each (chains, draws, ...), side by side as (chains, draws, dim)."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(values)]
    return np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)


def _is_improper(fn: Any) -> bool:
    while isinstance(fn, (dist.ExpandedDistribution, dist.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return isinstance(fn, (dist.ImproperUniform, dist.Unit))


def _latent_sites(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[str], bool]:
    """Names of the latent sites, and whether all of their distributions are proper."""

    def describe(trace: dict[str, Any]) -> tuple[list[str], bool]:
        latent = {name: site["fn"] for name, site in trace.items() if is_latent(site)}
        return list(latent), not any(map(_is_improper, latent.values()))

    return inspect_trace(model, args, kwargs, describe)


def model_posterior(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    samples: dict[str, Any],
    *,
    laplace_sites: Any = "auto",
    centering: int = 0,
    inverse_temperature: float = 1.0,
    registry: PriorRegistry = BUILT_IN_PRIORS,
) -> Posterior:
    """The posterior of a model and draws of its sites.

    Args:
        model: NumPyro model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        samples: constrained draws by site, (chains, draws, ...).
        laplace_sites: as for ``RWPO``.
        centering: see :mod:`numpyro_rwpo.model.site_bits`.
        inverse_temperature: power of the posterior.
        registry: the kinds of distributions with closed forms.

    Raises:
        ValueError: a latent site is missing among the draws, or none has a free coordinate.
    """
    split, _ = checked_split(model, args, kwargs, laplace_sites, registry)
    sites, is_proper = _latent_sites(model, args, kwargs)
    missing = sorted(set(sites) - set(samples))
    if missing:
        raise ValueError(
            f"The draws lack the latent sites {missing}, so the posterior density cannot be "
            f"evaluated; they hold {sorted(samples)}. Run MCMC without '~z.<site>' in "
            "`extra_fields` and without a `postprocess_fn`."
        )
    split = split.without([n for n, bit in split.bits.items() if is_centered(centering, bit)])
    latent = {name: jnp.asarray(samples[name]) for name in sites}
    unconstrained = _unconstrained(split, args, kwargs, latent) if latent else {}
    prototype = jax.tree.map(lambda x: np.zeros(x.shape[2:], x.dtype), unconstrained)
    flat, unravel = ravel_pytree(prototype)
    if flat.size == 0:
        raise ValueError(
            "The model has no free coordinates, and so no posterior density to evaluate: its "
            f"unconstrained latent sites have the shapes {jax.tree.map(np.shape, prototype)}. "
            "Check that not every site is observed or conditioned."
        )

    def log_density(position: jax.Array) -> jax.Array:
        energy = split.potential(unravel(position), 0, args, kwargs)
        return -inverse_temperature * energy

    return Posterior(
        _flatten(unconstrained),
        _model_names(prototype, split.rewritten),
        _in_blocks(log_density),
        _model_prior(split, args, kwargs, prototype).tempered(inverse_temperature),
        is_proper,
    )


def _unconstrained(
    split: LaplaceSplit, args: tuple[Any, ...], kwargs: dict[str, Any], latent: dict[str, Any]
) -> dict[str, Any]:
    """Draws of the latent sites, (chains, draws, ...), as values of the split model's sites."""
    seeded = handlers.seed(default_key(split.user_model), 0)  # for sites that are not among them

    def unconstrain(values: dict[str, Any]) -> dict[str, Any]:
        values = unconstrain_fn(seeded, args, kwargs, values)
        return split.from_user_values(values, args, kwargs) if split.rewritten else values

    unconstrained: dict[str, Any] = jax.jit(jax.vmap(jax.vmap(unconstrain)))(latent)
    return unconstrained


def _model_names(prototype: dict[str, Any], rewritten: tuple[str, ...]) -> list[str]:
    """Names of the coordinates of a flat position."""
    names = []
    for key in sorted(prototype):
        label = _base_name(key, prototype) if key in rewritten else key
        names += coordinate_names(label, prototype[key].shape)
    return names


def _base_name(name: str, taken: Any) -> str:
    """What to call the standardized form of a site: as NumPyro does, unless the user does so."""
    base = f"{name}_decentered"
    return f"{name} (standardized)" if base in taken else base


def _model_prior(
    split: LaplaceSplit, args: tuple[Any, ...], kwargs: dict[str, Any], prototype: Any
) -> AnyPrior:
    if not split.names:
        flat = ravel_pytree(prototype)[0]
        return no_prior(flat.size, flat.dtype)
    return flat_prior(split.site_priors(args, kwargs), prototype)


def potential_posterior(
    potential_fn: Callable[[Any], jax.Array],
    samples: Any,
    *,
    laplace_sites: Any = None,
    inverse_temperature: float = 1.0,
    registry: PriorRegistry = BUILT_IN_PRIORS,
) -> Posterior:
    """The posterior of a potential function and its draws, leaves (chains, draws, ...)."""
    prototype = jax.tree.map(lambda x: np.zeros(x.shape[2:], x.dtype), samples)
    flat, unravel = ravel_pytree(prototype)
    prior = prior_from_leaves(laplace_sites, prototype, registry) or no_prior(flat.size, flat.dtype)
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(prototype):
        label = jax.tree_util.keystr(path, simple=True, separator=".") or "x"
        names += coordinate_names(label, leaf.shape)

    def log_density(position: jax.Array) -> jax.Array:
        return -inverse_temperature * potential_fn(unravel(position))

    return Posterior(
        _flatten(samples),
        names,
        _in_blocks(log_density),
        prior.tempered(inverse_temperature),
        False,
    )


def posterior_of(run: Run, *, centering: int = 0) -> Posterior:
    """The posterior of a run.

    Args:
        run: a finished run.
        centering: see :mod:`numpyro_rwpo.model.site_bits`.

    Raises:
        ValueError: a latent site is missing among the draws.
    """
    if run.model is None:
        assert run.potential_fn is not None
        return potential_posterior(
            run.potential_fn,
            run.samples,
            laplace_sites=run.laplace_sites,
            inverse_temperature=run.settings.inverse_temperature,
            registry=run.priors,
        )
    return model_posterior(
        run.model,
        run.model_args,
        run.model_kwargs,
        run.samples,
        laplace_sites=run.laplace_sites,
        centering=centering,
        inverse_temperature=run.settings.inverse_temperature,
        registry=run.priors,
    )
