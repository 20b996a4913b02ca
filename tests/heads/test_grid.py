"""The grid density: its closed forms against quadrature, and against the mixture it stands for."""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from numpyro_rwpo.heads.grid import GridDensity, fit_grid
from numpyro_rwpo.heads.log_space import log_mean_exp, log_normal_tail, normal_tail_quantile
from numpyro_rwpo.priors.composite import compose_prior
from numpyro_rwpo.priors.laplace import LaplacePrior, laplace_prior
from numpyro_rwpo.priors.protocol import Prior

fit = jax.jit(fit_grid)
log_prob = jax.jit(GridDensity.log_prob)
log_cdf = jax.jit(GridDensity.log_cdf)
log_survival = jax.jit(GridDensity.log_survival)
to_normal = jax.jit(GridDensity.to_normal)
from_normal = jax.jit(GridDensity.from_normal)


def ensembles() -> tuple[np.ndarray, LaplacePrior, np.ndarray]:
    """One coordinate per situation, 200 particles: the particles, the prior and prox times."""
    rng = np.random.default_rng(0)
    columns = [
        # particles, rate, location, prox time over variance
        (rng.normal(0, 1, 200), 0.0, 0.0, 0.1),
        (rng.normal(0.5, 1, 200), 1.0, 0.0, 0.1),
        (rng.normal(0.5, 1, 200), 3.0, 0.2, 0.1),
        (rng.standard_t(4, 200), 1.0, 0.0, 0.1),
        (rng.normal(50, 1e-2, 200), 200.0, 0.0, 0.1),
        (rng.uniform(-2, 2, 200), 20.0, 0.0, 0.1),
        (np.r_[rng.normal(-3, 1, 100), rng.normal(3, 1, 100)], 0.3, 0.0, 0.05),
        (rng.normal(0, 1, 200), 0.7, 0.0, 1.0),
    ]
    particles = np.stack([column[0] for column in columns], 1)
    prior = laplace_prior(
        np.array([column[1] for column in columns]), np.array([column[2] for column in columns])
    )
    return particles, prior, np.array([column[3] for column in columns]) * particles.var(0)


@pytest.mark.usefixtures("x64")
def test_masses_are_integrals() -> None:
    """Gauss-Legendre cell by cell, where the density is an exponential: exact to rounding."""
    density = fit(*ensembles())
    roots, weights = np.polynomial.legendre.leggauss(20)
    num_nodes = density.log_density.shape[0] - 1
    spacing = density.spacing[None]
    nodes = density.origin[None] + spacing * np.arange(num_nodes)[:, None]
    # Tails of at least one per kernel scale: 400 spacings hold all but exp(-100).
    edges = [nodes[:1] - spacing * np.arange(400, 0, -1)[:, None], nodes]
    edges = np.concatenate([*edges, nodes[-1:] + spacing * np.arange(1, 401)[:, None]])
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    values = np.exp(log_prob(density, middle + half * roots[:, None, None]))
    masses = half * np.einsum("q,qcd->cd", weights, values)
    np.testing.assert_allclose(masses.sum(0), 1, rtol=1e-10)
    cumulative = np.concatenate([np.zeros_like(masses[:1]), np.cumsum(masses, 0)])
    np.testing.assert_allclose(np.exp(log_cdf(density, edges)), cumulative, rtol=0, atol=1e-10)
    survival = np.exp(log_survival(density, edges))
    np.testing.assert_allclose(survival, 1 - cumulative, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_score_and_distribution_are_derivatives() -> None:
    particles, prior, prox_time = ensembles()
    density = fit(particles, prior, prox_time)
    x = particles + 0.3 * np.random.default_rng(1).standard_cauchy(particles.shape) * prox_time

    def derivative(method: object) -> jax.Array:
        total = jax.jit(jax.grad(lambda x: jnp.sum(method(density, x))))  # type: ignore[operator]
        return total(x)

    score = jax.jit(GridDensity.score)(density, x)
    np.testing.assert_allclose(derivative(GridDensity.log_prob), score, rtol=1e-9, atol=1e-9)
    value = np.exp(log_prob(density, x) - log_cdf(density, x))
    np.testing.assert_allclose(derivative(GridDensity.log_cdf), value, rtol=1e-6)
    value = -np.exp(log_prob(density, x) - log_survival(density, x))
    np.testing.assert_allclose(derivative(GridDensity.log_survival), value, rtol=1e-6)
    normal = to_normal(density, x)
    value = np.exp(log_prob(density, x) - scipy.stats.norm.logpdf(normal))
    np.testing.assert_allclose(derivative(GridDensity.to_normal), value, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_prior_bends_the_density_at_its_location_and_nowhere_else() -> None:
    particles, prior, prox_time = ensembles()
    beta = 1.4
    density = fit(particles, prior, prox_time, beta)
    score, heat = jax.jit(GridDensity.score), jax.jit(GridDensity.heat_score)
    # In the middle of a cell heat part and score differ by the prior, and by nothing else.
    num_cells = density.slope.shape[0] - 2
    spacing = density.spacing[None]
    middle = density.origin[None] + spacing * (np.arange(num_cells) + 0.5)[:, None]
    gap = heat(density, middle) - score(density, middle)
    is_far = np.arange(8) == 4  # that coordinate's grid does not reach its prior's location
    side = np.where(is_far, np.sign(particles.mean(0) - prior.location), 1)
    anchor = np.where(is_far, prior.location + side * 1e9, prior.location)
    expected = beta / 2 * prior.subgradient(np.where(is_far, anchor, middle))
    np.testing.assert_allclose(gap, expected, rtol=1e-8, atol=1e-8)
    # Across the location the score jumps by the prior, the heat part from cell to cell only.
    off, half = 1e-3 * density.spacing, 0.5 * density.spacing
    jump = score(density, prior.location - off) - score(density, prior.location + off)
    bend = heat(density, prior.location - half) - heat(density, prior.location + half)
    np.testing.assert_allclose((jump - bend)[~is_far], (beta * prior.rate_right)[~is_far])
    np.testing.assert_allclose(jump[is_far], 0)


@pytest.mark.usefixtures("x64")
def test_heat_score_is_continuous() -> None:
    density = fit(*ensembles())
    x = np.linspace(density.origin - 1, density.origin + 258 * density.spacing, 20_001)
    heat = np.asarray(jax.jit(GridDensity.heat_score)(density, x))
    step = np.abs(np.diff(density.heat_slope, axis=0)).max(0) * (x[1] - x[0]) / density.spacing
    assert np.all(np.abs(np.diff(heat, axis=0)) < 1.01 * step[None] + 1e-9)


def exact_log_prob(
    x: np.ndarray, particles: np.ndarray, prior: Prior, prox_time: np.ndarray
) -> np.ndarray:
    kernels = prior.log_prob(x[:, None], particles, prox_time)
    return np.asarray(jax.nn.logsumexp(kernels, 1) - np.log(len(particles)))


@pytest.mark.usefixtures("x64")
def test_density_is_the_mixture() -> None:
    """Root mean square error of the log density, over draws of the exact mixture itself.

    Bounds from what linear binning and interpolation cost at s = 2 to 5 coarse spacings.
    """
    particles, prior, prox_time = ensembles()
    density = fit(particles, prior, prox_time)
    draws = prior.sample(jax.random.key(0), particles, prox_time)
    exact = exact_log_prob(draws, particles, prior, prox_time)

    def error(density: GridDensity) -> np.ndarray:
        return np.sqrt(np.mean((log_prob(density, draws) - exact) ** 2, 0))

    assert np.all(error(density) < 0.01), error(density)
    # Negative control: with half the rate no coordinate that has a prior comes near.
    wrong = fit(particles, prior.tempered(0.5), prox_time)
    assert np.all(error(wrong)[1:] > 0.02), error(wrong)


# The guide's prior is written as users write, without a thought for rank promotion.
@pytest.mark.usefixtures("x64", "silent_broadcasting")
def test_density_is_the_mixture_for_other_kinds_of_prior() -> None:
    """A normal prior around the particles, beyond the grid, weak and flat, and a Laplace prior.

    Bounds as above, for 200 normal particles with standard deviation 1.
    """
    folder = Path(__file__).parents[2] / "examples" / "developer"
    NormalPrior = runpy.run_path(str(folder / "normal_prior.py"))["NormalPrior"]
    normal = NormalPrior(jnp.array([0.3, 8.0, -5.0, 0.0]), jnp.array([4.0, 0.5, 1e-3, 0.0]))
    laplace = laplace_prior(jnp.array([2.0]), jnp.array([0.4]))
    prior = compose_prior([(normal, [(0, 2), (3, 5)]), (laplace, [(2, 3)])])
    particles = np.random.default_rng(3).normal(size=(200, 5))
    prox_time = np.full(5, 0.1)
    density = fit(particles, prior, prox_time)
    draws = prior.sample(jax.random.key(0), jnp.asarray(particles), prox_time)
    exact = exact_log_prob(draws, particles, prior, prox_time)
    error = np.sqrt(np.mean((log_prob(density, draws) - exact) ** 2, 0))
    assert np.all(error < 0.01), error
    wrong = fit(particles, prior.tempered(0.5), prox_time)
    error = np.sqrt(np.mean((log_prob(wrong, draws) - exact) ** 2, 0))
    assert np.all(error[:3] > 0.02), error


@pytest.mark.parametrize("double", [False, True])
def test_inverse_goes_there_and_back(double: bool) -> None:
    with jax.enable_x64(double):
        particles, prior, prox_time = ensembles()
        dtype = np.float64 if double else np.float32
        density = fit(particles.astype(dtype), prior, prox_time)
        normal = np.linspace(-9, 9, 301).astype(dtype)[:, None] * np.ones(8, dtype)
        x = from_normal(density, normal)
        assert x.dtype == dtype and np.all(np.diff(x, axis=0) >= 0)
        back = to_normal(density, x)
        # The rounding of x itself shows wherever the density is high against |x|.
        rounding = np.abs(x) * np.finfo(dtype).eps * np.exp(log_prob(density, x) + normal**2 / 2)
        error = np.abs(back - normal) / (1 + 3 * rounding / np.finfo(dtype).eps)
        assert np.max(error) < (1e-12 if double else 2e-5), np.max(error, 0)


@pytest.mark.parametrize("rates", [(1e3, 1e3), (1e3, 1e1), (1.0, 1e4)])
def test_spike_inside_one_cell(rates: tuple[float, float]) -> None:
    """A prior much narrower than the grid's spacing: almost all mass next to one node."""
    particles = np.linspace(-2, 2, 50, dtype=np.float32)[:, None]
    density = fit(particles, laplace_prior(rates[1], rate_left=rates[0]), 0.1)
    assert density.spacing[0] > 10 / max(rates)
    normal = np.linspace(-6, 6, 101, dtype=np.float32)[:, None]
    x = from_normal(density, normal)
    # A position is known to a rounding of the spacing, not of the spike.
    np.testing.assert_allclose(to_normal(density, x), normal, atol=1e-3)


def test_single_precision_holds_in_both_tails() -> None:
    particles, prior, prox_time = ensembles()
    particles[:, 4] -= 50  # far from the origin single precision cannot resolve that coordinate
    reach = np.array([-300.0, -30, -8, -3, -1, 0, 1, 3, 8, 30, 300])[:, None]
    x = (particles.mean(0) + reach * particles.std(0)).astype(np.float32)
    methods = (log_prob, log_cdf, log_survival, to_normal)
    prior32 = jax.tree.map(lambda leaf: leaf.astype(np.float32), prior)
    single = fit(particles.astype(np.float32), prior32, prox_time.astype(np.float32))
    singles = [np.asarray(method(single, x)) for method in methods]
    with jax.enable_x64(True):
        _, prior, _ = ensembles()
        density = fit(particles, prior, prox_time)
        doubles = [np.asarray(method(density, x.astype(float))) for method in methods]
    for one, other in zip(singles, doubles, strict=True):
        assert one.dtype == np.float32 and np.all(np.isfinite(one))
        # Cells may differ where x sits on a node; then the two differ by a slope's rounding.
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.usefixtures("x64")
def test_units_do_not_matter() -> None:
    particles, prior, prox_time = ensembles()
    unit = 10.0 ** np.arange(-4, 4)
    density = fit(particles, prior, prox_time)
    scaled = fit(particles / unit, prior.scaled(unit), prox_time / unit**2)
    expected = log_prob(density, particles) + np.log(unit)[None]
    np.testing.assert_allclose(log_prob(scaled, particles / unit), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    "particles",
    [
        np.zeros((6, 2)),
        np.full((6, 2), 1e4),
        np.full((1, 2), -3.0),
        np.repeat([[0.0, 1.0], [1e3, 1.0]], 3, axis=0),
        np.array([[0.0, 1e-6], [0.5, 2e-6], [1.0, 3e-6], [1.5, 3e-6], [2.0, 3e-6], [1e8, 3e-6]]),
    ],
    ids=["zeros", "far", "one", "duplicates", "outlier"],
)
def test_degenerate_particles_give_finite_densities(particles: np.ndarray, double: bool) -> None:
    with jax.enable_x64(double):
        dtype = np.float64 if double else np.float32
        particles = particles.astype(dtype)
        prior = laplace_prior(np.array([0.0, 1e4]))
        near = np.resize(particles, (6, 2))
        x = np.concatenate([near, near + 1, [[-1e10, 1e10]]]).astype(dtype)
        for prox_time in (1e-12, 0.1, 1e6):
            density = fit(particles, prior, prox_time)
            assert all(np.all(np.isfinite(leaf)) for leaf in density[:-1])
            for method in (log_prob, log_cdf, log_survival, to_normal):
                assert np.all(np.isfinite(method(density, x))), method
            normal = np.linspace(-9, 9, 26, dtype=dtype).reshape(13, 2)
            assert np.all(np.isfinite(from_normal(density, normal)))


@pytest.mark.parametrize("double", [False, True])
def test_normal_tail_and_its_inverse(double: bool) -> None:
    t = np.concatenate([np.linspace(0, 10, 500), np.geomspace(10, 1e4, 50)])
    expected = scipy.stats.norm.logsf(t)
    with jax.enable_x64(double):
        dtype = np.float64 if double else np.float32
        epsilon = np.finfo(dtype).eps
        tail = jax.jit(log_normal_tail)(t.astype(dtype))
        np.testing.assert_allclose(tail, expected, rtol=8 * epsilon, atol=4 * epsilon)
        inverse = jax.jit(normal_tail_quantile)(expected.astype(dtype))
        np.testing.assert_allclose(inverse, t, rtol=8 * epsilon, atol=8 * epsilon)


@pytest.mark.parametrize("double", [False, True])
def test_log_mean_exp_has_accurate_derivatives_near_zero_and_far_out(double: bool) -> None:
    """Against the mean of a truncated exponential, ``coth(t/2)/2 - 1/t + 1/2``, and its series."""
    size = np.concatenate([[0.0], np.geomspace(1e-30, 500, 200)])
    with jax.enable_x64(double):
        dtype = np.float64 if double else np.float32
        size = np.concatenate([-size, size]).astype(dtype).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            closed = 0.5 / np.tanh(size / 2) - 1 / size + 0.5
        expected = np.where(np.abs(size) < 1e-3, 0.5 + size / 12 - size**3 / 720, closed)
        found = jax.jit(jax.vmap(jax.grad(log_mean_exp)))(size.astype(dtype))
        np.testing.assert_allclose(found, expected, atol=50 * np.finfo(dtype).eps)
