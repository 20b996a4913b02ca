"""The metric is the inverse precision of a Gaussian, whatever the ensemble."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rwpo.metric import ensemble_moments, fisher_preconditioner

DIM = 5


def random_covariance(rng, condition):
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    return (basis * np.geomspace(1, condition, DIM)) @ basis.T


@pytest.mark.parametrize("units", [np.ones(DIM), np.geomspace(1e-4, 1e4, DIM)])
def test_gaussian_target(units):
    rng = np.random.default_rng(0)
    precision = random_covariance(rng, 100.0) / np.outer(units, units)
    spread = np.linalg.cholesky(random_covariance(rng, 10.0))
    particles = (rng.normal(size=(64, DIM)) @ spread.T * units).astype(np.float32)
    gradients = (particles @ precision).astype(np.float32)
    moments = ensemble_moments(jnp.asarray(particles), jnp.asarray(gradients), True)
    preconditioner = fisher_preconditioner(moments)
    factor = np.asarray(preconditioner.factor, np.float64) / units[:, None]
    inverse = np.asarray(preconditioner.inverse, np.float64) * units
    np.testing.assert_allclose(inverse @ factor, np.eye(DIM), atol=1e-3)
    # Single precision through a condition number of 100.
    whitened = factor @ factor.T @ (precision * np.outer(units, units))
    np.testing.assert_allclose(whitened, np.eye(DIM), atol=2e-2)


def test_spectrum_says_how_wide_the_ensemble_is():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(4000, DIM)) * 3.0, jnp.float32)
    for dense in (True, False):
        spectrum = fisher_preconditioner(ensemble_moments(x, x, dense)).spectrum
        # sqrt(m) is the variance ratio, 9, within sampling error of a variance: sqrt(2/4000) = 2 %
        np.testing.assert_allclose(np.sqrt(spectrum), 9.0, rtol=0.12)


def test_degenerate_ensembles_give_finite_metrics():
    x = jnp.zeros((8, DIM), jnp.float32)
    for dense in (True, False):
        factor = fisher_preconditioner(ensemble_moments(x, x, dense)).factor
        assert np.all(np.isfinite(factor))
