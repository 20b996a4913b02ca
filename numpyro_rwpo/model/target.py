r"""The posterior as a smooth part plus a prior with closed forms, on flat unconstrained vectors.

A target is :math:`\pi(x) \propto \exp\{-\beta [f(x) + g(x)]\}`. ``g`` collects the Laplace priors,
whose proximal maps, attention kernels and Hamiltonian flows are known
(:mod:`numpyro_rwpo.priors.laplace`); ``f`` is everything else (likelihood, other priors, Jacobians)
and is used through batched gradients only.

A :mod:`numpyro_rwpo.model.source` makes a :class:`Target` from the model's arguments.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from numpyro_rwpo.model.site_bits import is_centered
from numpyro_rwpo.priors.protocol import AnyPrior
from numpyro_rwpo.support.broadcasting import same_rank
from numpyro_rwpo.support.sharding import ONE_PLACE, Placement


class Proposal(NamedTuple):
    """A density in the sampler's coordinates.

    Attributes:
        sample: Random key and n to independent draws, (n, dim).
        log_prob: Positions (n, dim) to their normalized log density, (n,).
    """

    sample: Callable[[jax.Array, int], jax.Array]
    log_prob: Callable[[jax.Array], jax.Array]


class Target(NamedTuple):
    """One posterior, bound to its data.

    Attributes:
        smooth: ``beta f`` and its gradient for a batch of positions (n, dim) and centerings (n,):
            (n,), (n, dim).
        full_prior: ``beta g`` if all sites are standardized, fields (dim,); ``None`` when no
            coordinate has a Laplace prior.
        site_bits: of sites with a latent scale, the bit of each coordinate's site in the centering,
            and 0 for the coordinates of other sites, (dim,); ``None`` if there are no such sites.
        centering: parameterizations of these sites, see :mod:`numpyro_rwpo.model.site_bits`:
            scalar, or one for each position that will be given, (n,).
        recenter: maps positions (n, dim) and their centerings (n,) to the positions with every site
            in its other parameterization, and the sum of the log scales of each bit (n, num_bits);
            ``None`` if there are no such sites.
        placement: devices that share the particles.
        proposal: a density near the posterior, ``None`` if the user gave none.
    """

    smooth: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    full_prior: AnyPrior | None
    site_bits: jax.Array | None
    centering: jax.Array
    recenter: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None
    placement: Placement = ONE_PLACE
    proposal: Proposal | None = None

    def value_and_grad(self, particles: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``beta f`` and its gradient, (n, dim) -> (n,), (n, dim)."""
        return self.smooth(particles, jnp.broadcast_to(self.centering, particles.shape[:1]))

    @property
    def prior(self) -> AnyPrior | None:
        """``beta g`` in these parameterizations; centered sites are part of f."""
        if self.full_prior is None or self.site_bits is None:
            return self.full_prior
        bits, centering = same_rank(self.site_bits, self.centering[..., None])
        return self.full_prior.tempered(~is_centered(centering, bits))

    def prior_potential(self, particles: jax.Array) -> jax.Array:
        """``beta g`` summed over coordinates, (..., dim) -> (...)."""
        if self.prior is None:
            return jnp.zeros(particles.shape[:-1], particles.dtype)
        return self.prior.potential(particles).sum(-1)

    def prior_subgradient(self, particles: jax.Array) -> jax.Array:
        """Subgradient of ``beta g``, in the shape of ``particles``."""
        if self.prior is None:
            return jnp.zeros_like(particles)
        return self.prior.subgradient(particles)


def pool_chains(target: Target, axis_name: str) -> Target:
    """The same target for code that is vmapped over chains, with one gradient for all of them.

    The particles of all chains are then the rows of one matrix, instead of having the layout that
    ``vmap`` would give them. On a CPU, small problems take half the time. If devices share the
    particles, chains are not pooled, because rows would have to move between devices.
    """
    placement = target.placement._replace(chain_axis=axis_name)
    if placement.mesh is not None:
        return target._replace(placement=placement)

    def pooled(of_all: Callable[..., tuple[jax.Array, jax.Array]]) -> Callable[..., Any]:
        def of_one_chain(*batches: jax.Array) -> tuple[jax.Array, jax.Array]:
            gathered = (lax.all_gather(x, axis_name, tiled=True) for x in batches)
            first, second = of_all(*gathered)
            number = batches[0].shape[0]
            start = lax.axis_index(axis_name) * number
            return (
                lax.dynamic_slice_in_dim(first, start, number),
                lax.dynamic_slice_in_dim(second, start, number),
            )

        return of_one_chain

    recenter = None if target.recenter is None else pooled(target.recenter)
    return target._replace(smooth=pooled(target.smooth), recenter=recenter, placement=placement)


class GradientWork(NamedTuple):
    """What the gradient at one position consists of.

    Attributes:
        num_elements: number of elements of all arrays that it computes. A loop of unknown length
            counts once.
        has_loop: whether it contains a loop, such as a scan or an ODE solver. Batching cannot speed
            up such gradients.
    """

    num_elements: int
    has_loop: bool


def gradient_work(bind: Callable[[], Target], dim: int, dtype: Any) -> GradientWork:
    """The work of a gradient, from its trace; nothing is compiled.

    Args:
        bind: makes the target.
        dim: dimension of a position.
        dtype: type of a position.
    """
    shapes = jax.ShapeDtypeStruct((1, dim), dtype), jax.ShapeDtypeStruct((1,), dtype)
    return _work(jax.make_jaxpr(lambda x, c: bind().smooth(x, c))(*shapes).jaxpr)


def _work(jaxpr: Any) -> GradientWork:
    num_elements, has_loop = 0, False
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = (getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(parameters.values())))
        parts = [_work(x) for x in inner if hasattr(x, "eqns")]
        if parts:
            times = parameters["length"] if name == "scan" else 1
            num_elements += times * sum(part.num_elements for part in parts)
        else:
            num_elements += sum(math.prod(x.aval.shape) for x in equation.outvars)
        has_loop |= name in ("scan", "while") or any(part.has_loop for part in parts)
    return GradientWork(num_elements, has_loop)


class Differentiation(NamedTuple):
    """How the smooth potential is tempered and differentiated.

    Attributes:
        inverse_temperature: power of the posterior that is sampled.
        forward_mode: whether to differentiate in forward mode.
    """

    inverse_temperature: float
    forward_mode: bool

    def target(
        self,
        smooth: Callable[[jax.Array, jax.Array], jax.Array],
        prior: AnyPrior | None,
        site_bits: jax.Array | None = None,
        recenter: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None,
    ) -> Target:
        """Temper both parts of the potential and batch the gradient of the smooth part.

        Args:
            smooth: f at a position (dim,) and a centering (), scalar.
            prior: g, ``None`` if no coordinate has a prior with closed forms.
            site_bits: see :class:`Target`.
            recenter: see :class:`Target`.
        """
        beta = self.inverse_temperature

        def tempered(position: jax.Array, centering: jax.Array) -> jax.Array:
            return beta * smooth(position, centering)

        def forward(position: jax.Array, centering: jax.Array) -> tuple[jax.Array, jax.Array]:
            return tempered(position, centering), jax.jacfwd(tempered)(position, centering)

        one = forward if self.forward_mode else jax.value_and_grad(tempered)
        prior = None if prior is None else prior.tempered(beta)
        recenter = None if recenter is None else _batched(recenter)
        return Target(_batched(one), prior, site_bits, jnp.zeros(()), recenter)


def _batched(one: Callable[..., Any]) -> Callable[..., Any]:
    """Apply ``one`` to every row: by ``vmap``, or in a loop if JAX cannot batch it.

    The default of ``jax.pure_callback`` cannot be batched.
    """

    def batch(*rows: jax.Array) -> Any:
        try:
            return jax.vmap(one)(*rows)
        except NotImplementedError:
            return lax.map(lambda row: one(*row), rows)

    # A program that calls a jitted function in several places traces the model only once.
    jitted: Callable[..., Any] = jax.jit(batch)
    return jitted
