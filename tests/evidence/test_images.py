"""The models of the image benchmark, and that draws with total variation are right."""

from __future__ import annotations

import numpy as np
import numpyro
import pytest
from helpers import light_kernel, run_mcmc

from benchmarks import images
from numpyro_rwpo.distributions import TotalVariation


def test_blur_keeps_the_level_and_photographs_keep_their_range() -> None:
    blur = images.blur_matrix(16)
    np.testing.assert_allclose(blur.sum(1), 1.0, rtol=1e-6)
    # Far from the ends, the variances of two kernels along a row add up.
    offset = np.arange(32) - 16
    twice = images.blur_matrix(32)[16] @ images.blur_matrix(32)
    assert abs(twice @ offset**2 - 2 * images.BLUR**2) < 0.05
    for photo in images.PHOTOGRAPHS:
        truth = images.photograph(*photo, size=16)
        assert truth.shape == (16, 16) and 0 <= truth.min() < truth.max() <= 1


def test_model_is_the_density_that_it_says() -> None:
    truth = images.photograph(*images.PHOTOGRAPHS[0], size=16)
    blur, data = images.simulated(truth, 0)
    values = {"scale": 0.1, "noise": 0.02, "image": truth.astype(np.float32)}
    found = numpyro.infer.util.log_density(images.model, (blur, data), {}, values)[0]
    values["noise"] = 0.03
    other = numpyro.infer.util.log_density(images.model, (blur, data), {}, values)[0]
    square = np.sum((data - blur @ truth @ blur.T) ** 2)
    expected = [
        -square / (2 * s**2) - (data.size + 1) * np.log(s) - np.log(s / 0.05) ** 2 / 2
        for s in (0.02, 0.03)
    ]
    np.testing.assert_allclose(other - found, expected[1] - expected[0], rtol=1e-3)


def test_projections_keep_the_mass_of_what_is_inside_the_circle() -> None:
    rays = images.projections(16, num_views=7).reshape(7, 16, 256)
    place = np.arange(16) - 7.5
    disk = (np.add.outer(place**2, place**2) < 6.5**2).astype(np.float32)
    # A detector's value is a mean along a line of 16 pixels.
    np.testing.assert_allclose((rays @ disk.ravel()).sum(1) * 16, disk.sum(), rtol=1e-5)
    # The first view projects along the columns.
    np.testing.assert_allclose(rays[0] @ disk.ravel(), disk.mean(0), atol=1e-6)
    ones = images.projected(np.ones((16, 16)), 0)[1].reshape(images.NUM_VIEWS, 16)
    assert np.abs(ones[0] - 1).max() < 5 * images.PROJECTION_NOISE


@pytest.mark.slow
def test_isotropic_draws_are_those_of_a_long_importance_sample() -> None:
    """Two by two pixels, fixed scale: moments by importance sampling around the data."""
    data = np.array([[0.0, 0.4], [0.5, 1.0]], np.float32)

    def model() -> None:
        image = numpyro.sample("image", TotalVariation(0.3, (2, 2), isotropic=True))
        numpyro.sample("data", numpyro.distributions.Normal(image, 0.5).to_event(2), obs=data)

    x = data + 0.5 * np.random.default_rng(0).normal(size=(400_000, 2, 2)).astype(np.float32)
    weights = np.exp(np.asarray(TotalVariation(0.3, (2, 2), isotropic=True).log_prob(x)) - 5)
    weights = weights / weights.sum()
    mean = (weights[:, None, None] * x).sum(0)
    sd = np.sqrt((weights[:, None, None] * (x - mean) ** 2).sum(0))
    run = run_mcmc(
        light_kernel(model, num_particles=32), key=1, num_warmup=100, num_samples=1000, num_chains=4
    )
    draws = np.asarray(run.get_samples()["image"])
    assert np.all(np.abs(draws.mean(0) - mean) < 0.12 * sd)
    assert np.all(np.abs(np.log(draws.std(0) / sd)) < 0.12)
