"""Convergence diagnostics against ArviZ's own."""

from __future__ import annotations

import arviz as az
import numpy as np

from numpyro_rwpo.diagnostics.convergence import mcse


def test_standard_error_of_the_standard_deviation_is_that_of_arviz() -> None:
    """Autocorrelated draws of several coordinates; ArviZ computes one coordinate at a time."""
    noise = np.random.default_rng(0).normal(size=(4, 300, 3))
    draws = noise + 0.8 * np.roll(noise, 1, axis=1)
    data = az.convert_to_dataset({"x": draws})
    np.testing.assert_allclose(
        mcse(draws, "sd"), az.mcse(data, method="sd")["x"].values, rtol=1e-10
    )
