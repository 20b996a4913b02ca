r"""Exact motion in a potential that is linear on both sides of a kink.

The path is a parabola up to the kink. From there the momentum is a triangle wave between -P and P,
:math:`P = \sqrt{2H}` with the energy H, evaluated at the remaining time modulo the period, without
a loop over crossings. A particle that enters a side without force never returns.

Reference: Pakman and Paninski (2013), arXiv:1311.2166, exact HMC for piecewise potentials.
"""

import jax
import jax.numpy as jnp
import numpy as np


def move_past_kink(
    x: jax.Array,
    p: jax.Array,
    time: jax.Array,
    location: jax.Array,
    rate_left: jax.Array,
    rate_right: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Positions and momenta of unit masses after ``time``, elementwise; all of one rank.

    Args:
        x: Positions.
        p: Momenta.
        time: Duration; if negative, the motion runs backward.
        location: The kink.
        rate_left: Minus the slope of the potential to the left of the kink, >= 0.
        rate_right: Slope of the potential to its right, >= 0.
    """
    distance, direction = x - location, jnp.where(time < 0, -1, 1)
    # Reflect time and space, to run forward from the right (at the kink, to move to the right).
    is_left = (distance < 0) | ((distance == 0) & (direction * p < 0))
    side = jnp.where(is_left, -1, 1)
    position, momentum, duration = side * distance, direction * side * p, jnp.abs(time)
    near_rate = jnp.where(is_left, rate_left, rate_right)
    far_rate = jnp.where(is_left, rate_right, rate_left)
    speed = jnp.sqrt(momentum**2 + 2 * near_rate * position)
    near_rate = jnp.where(speed > 0, near_rate, 0)  # at rest on the kink there is no force

    # First zero of the parabola, by the form of the root without cancellation.
    is_outward = momentum > 0
    crossing = _ratio_or_inf(
        jnp.where(is_outward, momentum + speed, 2 * position),
        jnp.where(is_outward, near_rate, speed - momentum),
    )
    far_span = _ratio_or_inf(2 * speed, far_rate)
    near_span = _ratio_or_inf(2 * speed, near_rate)
    phase, is_far = _last_arc(jnp.maximum(duration - crossing, 0), far_span, near_span)
    rate = jnp.where(is_far, far_rate, near_rate)
    wave_side = jnp.where(is_far, -side, side)

    crosses = duration > crossing
    wave = wave_side * jnp.maximum(phase * (speed - 0.5 * rate * phase), 0)
    direct = x + side * duration * (momentum - 0.5 * near_rate * duration)
    # Rounding must not carry a particle across the kink, beyond which the slope may be far
    # larger.
    direct = jnp.where(is_left, jnp.minimum(direct, location), jnp.maximum(direct, location))
    x = jnp.where(crosses, location + wave, direct)
    p = jnp.where(
        crosses, wave_side * (speed - rate * phase), side * (momentum - near_rate * duration)
    )
    return x, direction * p


def _last_arc(
    time: jax.Array, first_span: jax.Array, second_span: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Time since the last change of arc, where two arcs take turns, and whether it is the first."""
    period = jnp.minimum(first_span + second_span, np.finfo(time.dtype).max)
    # The bounds preserve the energy where rounding has lost the phase altogether. The second one
    # also does so where the rounding error of a long arc exceeds the length of a short one.
    phase = jnp.maximum(time - jnp.floor(time / period) * period, 0)
    is_first = phase < first_span
    return jnp.where(is_first, phase, jnp.minimum(phase - first_span, second_span)), is_first


def _ratio_or_inf(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    is_positive = denominator > 0
    return jnp.where(is_positive, numerator / jnp.where(is_positive, denominator, 1), jnp.inf)
