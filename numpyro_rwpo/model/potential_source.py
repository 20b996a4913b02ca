"""A potential function as a source of targets."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree

from numpyro_rwpo.model.preparation import Preparation, check_site_prior
from numpyro_rwpo.model.prior_registry import (
    BUILT_IN_PRIORS,
    PriorRegistry,
    find_kind,
    kind_names,
    lay_out_prior,
    site_prior,
)
from numpyro_rwpo.model.source import layout, ravel_like
from numpyro_rwpo.model.target import Differentiation, Target
from numpyro_rwpo.priors.protocol import AnyPrior


class PotentialSource:
    """A potential function of any pytree of floating-point arrays.

    Args:
        potential_fn: the whole potential, as for NUTS: minus the log density up to a constant.
        init_params: the pytree for one chain; its structure is that of every draw.
        laplace_sites: the part of ``potential_fn`` that has closed forms: a pytree of the structure
            of ``init_params`` whose leaves are ``numpyro.distributions.Laplace`` or
            ``AsymmetricLaplace`` distributions, or ``None`` for leaves without; or ``"auto"`` or
            ``None`` when there is no such part.
        differentiation: temperature and differentiation mode.
        registry: the kinds of distributions with closed forms.

    Raises:
        ValueError: ``potential_fn`` does not return a scalar, or ``laplace_sites`` does not fit
            ``init_params``.
        TypeError: a leaf of ``init_params`` or the potential is not a floating-point number.
    """

    def __init__(
        self,
        potential_fn: Callable[[Any], jax.Array],
        init_params: Any,
        *,
        laplace_sites: Any,
        differentiation: Differentiation,
        registry: PriorRegistry = BUILT_IN_PRIORS,
    ) -> None:
        self._potential_fn = potential_fn
        self._differentiation = differentiation
        for leaf in jax.tree.leaves(init_params):
            dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
            if dtype not in (np.float32, np.float64):
                raise TypeError(
                    "`init_params` must hold arrays in float32 or float64; got a leaf of dtype "
                    f"{dtype}. Convert it, e.g. with jnp.asarray(x, float)."
                )
        self._prototype = jax.tree.map(
            lambda x: np.zeros(jnp.shape(x), jnp.result_type(x)), init_params
        )
        flat, self._unravel = ravel_pytree(init_params)
        if flat.size == 0:
            raise ValueError("`init_params` holds no parameters; there is nothing to sample.")
        shape = jax.eval_shape(potential_fn, init_params)
        if getattr(shape, "shape", None) != ():
            raise ValueError(
                "`potential_fn` must return a scalar (minus the log density of one position); "
                f"got {shape}. Sum over coordinates and observations."
            )
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            raise TypeError(
                "`potential_fn` must return a floating-point number, of which there is a gradient; "
                f"got dtype {shape.dtype}. Convert its arguments or its result."
            )
        self._prior = prior_from_leaves(laplace_sites, self._prototype, registry)
        self.has_prior = self._prior is not None
        self.site_bits: np.ndarray | None = None
        self.layout: Hashable = layout(self._prototype)

    def bind(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]) -> "PotentialSource":
        """The same: a potential function has no model arguments."""
        return self

    def prepare(self, rng_keys: jax.Array, init_params: Any) -> Preparation:
        """Start at ``init_params``."""
        start = jax.vmap(self.ravel)(init_params)
        potential, gradient = self.target().value_and_grad(start)
        return Preparation(start, jax.vmap(self._unravel)(start), potential, gradient, {}, {})

    def wrong_sites(self, prepared: Preparation) -> frozenset[str]:
        """No names: the user has said which part is a Laplace prior."""
        return frozenset()

    def target(self) -> Target:
        """The potential without the part that has closed forms, beside this part."""
        prior = self._prior

        def smooth(position: jax.Array, centering: jax.Array) -> jax.Array:
            value = self._potential_fn(self._unravel(position))
            return value if prior is None else value - prior.potential(position).sum()

        return self._differentiation.target(smooth, prior)

    def emit(self, position: jax.Array, centering: jax.Array) -> tuple[Any, jax.Array]:
        """A flat position (dim,) in the user's structure, and the log Jacobian, which is 0."""
        return self._unravel(position), jnp.zeros(())

    def ravel(self, values: Any) -> jax.Array:
        """A user's values for one chain as a position (dim,)."""
        return ravel_like(values, self._prototype)

    def constrain(self, values: Any) -> Any:
        """The values as they are: a potential function has no constraints."""
        return values


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    padded = (1,) * (len(to) - len(shape)) + tuple(shape)
    return len(padded) == len(to) and all(a in (1, b) for a, b in zip(padded, to, strict=True))


def prior_from_leaves(
    laplace_sites: Any, prototype: Any, registry: PriorRegistry = BUILT_IN_PRIORS
) -> AnyPrior | None:
    """The prior that ``laplace_sites`` describes leaf by leaf; ``None`` if there is none."""
    if laplace_sites is None or (isinstance(laplace_sites, str) and laplace_sites == "auto"):
        return None
    is_leaf = lambda x: x is None or isinstance(x, dist.Distribution)  # noqa: E731
    sites, structure = jax.tree.flatten(laplace_sites, is_leaf=is_leaf)
    expected: Any = jax.tree.structure(prototype)
    if structure != expected or not all(x is None or find_kind(x, registry) for x in sites):
        raise ValueError(
            "With `potential_fn`, `laplace_sites` must be a pytree like `init_params` whose leaves "
            f"are {kind_names(registry)} distributions or None; got "
            f"{laplace_sites!r} for parameters of shapes {jax.tree.map(np.shape, prototype)}."
        )
    leaves, priors = jax.tree.leaves(prototype), list[AnyPrior | None]()
    for number, (fn, x) in enumerate(zip(sites, leaves, strict=True)):
        if fn is None:
            priors.append(None)
            continue
        if not _broadcasts(fn.shape(), x.shape):
            raise ValueError(
                f"Leaf {number} of `laplace_sites` must broadcast to the shape {x.shape} of its "
                f"parameter; got a distribution of shape {fn.shape()}."
            )
        prior = site_prior(fn, registry, x.shape)
        check_site_prior(f"leaf {number} of `laplace_sites`", prior)
        priors.append(prior)
    return lay_out_prior(priors, leaves)
