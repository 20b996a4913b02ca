"""Elementary functions of one-dimensional densities, on logarithms so that tails keep digits."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.priors.mills import mills_ratio

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@jax.custom_jvp
def log_mean_exp(t: jax.Array) -> jax.Array:
    """Log of the mean of ``exp`` between 0 and ``t``, ``log((exp(t) - 1) / t)``."""
    size = jnp.abs(t) + float(np.finfo(t.dtype).tiny)
    return jnp.maximum(t, 0) + jnp.log(-jnp.expm1(-size) / size)


@log_mean_exp.defjvp
def _log_mean_exp_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """``1 / (1 - exp(-t)) - 1 / t``, near 0 by its series: there the two cancel."""
    (t,) = primals
    # Below 0.03 the first term that the series leaves out, t^7/1209600, is 2e-17, under a rounding
    # of double precision. Above it the difference loses at most 1/0.03 = 33 roundings.
    is_small = jnp.abs(t) < 0.03
    square = t**2
    series = 0.5 + t * (1 / 12 - square * (1 / 720 - square / 30240))
    size = jnp.where(is_small, 1, t)
    slope = jnp.where(is_small, series, -1 / jnp.expm1(-size) - 1 / size)
    return log_mean_exp(t), slope * tangents[0]


def exponential_quantile(fraction: jax.Array, slope: jax.Array) -> jax.Array:
    """Where a density proportional to ``exp(slope t)`` on [0, 1] has ``fraction`` to its left."""
    # Slopes up to 1e-19 (in single precision) are as good as flat. A smaller replacement would make
    # its product with the fraction too small a number, which processors take for 0.
    least = float(np.finfo(slope.dtype).tiny) ** 0.5
    size = jnp.where(jnp.abs(slope) < least, least, slope)
    # Two forms of log(1 + fraction (exp(size) - 1)) / size. The first keeps the digits of flat
    # densities, the second does not overflow; at a size of 20 both are good to rounding.
    moderate = jnp.log1p(fraction * jnp.expm1(jnp.minimum(size, 20))) / size
    inverse = jnp.exp(-jnp.maximum(size, 20))
    steep = 1 + jnp.log(fraction * (1 - inverse) + inverse) / size
    return jnp.clip(jnp.where(size < 20, moderate, steep), 0, 1)


def log_or_minus_inf(x: jax.Array) -> jax.Array:
    """The logarithm of x >= 0; at 0 it has the derivative 0, which multiplies no infinity."""
    is_positive = x > 0
    return jnp.where(is_positive, jnp.log(jnp.where(is_positive, x, 1)), -jnp.inf)


def log_complement(log_p: jax.Array) -> jax.Array:
    """Log of one minus the probability ``exp(log_p)``."""
    return jnp.log1p(-jnp.exp(log_p))


def log_normal_tail(t: jax.Array) -> jax.Array:
    """Log of the standard normal mass beyond ``t >= 0``."""
    return jnp.log(mills_ratio(t)) - 0.5 * t**2 - HALF_LOG_TWO_PI


@jax.custom_jvp
def normal_tail_quantile(log_p: jax.Array) -> jax.Array:
    """The ``t >= 0`` beyond which the standard normal has mass ``exp(log_p) <= 1/2``.

    Abramowitz and Stegun 26.2.22, within 3e-3 (3 % far out), then Newton steps on the log tail,
    whose slope is minus one over the Mills ratio. Each step squares the error: two reach single
    precision, three double.
    """
    t = jnp.sqrt(-2 * log_p)
    t = t - (2.30753 + 0.27061 * t) / (1 + t * (0.99229 + 0.04481 * t))
    for _ in range(3 if log_p.dtype == jnp.float64 else 2):
        t = jnp.maximum(t, 0)
        t = t + (log_normal_tail(t) - log_p) * mills_ratio(t)
    return jnp.maximum(t, 0)


@normal_tail_quantile.defjvp
def _normal_tail_quantile_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    t = normal_tail_quantile(*primals)
    return t, -tangents[0] * mills_ratio(t)
