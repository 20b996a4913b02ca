r"""Losses for training a flow: likelihood, energy distance and Kullback-Leibler divergences.

Each loss is an object that is called with a flow, a random key and a batch of data, and returns a
scalar. All add the regularizers of OT-Flow (arXiv:2006.00104), like the authors of the sparse
transformer (arXiv:2510.16356): the kinetic cost of transport, which makes paths straight, and the
residual of the Hamilton-Jacobi-Bellman equation, which the potentials of such paths solve.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from numpyro_rwpo.flow.arguments import check_count, check_weight
from numpyro_rwpo.flow.sparse_transformer import PathCosts


class Flow(Protocol):
    """The interface that training needs; both flows of this package implement it."""

    @property
    def dim(self) -> int:
        """Dimension of the samples."""

    def log_prob(self, x: jax.Array, rng_key: jax.Array | None = None) -> jax.Array:
        """Log density of the draws at points (n, dim), (n,)."""

    def log_prob_and_costs(self, rng_key: jax.Array, x: jax.Array) -> tuple[jax.Array, PathCosts]:
        """Log density at data (n, dim), (n,), and path costs."""

    def sample_and_costs(
        self, rng_key: jax.Array, num_samples: int
    ) -> tuple[jax.Array, jax.Array, PathCosts]:
        """Draws (num_samples, dim) with derivatives, log densities (num_samples,), costs."""


Loss = Callable[[Any, jax.Array, jax.Array | None], jax.Array]


@dataclass(frozen=True, kw_only=True)
class Regularized:
    """The regularizers that all losses add.

    Attributes:
        kinetic: Weight of the kinetic cost >= 0.
        hjb: Weight of the Hamilton-Jacobi-Bellman residual >= 0.

    Raises:
        TypeError: If a weight is not a number.
        ValueError: If a weight is negative or not finite.
    """

    kinetic: float = 0.01
    hjb: float = 0.01

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_weight("kinetic", self.kinetic)
        check_weight("hjb", self.hjb)

    def penalty(self, costs: PathCosts) -> jax.Array:
        """The contribution of the costs of a flow's paths to the loss, scalar."""
        return self.kinetic * costs.kinetic + self.hjb * costs.hjb


@dataclass(frozen=True)
class MaximumLikelihood(Regularized):
    """Minus the mean log density of the batch, plus the regularizers.

    The weights, and the errors they raise, are those of :class:`Regularized`.
    """

    def __call__(self, flow: Flow, rng_key: jax.Array, data: jax.Array | None) -> jax.Array:
        """The loss of a batch (n, dim)."""
        log_prob, costs = flow.log_prob_and_costs(rng_key, _required(data))
        return -log_prob.mean() + self.penalty(costs)


@dataclass(frozen=True)
class EnergyDistance(Regularized):
    r"""Energy distance between the batch and the same number of draws, plus the regularizers.

    This is :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|` (Szekely and Rizzo 2013), where each mean is
    over pairs of different points, so that the estimate is unbiased and may be negative. It needs
    no density, and is therefore also suitable for data that have none, such as coordinates that are
    often exactly 0.

    The weights, and the errors they raise, are those of :class:`Regularized`.
    """

    def __call__(self, flow: Flow, rng_key: jax.Array, data: jax.Array | None) -> jax.Array:
        """The loss of a batch (n, dim), n at least 2."""
        data = _required(data)
        draws, _, costs = flow.sample_and_costs(rng_key, data.shape[0])
        return energy_distance(draws, data) + self.penalty(costs)


@dataclass(frozen=True)
class DensityLoss(Regularized):
    """Base class of the losses that train a flow from a density.

    Attributes:
        log_density: Log of the density up to a constant, (n, dim) to (n,).
        num_samples: Number of draws of the flow per step.
        kinetic: Weight of the kinetic cost >= 0.
        hjb: Weight of the Hamilton-Jacobi-Bellman residual >= 0.

    Raises:
        TypeError: If ``num_samples`` is not an integer, or a weight not a number.
        ValueError: If ``num_samples`` is not positive, or a weight negative or not finite.
    """

    log_density: Callable[[jax.Array], jax.Array]
    num_samples: int = 256
    kinetic: float = field(default=0.0, kw_only=True)
    hjb: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_count("num_samples", self.num_samples)
        super().__post_init__()

    def target(self, x: jax.Array) -> jax.Array:
        """The log density at points (n, dim), (n,).

        Raises:
            ValueError: If ``log_density`` returns a shape other than (n,).
        """
        value = self.log_density(x)
        if jnp.shape(value) != x.shape[:1]:  # broadcasting would give a wrong mean
            raise ValueError(
                f"`log_density` must map points {x.shape} to values {x.shape[:1]}; got shape "
                f"{jnp.shape(value)}. Wrap a log density of one point in jax.vmap."
            )
        return value


@dataclass(frozen=True)
class ReverseKL(DensityLoss):
    """Kullback-Leibler divergence from the flow to a density, up to a constant: minus an ELBO.

    A flow that cannot represent the density exactly concentrates inside it, and its standard
    deviations are then too small. The attributes, and the errors they raise, are those of
    :class:`DensityLoss`.
    """

    def __call__(self, flow: Flow, rng_key: jax.Array, data: jax.Array | None = None) -> jax.Array:
        """The loss; there are no data."""
        x, log_prob, costs = flow.sample_and_costs(rng_key, self.num_samples)
        return jnp.mean(log_prob - self.target(x)) + self.penalty(costs)


@dataclass(frozen=True)
class ForwardKL(DensityLoss):
    """Kullback-Leibler divergence from a density to the flow, up to a constant.

    This is minus the mean log density of the flow over its own draws, weighted to represent the
    density (the wake phase of Bornschein and Bengio 2015, arXiv:1406.2751, eq. 7). At its minimum
    the flow covers the density and has the right moments. It needs a flow that already overlaps
    with the density, such as one trained by :class:`ReverseKL`. The attributes, and the errors they
    raise, are those of :class:`DensityLoss`.
    """

    def __call__(self, flow: Flow, rng_key: jax.Array, data: jax.Array | None = None) -> jax.Array:
        """The loss; there are no data."""
        key_draws, key_density = jax.random.split(rng_key)
        x, _, costs = flow.sample_and_costs(key_draws, self.num_samples)
        x = jax.lax.stop_gradient(x)
        log_prob = flow.log_prob(x, key_density)
        weights = jax.nn.softmax(self.target(x) - jax.lax.stop_gradient(log_prob))
        return -jnp.sum(weights * log_prob) + self.penalty(costs)


def energy_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Unbiased estimate of the energy distance between the distributions of two samples.

    Args:
        x: (m, dim), m at least 2.
        y: (n, dim), n at least 2.

    Returns:
        Scalar, in position units; its mean is 0 if the distributions are equal.

    Raises:
        ValueError: If a sample has fewer than 2 points.
    """
    if min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(f"Both samples must have 2 points or more; got {x.shape} and {y.shape}.")
    within_x = jnp.sum(_distances(x, x)) / (x.shape[0] * (x.shape[0] - 1))
    within_y = jnp.sum(_distances(y, y)) / (y.shape[0] * (y.shape[0] - 1))
    return 2 * jnp.mean(_distances(x, y)) - within_x - within_y


def _distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Distances of (m, dim) and (n, dim), (m, n), with a derivative of 0 where points coincide."""
    square = jnp.sum((x[:, None] - y[None]) ** 2, -1)
    return jnp.sqrt(square + float(jnp.finfo(square.dtype).tiny))


def _required(data: jax.Array | None) -> jax.Array:
    if data is None:
        raise ValueError("This loss needs `data` of shape (n, dim); got None.")
    return data
