r"""The normal density times an exponential on a half line, stable in float32 for any parameters.

The closed forms of :mod:`numpyro_rwpo.priors.laplace` are based on two integrals, one for each side
of the kink,

.. math:: \int_0^\infty e^{-\alpha z - (z-u)^2/2} dz = e^{-u^2/2} m(t), \qquad t = \alpha - u,

with the Mills ratio :math:`m(t) = (1-\Phi(t))/\varphi(t) = \sqrt{\pi/2}\,\mathrm{erfcx}(t/\sqrt2)`;
the left one has :math:`t = \alpha + u`. At most one t is therefore negative. For it
:math:`m(t) = \sqrt{2\pi} e^{t^2/2} - m(|t|)`, and the large exponential cancels
:math:`e^{-u^2/2}` analytically: the result is minus a Moreau envelope plus the logarithm of a
number of ordinary size. The textbook form (a difference of squares and of logarithms of
:math:`\Phi`) loses all digits in float32.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from numpy.polynomial.chebyshev import cheb2poly

SQRT_TWO_PI = math.sqrt(2 * math.pi)

# m(t) = (1 + kappa R(1 - 2 kappa)) / (t + 4) with kappa = 4 / (t + 4): this form has the right
# value at both ends, and R is smooth on [-1, 1]. The Chebyshev coefficients of R are from
# interpolation at 120 nodes in 40-digit arithmetic; the shift of 4 makes them decay fastest. The
# whole table is accurate to 1e-16, and its first 14 entries to 1e-9. They decay so fast that powers
# are stable, too.
_SHIFT = 4.0
_CHEBYSHEV = (
    2.1418762700054813, -1.4464891740491997, 0.36028741020857185, -6.0762601919183184e-2,
    4.651274529880071e-3, 6.2231840403224015e-4, -1.9215291889572828e-4, 1.5154973980445867e-6,
    5.649036609492761e-6, -3.4778072545436794e-7, -1.8297012443629722e-7, 1.5740319102020286e-8,
    7.0372185965508986e-9, -5.3463017785438919e-10, -3.1185240070324661e-10,
    1.0603196320998648e-11, 1.4768844567290052e-11, 4.608360969605789e-13, -6.8374787647135439e-13,
    -8.2178232379395696e-14, 2.7362938143252024e-14, 7.2474143375526201e-15,
    -6.551512332165182e-16, -4.8422069370271521e-16,
)  # fmt: skip
_POWERS_DOUBLE = cheb2poly(_CHEBYSHEV).tolist()
_POWERS_SINGLE = cheb2poly(_CHEBYSHEV[:14]).tolist()


def mills_ratio(t: jax.Array) -> jax.Array:
    """Mills ratio ``(1 - Phi(|t|)) / phi(|t|)``; its derivative is as accurate as its value.

    ``jax.scipy.special.erfcx`` is the same function up to scale, but older versions of JAX lack it,
    and in JAX 0.10 it returns 0 around 9.3 in float32.

    Args:
        t: Floating-point array; its sign is ignored.

    Returns:
        The ratio, within a few roundings of the dtype.
    """
    # Unlike jnp.abs, this has slope 1 at zero, where the branch for t >= 0 is differentiated.
    distance = jnp.where(t < 0, -t, t)
    kappa = _SHIFT / (distance + _SHIFT)
    argument = 1 - 2 * kappa
    powers = _POWERS_DOUBLE if t.dtype == jnp.float64 else _POWERS_SINGLE
    smooth = jnp.full_like(argument, powers[-1])
    for power in powers[-2::-1]:
        smooth = smooth * argument + power
    return kappa * (1 + kappa * smooth) / _SHIFT


def masses(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Integrals over both half lines, relative to ``exp(-envelope)``.

    Args:
        left: ``t`` of the left half line.
        right: ``t`` of the right half line; ``left + right >= 0``.

    Returns:
        The mass of the left half line, the mass of the right one, and the excess ``t^2 / 2`` of the
        negative ``t`` (0 if there is none). On the scale of these masses the kernel is
        ``exp(-t z - z^2/2 - excess)``.
    """
    excess = 0.5 * jnp.square(jnp.minimum(jnp.minimum(left, right), 0))
    gauss = jnp.exp(-excess)
    left_tail, right_tail = gauss * mills_ratio(left), gauss * mills_ratio(right)
    mass_left = jnp.where(left < 0, SQRT_TWO_PI - left_tail, left_tail)
    mass_right = jnp.where(right < 0, SQRT_TWO_PI - right_tail, right_tail)
    return mass_left, mass_right, excess


def envelope(offset: jax.Array, rate_left: jax.Array, rate_right: jax.Array) -> jax.Array:
    """Moreau envelope at unit step, ``min_z g(z) + (z - offset)^2/2``, ``g`` with its kink at 0."""
    slope = jnp.clip(offset, -rate_left, rate_right)
    return slope * (offset - 0.5 * slope)


@jax.custom_jvp
def log_integral(offset: jax.Array, rate_left: jax.Array, rate_right: jax.Array) -> jax.Array:
    """Log of the integral of ``exp(-g(z) - (z - offset)^2/2)`` over both half lines.

    Args:
        offset: Center ``u`` of the normal factor.
        rate_left: Slope of ``g`` to the left of 0, >= 0.
        rate_right: Slope of ``g`` to the right of 0, >= 0.

    Returns:
        The logarithm. Its first derivatives are given explicitly and are accurate in every range.
    """
    mass_left, mass_right, _ = masses(rate_left + offset, rate_right - offset)
    return jnp.log(mass_left + mass_right) - envelope(offset, rate_left, rate_right)


@log_integral.defjvp
def _log_integral_jvp(
    primals: tuple[jax.Array, jax.Array, jax.Array], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    offset, rate_left, rate_right = primals
    left, right = rate_left + offset, rate_right - offset
    mass_left, mass_right, excess = masses(left, right)
    mass = mass_left + mass_right
    gauss = jnp.exp(-excess)

    def mean(t: jax.Array, half_mass: jax.Array) -> jax.Array:
        # The integral of z exp(-t z - z^2/2) is 1 - t m(t) = -m'(t); for t > 0 only the second form
        # preserves its digits.
        _, slope = jax.jvp(mills_ratio, (t,), (jnp.ones_like(t),))
        return jnp.where(t < 0, gauss - t * half_mass, -gauss * slope) / mass

    mean_left, mean_right = mean(left, mass_left), mean(right, mass_right)
    # d/du = E[z] - u = -E[g'(z)]; the two forms are equal by integration by parts. The first form
    # cancels where the prior is weak or u far out, the second where the prior is strong and u near.
    from_slope = (rate_left * mass_left - rate_right * mass_right) / mass
    is_weak = (excess > 0) | (rate_left + rate_right < 1)
    slope = jnp.where(is_weak, from_slope, mean_right - mean_left - offset)
    tangent = slope * tangents[0] - mean_left * tangents[1] - mean_right * tangents[2]
    return jnp.log(mass) - envelope(offset, rate_left, rate_right), tangent


def log_distribution(
    z: jax.Array, shift: jax.Array, offset: jax.Array, rate_left: jax.Array, rate_right: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logs of the density, distribution and survival functions of ``exp(-g(z) - shift^2/2)``.

    Args:
        z: Points at which to evaluate.
        shift: ``z - offset``, passed separately because the caller may know it without
            cancellation.
        offset: Center ``u`` of the normal factor.
        rate_left: Slope of ``g`` to the left of 0, >= 0.
        rate_right: Slope of ``g`` to the right of 0, >= 0.

    Returns:
        The three logarithms. The last two are accurate in their own tails, however far out. The
        exception is the foot of a kink that cuts a tail off, where only the probability, not its
        logarithm, is accurate up to rounding.
    """
    is_left = z < 0
    sign = jnp.where(is_left, -1, 1)
    own_rate = jnp.where(is_left, rate_left, rate_right)
    other_rate = jnp.where(is_left, rate_right, rate_left)
    own, other = own_rate - sign * offset, other_rate + sign * offset
    own_mass, other_mass, excess = masses(own, other)
    log_mass = jnp.log(own_mass + other_mass)

    beyond = own_rate + sign * shift  # t of the half line that starts at z
    distance = sign * z
    decay = distance * (own + 0.5 * distance)
    exponent = jnp.where(own < 0, -0.5 * jnp.square(beyond), -decay - excess)
    # Outer is the part from z away from the kink, and inner is the rest. Each is in the form that
    # does not cancel.
    ratio = mills_ratio(beyond)
    tail = jnp.exp(exponent) * ratio
    log_outer = jnp.where(beyond < 0, jnp.log(SQRT_TWO_PI - tail), exponent + jnp.log(ratio))
    shrink = jnp.exp(_at_most_zero(decay))
    near = shrink * mills_ratio(other) - _at_most_zero(shrink * mills_ratio(own) - ratio)
    far = other_mass - _at_most_zero(tail - own_mass)
    log_inner = jnp.where(beyond < 0, exponent + jnp.log(near), jnp.log(far))
    log_cdf = jnp.where(is_left, log_outer, log_inner) - log_mass
    log_survival = jnp.where(is_left, log_inner, log_outer) - log_mass
    return exponent - log_mass, log_cdf, log_survival


def _at_most_zero(x: jax.Array) -> jax.Array:
    """The smaller of x and 0; at 0, which is where z is on the kink, with the derivative of x."""
    return jnp.where(x > 0, 0, x)


def quantile(t: jax.Array, level: jax.Array) -> jax.Array:
    """Quantile of the density proportional to ``exp(-t z - z^2/2)`` on ``z >= 0``.

    Args:
        t: Minus the mean of the truncated normal; any sign and size.
        level: Probability below the result, in (0, 1).

    Returns:
        The quantile >= 0.
    """
    # For t < 0 this is a normal around -t: use its quantile function in the smaller tail.
    below_kink = jnp.exp(-0.5 * jnp.square(jnp.minimum(t, 0))) * mills_ratio(t) / SQRT_TWO_PI
    lower = level + (1 - level) * below_kink
    upper = (1 - level) * (1 - below_kink)
    is_lower = level < 0.5
    normal = ndtri(jnp.where(is_lower, lower, upper))
    central = jnp.maximum(jnp.where(is_lower, normal, -normal) - t, 0)

    # For t >= 0, apply Newton's method to the log survival function, whose slope is -1/m. It is
    # concave, and both starting values lie above the root, so the steps descend to it; 3 steps
    # suffice in float32, 4 in float64.
    t_tail = jnp.maximum(t, 0)
    ratio, target = mills_ratio(t_tail), -jnp.log1p(-level)
    z = jnp.minimum(target * ratio, 2 * target / (t_tail + jnp.sqrt(t_tail**2 + 2 * target)))
    for _ in range(4 if z.dtype == jnp.float64 else 3):
        ratio_z = mills_ratio(t_tail + z)
        log_survival = jnp.log(ratio_z / ratio) - z * (t_tail + 0.5 * z)
        z = jnp.maximum(z + (log_survival + target) * ratio_z, 0)
    return jnp.where(t < 0, central, z)
