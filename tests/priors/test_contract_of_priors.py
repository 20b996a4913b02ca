"""What every prior promises, over the registry: closed forms against oracles and one another.

A prior is made of a NumPyro distribution here, as in a model; one that is registered and has no
case below fails. Beside them: the guide's own prior, and several kinds side by side. All tests but
the last run in double precision, in which an oracle's own error is small.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from numpyro_rwpo.distributions import GroupLaplace, SparseGroupLaplace
from numpyro_rwpo.distributions.fused import Increments
from numpyro_rwpo.model.prior_registry import (
    BUILT_IN_PRIORS,
    lay_out_prior,
    registry_with,
    site_prior,
)
from numpyro_rwpo.priors.composite import CompositePrior
from numpyro_rwpo.priors.laplace import no_prior
from numpyro_rwpo.priors.protocol import Prior

GUIDE = runpy.run_path(
    str(Path(__file__).parents[2] / "examples" / "developer" / "normal_prior.py")
)
REGISTRY = registry_with({dist.Normal: GUIDE["normal_prior"]})
LOCATION = np.array([0.0, -0.7, 1.3, 0.2])
SCALE = np.array([1.0, 0.3, 2.5, 0.05])
ASYMMETRY = np.array([1.0, 0.4, 3.0, 1.5])
DIM = len(SCALE)
# Proximal times and inverse temperature. The times have one shape, so that they share programs.
KERNELS = [
    (np.full(DIM, 0.5), 1.0),
    (np.full(DIM, 0.05), 2.5),
    (np.array([2.0, 0.3, 0.01, 1.0]), 0.6),
]
CENTERS = np.array([-4.0, -0.71, -0.2, 0.0, 0.6, 5.0])[:, None] + np.zeros(DIM)
EPS = float(np.finfo(np.float64).eps)

SITES: dict[type, Callable[[], dist.Distribution]] = {
    dist.Laplace: lambda: dist.Laplace(LOCATION, SCALE),
    dist.AsymmetricLaplace: lambda: dist.AsymmetricLaplace(LOCATION, SCALE, ASYMMETRY),
    dist.Normal: lambda: dist.Normal(LOCATION, SCALE),
}


def of_site(kind: type) -> Prior:
    return site_prior(SITES[kind](), REGISTRY)


def several_kinds() -> Prior:
    """Normal, Laplace, none and again Normal coordinates in one position."""
    priors = [
        site_prior(dist.Normal(LOCATION[:1], SCALE[:1]), REGISTRY),
        site_prior(dist.Laplace(LOCATION[1:2], SCALE[1:2]), REGISTRY),
        None,
        site_prior(dist.Normal(LOCATION[3], SCALE[3]), REGISTRY),
    ]
    prior = lay_out_prior(priors, [np.zeros(1), np.zeros((1, 1)), np.zeros(1), np.zeros(())])
    assert isinstance(prior, CompositePrior) and len(prior.parts) == 2
    return prior


PRIORS: dict[str, Callable[[], Prior]] = {
    **{kind.__name__: lambda kind=kind: of_site(kind) for kind in SITES},  # type: ignore[misc]
    "flat": lambda: no_prior(DIM, float),
    "flat-normal": lambda: of_site(dist.Normal).tempered(0.0),
    "several-kinds": several_kinds,
}
EVERY_PRIOR = pytest.mark.parametrize("name", list(PRIORS))
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS, ids=["one", "two", "three"])

# The guide's prior is written as users write, without a thought for rank promotion.
pytestmark = pytest.mark.usefixtures("x64", "silent_broadcasting")


def call(name: str, prior: Prior, *arguments: Any) -> Any:
    """A compiled method; results as NumPy arrays."""
    arrays = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in arguments]
    return jax.tree.map(np.asarray, _call(name, prior, *arrays))


_call = jax.jit(lambda name, prior, *x: getattr(prior, name)(*x), static_argnums=0)


def derivative(name: str, prior: Prior, *arguments: Any) -> np.ndarray:
    """A method's derivative in its first argument, elementwise."""
    return np.asarray(_derivative(name, prior, *map(jnp.asarray, arguments)))


_derivative = jax.jit(
    lambda name, prior, *x: jax.grad(lambda first: getattr(prior, name)(first, *x[1:]).sum())(x[0]),
    static_argnums=0,
)


def points(seed: int, number: int = 400) -> np.ndarray:
    """Heavy-tailed points around the locations, on both scales of interest; none on a kink."""
    draws = np.random.default_rng(seed).standard_t(2, size=(number, DIM))
    return LOCATION + draws * np.where(np.arange(number) % 2, 1.0, 0.1)[:, None] * (0.1 + SCALE)


# Structured kinds have a contract of their own, in test_group.py. Increments are Laplace
# coordinates, whose density tests/distributions/test_fused_laplace.py compares.
ELSEWHERE = {GroupLaplace, SparseGroupLaplace, Increments}


def test_every_registered_distribution_is_held_to_the_contract() -> None:
    assert set(BUILT_IN_PRIORS) <= set(SITES) | ELSEWHERE


@EVERY_PRIOR
def test_is_a_prior_and_a_pytree(name: str) -> None:
    prior = PRIORS[name]()
    assert isinstance(prior, Prior)
    leaves, structure = jax.tree.flatten(prior)
    assert structure.unflatten(leaves) == prior or all(isinstance(x, jax.Array) for x in leaves)
    assert np.shape(prior.location) == (DIM,)


@pytest.mark.parametrize("kind", list(SITES), ids=lambda kind: kind.__name__)
def test_is_the_density_of_its_distribution(kind: type) -> None:
    """Minus potential and log mass is the distribution's own log density."""
    site, prior, x = SITES[kind](), of_site(kind), points(0)
    density = -call("potential", prior, x) - call("log_mass", prior)
    np.testing.assert_allclose(density, site.log_prob(x), rtol=1e-12, atol=1e-12)
    wrong = -call("potential", prior.tempered(1.01), x) - call("log_mass", prior)
    assert np.abs(wrong - site.log_prob(x)).max() > 1e-3


@EVERY_PRIOR
def test_slopes_and_convexity(name: str) -> None:
    """Central differences over h = 1e-6: their error is h^2, and roundings of the potential over h.

    The slopes of a convex potential rise with x.
    """
    prior, x = PRIORS[name](), points(1)
    h = 1e-6
    above, below = (call("potential", prior, x + sign * h) for sign in (1, -1))
    found = call("subgradient", prior, x)
    bound = 1e-9 * (1 + np.abs(found)) + 4 * EPS * np.abs(above) / h
    is_smooth = np.abs(x - prior.location) > h
    assert np.all((np.abs((above - below) / (2 * h) - found) < bound)[is_smooth])
    ascending = call("subgradient", prior, np.sort(x, 0))
    assert np.all(np.diff(ascending, axis=0) >= -1e-12 * np.abs(ascending[1:]))

    np.testing.assert_allclose(derivative("potential", prior, x), found, rtol=1e-12)


@EVERY_PRIOR
def test_rise_is_a_difference_without_its_cancellation(name: str) -> None:
    prior, start = PRIORS[name](), points(2)
    step = points(3) - LOCATION
    value, slope = call("rise", prior, start, step)
    before, after = call("potential", prior, start), call("potential", prior, start + step)
    size = np.abs(before) + np.abs(after)
    assert np.all(np.abs(value - (after - before)) <= 1e-13 * (1 + size))
    np.testing.assert_allclose(slope, call("subgradient", prior, start + step), atol=1e-12)
    # From the location it is the potential; from far away the slope is known to all digits.
    value, _ = call("rise", prior, prior.location, step)
    expected = call("potential", prior, prior.location + step)
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-14)
    far, _ = call("rise", prior, np.full(DIM, 1e9), np.full(DIM, 1e-9))
    np.testing.assert_allclose(far, 1e-9 * call("subgradient", prior, np.full(DIM, 1e9)), rtol=1e-9)


@EVERY_PRIOR
def test_smoothed_potential_is_close_and_has_its_own_slope(name: str) -> None:
    prior, x = PRIORS[name](), points(4)
    h = 1e-6
    value, slope = call("smoothed", prior, x)
    above, below = (call("smoothed", prior, x + sign * h) for sign in (1, -1))
    bound = 1e-8 * (1 + np.abs(slope)) + 4 * EPS * np.abs(value) / h
    # The slope of a Moreau envelope has corners; a difference over one is off by h times its bend.
    bound += np.abs(above[1] - below[1])
    assert np.all(np.abs((above[0] - below[0]) / (2 * h) - slope) < bound)
    # No bend is sharper than one over the square of the smallest scale on either side.
    sharpest = (np.maximum(ASYMMETRY, 1 / ASYMMETRY) / SCALE) ** 2
    assert np.all(np.abs(above[1] - below[1]) <= 2 * h * sharpest * (1 + 1e-6) + 1e-9)
    # An envelope is lower by at most half the squared rate times its step, one over the former.
    assert np.all(np.abs(value - call("potential", prior, x)) <= 0.5 + 1e-12)


# ------------------------------------------------------------------------------- proximal map


def excess(prior: Prior, x: np.ndarray, step_size: float, minimizer: np.ndarray) -> np.ndarray:
    """How far the objective is below ``objective(minimizer) + (z - minimizer)^2 / (2 step)``.

    The objective is strongly convex, so this holds at all z, and for its minimizer alone.
    """
    z = x + np.concatenate([-np.geomspace(1e-4, 1e3, 300), [0.0], np.geomspace(1e-4, 1e3, 300)])[
        :, None, None
    ] * np.sqrt(step_size)
    z = np.concatenate([z, np.broadcast_to(prior.location, (1, *x.shape))])
    objective = call("potential", prior, z) + (z - x) ** 2 / (2 * step_size)
    least = call("potential", prior, minimizer) + (minimizer - x) ** 2 / (2 * step_size)
    bound = least + (z - minimizer) ** 2 / (2 * step_size)
    return np.max((bound - objective) / (1 + np.abs(objective)), 0)


@EVERY_PRIOR
@pytest.mark.parametrize("step_size", [0.03, 0.7, 20.0])
def test_prox_minimizes_its_objective(name: str, step_size: float) -> None:
    prior, x = PRIORS[name](), points(5, 60)
    minimizer = call("prox", prior, x, step_size)
    assert np.all(excess(prior, x, step_size, minimizer) <= 1e-12)
    # Negative control: points beside them are found out in every coordinate.
    beside = excess(prior, x, step_size, minimizer + 0.01 * step_size**0.5)
    assert np.all(beside.max(0) > 1e-6)
    moreau = call("moreau_gradient", prior, x, step_size)
    np.testing.assert_allclose(moreau, (x - minimizer) / step_size, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(call("prox", prior, x, 0.0), x)


@EVERY_PRIOR
def test_prox_is_firmly_nonexpansive(name: str) -> None:
    """``|Px - Py|^2 <= (Px - Py)(x - y)`` for each coordinate and pair, up to rounding."""
    prior, x, y = PRIORS[name](), points(6), points(7)
    for step_size in (0.03, 0.7, SCALE**2):
        gap = call("prox", prior, x, step_size) - call("prox", prior, y, step_size)
        assert np.all(gap * (x - y - gap) >= -1e-13 * (x - y) ** 2)


# --------------------------------------------------------------------------------- averages


@EVERY_PRIOR
def test_normal_fit_against_quadrature(name: str) -> None:
    """Mean slope, and mean of slope times deviation over the variance, by Gauss-Legendre pieces.

    The integrands are smooth on either side of the location, where the pieces end.
    """
    prior = PRIORS[name]()
    mean, scale = points(8, 20), 0.05 + np.abs(points(9, 20))
    slope, curvature = call("normal_fit", prior, mean, scale)
    assert slope.shape == curvature.shape == mean.shape
    x, weight = pieces(prior, mean, scale)
    density = scipy.stats.norm.pdf(x, mean, scale) * weight
    derivative = call("subgradient", prior, x)
    np.testing.assert_allclose((derivative * density).sum(0), slope, rtol=1e-9, atol=1e-9)
    found = (derivative * density * (x - mean)).sum(0) / scale**2
    np.testing.assert_allclose(found, curvature, rtol=1e-8, atol=1e-8)


def pieces(
    prior: Prior, center: np.ndarray, scale: np.ndarray, low: Any = -np.inf, high: Any = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of an integral over 14 scales around a center, cut at the location.

    The range is that between ``low`` and ``high``. Further cuts close to the location resolve the
    narrowest prior. Arrays (nodes, ..., dim).
    """
    location = np.broadcast_to(np.asarray(prior.location), np.shape(center))
    near = (
        SCALE
        * np.array([0.0, *np.geomspace(0.1, 40, 12), *-np.geomspace(0.1, 40, 12)])[:, None, None]
    )
    around = np.linspace(-14, 14, 29)[:, None, None] * scale
    edges = np.concatenate([center + around, location + near])
    edges = np.sort(np.clip(edges, center - 14 * scale, center + 14 * scale), 0)
    edges = np.clip(edges, low, high)
    root, weight = np.polynomial.legendre.leggauss(24)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    x = middle + half * root[:, None, None, None]
    w = half * weight[:, None, None, None]
    shape = (-1, *np.shape(center))
    return x.reshape(shape), w.reshape(shape)


def unnormalized(prior: Prior, x: np.ndarray, y: np.ndarray, kernel: Any) -> np.ndarray:
    """Log of the kernel's exponential."""
    time, beta = kernel
    return -beta / 2 * (call("potential", prior, x) + (x - y) ** 2 / (2 * time))


@EVERY_PRIOR
@EVERY_KERNEL
def test_kernel_against_quadrature(name: str, kernel: Any) -> None:
    """Normalizer, density, distribution function and both tails, and their derivatives in y or x.

    The kernel's mass is within 14 of its scales around the proximal point, as no kernel is wider
    than without a prior.
    """
    prior, (time, beta) = PRIORS[name](), kernel
    y = CENTERS
    center, scale = call("prox", prior, y, time), np.broadcast_to(np.sqrt(2 * time / beta), y.shape)
    x, weight = pieces(prior, center, scale)
    peak = unnormalized(prior, center, y, kernel)
    total = peak + np.log((np.exp(unnormalized(prior, x, y, kernel) - peak) * weight).sum(0))
    found = call("log_normalizer", prior, y, time, beta)
    np.testing.assert_allclose(found, total, rtol=1e-10, atol=1e-10)

    density = np.exp(unnormalized(prior, x, y, kernel) - total)
    log_prob = call("log_prob", prior, x, y, time, beta)
    np.testing.assert_allclose(np.exp(log_prob), density, rtol=1e-8, atol=1e-12)
    # Its derivative in y, at which attention looks: (E[x] - y) / s^2.
    gradient = derivative("log_normalizer", prior, y, time, beta)
    shift = ((x - y) * density * weight).sum(0)
    np.testing.assert_allclose(gradient * scale**2, shift, rtol=1e-8, atol=1e-9)

    kink = np.broadcast_to(np.asarray(prior.location), y.shape)
    for point in (kink, *(center + width * scale for width in (-3.0, -0.5, 0.1, 1.0, 4.0))):
        cdf, log_cdf, log_survival, log_prob = (
            call(method, prior, point, y, time, beta)
            for method in ("cdf", "log_cdf", "log_survival", "log_prob")
        )
        for found, low, high in ((log_cdf, -np.inf, point), (log_survival, point, np.inf)):
            x, weight = pieces(prior, center, scale, low, high)
            mass = (np.exp(unnormalized(prior, x, y, kernel) - total) * weight).sum(0)
            np.testing.assert_allclose(np.exp(found), mass, rtol=1e-7, atol=1e-13)
        np.testing.assert_allclose(cdf, np.exp(log_cdf), rtol=1e-12)
        slope = derivative("log_cdf", prior, point, y, time, beta)
        np.testing.assert_allclose(slope, np.exp(log_prob - log_cdf), rtol=1e-6, atol=1e-12)
        slope = derivative("log_survival", prior, point, y, time, beta)
        np.testing.assert_allclose(-slope, np.exp(log_prob - log_survival), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", [*(kind.__name__ for kind in SITES)])
def test_log_mass_against_quadrature(name: str) -> None:
    prior = PRIORS[name]()
    location = np.asarray(prior.location)[None]
    x, weight = pieces(prior, location, 20 * SCALE[None])
    total = (np.exp(-call("potential", prior, x)) * weight).sum((0, 1))
    np.testing.assert_allclose(call("log_mass", prior), np.log(total), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["flat", "flat-normal"])
def test_a_flat_prior_has_no_effect(name: str) -> None:
    prior, x, time, beta = PRIORS[name](), points(10), 0.3, 1.7
    for method, arguments, expected in (
        ("potential", (x,), 0 * x),
        ("subgradient", (x,), 0 * x),
        ("prox", (x, time), x),
        ("log_normalizer", (x, time, beta), 0 * x + 0.5 * np.log(4 * np.pi * time / beta)),
        ("hamiltonian_flow", (x, x + 1, 0.7), (x + 0.7 * (x + 1), x + 1)),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
            call(method, prior, *arguments),
            expected,
        )
    assert np.all(np.isinf(call("log_mass", prior)))


@EVERY_PRIOR
def test_scaled_and_tempered_are_changes_of_variables(name: str) -> None:
    prior, x, y = PRIORS[name](), points(11), points(12)
    unit, power = np.array([2.5, 0.01, 1.0, 30.0]), 1.7
    time, beta, step = 0.4, 0.6, 0.2
    scaled, tempered = prior.scaled(unit), prior.tempered(power)
    close = dict(rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(
        call("potential", scaled, x / unit), call("potential", prior, x), **close
    )
    np.testing.assert_allclose(
        call("subgradient", scaled, x / unit) / unit, call("subgradient", prior, x), **close
    )
    np.testing.assert_allclose(
        unit * call("prox", scaled, x / unit, step / unit**2), call("prox", prior, x, step), **close
    )
    np.testing.assert_allclose(
        call("log_normalizer", scaled, y / unit, time / unit**2, beta) + np.log(unit),
        call("log_normalizer", prior, y, time, beta),
        **close,
    )
    # In other units time runs as before if momenta are in the same units over it: p / unit.
    moved, momentum = call("hamiltonian_flow", scaled.tempered(unit**-2.0), x / unit, y / unit, 0.9)
    expected = call("hamiltonian_flow", prior, x, y, 0.9)
    size = 1 + np.abs(x) + np.abs(y)
    assert np.all(np.abs(unit * moved - expected[0]) < 1e-8 * size)
    assert np.all(np.abs(unit * momentum - expected[1]) < 1e-7 * size / SCALE)

    np.testing.assert_allclose(
        call("potential", tempered, x), power * call("potential", prior, x), **close
    )
    np.testing.assert_allclose(
        call("prox", tempered, x, step / power), call("prox", prior, x, step), **close
    )
    np.testing.assert_allclose(
        call("log_normalizer", prior.tempered(beta), y, time / beta, 1.0),
        call("log_normalizer", prior, y, time, beta),
        **close,
    )


# -------------------------------------------------------------------------------------- draws

NUM_DRAWS = 20_000
# Dvoretzky, Kiefer and Wolfowitz: the empirical distribution function of n draws is off by more
# than d anywhere with probability at most 2 exp(-2 n d^2). Each test compares 6 x 4 of them.
FALSE_ALARM = 1e-6
DISTANCE = np.sqrt(np.log(2 * CENTERS.size / FALSE_ALARM) / (2 * NUM_DRAWS))


def distance(cdf: np.ndarray) -> np.ndarray:
    """Largest gap between levels (draws, ...) of draws and those of uniform ones."""
    levels = np.sort(cdf, 0)
    rank = np.arange(1, len(levels) + 1).reshape(-1, *(1,) * (levels.ndim - 1)) / len(levels)
    return np.maximum(np.abs(levels - rank), np.abs(levels - rank + 1 / len(levels))).max(0)


@EVERY_PRIOR
@EVERY_KERNEL
def test_draws_have_the_distribution(name: str, kernel: Any) -> None:
    """20,000 draws for each center: their levels are uniform, and independent of one another.

    The distribution function is off by at most 0.021, which chance exceeds in one run of a million.
    Mean levels and mean distances of levels from the median, 1/2 and 1/4, have standard errors of
    0.0020 and 0.0010, and correlations of levels one of 0.007; all are bounded at 5.5 of them. A
    normal density too wide by a twentieth is off by 0.008 in the second.
    """
    prior, (time, beta) = PRIORS[name](), kernel
    y = np.broadcast_to(CENTERS, (NUM_DRAWS, *CENTERS.shape))
    draws = call("sample", prior, jax.random.key(0), y, time, beta)
    levels = call("cdf", prior, draws, y, time, beta)
    assert np.all(distance(levels) < DISTANCE)
    flat = levels.reshape(NUM_DRAWS, -1)
    correlation = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlation).max() < 5.5 / np.sqrt(NUM_DRAWS)
    assert np.abs(flat.mean(0) - 1 / 2).max() < 5.5 / np.sqrt(12 * NUM_DRAWS)
    assert np.abs(np.abs(flat - 1 / 2).mean(0) - 1 / 4).max() < 5.5 / np.sqrt(48 * NUM_DRAWS)
    # Negative control: draws at another temperature are found out.
    wrong = call("cdf", prior, draws, y, time, 1.5 * beta)
    assert np.all(distance(wrong) > DISTANCE)


# ----------------------------------------------------------------------------------- dynamics

TIMES = np.array([0.0, 1e-3, 0.3, 1.7, -0.8, 25.0])[:, None, None]


def energy(prior: Prior, x: np.ndarray, p: np.ndarray) -> np.ndarray:
    return 0.5 * p**2 + call("potential", prior, x)


def momenta(seed: int, x: np.ndarray) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=x.shape) * np.where(np.arange(DIM) % 2, 0.3, 2.0)


@EVERY_PRIOR
def test_flow_keeps_energy_and_can_be_reversed(name: str) -> None:
    prior, x = PRIORS[name](), points(13, 100)
    p = momenta(14, x)
    moved, momentum = call("hamiltonian_flow", prior, x, p, TIMES)
    total = energy(prior, x, p)
    assert np.all(np.abs(energy(prior, moved, momentum) - total) < 1e-11 * (1 + total))
    np.testing.assert_array_equal(moved[0], x)
    # Times up to 25 hold a thousand periods of the fastest coordinate, whose phase loses digits.
    bound = 1e-8 * (1 + np.abs(x) + np.abs(p) + np.abs(moved)) / SCALE
    for sign, time in ((-1, TIMES), (1, -TIMES)):
        back, velocity = call("hamiltonian_flow", prior, moved, sign * momentum, time)
        assert np.all(np.abs(back - x) < bound)
        assert np.all(np.abs(sign * velocity - p) < bound / SCALE)
    halfway = call("hamiltonian_flow", prior, x, p, TIMES / 2)
    twice = call("hamiltonian_flow", prior, *halfway, TIMES / 2)
    assert np.all(np.abs(twice[0] - moved) < bound)


@EVERY_PRIOR
def test_flow_obeys_its_differential_equation(name: str) -> None:
    """Central differences over a time of 1e-6, except where the step crosses the location."""
    prior, x = PRIORS[name](), points(15, 100)
    p, h = momenta(16, x), 1e-6
    times = TIMES[1:-1]
    later, earlier = (call("hamiltonian_flow", prior, x, p, times + s * h) for s in (1, -1))
    moved, momentum = call("hamiltonian_flow", prior, x, p, times)
    location = np.asarray(prior.location)
    is_smooth = (later[0] - location) * (earlier[0] - location) > 0
    assert is_smooth.mean() > 0.95
    velocity, force = ((b - a) / (2 * h) for a, b in zip(earlier, later, strict=True))
    bound = 1e-6 * (1 + np.abs(momentum) + np.abs(moved) + np.abs(x)) / SCALE**2
    assert np.all((np.abs(velocity - momentum) < bound)[is_smooth])
    slope = call("subgradient", prior, moved)
    assert np.all((np.abs(force + slope) < bound / SCALE)[is_smooth])


@EVERY_PRIOR
def test_flow_keeps_volume(name: str) -> None:
    """Determinants of the Jacobians (x, p) -> (x, p), by central differences over 1e-6.

    A difference across a moment at which the particle is on the kink counts for nothing: there the
    map has no derivative. These are the few with another number of crossings on either side.
    """
    prior, x = PRIORS[name](), points(17, 100)
    p, h = momenta(18, x), 1e-6
    times = TIMES[1:-1]

    def column(dx: float, dp: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        later = call("hamiltonian_flow", prior, x + dx, p + dp, times)
        earlier = call("hamiltonian_flow", prior, x - dx, p - dp, times)
        sides = [np.sign(z[0] - np.asarray(prior.location)) for z in (earlier, later)]
        is_same = (sides[0] == sides[1]) & (np.sign(earlier[1]) == np.sign(later[1]))
        return (later[0] - earlier[0]) / (2 * h), (later[1] - earlier[1]) / (2 * h), is_same

    (xx, px, one), (xp, pp, other) = column(h, 0.0), column(0.0, h)
    determinant = xx * pp - xp * px
    size = np.abs(xx * pp) + np.abs(xp * px)
    is_smooth = one & other
    assert is_smooth.mean() > 0.95
    assert np.all((np.abs(determinant - 1) < 1e-3 * (1 + size))[is_smooth])
    assert np.median(np.abs(determinant - 1)) < 1e-7


# ------------------------------------------------------------------- precision and composition

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "potential": ("x",),
    "subgradient": ("x",),
    "rise": ("x", "step"),
    "smoothed": ("x",),
    "prox": ("x", 0.3),
    "moreau_gradient": ("x", 0.3),
    "normal_fit": ("x", "scale"),
    "log_normalizer": ("y", 0.3, 1.7),
    "log_prob": ("x", "y", 0.3, 1.7),
    "cdf": ("x", "y", 0.3, 1.7),
    "log_cdf": ("x", "y", 0.3, 1.7),
    "log_survival": ("x", "y", 0.3, 1.7),
    "hamiltonian_flow": ("x", "step", 0.7),
}
ARRAYS = {
    "x": points(19, 200),
    "y": points(20, 200),
    "step": points(21, 200) - LOCATION,
    "scale": 0.05 + np.abs(points(22, 200)),
}


def arguments(method: str, dtype: Any) -> list[Any]:
    return [ARRAYS[a].astype(dtype) if isinstance(a, str) else dtype(a) for a in ARGUMENTS[method]]


@EVERY_PRIOR
@pytest.mark.parametrize("method", list(ARGUMENTS))
def test_single_precision(name: str, method: str) -> None:
    """Against double precision at the same single-precision arguments, which are off by roundings.

    A result may be off by 200 roundings of itself, of one, and of what roundings of the arguments
    and of the prior's parameters make of it: the changes of the double-precision result when each
    of these is changed by a few roundings.
    """
    prior = PRIORS[name]()
    single = jax.tree.map(lambda field: jnp.asarray(field, jnp.float32), prior)
    inputs = arguments(method, np.float32)
    found = call(method, single, *inputs)
    double = jax.tree.map(lambda field: jnp.asarray(field, jnp.float64), single)
    exact = [np.asarray(x, float) for x in inputs]
    expected = call(method, double, *exact)
    epsilon = float(np.finfo(np.float32).eps)
    spread = jax.tree.map(np.zeros_like, expected)
    nudges = [1 + 4 * epsilon, 1 - 4 * epsilon]
    changed = [
        (double, [*exact[:k], exact[k] * nudge, *exact[k + 1 :]])
        for k in range(len(exact))
        for nudge in nudges
    ]
    leaves, structure = jax.tree.flatten(double)
    changed += [
        (structure.unflatten([*leaves[:k], leaf * nudge, *leaves[k + 1 :]]), exact)
        for k, leaf in enumerate(leaves)
        for nudge in nudges
    ]
    for other_prior, other in changed:
        spread = jax.tree.map(
            lambda s, a, b: s + np.abs(a - b),
            spread,
            call(method, other_prior, *other),
            expected,
        )
    for a, b, s in zip(*(jax.tree.leaves(t) for t in (found, expected, spread)), strict=True):
        assert a.dtype == np.float32
        error = np.abs(a - b)
        bound = 200 * epsilon * (1 + np.abs(b)) + 10 * s
        assert np.all(error <= bound), (error / bound).max()


def test_a_composite_is_its_parts_and_one_kind_is_no_composite() -> None:
    prior = several_kinds()
    alone = [
        of_site(dist.Normal),
        of_site(dist.Laplace),
        no_prior(DIM, float),
        of_site(dist.Normal),
    ]
    for method in ARGUMENTS:
        inputs = arguments(method, np.float64)
        whole = call(method, prior, *inputs)
        for k, part in enumerate(alone):
            jax.tree.map(
                lambda a, b, k=k: np.testing.assert_allclose(a[..., k], b[..., k], rtol=1e-13),
                whole,
                call(method, part, *inputs),
            )
    # Arguments that are the same for all coordinates: a scalar, (n, 1), or one for each.
    x, p, time = ARRAYS["x"], ARRAYS["step"], np.linspace(0, 1, len(ARRAYS["x"]))[:, None]
    np.testing.assert_allclose(
        call("hamiltonian_flow", prior, x, p, time),
        call("hamiltonian_flow", prior, x, p, time * np.ones(DIM)),
        rtol=1e-12,
    )
    laplace = site_prior(dist.Laplace(0.0, 1.0), REGISTRY)
    one_kind = lay_out_prior([None, laplace, None], [np.zeros(2), np.zeros(()), np.zeros((0, 3))])
    assert type(one_kind) is type(laplace)
    np.testing.assert_array_equal(one_kind.rate_right, [0.0, 0.0, 1.0])
