r"""The exponential of a norm as a mixture of normal densities, for integrals in any dimension.

For :math:`r \ge 0`,

.. math:: e^{-r} = \int_0^\infty \frac{1}{\sqrt{\pi u}}\, e^{-u - r^2/(4u)}\, du

(Andrews and Mallows 1974, *Scale mixtures of normal distributions*, sec. 3, in the form in which
the group lasso uses it). Where :math:`r^2` is a sum over coordinates, the integrand is a product
over coordinates. An integral over a group of any size thus becomes one over :math:`u`, without
Bessel functions and in any diagonal metric.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The integrand over t = log u, which includes sqrt(u), falls off like exp(-exp(t)) to the right and
# at least like exp(t/2) to the left. The nodes are t* + w sinh(s) around its peak t*, with s
# between -5.5 and 5.5: they reach 120 widths w to either side. With this spacing in s, the
# error of the trapezoidal rule is 1e-9 or less (tests/priors/test_group.py).
_REACH, _SPACING = 5.5, 0.125
_NODES = np.arange(-_REACH, _REACH + _SPACING / 2, _SPACING)
# Nodes of one search for the peak, whose cell the next search divides, and the number of searches.
_SEARCH, _NUM_SEARCHES = 33, 4
# The peak is between these: at sizes of the group from 1 to 10^6 and norms r up to 10^6.
_LOWEST, _HIGHEST = -40.0, 16.0


class Mixture(NamedTuple):
    """Quadrature nodes for the mixing variable u, and the integrand there.

    Attributes:
        u: nodes, (nodes, ...).
        log_weight: log of the integrand times the node's weight, (nodes, ...).
        nodes: the nodes s of the trapezoidal rule, (nodes,).
    """

    u: jax.Array
    log_weight: jax.Array
    nodes: np.ndarray

    def log_integral(self) -> jax.Array:
        """Log of the integral, (...)."""
        return jax.nn.logsumexp(self.log_weight, 0)

    def mean(self, values: jax.Array) -> jax.Array:
        """Mean of values at the nodes, (nodes, ...) -> (...)."""
        return (jax.nn.softmax(self.log_weight, 0) * values).sum(0)


def mix(
    log_factor: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], dtype: Any
) -> Mixture:
    """Nodes for integrals of ``exp(-u + log_factor(u)) / sqrt(pi u)`` over u > 0.

    Args:
        log_factor: Maps u, (..., *shape), to logarithms of that shape.
        shape: Shape of one u.
        dtype: Of the result.

    Returns:
        The nodes, with derivatives of the integral in whatever ``log_factor`` depends on.
    """
    center, width = lax.stop_gradient(_peak(log_factor, shape, dtype))
    s = jnp.asarray(_NODES, dtype).reshape(-1, *(1,) * len(shape))
    t = center[None] + width[None] * jnp.sinh(s)
    t = jnp.clip(t, -80.0, 80.0)  # exp(t) and its reciprocal are then finite in single precision
    jacobian = jnp.log(width)[None] + jnp.log(jnp.cosh(s)) + math.log(_SPACING)
    return Mixture(jnp.exp(t), _log_integrand(log_factor, t) + jacobian, _NODES)


def _log_integrand(log_factor: Callable[[jax.Array], jax.Array], t: jax.Array) -> jax.Array:
    """Log of the integrand over t = log u."""
    u = jnp.exp(t)
    return 0.5 * t - u - 0.5 * math.log(math.pi) + log_factor(u)


def _peak(
    log_factor: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Position and width of the integrand's peak on the scale of log u, both of ``shape``."""
    column = (-1, *(1,) * len(shape))
    fraction = jnp.asarray(np.linspace(-1, 1, _SEARCH), dtype).reshape(column)

    def closer(k: int, center: jax.Array) -> jax.Array:
        half = (_HIGHEST - _LOWEST) / 2 * (2 / (_SEARCH - 1)) ** jnp.asarray(k, dtype)
        t = center[None] + half * fraction
        best = jnp.argmax(_log_integrand(log_factor, t), 0)
        return jnp.take_along_axis(t, best[None], 0)[0]

    middle = jnp.full(shape, (_LOWEST + _HIGHEST) / 2, dtype)
    center = lax.fori_loop(0, _NUM_SEARCHES, closer, middle)
    # The width at which the integrand has fallen by half a nat on one side, the first of these.
    sizes = np.geomspace(1e-3, 8, 40)
    steps = jnp.asarray(np.concatenate([[0.0], sizes, -sizes]), dtype).reshape(column)
    value = _log_integrand(log_factor, center[None] + steps)
    has_fallen = value[:1] - value[1:] > 0.5
    has_fallen = has_fallen[:40] | has_fallen[40:]
    first = jnp.argmax(has_fallen, 0)
    width = jnp.take_along_axis(jnp.broadcast_to(steps[1:41], has_fallen.shape), first[None], 0)[0]
    return center, width


def draw_mixing(rng_key: jax.Array, mixture: Mixture) -> jax.Array:
    """Draws of u, by inversion of its distribution function between the nodes, (...).

    Between nodes, the density of s is taken to be linear. The spacing of the nodes is an eighth of
    the width of the peak, so that the distribution function is off by less than 1e-3.
    """
    weight = jnp.exp(mixture.log_weight - mixture.log_weight.max(0, keepdims=True))
    mass = 0.5 * (weight[1:] + weight[:-1])
    total = jnp.cumsum(mass, 0)
    level = jax.random.uniform(rng_key, weight.shape[1:], weight.dtype) * total[-1]
    cell = jnp.minimum((total < level[None]).sum(0), mass.shape[0] - 1)

    def at(table: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(table, index[None], 0)[0]

    rest = jnp.maximum(level - (at(total, cell) - at(mass, cell)), 0)
    low, high = at(weight, cell), at(weight, cell + 1)
    # Root of low f + (high - low) f^2 / 2 = rest, by the form without cancellation.
    root = jnp.sqrt(jnp.maximum(low**2 + 2 * (high - low) * rest, 0))
    fraction = jnp.clip(2 * rest / jnp.maximum(low + root, jnp.finfo(root.dtype).tiny), 0, 1)
    log_u = jnp.log(mixture.u)
    start, stop = at(log_u, cell), at(log_u, cell + 1)
    return jnp.exp(start + fraction * (stop - start))
