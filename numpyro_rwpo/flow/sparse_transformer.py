r"""The sparse transformer: a learned drift in which each step is followed by an L1-RWPO layer.

From standard normal points :math:`z_i`, scaled to :math:`x_i = m + \sigma z_i`, layer k takes the
step of Han, Osher and Li (2025), arXiv:2510.16356,

.. math:: y_i = x_i - h\,\sigma\nabla\phi\bigl((x_i - m)/\sigma,\, t_k\bigr), \qquad
    x_i^+ = y_i + \tfrac12 \Bigl(S_{\lambda T_k}(y_i) - \sum_j w_{ij} y_j\Bigr),

with the potential network :math:`\phi` (:mod:`numpyro_rwpo.flow.potential`) in coordinates of unit
scale, the soft threshold S and the attention weights w of the regularized Wasserstein proximal
operator. In terms of the attention heads of :mod:`numpyro_rwpo.heads.density` the second half is
:math:`x^+ = y - \tfrac{T}{2} \nabla M_T(y) - T s(y)`, M the prior's Moreau envelope and s the
fitted density's heat score. With the joint head that is the formula above; the others have other
weights.

**The density.** The operator itself is not a map: it turns the points y, the *keys*, into the
mixture of kernels :math:`\rho(x) = \frac1n \sum_j K(x, y_j)` (or its marginal or copula version),
of which the step above is the noise-free approximation. In the last layer the mixture itself is
used: given the n keys of that layer, it is a normalized density that can be sampled exactly. The
density of a flow therefore depends on an ensemble of base points, ``noise``, which the flow holds.
Draws and log density agree up to rounding for any n, and no trace of a Jacobian has to be
integrated. With more points, the mixture is smoother while the network stays the same.
"""

from collections.abc import Iterable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from numpyro_rwpo.flow.arguments import (
    check_count,
    check_layer_choice,
    checked_particles,
    checked_points,
    checked_row,
)
from numpyro_rwpo.flow.base_points import base_points, fresh_points
from numpyro_rwpo.flow.pathwise import pathwise_sample
from numpyro_rwpo.flow.potential import Potential, drift
from numpyro_rwpo.heads.density import ProximalDensity
from numpyro_rwpo.heads.registry import BUILT_IN_HEADS
from numpyro_rwpo.priors.laplace import LaplacePrior, laplace_prior
from numpyro_rwpo.support.broadcasting import same_rank
from numpyro_rwpo.support.renaming import Renamed, renamed_arguments

LEARNABLE = ("rate", "prox_time", "step_size", "base")
# Rates and prox times are exp(gain * parameter). An optimizer such as Adam moves all parameters by
# about the same distance, but these may have to change by orders of magnitude while weights change
# by order one.
_GAIN = 5.0


class PathCosts(NamedTuple):
    """Regularizers of a flow, averaged over particles and integrated over time.

    Attributes:
        kinetic: Half the squared velocity, in units of the base scale.
        hjb: Residual of the Hamilton-Jacobi-Bellman equation.
    """

    kinetic: jax.Array
    hjb: jax.Array


class SparseTransformerFlow(eqx.Module):
    """A learned flow of particles with an L1-RWPO layer after every drift step.

    All methods may be jitted and vmapped, and differentiated with respect to the flow.

    Args:
        dim: Dimension of the samples.
        num_layers: Number of layers, each with one drift step and one RWPO layer.
        width: Units of the hidden layers of the potential network.
        rate: Rates of the L1 prior >= 0, scalar or (dim,), in one over position units. A rate of 0
            makes the prior of a coordinate flat, and training does not change it.
        prox_time: Initial T of every layer > 0, scalar or (dim,), in position units squared;
            ``None`` for a tenth of ``scale`` squared.
        attention: ``"joint"`` for structure of any shape in a few coordinates, with sparse others;
            ``"copula"`` for a posterior with one mode; ``"marginal"`` for products.
        num_particles: Number of points of the base ensemble on which the density depends.
        depth: Number of residual layers of the network.
        location: Mean of the base distribution, scalar or (dim,).
        scale: Standard deviation of the base distribution, > 0, scalar or (dim,).
        center: Kink of the L1 prior, scalar or (dim,).
        learn: What is trained besides the network: any of ``"rate"``, ``"prox_time"``,
            ``"step_size"`` and ``"base"`` (location and scale).
        rng_key: Random key for the weights of the network and the base ensemble.

    Attributes:
        potential: The network.
        noise: Base ensemble, standard normal, (num_particles, dim); never trained.
        attention: Name of the attention head.
        num_layers: Number of layers.

    Raises:
        TypeError: If an argument is not a number or integer where one is needed.
        ValueError: If an argument is out of its range, of the wrong shape, or unknown.

    Example:
        >>> from numpyro_rwpo.flow import SparseTransformerFlow
        >>> flow = SparseTransformerFlow(2, num_layers=4, width=16, rng_key=jax.random.key(0))
        >>> flow.log_prob(flow.sample(jax.random.key(1), 10)).shape
        (10,)
    """

    potential: Potential
    noise: jax.Array
    _location: jax.Array
    _log_scale: jax.Array
    _center: jax.Array
    _log_rate: jax.Array
    _log_prox_time: jax.Array
    _log_step_size: jax.Array
    attention: str = eqx.field(static=True)
    num_layers: int = eqx.field(static=True)
    learn: tuple[str, ...] = eqx.field(static=True)

    @renamed_arguments(centre=Renamed("center"))
    def __init__(
        self,
        dim: int,
        num_layers: int = 8,
        width: int = 32,
        rate: ArrayLike = 1.0,
        prox_time: ArrayLike | None = None,
        attention: str = "joint",
        *,
        num_particles: int = 256,
        depth: int = 1,
        location: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
        center: ArrayLike = 0.0,
        learn: Iterable[str] = ("rate", "prox_time", "base"),
        rng_key: jax.Array,
    ) -> None:
        for name, value in (("dim", dim), ("num_layers", num_layers), ("width", width)):
            check_count(name, value)
        check_count("num_particles", num_particles)
        check_count("depth", depth)
        check_layer_choice(attention, learn, LEARNABLE)
        key_network, key_noise = jax.random.split(rng_key)
        scale = checked_row("scale", scale, dim, is_positive=True)
        prox_time = (
            0.1 * scale**2
            if prox_time is None
            else checked_row("prox_time", prox_time, dim, is_positive=True)
        )
        prior = laplace_prior(rate, center)
        self.potential = Potential(dim, width, depth, rng_key=key_network)
        self.noise = base_points(key_noise, num_particles, dim)
        self._location = jnp.asarray(checked_row("location", location, dim))
        self._log_scale = jnp.asarray(np.log(scale))
        self._center = jnp.asarray(checked_row("center", prior.location, dim))
        with np.errstate(divide="ignore"):  # where the rate is 0
            log_rate = np.log(checked_row("rate", prior.rate_right, dim)) / _GAIN
        self._log_rate = jnp.asarray(log_rate)
        log_time = np.log(np.broadcast_to(prox_time, (num_layers, dim))) / _GAIN
        self._log_prox_time = jnp.asarray(log_time)
        self._log_step_size = jnp.asarray(-np.log(num_layers), self._log_scale.dtype)
        self.attention = attention
        self.num_layers = num_layers
        self.learn = tuple(name for name in LEARNABLE if name in tuple(learn))

    @property
    def dim(self) -> int:
        """Dimension of the samples."""
        return self.noise.shape[1]

    @property
    def location(self) -> jax.Array:
        """Mean of the base distribution, (dim,)."""
        return self._if_learned("base", self._location)

    @property
    def scale(self) -> jax.Array:
        """Standard deviation of the base distribution, (dim,)."""
        return jnp.exp(self._if_learned("base", self._log_scale))

    @property
    def prior(self) -> LaplacePrior:
        """The L1 prior of the layers, fields (dim,)."""
        rate = jnp.exp(_GAIN * self._if_learned("rate", self._log_rate))
        return LaplacePrior(lax.stop_gradient(self._center), rate, rate)

    @property
    def prox_time(self) -> jax.Array:
        """T of every layer, (num_layers, dim)."""
        return jnp.exp(_GAIN * self._if_learned("prox_time", self._log_prox_time))

    @property
    def step_size(self) -> jax.Array:
        """Step h of the drift, ()."""
        return jnp.exp(self._if_learned("step_size", self._log_step_size))

    def _if_learned(self, name: str, value: jax.Array) -> jax.Array:
        return value if name in self.learn else lax.stop_gradient(value)

    def with_particles(self, rng_key: jax.Array, num_particles: int) -> "SparseTransformerFlow":
        """The same flow with another base ensemble, and therefore another mixture as its density.

        Raises:
            TypeError: If ``num_particles`` is not an integer.
            ValueError: If it is not positive.
        """
        check_count("num_particles", num_particles)
        noise = base_points(rng_key, num_particles, self.dim)
        return eqx.tree_at(lambda flow: flow.noise, self, noise)

    def transport(self, particles: ArrayLike) -> jax.Array:
        """Move an ensemble of base points through all layers, noise-free.

        Args:
            particles: Standard normal points, (num_particles, dim). They interact with each other.

        Returns:
            Their final positions, same shape.

        Raises:
            ValueError: If ``particles`` does not have this shape.
        """
        noise = checked_particles("particles", particles, self.dim, self.noise.dtype)
        keys, _ = self._keys(noise)
        return self._rwpo_layer(keys, self.prox_time[-1])

    def density(self, particles: ArrayLike | None = None) -> ProximalDensity:
        """The density of the last RWPO layer, given the base ensemble.

        Args:
            particles: Standard normal points (num_particles, dim), used instead of ``noise``.

        Returns:
            A fitted density with ``log_prob``, ``score``, ``heat_score`` and ``sample``.

        Raises:
            ValueError: If ``particles`` does not have this shape.
        """
        if particles is None:
            return self._density(lax.stop_gradient(self.noise))[0]
        noise = checked_particles("particles", particles, self.dim, self.noise.dtype)
        return self._density(noise)[0]

    def log_prob(self, x: ArrayLike, rng_key: jax.Array | None = None) -> jax.Array:
        """Normalized log density at points (..., dim), (...).

        Args:
            x: Points.
            rng_key: Not used; accepted because :class:`NeuralODEFlow` needs a key.

        Raises:
            ValueError: If the last axis of ``x`` is not ``dim``.
        """
        x = checked_points(x, self.dim)
        rows = x.reshape(-1, self.dim)
        return self.density().log_prob(rows).reshape(x.shape[:-1])

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent exact draws from the density, (num_samples, dim), pathwise differentiable."""
        return pathwise_sample(rng_key, self.density(), num_samples)

    def log_prob_and_costs(self, rng_key: jax.Array, x: jax.Array) -> tuple[jax.Array, PathCosts]:
        """For training from samples: log density under *fresh* base points, and path costs.

        In expectation over the points, this is a lower bound on the log density for infinitely many
        of them (by Jensen's inequality, apart from the attention in the layers), and no particular
        set of points can be memorized.

        Args:
            rng_key: A random key.
            x: Data, (n, dim).

        Returns:
            Log densities (n,), and the costs.
        """
        noise = fresh_points(rng_key, lax.stop_gradient(self.noise))
        density, costs = self._density(noise)
        return density.log_prob(x), costs

    def sample_and_costs(
        self, rng_key: jax.Array, num_samples: int
    ) -> tuple[jax.Array, jax.Array, PathCosts]:
        """For training from a density: draws, their log density, and path costs.

        The log density is differentiated only through the draws, because the rest of its derivative
        has mean zero and only adds noise (Roeder, Wu and Duvenaud 2017, arXiv:1703.09194).

        Args:
            rng_key: A random key.
            num_samples: Number of draws.

        Returns:
            Draws (num_samples, dim), log densities (num_samples,), and the costs.
        """
        density, costs = self._density(lax.stop_gradient(self.noise))
        x = pathwise_sample(rng_key, density, num_samples)
        return x, lax.stop_gradient(density).log_prob(x), costs

    def _density(self, noise: jax.Array) -> tuple[ProximalDensity, PathCosts]:
        keys, costs = self._keys(noise)
        return BUILT_IN_HEADS[self.attention].fit(keys, self.prior, self.prox_time[-1]), costs

    def _keys(self, noise: jax.Array) -> tuple[jax.Array, PathCosts]:
        """Base points after all layers except the last RWPO layer, and the costs of their paths."""
        _, location, scale = same_rank(noise, self.location, self.scale)

        def advance(x: jax.Array, time: jax.Array) -> tuple[jax.Array, PathCosts]:
            moves = drift(self.potential, (x - location) / scale, time)
            costs = PathCosts(moves.kinetic.mean(), moves.hjb.mean())
            return x + self.step_size * scale * moves.velocity, costs

        def layer(x: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, PathCosts]:
            time, prox_time = inputs
            y, costs = advance(x, time)
            return self._rwpo_layer(y, prox_time), costs

        start = location + scale * noise
        times = jnp.arange(self.num_layers, dtype=noise.dtype) / self.num_layers
        x, costs = lax.scan(layer, start, (times[:-1], self.prox_time[:-1]))
        keys, last = advance(x, times[-1])
        return keys, jax.tree.map(lambda a, b: self.step_size * (a.sum() + b), costs, last)

    def _rwpo_layer(self, y: jax.Array, prox_time: jax.Array) -> jax.Array:
        density = BUILT_IN_HEADS[self.attention].fit(y, self.prior, prox_time)
        shrinkage = 0.5 * self.prior.moreau_gradient(y, prox_time)
        y, time = same_rank(y, prox_time)
        return y - time * (shrinkage + density.heat_score(y))
