"""Elementary functions on logarithms. Those with a test of their own densities are in test_grid."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from numpyro_rwpo.heads.log_space import exponential_quantile


@pytest.mark.parametrize("double", [False, True])
def test_exponential_quantile_inverts_the_distribution_at_any_slope(double: bool) -> None:
    """At position t the fraction is ``expm1(slope t) / expm1(slope)``.

    The fraction's own rounding moves the position by as much as the fraction over the density,
    ``expm1(slope) / (slope exp(slope t))``: allowed beside the position's own rounding. XLA's
    ``log1p`` is itself off by up to 15 roundings here, in double precision.
    """
    slope = np.array([-600.0, -25, -3, -1e-3, 0, 1e-30, 1e-9, 0.5, 19.9, 20.1, 25, 80])[:, None]
    t = np.linspace(0, 1, 41)
    nonzero = np.where(slope == 0, 1, slope)
    with np.errstate(over="ignore", invalid="ignore"):
        # For positive slopes from the right end, where the exponentials do not overflow.
        rising = np.exp(slope * (t - 1)) * -np.expm1(-slope * t) / -np.expm1(-nonzero)
        falling = np.expm1(slope * t) / np.expm1(nonzero)
        spread = np.where(
            slope > 0,
            -np.expm1(-nonzero) / (nonzero * np.exp(slope * (t - 1))),
            np.expm1(nonzero) / (nonzero * np.exp(slope * t)),
        )
    fraction = np.where(slope > 0, rising, np.where(slope < 0, falling, t))
    spread = np.where(slope == 0, 1, spread)
    with jax.enable_x64(double):
        dtype = np.float64 if double else np.float32
        found = jax.jit(exponential_quantile)(fraction.astype(dtype), slope.astype(dtype))
    epsilon = float(np.finfo(dtype).eps)
    error = np.abs(np.asarray(found, float) - t)
    # Fractions that underflow have lost their position.
    seen = fraction >= np.finfo(dtype).tiny
    bound = 32 * epsilon * (1 + fraction * spread)
    assert np.all((error <= bound)[seen | (t == 0)]), (error / bound).max(1)
