r"""Descents of a potential along several paths at once by the BFGS method.

The inverse Hessian is kept as a product of rank-one factors (Brodlie, Gourlay and Greenstadt 1973).
With :math:`b = H^{-1} s` and the gradient difference :math:`y` of a step s,

.. math:: H_{k+1} = A H_k A^\top, \quad A = I + s z^\top, \quad
          z = b / \sqrt{s^\top y\, s^\top b} - y / s^\top y,

which is the BFGS update. For a draw from :math:`N(0, H)`, the factors are applied to white noise.
The determinant is multiplied by :math:`s^\top b / s^\top y` in each update, and no matrix has to be
factorized.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from numpyro_rwpo.dynamics.ensemble import is_usable

PotentialAndGrad = Callable[[jax.Array], tuple[jax.Array, jax.Array]]

# A step is accepted if the potential falls by this share of what its slope predicts; the value is
# the usual one (Nocedal and Wright 2006, sec. 3.1).
_ARMIJO = 1e-4
# The factor by which a step that is not accepted becomes shorter.
_BACKTRACK = 0.2
# The smallest cosine of the angle between a step and its gradient difference with which the inverse
# Hessian is updated. With a smaller one, rounding errors would dominate the update.
_CURVATURE = 1e-6


class History(NamedTuple):
    """Inverse Hessian of every path, ``H = F F^T`` with ``F = A_n ... A_1 sqrt(initial)``.

    Attributes:
        steps: s, (num_paths, length, dim).
        duals: z, (num_paths, length, dim); 0 beyond ``num_factors``.
        initial: the initial inverse Hessian, a multiple of the identity, (num_paths,).
        num_factors: number of factors in use, (num_paths,).
        log_det: log determinant of H, (num_paths,).
        num_tried: number of points that have been tried on every path, scalar. No path has more
            factors. Loops over factors are bounded by it because it is the same for all chains:
            loops of different lengths would have to be masked, and take longer to trace.
    """

    steps: jax.Array
    duals: jax.Array
    initial: jax.Array
    num_factors: jax.Array
    log_det: jax.Array
    num_tried: jax.Array


class Descent(NamedTuple):
    """The positions of the paths, and the points that they try next.

    Attributes:
        position: position, (num_paths, dim).
        value: potential, (num_paths,).
        gradient: gradient of the potential, (num_paths, dim).
        direction: search direction, (num_paths, dim).
        length: share of the direction to try next, (num_paths,).
        history: inverse Hessians.
    """

    position: jax.Array
    value: jax.Array
    gradient: jax.Array
    direction: jax.Array
    length: jax.Array
    history: History


def first_descent(positions: jax.Array, length: int) -> Descent:
    """Paths that start at ``positions``, (num_paths, dim), with room for ``length`` factors."""
    (num_paths, dim), dtype = positions.shape, positions.dtype
    history = History(
        steps=jnp.zeros((num_paths, length, dim), dtype),
        duals=jnp.zeros((num_paths, length, dim), dtype),
        initial=jnp.ones(num_paths, dtype),
        num_factors=jnp.zeros(num_paths, int),
        log_det=jnp.zeros(num_paths, dtype),
        num_tried=jnp.zeros((), int),
    )
    # A path whose value is infinite accepts the first finite point, which is its own start.
    return Descent(
        position=positions,
        value=jnp.full(num_paths, jnp.inf, dtype),
        gradient=jnp.zeros((num_paths, dim), dtype),
        direction=jnp.zeros((num_paths, dim), dtype),
        length=jnp.ones(num_paths, dtype),
        history=history,
    )


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a * b).sum(-1)


def _newton_direction(gradient: jax.Array, history: History) -> jax.Array:
    """The quasi-Newton direction -H g of every path, (num_paths, dim)."""
    last = history.num_tried

    def transposed(i: jax.Array, q: jax.Array) -> jax.Array:
        j = last - 1 - i
        return q + history.duals[:, j] * _dot(history.steps[:, j], q)[:, None]

    def direct(j: jax.Array, r: jax.Array) -> jax.Array:
        return r + history.steps[:, j] * _dot(history.duals[:, j], r)[:, None]

    q = lax.fori_loop(0, last, transposed, gradient)
    return -lax.fori_loop(0, last, direct, history.initial[:, None] * q)


def apply_factors(
    history: History, num_factors: jax.Array, path: jax.Array, vectors: jax.Array
) -> jax.Array:
    """Apply the first factors of the inverse Hessians to vectors.

    Args:
        history: inverse Hessians.
        num_factors: number of factors of each path to apply, (num_paths,).
        path: the path of each vector, (n,).
        vectors: (n, dim).
    """

    def factor(j: jax.Array, vectors: jax.Array) -> jax.Array:
        dual = jnp.where((j < num_factors)[:, None], history.duals[:, j], 0.0)[path]
        return vectors + history.steps[:, j][path] * _dot(dual, vectors)[:, None]

    return lax.fori_loop(0, history.num_tried, factor, vectors)


def _remember(
    history: History,
    step: jax.Array,
    difference: jax.Array,
    gradient: jax.Array,
    length: jax.Array,
    keep: jax.Array,
) -> History:
    """Append a factor to the paths in ``keep``."""
    curvature = _dot(step, difference)
    first = history.num_factors == 0
    scale = curvature / _dot(difference, difference)
    initial = jnp.where(keep & first, scale, history.initial)
    # This is b. The step is -length H g, except that the first factor also rescales the initial H.
    dual_step = jnp.where(first[:, None], step / initial[:, None], -length[:, None] * gradient)
    quadratic = _dot(step, dual_step)
    dual = dual_step / jnp.sqrt(curvature * quadratic)[:, None] - difference / curvature[:, None]
    before = jnp.where(first, step.shape[-1] * jnp.log(initial), history.log_det)
    log_det = before + jnp.log(quadratic) - jnp.log(curvature)
    row = jnp.arange(step.shape[0])
    keep &= jnp.all(jnp.isfinite(dual), -1) & jnp.isfinite(log_det)
    slot = jnp.where(keep, history.num_factors, history.steps.shape[1])  # out of bounds: dropped
    return History(
        history.steps.at[row, slot].set(step, mode="drop"),
        history.duals.at[row, slot].set(dual, mode="drop"),
        jnp.where(keep, initial, history.initial),
        history.num_factors + keep,
        jnp.where(keep, log_det, history.log_det),
        history.num_tried + 1,
    )


def descend(descent: Descent, potential_and_grad: PotentialAndGrad) -> Descent:
    """Try one point on every path: step there if the potential falls enough, or backtrack."""
    step = descent.length[:, None] * descent.direction
    position = descent.position + step
    value, gradient = potential_and_grad(position)
    slope = _dot(descent.gradient, descent.direction)
    # Rounding of the potential must not stop a path that is already at its optimum.
    slack = 4 * jnp.finfo(value.dtype).eps * jnp.abs(descent.value)
    bound = descent.value + _ARMIJO * descent.length * slope + slack
    accepted = is_usable(value, gradient) & (value <= bound)
    difference = gradient - descent.gradient
    curvature = _dot(step, difference)
    curved = curvature > _CURVATURE * jnp.sqrt(_dot(step, step) * _dot(difference, difference))
    history = _remember(
        descent.history, step, difference, descent.gradient, descent.length, accepted & curved
    )
    position = jnp.where(accepted[:, None], position, descent.position)
    gradient = jnp.where(accepted[:, None], gradient, descent.gradient)
    # Before any curvature is known, the direction is the gradient, and a step along it is at most
    # one unit long.
    unit = 1 / jnp.maximum(jnp.sqrt(_dot(gradient, gradient)), 1.0)
    full = jnp.where(history.num_factors == 0, unit, 1.0)
    return Descent(
        position,
        jnp.where(accepted, value, descent.value),
        gradient,
        jnp.where(accepted[:, None], _newton_direction(gradient, history), descent.direction),
        jnp.where(accepted, full, _BACKTRACK * descent.length),
        history,
    )
