"""TotalVariation: density against plain loops, its power of the scale, proximal map, draws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
from helpers import light_kernel, run_mcmc

from numpyro_rwpo.distributions import FusedLaplace, TotalVariation
from numpyro_rwpo.priors.total_variation import edge_graph, image_graph, total_variation_prox

EDGES = [(0, 1), (1, 2), (0, 2), (3, 4)]


def variation_by_hand(x: np.ndarray, isotropic: bool) -> float:
    total = 0.0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            down = x[i + 1, j] - x[i, j] if i + 1 < x.shape[0] else 0.0
            right = x[i, j + 1] - x[i, j] if j + 1 < x.shape[1] else 0.0
            total += np.hypot(down, right) if isotropic else abs(down) + abs(right)
    return total


@pytest.mark.parametrize("isotropic", [False, True])
def test_density_of_an_image(isotropic: bool) -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    site = TotalVariation(0.3, (4, 5), isotropic=isotropic)
    expected = [-variation_by_hand(v, isotropic) / 0.3 - 19 * np.log(0.3) for v in x]
    np.testing.assert_allclose(site.log_prob(x), expected, rtol=1e-5)
    np.testing.assert_allclose(site.log_prob(x + 7.0), expected, rtol=1e-4)
    gradient = jax.grad(lambda v: site.log_prob(v))(jnp.zeros((4, 5)))
    assert np.isfinite(gradient).all()
    leveled = TotalVariation(0.3, (4, 5), isotropic=isotropic, level_scale=2.0)
    gap = leveled.log_prob(x) - site.log_prob(x)
    np.testing.assert_allclose(gap, dist.Normal(0, 2).log_prob(x.mean((1, 2))), rtol=1e-3)
    assert leveled.is_proper and not site.is_proper


def test_density_on_a_graph_and_its_power_of_the_scale() -> None:
    """Two parts of five values: the power is 3. A triangle's integral by quadrature."""
    x = np.random.default_rng(1).normal(size=5).astype(np.float32)
    total = sum(abs(x[i] - x[j]) for i, j in EDGES)
    site = TotalVariation(0.7, edges=EDGES, size=5)
    np.testing.assert_allclose(site.log_prob(x), -total / 0.7 - 3 * np.log(0.7), rtol=1e-5)

    def mass(scale: float) -> float:
        def density(b: float, a: float) -> float:
            return float(np.exp(-(abs(a) + abs(b) + abs(a - b)) / scale) / scale**2)

        edge = 20 * scale
        return scipy.integrate.dblquad(density, -edge, edge, -edge, edge, epsabs=1e-4)[0]

    assert abs(mass(0.5) - mass(2.0)) < 2e-3


def test_batches_and_pytrees() -> None:
    site = TotalVariation(np.array([0.5, 2.0], np.float32), (3, 4))
    assert site.shape() == (2, 3, 4) and site.log_prob(np.ones((3, 4))).shape == (2,)
    expanded = TotalVariation(0.5, (3, 4)).expand([6])
    assert expanded.log_prob(np.ones((6, 3, 4))).shape == (6,)
    again = jax.tree.map(lambda leaf: leaf, site)
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(jax.jit(lambda s: s.log_prob(x))(again), site.log_prob(x), rtol=1e-6)


@pytest.mark.parametrize("kind", ["line", "graph", "anisotropic", "isotropic"])
def test_prox(kind: str) -> None:
    """The objective exceeds its minimum by half the squared distance: at 500 points around it."""
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        if kind in ("line", "graph"):
            edges = np.array(EDGES) if kind == "graph" else np.arange(5)[:-1, None] + [0, 1]
            graph, x = edge_graph(edges), rng.normal(size=5)
        else:
            graph, x = image_graph(kind == "isotropic"), rng.normal(size=(6, 5))
        step, tolerance = 0.4, 1e-6
        found = np.asarray(
            jax.jit(lambda x: total_variation_prox(x, step, graph, tolerance))(jnp.asarray(x))
        )
        variation = jax.jit(jax.vmap(graph.total_variation))

        def objective(z: np.ndarray) -> np.ndarray:
            rest = ((z - x) ** 2).reshape(len(z), -1).sum(1) / 2
            return step * np.asarray(variation(jnp.asarray(z))) + rest

        for size in (1e-2, 0.3):
            z = found + size * rng.normal(size=(500, *x.shape))
            square = ((z - found) ** 2).reshape(500, -1).sum(1)
            slack = 1e-5 * np.sqrt(square)  # the minimizer itself is off by the tolerance
            assert np.all(objective(z) - objective(found[None]) >= square / 2 - slack - 1e-9)
        constant = np.asarray(total_variation_prox(jnp.asarray(x), 1e3, graph, 1e-7))
        if kind != "graph":
            np.testing.assert_allclose(constant, x.mean(), atol=1e-3)


@pytest.mark.slow
def test_draws_on_a_line_are_those_of_the_fused_prior() -> None:
    """Four values, a latent scale; the reference is a longer run with FusedLaplace."""
    y = np.array([0.5, 0.8, 1.5, 1.4], np.float32)

    def model(y: Any, is_fused: bool) -> None:
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        edges = [(0, 1), (1, 2), (2, 3)]
        site = FusedLaplace(tau, 4) if is_fused else TotalVariation(tau, edges=edges, size=4)
        x = numpyro.sample("x", site)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    options = {"num_warmup": 100, "num_samples": 600, "num_chains": 4}
    runs = [
        run_mcmc(light_kernel(model, num_particles=32), y, is_fused, key=1, **options)
        for is_fused in (True, False)
    ]
    first, second = (run.get_samples(group_by_chain=True) for run in runs)
    for name in ("tau", "x"):
        a, b = np.asarray(first[name]), np.asarray(second[name])
        # Both have more than 400 effective draws: means differ by less than 0.35 sd, five errors.
        assert np.all(np.abs(a.mean((0, 1)) - b.mean((0, 1))) < 0.35 * a.std((0, 1)))
        assert np.all(np.abs(np.log(a.std((0, 1)) / b.std((0, 1)))) < 0.3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TotalVariation(0.0, (3, 3)), ValueError, "`scale` must be positive"),
        (lambda: TotalVariation(1.0), ValueError, "either `shape` or `edges`"),
        (lambda: TotalVariation(1.0, (9,)), ValueError, r"must be \(rows, columns\) of an image"),
        (lambda: TotalVariation(1.0, (1, 9)), ValueError, "`shape` must be at least 2"),
        (lambda: TotalVariation(1.0, edges=[(0, 3)], size=3), ValueError, r"0 to 2; got \[\[0, 3"),
        (lambda: TotalVariation(1.0, edges=[(1, 1)], size=3), ValueError, "two different"),
        (lambda: TotalVariation(1.0, edges=[0, 1], size=3), TypeError, "pairs of integers"),
        (lambda: TotalVariation(1.0, edges=EDGES), TypeError, "`size` must be an integer"),
        (
            lambda: TotalVariation(1.0, edges=EDGES, size=5, isotropic=True),
            ValueError,
            "`isotropic` is for images",
        ),
        (
            lambda: TotalVariation(1.0, edges=EDGES, size=5, level_scale=1.0),
            ValueError,
            "this one has 2 parts",
        ),
        (
            lambda: TotalVariation(1.0, (3, 3)).log_prob(np.zeros(3)),
            ValueError,
            r"must have shape \('...', 3, 3\); got \(3,\)",
        ),
        (
            lambda: TotalVariation(1.0, (3, 3)).sample(jax.random.key(0)),
            NotImplementedError,
            "no exact draws",
        ),
    ],
)
def test_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
