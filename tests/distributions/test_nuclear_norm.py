"""NuclearNorm as a NumPyro distribution: density, normalizer, draws, shapes, posterior, errors.

The independent method: in polar coordinates of the entries, the radius is a Gamma variable given
the direction, and a uniform direction has the weight of its nuclear norm to the power -rows *
columns.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from helpers import Moments, assert_moments, light_kernel, run_mcmc
from numpyro.infer.util import log_density
from scipy.integrate import quad

from numpyro_rwpo.distributions import GroupLaplace, NuclearNorm
from numpyro_rwpo.distributions.group import log_normalizer as log_normalizer_of_a_vector
from numpyro_rwpo.distributions.singular_values import (
    Envelope,
    _log_integral,
    _log_quotient,
    draw_singular_values,
    envelope,
    log_normalizer,
)
from numpyro_rwpo.model.laplace_sites import split_laplace_sites

NUM_DIRECTIONS = 400_000


def directions(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of matrices of norm 1 in uniform directions, and their log weights."""
    x = np.random.default_rng(seed).normal(size=(NUM_DIRECTIONS, *shape))
    s = np.linalg.svd(x, compute_uv=False)
    s /= np.linalg.norm(s, axis=1, keepdims=True)
    return s, -math.prod(shape) * np.log(s.sum(1))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_normalizer_of_one_row_is_that_of_a_vector(size: int) -> None:
    for shape in ((1, size), (size, 1)):
        assert abs(log_normalizer(*shape) - log_normalizer_of_a_vector(size, 0.0)) < 1e-12


@pytest.mark.parametrize("power", [0, 1, 3])
def test_integral_of_two_singular_values_against_quadrature(power: int) -> None:
    """Over the proportion of the smaller one; that over the sum is a factorial."""
    degree = 2 + 2 * power + 1

    def density(share: float) -> float:
        return abs((1 - share) ** 2 - share**2) * (share * (1 - share)) ** power

    expected = np.log(quad(density, 0, 0.5, epsabs=1e-13)[0] * math.factorial(degree))
    assert abs(_log_integral(2 + power, 2) - expected) < 1e-10


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (3, 3), (3, 4)])
def test_normalizer_against_uniform_directions(shape: tuple[int, int]) -> None:
    """The mean of 400,000 weights, whose standard error is 0.1 to 0.5 %."""
    size = math.prod(shape)
    _, log_weight = directions(shape)
    weight = np.exp(log_weight - log_weight.max())
    sphere = math.log(2) + size / 2 * math.log(math.pi) - math.lgamma(size / 2)
    found = np.log(weight.mean()) + log_weight.max() + sphere + math.lgamma(size)
    error = weight.std() / weight.mean() / NUM_DIRECTIONS**0.5
    assert error < 0.01
    assert abs(found - log_normalizer(*shape)) < 4 * error
    assert abs(found - log_normalizer(shape[0] + 1, shape[1])) > 100 * error


def test_normalizer_of_large_shapes() -> None:
    """Finite, the same for the transpose; it grows with the shape."""
    assert log_normalizer(40, 30) == log_normalizer(30, 40)
    assert log_normalizer(20, 14) < log_normalizer(20, 15) < log_normalizer(20, 16)


def test_density_and_its_dependence_on_the_scale() -> None:
    x = np.random.default_rng(1).normal(size=(4, 5, 3)).astype(np.float32)
    norms = np.linalg.svd(x, compute_uv=False).sum(-1)
    expected = -norms / 0.3 - 15 * np.log(0.3) - log_normalizer(5, 3)
    np.testing.assert_allclose(NuclearNorm(0.3, (5, 3)).log_prob(x), expected, rtol=1e-5)
    vector = x[0, :, :1]
    same = GroupLaplace(0.3, 5).log_prob(vector[:, 0])
    np.testing.assert_allclose(NuclearNorm(0.3, (5, 1)).log_prob(vector), same, rtol=1e-5)
    site = NuclearNorm(0.3, (5, 3))
    for value in (np.zeros((5, 3)), np.ones((5, 3)), np.eye(5)[:, :3]):
        slope = jax.grad(site.log_prob)(jnp.asarray(value, jnp.float32))
        assert np.isfinite(slope).all()
        assert np.linalg.svd(slope, compute_uv=False).max() < (1 + 1e-5) / 0.3


# --------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 3), (4, 3)])
def test_draws(shape: tuple[int, int]) -> None:
    """Sums are Gamma variables; proportions against weighted directions, within 5 errors."""
    size, scale, number = math.prod(shape), 0.7, 5000
    site = NuclearNorm(scale, shape)
    x = np.asarray(jax.jit(lambda key: site.sample(key, (number,)))(jax.random.key(0)))
    s = np.linalg.svd(x, compute_uv=False)
    assert scipy.stats.kstest(s.sum(1) / scale, scipy.stats.gamma(size).cdf).pvalue > 1e-4
    assert np.all(np.abs(x.mean(0)) < 5 * x.std(0) / number**0.5)
    # Uniform singular vectors: all entries have the same mean square.
    square = (x**2).mean(0)
    assert np.all(np.abs(square - square.mean()) < 5 * (x**2).std(0) / number**0.5)

    reference, log_weight = directions(shape, seed=1)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    for statistic in (lambda p: p.max(1), lambda p: p.min(1), lambda p: (p**2).sum(1)):
        found = statistic(s / s.sum(1, keepdims=True))
        other = statistic(reference / reference.sum(1, keepdims=True))
        mean = (weight * other).sum()
        variance = found.var() / number + (weight**2 * (other - mean) ** 2).sum()
        assert abs(found.mean() - mean) < 5 * variance**0.5


def stein_excess(s: np.ndarray, p: int) -> np.ndarray:
    """Terms whose mean is 0: the divergence of the squares plus their rise of log density.

    In the sum over pairs, ``2 s_i^3 / (s_i^2 - s_j^2)`` and its counterpart have a finite sum.
    """
    q = s.shape[1]
    i, j = np.triu_indices(q, 1)
    first, second = s[:, i], s[:, j]
    pairs = 2 * (first**2 + first * second + second**2) / (first + second)
    return np.asarray((p - q + 2) * s.sum(1) - (s**2).sum(1) + pairs.sum(1))


# Both ways of drawing: by rejection, and by a Markov chain.
@pytest.mark.parametrize(
    ("shape", "is_exact"),
    [
        ((8, 8), True),
        ((12, 9), True),
        ((20, 15), True),
        pytest.param((16, 16), False, marks=pytest.mark.slow),
    ],
)
def test_draws_of_many_singular_values(shape: tuple[int, int], is_exact: bool) -> None:
    """An identity of the density by integration by parts, within 5 standard errors."""
    p, q = max(shape), min(shape)
    assert (envelope(p, q).acceptance > 0) == is_exact
    number = 500 if is_exact else 200
    draw = jax.jit(lambda key: draw_singular_values(key, (number,), *shape, jnp.float32))
    s = np.asarray(draw(jax.random.key(2))).astype(np.float64)
    excess = stein_excess(s, p)
    assert abs(excess.mean()) < 5 * excess.std() / number**0.5
    # Negative control: proportions that are drawn together by a tenth are found out.
    wrong = stein_excess(0.9 * s + 0.1 * s.mean(1, keepdims=True), p)
    assert abs(wrong.mean()) > 5 * wrong.std() / number**0.5


@pytest.mark.parametrize(
    ("p", "q", "least"),
    [(3, 3, 0.75), (5, 5, 0.7), (8, 8, 0.4), (10, 10, 0.15), (20, 15, 0.1), (100, 20, 0.2)],
)
def test_bound_of_the_quotient(p: int, q: int, least: float) -> None:
    """No proposal exceeds the bound, and the share of acceptances is the computed one."""
    how: Envelope = envelope(p, q)
    assert how.acceptance > least
    rng, number = np.random.default_rng(3), 20_000
    factor = np.tril(rng.normal(size=(number, q, q)), -1)
    diagonal = np.sqrt(rng.chisquare(how.num_rows - np.arange(q), size=(number, q)))
    factor += diagonal[:, :, None] * np.eye(q)
    log_g = np.log(np.linalg.svd(factor, compute_uv=False))
    accepted = np.exp(_log_quotient(log_g, p, how.power) - how.log_bound)
    assert accepted.max() <= 1
    error = accepted.std() / number**0.5
    assert abs(accepted.mean() - how.acceptance) < 5 * error


# ------------------------------------------------------------------------- in models


def test_shapes_plates_and_transformations() -> None:
    site = NuclearNorm(np.array([0.5, 2.0], np.float32), (3, 2))
    assert site.shape() == (2, 3, 2) and site.log_prob(np.ones((3, 2))).shape == (2,)
    assert site.log_prob(np.ones((5, 1, 3, 2))).shape == (5, 2)
    assert site.support is dist.constraints.real_matrix
    expanded = NuclearNorm(0.5, (3, 2)).expand([5]).to_event(1)
    assert expanded.event_shape == (5, 3, 2)
    assert expanded.log_prob(np.zeros((5, 3, 2))).shape == ()
    assert expanded.sample(jax.random.key(0), (2,)).shape == (2, 5, 3, 2)

    def model(tau: Any) -> None:
        with numpyro.plate("matrices", 3):
            numpyro.sample("x", NuclearNorm(tau, (3, 2)))

    value = np.ones((3, 3, 2), np.float32)
    total, _ = log_density(model, (0.7,), {}, {"x": value})
    one = NuclearNorm(0.7, (3, 2)).log_prob(value[0])
    np.testing.assert_allclose(total, 3 * one, rtol=1e-6)
    again = jax.tree.map(lambda leaf: leaf, site)
    x = np.ones((3, 2), np.float32)
    np.testing.assert_allclose(jax.jit(lambda s: s.log_prob(x))(again), site.log_prob(x), rtol=1e-6)
    scales = jnp.array([0.5, 2.0])
    slopes = jax.vmap(jax.grad(lambda s: NuclearNorm(s, (3, 2)).log_prob(x)))(scales)
    np.testing.assert_allclose(slopes, np.sqrt(6) / scales**2 - 6 / scales, rtol=1e-5)


DATA = np.array([[1.5, -0.5], [0.8, 0.1], [-1.0, 0.6]], np.float32)


def small_model(y: Any) -> None:
    """A matrix with a latent scale, each entry observed once with unit noise."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    x = numpyro.sample("x", NuclearNorm(tau, (3, 2)))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=y)


def test_a_site_is_moved_in_units_of_its_scale_and_not_split_off() -> None:
    split = split_laplace_sites(small_model, (DATA,), {})
    assert split.smooth == {"x"} and split.rewritten == ("x",) and split.fixed == ()
    values = {"tau": jnp.log(0.5), "x": jnp.asarray(DATA)}
    users, log_jacobian = split.to_user_values(values, jnp.zeros(()), (DATA,), {})
    np.testing.assert_allclose(users["x"], 0.5 * DATA, rtol=1e-6)
    np.testing.assert_allclose(log_jacobian, -6 * np.log(0.5), rtol=1e-6)
    back = split.from_user_values(users, (DATA,), {})
    np.testing.assert_allclose(back["x"], DATA, rtol=1e-6)


def small_moments() -> dict[str, Moments]:
    """A million weighted draws of the prior: Gamma radii in directions with their weights."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(1_000_000, 3, 2))
    norm = np.linalg.svd(x, compute_uv=False).sum(1)
    log_weight = -6 * np.log(norm / np.linalg.norm(x, axis=(1, 2)))
    tau = np.abs(rng.normal(size=len(x)))
    x *= (tau * rng.gamma(6, size=len(x)) / norm)[:, None, None]
    log_weight -= ((x - DATA) ** 2).sum((1, 2)) / 2
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    moments = {}
    for name, values in (("tau", tau), ("x", x)):
        mean = np.tensordot(weight, values, 1)
        moments[name] = Moments(mean, np.tensordot(weight, (values - mean) ** 2, 1))
    return moments


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["rwpo", "nuts"])
def test_posterior_with_a_latent_scale(sampler: str) -> None:
    if sampler == "rwpo":
        kernel = light_kernel(small_model, num_particles=32)
        mcmc = run_mcmc(kernel, DATA, num_warmup=100, num_samples=600, num_chains=4, key=1)
    else:
        nuts = numpyro.infer.NUTS(small_model, target_accept_prob=0.9)
        mcmc = run_mcmc(nuts, DATA, num_warmup=500, num_samples=1000, num_chains=4, key=1)
    assert_moments(mcmc.get_samples(group_by_chain=True), small_moments())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NuclearNorm(0.0, (3, 2)), ValueError, "`scale` must be positive and finite"),
        (lambda: NuclearNorm("a", (3, 2)), TypeError, "`scale` must be a real number"),
        (lambda: NuclearNorm(1.0, (3,)), ValueError, r"must be \(rows, columns\) of a matrix; got"),
        (lambda: NuclearNorm(1.0, 3), ValueError, r"must be \(rows, columns\) of a matrix; got 3"),
        (lambda: NuclearNorm(1.0, (3, 0)), ValueError, "`shape` must be at least 1; got 0"),
        (lambda: NuclearNorm(1.0, (3, 2.0)), TypeError, "`shape` must be an integer"),
        (
            lambda: NuclearNorm(1.0, (3, 2)).log_prob(np.zeros(2)),
            ValueError,
            r"must have shape \('...', 3, 2\); got \(2,\)",
        ),
        (
            lambda: NuclearNorm(1.0, (3, 2)).log_prob(np.zeros((2, 3))),
            ValueError,
            r"must have shape \('...', 3, 2\); got \(2, 3\)",
        ),
    ],
)
def test_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
