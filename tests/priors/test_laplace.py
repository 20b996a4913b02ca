"""Closed forms of the Laplace prior against quadrature, brute force, and one another."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
from helpers import OPTIMIZED

from numpyro_rwpo.priors.laplace import LaplacePrior, laplace_prior
from numpyro_rwpo.priors.mills import mills_ratio, quantile

# rate_left, rate_right, location, prox_time, inverse_temperature
CASES = [
    (1.0, 1.0, 0.0, 0.5, 1.0),
    (3.0, 3.0, -0.7, 0.1, 2.5),
    (0.4, 5.0, 1.3, 1.7, 0.6),
    (8.0, 0.2, 0.2, 0.05, 1.0),
    (0.0, 2.0, -0.4, 0.8, 1.3),
    (0.0, 0.0, 0.5, 0.3, 1.0),
    (40.0, 25.0, 0.1, 1.0, 1.0),
    (1e-3, 1e-4, 0.0, 0.5, 1.0),
]
CENTERS = np.array([-4.0, -0.9, -0.4, 0.0, 0.1, 0.6, 1.3, 5.0])
EPS32 = float(np.finfo(np.float32).eps)


@jax.jit
def kernel(
    prior: LaplacePrior, x: jax.Array, y: jax.Array, prox_time: jax.Array, beta: jax.Array
) -> tuple[jax.Array, ...]:
    """Log density, cdf and survival function, compiled once for all cases."""
    survival = jnp.exp(prior.log_survival(x, y, prox_time, beta))
    return prior.log_prob(x, y, prox_time, beta), prior.cdf(x, y, prox_time, beta), survival


@jax.jit
def log_normalizer(parameters: jax.Array) -> jax.Array:
    """Parameters as a row: y, prox_time, beta, location, rate_left, rate_right."""
    y, prox_time, beta, location, left, right = jnp.moveaxis(parameters, -1, 0)
    return LaplacePrior(location, left, right).log_normalizer(y, prox_time, beta)


gradient = jax.jit(jax.vmap(jax.grad(log_normalizer)))


def rows(case: tuple[float, ...]) -> np.ndarray:
    left, right, location, prox_time, beta = case
    return np.array([[y, prox_time, beta, location, left, right] for y in CENTERS])


def build(case: tuple[float, ...]) -> LaplacePrior:
    return laplace_prior(case[1], case[2], rate_left=case[0])


def integrate(
    case: tuple[float, ...], y: float, low: float = -np.inf, high: float = np.inf, power: int = 0
) -> float:
    """Integral of ``(x - y)**power exp(-beta/2 [g(x) + (x - y)^2/(2T)])``, split at the kink."""
    left, right, location, prox_time, beta = case
    scale = np.sqrt(2 * prox_time / beta)

    def integrand(x: float) -> float:
        prior = right * max(x - location, 0) + left * max(location - x, 0)
        return (x - y) ** power * np.exp(-beta / 2 * (prior + (x - y) ** 2 / (2 * prox_time)))

    # Each side is a normal around y shifted by its rate, or an exponential that starts at the kink.
    tilts = [y + beta * left * scale**2 / 2, y, y - beta * right * scale**2 / 2]
    edges = [tilt + width * scale for tilt in tilts for width in (-12, -5, -2, 0, 2, 5, 12)]
    edges += [location + sign * width * scale for sign in (-1, 1) for width in (0, 0.01, 0.1, 1)]
    low, high = max(low, min(edges)), min(high, max(edges))
    pieces = np.unique([low, high, *(edge for edge in edges if low < edge < high)])
    return sum(
        scipy.integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-11)[0]
        for a, b in zip(pieces[:-1], pieces[1:], strict=True)
    )


# ------------------------------------------------------------------------------ special functions


@pytest.mark.parametrize(("enable", "roundings"), [(False, 8), (True, 12)])
def test_mills_ratio_and_its_slope(enable: bool, roundings: int) -> None:
    with jax.enable_x64(enable):
        t = jnp.concatenate([jnp.linspace(0, 40, 4001), jnp.logspace(-8, 12, 2001)])
        value, slope = jax.jvp(mills_ratio, (t,), (jnp.ones_like(t),))
        tolerance = roundings * float(jnp.finfo(t.dtype).eps)
    t = np.asarray(t, float)
    expected = np.sqrt(np.pi / 2) * scipy.special.erfcx(t / np.sqrt(2))
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    # -m' = 1 - t m cancels for large t; Laplace's continued fraction for m does not.
    far = np.maximum(t, 2)
    fraction = np.zeros_like(t)
    for k in range(400, 1, -1):
        fraction = k / (far + fraction)
    expected = np.where(t > 2, 1 / (far * (far + fraction) + 1), 1 - t * expected)
    np.testing.assert_allclose(-slope, expected, rtol=2 * tolerance)


def test_quantile_inverts_the_distribution(x64: None) -> None:
    level = np.concatenate([2.0 ** -np.arange(53, 0, -4), 1 - 2.0 ** -np.arange(2, 54, 4)])
    t = np.concatenate([-np.logspace(4, -6, 11), np.logspace(-6, 6, 13)])[:, None]
    t, level = np.broadcast_arrays(t, level)
    z = np.asarray(jax.jit(quantile)(t, level))

    ratio = scipy.special.erfcx((t + z).clip(0) / 2**0.5) / scipy.special.erfcx(t.clip(0) / 2**0.5)
    outward = t > 0
    log_survival = (np.log(ratio) - z * (t + z / 2))[outward]
    np.testing.assert_allclose(log_survival, np.log1p(-level[outward]), rtol=1e-12, atol=2e-15)

    t, level, z = t[~outward], level[~outward], z[~outward]
    below = scipy.special.ndtr(t)
    lower = scipy.special.ndtri(level + (1 - level) * below)
    upper = -scipy.special.ndtri((1 - level) * (1 - below))
    expected = np.maximum(np.where(level < 0.5, lower, upper) - t, 0)
    assert np.max(np.abs(z - expected) / (expected + np.abs(t) + 1)) < 1e-14


# ------------------------------------------------------------------------------ the prior itself


def test_potential_and_subgradient() -> None:
    prior = laplace_prior(jnp.array([2.0, 3.0, 0.0]), jnp.array([0.5, -1.0, 0.0]), rate_left=0.25)
    x = jnp.array([[0.7, -3.0, 9.0], [0.5, -1.0, -2.0], [-1.5, 1.0, 0.0]])
    expected = [[0.4, 0.5, 0.0], [0.0, 0.0, 0.5], [0.5, 6.0, 0.0]]
    np.testing.assert_allclose(prior.potential(x), expected, rtol=1e-6)
    slopes = [[2.0, -0.25, 0.0], [0.875, 1.375, -0.25], [-0.25, 3.0, -0.125]]
    np.testing.assert_allclose(prior.subgradient(x), slopes, rtol=1e-6)
    autodiff = jax.grad(lambda x: prior.potential(x).sum())(x)
    np.testing.assert_allclose(autodiff, slopes, rtol=1e-6)
    assert jnp.isnan(prior.subgradient(jnp.nan)).all()


@pytest.mark.parametrize("case", CASES)
def test_prox_minimizes_its_objective(case: tuple[float, ...], x64: None) -> None:
    left, right, location, _, _ = case
    x = np.array([-2.0, -0.05, 0.0, 0.21, 1.5, 4.0])
    for step_size in (0.03, 0.7):
        prox = np.asarray(build(case).prox(x, step_size))
        for point, minimizer in zip(x, prox, strict=True):

            def objective(z: float, x: float = point, step_size: float = step_size) -> float:
                prior = right * max(z - location, 0) + left * max(location - z, 0)
                return prior + (z - x) ** 2 / (2 * step_size)

            reach = abs(point - location) + 1.0
            result = scipy.optimize.minimize_scalar(
                objective,
                bounds=(location - reach, location + reach),
                method="bounded",
                options={"xatol": 1e-11},
            )
            assert minimizer == pytest.approx(result.x, abs=1e-7)
        moreau_gradient = build(case).moreau_gradient(x, step_size)
        np.testing.assert_allclose(moreau_gradient, (x - prox) / step_size, atol=1e-12)


def test_prox_is_the_kink_exactly_and_moreau_gradient_does_not_cancel() -> None:
    prior = laplace_prior(3.0, 0.1, rate_left=0.5)
    inside = jnp.linspace(0.1 - 0.049, 0.1 + 0.299, 31)
    assert (prior.prox(inside, 0.1) == prior.location).all()
    # The difference of x and prox(x) has no digits here: one unit in the last place of x is 0.06.
    np.testing.assert_array_equal(prior.moreau_gradient(1e6, 1e-3), 3.0)
    np.testing.assert_array_equal(prior.moreau_gradient(-1e6, 1e-3), -0.5)


def test_scaled_and_tempered_are_changes_of_variables(x64: None) -> None:
    case = (0.4, 5.0, 1.3, 1.7, 0.6)
    prior, scale, prox_time, beta = build(case), 2.5, case[3], case[4]
    y = jnp.asarray(CENTERS)
    np.testing.assert_allclose(prior.scaled(scale).potential(y / scale), prior.potential(y))
    np.testing.assert_allclose(prior.tempered(beta).potential(y), beta * prior.potential(y))
    expected = log_normalizer(rows(case))
    tempered, scaled = prior.tempered(beta), prior.scaled(scale)
    actual = log_normalizer(
        rows((tempered.rate_left, tempered.rate_right, tempered.location, prox_time / beta, 1.0))
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    columns = rows((scaled.rate_left, scaled.rate_right, scaled.location, prox_time, beta))
    columns[:, :2] /= [scale, scale**2]
    np.testing.assert_allclose(log_normalizer(columns) + np.log(scale), expected, rtol=1e-12)


# ------------------------------------------------------------------------------ proximal kernel


@pytest.mark.parametrize("case", CASES)
def test_kernel_against_quadrature(case: tuple[float, ...], x64: None) -> None:
    left, right, location, prox_time, beta = case
    scale = np.sqrt(2 * prox_time / beta)
    total = np.array([integrate(case, y) for y in CENTERS])
    np.testing.assert_allclose(log_normalizer(rows(case)), np.log(total), atol=1e-9)
    # The score of Z, at which attention looks: d/dy log Z = (E[x] - y) / s^2.
    mean_shift = np.array([integrate(case, y, power=1) for y in CENTERS]) / total
    np.testing.assert_allclose(gradient(rows(case))[:, 0] * scale**2, mean_shift, atol=1e-9)

    y = CENTERS[:, None]
    x = y + scale * np.array([-4, -1, 0, 1.5, 5])
    x = np.concatenate([x, np.broadcast_to([location, location + 0.3], (len(y), 2))], axis=1)
    log_prob, cdf, survival = kernel(build(case), x, y, prox_time, beta)
    prior = right * np.maximum(x - location, 0) + left * np.maximum(location - x, 0)
    exponent = -beta / 2 * (prior + (x - y) ** 2 / (2 * prox_time))
    np.testing.assert_allclose(log_prob, exponent - np.log(total)[:, None], atol=1e-9)
    below, above = np.zeros_like(x), np.zeros_like(x)
    for index in np.ndindex(x.shape):
        center = CENTERS[index[0]]
        below[index] = integrate(case, center, high=x[index]) / total[index[0]]
        above[index] = integrate(case, center, low=x[index]) / total[index[0]]
    # The quadrature leaves out what lies beyond 12 s, probabilities around 1e-32.
    np.testing.assert_allclose(cdf, below, rtol=1e-8, atol=1e-30)
    np.testing.assert_allclose(survival, above, rtol=1e-8, atol=1e-30)


@pytest.mark.parametrize("case", CASES)
def test_log_normalizer_derivatives_against_finite_differences(
    case: tuple[float, ...], x64: None
) -> None:
    points = rows(case) + np.array([0, 0, 0, 0, 1e-3, 1e-3])  # room for a step toward rate 0
    steps = 1e-5 * np.eye(6)[:, None, :]
    numerical = (log_normalizer(points + steps) - log_normalizer(points - steps)).T / 2e-5
    np.testing.assert_allclose(gradient(points), numerical, rtol=2e-5, atol=2e-6)


def test_log_normalizer_second_derivative(x64: None) -> None:
    points, step = np.concatenate([rows(case) for case in CASES]), 1e-4 * np.eye(6)[0]
    direction = np.broadcast_to(np.eye(6)[0], points.shape)
    curvature = jax.jit(lambda x: jax.jvp(gradient, (x,), (direction,))[1])(points)[:, 0]
    numerical = (gradient(points + step) - gradient(points - step))[:, 0] / 2e-4
    np.testing.assert_allclose(curvature, numerical, rtol=1e-4, atol=1e-5)


def test_laplace_approximation(x64: None) -> None:
    y = jnp.asarray(CENTERS)
    for case in CASES[1:4]:
        prior, (_, _, _, prox_time, beta) = build(case), case
        prox = prior.prox(y, prox_time)
        bracket = prior.potential(prox) + (prox - y) ** 2 / (2 * prox_time)
        expected = -beta / 2 * bracket + 0.5 * np.log(4 * np.pi * prox_time / beta)
        actual = prior.log_normalizer(y, prox_time, beta, method="laplace")
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    # It is exact without a prior, and not otherwise.
    flat, steep = laplace_prior(0.0), laplace_prior(2.0)
    for prior, agrees in ((flat, True), (steep, False)):
        exact = prior.log_normalizer(y, 0.5)
        assert jnp.allclose(exact, prior.log_normalizer(y, 0.5, method="laplace")) == agrees
    with pytest.raises(ValueError, match="`method` must be 'exact' or 'laplace'; got 'mean'"):
        flat.log_normalizer(y, 0.5, method="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_cdf_rises_from_zero_to_one(case: tuple[float, ...]) -> None:
    x = np.sort(np.append(np.linspace(-30, 30, 2001), case[2])).astype(np.float32)
    y = CENTERS.astype(np.float32)[:, None]
    _, cdf, survival = map(np.asarray, kernel(build(case), x, y, *case[3:]))
    assert cdf[:, 0].max() < 1e-12
    assert np.abs(cdf[:, -1] - 1).max() < 4 * EPS32
    assert np.diff(cdf).min() > -4 * EPS32  # rounding only
    np.testing.assert_allclose(cdf + survival, 1, atol=8 * EPS32)


def extreme_grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates 0 and 1e-6..1e6 on either side, centers 0 and 1e-4..1e4 of either sign, as float32."""
    rates = np.concatenate([[0], np.logspace(-6, 6, 13)])
    centers = np.logspace(-4, 4, 17)
    centers = np.concatenate([-centers, [0], centers])
    grid = np.meshgrid(rates, rates, centers, indexing="ij")
    left, right, y = (axis.ravel().astype(np.float32) for axis in grid)
    return left, right, y


@jax.jit
def log_normalizer_at(left: jax.Array, right: jax.Array, y: jax.Array) -> jax.Array:
    return LaplacePrior(jnp.zeros_like(y), left, right).log_normalizer(y, 0.5)  # s = 1


@jax.jit
def distribution_at(left: jax.Array, right: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    prior = LaplacePrior(jnp.zeros_like(y), left, right)
    logs = prior.log_prob(x, y, 0.5), prior.log_cdf(x, y, 0.5), prior.log_survival(x, y, 0.5)
    return jnp.stack(logs)


distribution_slopes = jax.jit(
    jax.grad(lambda *arguments: distribution_at(*arguments).sum(), argnums=(0, 1, 2, 3))
)


def in_both_precisions(
    function: Callable[..., jax.Array], *arguments: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``function`` of the same float32 numbers, computed in float32 and in float64."""
    single = np.asarray(function(*arguments), float)
    with jax.enable_x64(True):
        double = np.asarray(function(*(a.astype(np.float64) for a in arguments)))
    assert np.isfinite(single).all()
    assert np.isfinite(double).all()
    return single, double


def test_log_normalizer_in_float32_over_twelve_decades() -> None:
    left, right, y = extreme_grid()
    single, double = in_both_precisions(log_normalizer_at, left, right, y)
    error = np.abs(single - double) / np.maximum(np.abs(double), 1)
    assert error.max() < 8 * EPS32  # measured: 2.8

    # Against the textbook terms with SciPy's special functions, in double precision.
    def term(alpha: np.ndarray, u: np.ndarray) -> np.ndarray:
        t = alpha - u
        near = np.log(np.sqrt(np.pi / 2) * scipy.special.erfcx(t.clip(0) / np.sqrt(2))) - u**2 / 2
        far = alpha * (alpha / 2 - u) + np.log(np.sqrt(2 * np.pi)) + scipy.special.log_ndtr(-t)
        return np.where(t < 0, far, near)

    left, right, y = (a.astype(float) for a in (left, right, y))
    expected = np.logaddexp(term(left / 2, -y), term(right / 2, y))
    np.testing.assert_allclose(double, expected, rtol=1e-13, atol=1e-14)


def test_log_normalizer_gradients_in_float32_over_twelve_decades() -> None:
    left, right, y = extreme_grid()

    @jax.jit
    def gradients(left: jax.Array, right: jax.Array, y: jax.Array) -> jax.Array:
        def total(*arguments: jax.Array) -> jax.Array:
            return log_normalizer_at(*arguments).sum()

        return jnp.stack(jax.grad(total, argnums=(0, 1, 2))(left, right, y))

    single, double = in_both_precisions(gradients, left, right, y)
    # The slope in y vanishes somewhere near the kink: there relative to the steeper of 1 and rate.
    scale = np.abs(double)
    scale[2] += np.minimum(np.maximum(left, right), 1)
    conditioned = scale > 1e-20  # smaller ones are exp(-t^2/2), which loses t^2 roundings
    error = np.abs(single - double) / np.maximum(scale, 1e-300)
    assert error[conditioned].max() < 40 * EPS32  # measured: 25, most below 6
    assert error[2].max() < 4 * EPS32  # measured: 1.9


@pytest.mark.parametrize("where", ["kink", "beside", "mode", "tail", "center"])
def test_density_and_tails_in_float32_over_twelve_decades(where: str) -> None:
    left, right, y = extreme_grid()
    alpha_left, alpha_right, u = left.astype(float) / 2, right.astype(float) / 2, y.astype(float)
    mode = np.where(u > alpha_right, u - alpha_right, np.where(u < -alpha_left, u + alpha_left, 0))
    width = 1 / np.maximum(1, np.where(u < 0, alpha_left + u, alpha_right - u))
    x = {
        "kink": 0 * u,
        "beside": -width,
        "mode": mode + 0.7 * width,
        "tail": mode + 6 * width,
        "center": u,
    }[where].astype(np.float32)

    single, double = in_both_precisions(distribution_at, left, right, y, x)
    error = np.abs(single - double) / np.maximum(np.abs(double), 1)
    assert error[0].max() < 10 * EPS32  # measured: 5.3
    # Within a rounding of the probability; the logarithm of a small one keeps its digits too,
    # but for x right beside a steep kink.
    error[1:] = np.where(error[1:] < 1e-6, error[1:], np.abs(np.exp(single) - np.exp(double))[1:])
    assert error[1:].max() < 12 * EPS32  # measured: 9

    slopes = distribution_slopes(left, right, y, x)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)


# rate_left, rate_right, y with s = 1, so that t of the right side is rate_right / 2 - y.
SAMPLE_CASES = [
    (1.0, 1.0, 0.3),
    (0.2, 7.0, -1.5),
    (0.0, 3.0, 2.0),
    (0.0, 0.0, 1.0),
    (30.0, 30.0, 12.0),
    (30.0, 1.0, 9.0),
    (1e6, 1e6, 0.1),
    (1e6, 1e-6, -1e4),
    (1e-6, 1e-6, 1e4),
    (1e4, 1e4, 5e3),
    (1e4, 1e4, 5010.0),
    (2e4, 2e4, 5e3),
    (2e6, 30.0, -4.0),
    (1e-6, 1e6, 50.0),
]


def test_quantile_in_float32() -> None:
    t = np.concatenate([-np.logspace(4, -6, 21), [0], np.logspace(-6, 6, 25)])[:, None]
    level = np.concatenate([2.0 ** -np.arange(24, 0, -1), 1 - 2.0 ** -np.arange(2, 25)])
    arguments = (a.astype(np.float32) for a in np.broadcast_arrays(t, level))
    single, double = in_both_precisions(jax.jit(quantile), *arguments)
    # In units of the density's width at 0, or of its distance from 0.
    width = np.sqrt(np.pi / 2) * scipy.special.erfcx(t.clip(0) / 2**0.5) + np.maximum(-t, 0)
    assert np.max(np.abs(single - double) / width) < 5e-6  # measured: 2e-6


draw = jax.jit(lambda prior, rng_key, y: prior.sample(rng_key, y, 0.5, 1.0))


def ks_p_value(case: tuple[float, float, float], draws: np.ndarray, y: float) -> float:
    with jax.enable_x64(True):
        prior = laplace_prior(case[1], 0.25, rate_left=case[0])
        levels = np.asarray(kernel(prior, draws, y, 0.5, 1.0)[1])
    return float(scipy.stats.kstest(levels, "uniform").pvalue)


@pytest.mark.parametrize("case", SAMPLE_CASES)
def test_samples_follow_the_cdf(case: tuple[float, float, float]) -> None:
    """Kolmogorov-Smirnov, 20,000 draws; false alarm 1e-4 each, 0.15 % over the list."""
    location = 0.0 if max(abs(case[2]), *case[:2]) > 1e3 else 0.25
    prior = laplace_prior(case[1], location, rate_left=case[0])
    y = np.float32(case[2] + location)
    draws = draw(prior, jax.random.key(7), jnp.full(20_000, y))
    assert draws.dtype == jnp.float32
    assert np.isfinite(draws).all()
    shift = 0.25 - location
    assert ks_p_value(case, np.asarray(draws, float) + shift, float(y) + shift) > 1e-4


@pytest.mark.parametrize("index", [0, 1, 4, 6, 11])
def test_the_sample_check_sees_a_wrong_prior(index: int) -> None:
    left, right, y = SAMPLE_CASES[index]
    prior = laplace_prior(right, 0.25, rate_left=left)
    draws = draw(prior, jax.random.key(7), jnp.full(20_000, y + 0.25))
    wrong = (1.5 * left, 1.5 * right, y)
    assert ks_p_value(wrong, np.asarray(draws, float), y + 0.25) < 1e-6


def test_samples_in_double_precision_and_in_batches(x64: None) -> None:
    prior = laplace_prior(jnp.array([0.5, 3.0]), jnp.array([0.1, -0.2]), rate_left=1.5)
    y = jnp.array([0.4, -1.0])
    draws = draw(prior, jax.random.key(3), jnp.broadcast_to(y, (20_000, 2)))
    assert draws.shape == (20_000, 2)
    assert draws.dtype == jnp.float64
    levels = np.asarray(kernel(prior, draws, y, 0.5, 1.0)[1])
    for column in levels.T:  # false alarm 1e-4 each
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4
    # Independent coordinates: |correlation| < 4 standard errors, false alarm 6e-5.
    assert abs(np.corrcoef(levels.T)[0, 1]) < 4 / np.sqrt(20_000)


# ------------------------------------------------------------------------------ Hamiltonian flow


flow = jax.jit(
    lambda prior, x, p, time: prior.hamiltonian_flow(x, p, time), compiler_options=OPTIMIZED
)


class Motion:
    """Random starts and rates as float32 numbers, a tenth of them 0, with exact kinks and rests."""

    def __init__(self, size: int, decades: float, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def draw(exponent: float, zero: float) -> np.ndarray:
            value = 10 ** rng.uniform(-exponent, exponent, size)
            return np.where(rng.random(size) < zero, 0, value)

        half = min(decades, 4)
        sign = rng.choice([-1, 1], (2, size))
        columns = [draw(decades, 0.1), draw(decades, 0.1), sign[0] * draw(half, 0.05)]
        columns += [sign[1] * draw(half / 2, 0.05), 10 ** rng.uniform(-3, 1, size)]
        self.left, self.right, self.x, self.p, self.time = (c.astype(np.float32) for c in columns)

    def energy(self, x: np.ndarray, p: np.ndarray) -> np.ndarray:
        x, p = x.astype(float), p.astype(float)
        return p**2 / 2 + self.right * np.maximum(x, 0.0) - self.left * np.minimum(x, 0.0)

    def flow(self, x: np.ndarray, p: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, ...]:
        dtype = jnp.result_type(float)
        left, right, x, p, time = (
            jnp.asarray(a, dtype) for a in (self.left, self.right, x, p, time)
        )
        new = flow(LaplacePrior(jnp.zeros_like(x), left, right), x, p, time)
        assert all(a.dtype == dtype and bool(jnp.isfinite(a).all()) for a in new)
        return tuple(np.asarray(a) for a in new)

    def tolerances(self, eps: float) -> tuple[np.ndarray, np.ndarray]:
        """Effect on x and p of rounding ``time``, x and p themselves."""
        speed = np.sqrt(2 * self.energy(self.x, self.p))
        time, rate = self.time.astype(float), np.maximum(self.left, self.right).astype(float)
        return eps * (np.abs(self.x) + speed * time), eps * (speed + rate * time)


def assert_within(actual: np.ndarray, expected: np.ndarray, tolerance: np.ndarray) -> None:
    worst = np.max(np.abs(actual.astype(float) - expected) - tolerance)
    assert worst <= 0, f"off by {worst} more than the tolerance"


def leapfrog(
    left: np.ndarray, right: np.ndarray, x: np.ndarray, p: np.ndarray, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The kinked differential equation in 30,000 explicit steps."""

    def force(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, -right, np.where(x < 0, left, 0.5 * (left - right)))

    step = time / 30_000
    for _ in range(30_000):
        p = p + 0.5 * step * force(x)
        x = x + step * p
        p = p + 0.5 * step * force(x)
    return x, p


def test_flow_against_small_explicit_steps(x64: None) -> None:
    rng = np.random.default_rng(1)
    left, right = rng.uniform(0, 4, (2, 60)) * (rng.random((2, 60)) > 0.15)
    x, p, time = rng.normal(size=60), 2 * rng.normal(size=60), rng.uniform(0, 6, 60)
    expected = leapfrog(left, right, x, p, time)
    prior = LaplacePrior(jnp.asarray(0.0), jnp.asarray(left), jnp.asarray(right))
    actual = flow(prior, x, p, time)
    # A step across the kink mis-times the change of force by at most a step of 2e-4: the error
    # is below 4 * 2e-4 per crossing; there are at most a few.
    np.testing.assert_allclose(actual[0], expected[0], atol=5e-3)
    np.testing.assert_allclose(actual[1], expected[1], atol=5e-3)
    crossed = np.sign(expected[0]) != np.sign(x)
    assert 10 < crossed.sum() < 50  # the check has looked at both kinds of motion
    mirrored = LaplacePrior(prior.location, prior.rate_right, prior.rate_left)
    assert np.max(np.abs(flow(mirrored, x, p, time)[0] - expected[0])) > 1  # control


def test_flow_in_known_special_cases() -> None:
    flat = laplace_prior(0.0, 0.3)
    x, p = jnp.array([0.1, 0.3, 7.0]), jnp.array([1.0, -2.0, 0.0])
    new_x, new_p = flow(flat, x, p, 0.7)
    np.testing.assert_allclose(new_x, x + 0.7 * p, rtol=2 * EPS32)
    np.testing.assert_array_equal(new_p, p)
    # At rest on the kink: an equilibrium, whatever the rates.
    for left, right in ((1.0, 2.0), (0.0, 2.0), (0.0, 0.0)):
        rest = flow(laplace_prior(right, 0.3, rate_left=left), 0.3, 0.0, 5.0)
        np.testing.assert_array_equal(rest, (np.float32(0.3), 0.0))
    # No force on the left: up the slope, back, and away for ever.
    one_sided = laplace_prior(2.0, rate_left=0.0)
    np.testing.assert_allclose(flow(one_sided, 1.0, 0.0, 11.0), (-20.0, -2.0))
    np.testing.assert_allclose(flow(one_sided, -3.0, 1.0, 24.0), (-20.0, -1.0))
    # Period 2 P (1/left + 1/right) = 6 from the kink with momentum 2.
    prior = laplace_prior(2.0, rate_left=1.0)
    np.testing.assert_allclose(flow(prior, 0.0, 2.0, 6000.0), (0.0, 2.0), atol=1e-3)
    np.testing.assert_allclose(flow(prior, 0.0, 2.0, 61.0), (1.0, 0.0), atol=1e-4)
    np.testing.assert_allclose(flow(prior, 0.0, 2.0, 64.0), (-2.0, 0.0), atol=1e-4)


def test_tiny_rates_are_drift_plus_parabola() -> None:
    rng = np.random.default_rng(4)
    x, p, time = (rng.normal(size=1000).astype(np.float32) for _ in range(3))
    for rate in (1e-6, 1e-9, 1e-30):
        new_x, new_p = flow(laplace_prior(rate), x, p, time)
        # A force of this size, in whichever direction it acts.
        push = rate * np.abs(time) + 4 * EPS32
        np.testing.assert_array_less(np.abs(new_p - p) - push * (1 + np.abs(p)), 0)
        drift = x.astype(float) + p.astype(float) * time
        bound = push * np.abs(time) + 4 * EPS32 * (np.abs(x) + np.abs(p * time))
        np.testing.assert_array_less(np.abs(new_x - drift) - bound, 0)
    outward = flow(laplace_prior(0.01), 2.0, 3.0, 0.5)
    np.testing.assert_allclose(outward, (2 + 1.5 - 0.01 * 0.125, 3 - 0.005), rtol=2 * EPS32)


@pytest.mark.parametrize("decades", [1.0, 6.0])
def test_flow_is_reversible_and_a_group(decades: float, x64: None) -> None:
    motion = Motion(20_000, decades, seed=2)
    time = motion.time.astype(float)
    x_tolerance, p_tolerance = motion.tolerances(64 * np.finfo(float).eps)
    new_x, new_p = motion.flow(motion.x, motion.p, time)

    back_x, back_p = motion.flow(new_x, -new_p, time)
    assert_within(back_x, motion.x, x_tolerance)
    assert_within(back_p, -motion.p, p_tolerance)
    back_x, back_p = motion.flow(new_x, new_p, -time)
    assert_within(back_x, motion.x, x_tolerance)
    assert_within(back_p, motion.p, p_tolerance)

    half_x, half_p = motion.flow(*motion.flow(motion.x, motion.p, 0.3 * time), 0.7 * time)
    assert_within(half_x, new_x, x_tolerance)
    assert_within(half_p, new_p, p_tolerance)


@pytest.mark.parametrize("decades", [6.0, 16.0])
def test_flow_keeps_the_energy_in_either_precision(decades: float) -> None:
    motion = Motion(100_000, decades, seed=3)
    before = motion.energy(motion.x, motion.p)
    for enable, tolerance in ((False, 4 * EPS32), (True, 8 * np.finfo(float).eps)):
        with jax.enable_x64(enable):
            after = motion.energy(*motion.flow(motion.x, motion.p, motion.time))
        assert_within(after, before, tolerance * before)  # measured: 2.5 roundings


def test_flow_stops_at_the_kink_when_its_time_is_up() -> None:
    """Rounding must not take a free particle up a steep slope: energy from nothing."""
    rng = np.random.default_rng(8)
    x, p = -rng.uniform(0.1, 3, 10_000), rng.uniform(0.5, 2, 10_000)
    x, p = jnp.asarray(x, jnp.float32), jnp.asarray(p, jnp.float32)
    prior = laplace_prior(1e6, rate_left=0.0)
    new_x, new_p = flow(prior, x, p, -x / p)
    energy = 0.5 * new_p**2 + prior.potential(new_x)
    np.testing.assert_allclose(energy, 0.5 * p**2, rtol=4 * EPS32)


def test_flow_in_float32_agrees_with_float64() -> None:
    motion = Motion(100_000, 6.0, seed=5)
    single = motion.flow(motion.x, motion.p, motion.time)
    with jax.enable_x64(True):
        double = motion.flow(motion.x, motion.p, motion.time)
    for actual, expected, tolerance in zip(
        single, double, motion.tolerances(8 * EPS32), strict=True
    ):
        assert_within(actual, expected, tolerance)


def test_flow_keeps_volume(x64: None) -> None:
    motion = Motion(2_000, 1.0, seed=6)
    columns = [motion.left, motion.right, motion.x, motion.p, motion.time]
    moving = motion.energy(motion.x, motion.p) > 0  # a rest on the kink has no derivative
    left, right, x, p, time = (jnp.asarray(c, float)[moving] for c in columns)

    def jacobian(left, right, x, p, time):  # type: ignore[no-untyped-def]
        prior = LaplacePrior(jnp.zeros(()), left, right)
        return jax.jacfwd(lambda z: jnp.stack(prior.hamiltonian_flow(z[0], z[1], time)))(
            jnp.stack([x, p])
        )

    matrices = np.asarray(jax.jit(jax.vmap(jacobian))(left, right, x, p, time))
    terms = matrices[:, 0, 0] * matrices[:, 1, 1], matrices[:, 0, 1] * matrices[:, 1, 0]
    size = np.abs(terms[0]) + np.abs(terms[1])
    assert_within(terms[0] - terms[1], np.ones(len(size)), 1e-13 * (1 + size))


def test_flow_knows_the_location() -> None:
    prior, centered = laplace_prior(3.0, 12.0, rate_left=0.5), laplace_prior(3.0, rate_left=0.5)
    x, p = jnp.linspace(-2, 2, 40), jnp.linspace(3, -3, 40)
    shifted, plain = flow(prior, x + 12, p, 1.7), flow(centered, x, p, 1.7)
    np.testing.assert_allclose(shifted[0] - 12, plain[0], atol=5e-5)
    np.testing.assert_allclose(shifted[1], plain[1], atol=5e-5)


# ------------------------------------------------------------------------------ the public boundary


def test_shapes_transformations_and_dtypes() -> None:
    prior = laplace_prior(np.arange(3), np.array([0.0, 1.0, -1.0]), rate_left=2)
    assert all(field.dtype == jnp.float32 for field in prior)
    y, key = jnp.ones((5, 3)) * 0.3, jax.random.key(0)
    prox_time = jnp.array([0.1, 0.2, 0.3])

    def everything(prior: LaplacePrior, y: jax.Array) -> dict[str, jax.Array]:
        return {
            "potential": prior.potential(y),
            "subgradient": prior.subgradient(y),
            "prox": prior.prox(y, prox_time),
            "moreau_gradient": prior.moreau_gradient(y, prox_time),
            "log_normalizer": prior.log_normalizer(y, prox_time, 2),
            "log_prob": prior.log_prob(y + 0.1, y, prox_time, 2),
            "cdf": prior.cdf(y + 0.1, y, prox_time, 2),
            "position": prior.hamiltonian_flow(y, -y, 0.4)[0],
            "momentum": prior.hamiltonian_flow(y, -y, 0.4)[1],
        }

    for function in (everything, jax.vmap(everything, in_axes=(None, 0))):
        for name, value in jax.eval_shape(function, prior, y).items():
            assert value.shape == (5, 3), name
            assert value.dtype == jnp.float32, name
    draws = draw(prior, key, y)
    assert draws.shape == (5, 3)
    assert draws.dtype == jnp.float32
    for eager, compiled in zip(
        prior.hamiltonian_flow(y, -y, 0.4), flow(prior, y, -y, 0.4), strict=True
    ):
        np.testing.assert_allclose(eager, compiled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"rate": -1.0}, ValueError, r"`rate` must be >= 0.*got -1.0"),
        ({"rate": np.array([1.0, -2.0])}, ValueError, "`rate` must be >= 0"),
        ({"rate": np.nan}, ValueError, "`rate` must be finite; got nan"),
        ({"rate": np.inf}, ValueError, "`rate` must be finite; got inf"),
        ({"rate": 1.0, "rate_left": -0.1}, ValueError, "`rate_left` must be >= 0"),
        ({"rate": 1.0, "location": np.inf}, ValueError, "`location` must be finite"),
        ({"rate": "1.0"}, TypeError, "`rate` must be a real number or array; got '1.0'"),
        ({"rate": 1j}, TypeError, "`rate` must be a real number or array"),
        ({"rate": None}, TypeError, "`rate` must be a real number or array; got None"),
        ({"rate": True}, TypeError, "`rate` must be a real number or array"),
        ({"rate": np.ones(2), "location": np.ones(3)}, ValueError, r"shapes.*\(2,\), \(3,\)"),
    ],
)
def test_laplace_prior_refuses(
    arguments: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        laplace_prior(**arguments)  # type: ignore[arg-type]


def test_laplace_prior_accepts_traced_rates() -> None:
    def potential(rate: jax.Array) -> jax.Array:
        return laplace_prior(rate, 0.5).potential(2.0)

    assert float(jax.jit(jax.grad(potential))(3.0)) == 1.5


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mean", [-2.0, 0.1, 3.0])
def test_normal_fit_is_the_best_straight_line(mean: float) -> None:
    """Against the regression of the slope on the position, by quadrature under the normal."""
    prior = LaplacePrior(*(jnp.array([v]) for v in (0.4, 1.3, 2.1)))
    scale = 0.9
    slope, curvature = prior.normal_fit(jnp.array([mean]), jnp.array([scale]))
    # Gauss-Legendre on either side of the kink, far into both tails.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    ends = [mean - 12 * scale, 0.4, mean + 12 * scale]
    x = np.concatenate(
        [a + (b - a) * (nodes + 1) / 2 for a, b in zip(ends, ends[1:], strict=False)]
    )
    w = np.concatenate([weights * (b - a) / 2 for a, b in zip(ends, ends[1:], strict=False)])
    w = w * np.exp(-(((x - mean) / scale) ** 2) / 2) / (scale * np.sqrt(2 * np.pi))
    gradient = np.where(x > 0.4, 2.1, -1.3)
    np.testing.assert_allclose(slope[0], w @ gradient, rtol=1e-10)
    np.testing.assert_allclose(curvature[0], w @ (gradient * (x - mean)) / scale**2, rtol=1e-10)
