"""The published update against the authors' own numbers, and against its formulas by quadrature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from numpyro_rwpo.paper import splitting_step

GOLDEN = Path(__file__).parents[1] / "benchmarks" / "posteriors" / "golden"
CENTERS = 2.0 * np.array([[4, -2], [-2, -4], [-4, 2], [2, -4]])


def particles_of(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1.0, shape)


def soft_threshold(y: np.ndarray, threshold: Any) -> np.ndarray:
    return np.sign(y) * np.maximum(np.abs(y) - threshold, 0)


def normalizer(y: float, rate: float, step_size: float, beta: float, method: str) -> float:
    """Z(y) from its definition, or the Laplace approximation, up to a constant factor."""

    def integrand(x: float) -> float:
        return float(np.exp(-beta / 2 * (rate * abs(x) + (x - y) ** 2 / (2 * step_size))))

    if method == "laplace":
        return integrand(float(soft_threshold(np.array(y), rate * step_size)))
    reach = 12 * np.sqrt(2 * step_size / beta)
    ends = sorted({y - reach, 0.0, y, y + reach})
    tolerances = {"epsabs": 0.0, "epsrel": 1e-12}
    pieces = zip(ends[:-1], ends[1:], strict=True)
    return sum(scipy.integrate.quad(integrand, *piece, **tolerances)[0] for piece in pieces)


def reference_step(
    x: np.ndarray,
    force: np.ndarray,
    rate: np.ndarray,
    h: float,
    beta: float,
    kind: str,
    method: str,
) -> np.ndarray:
    """The update written out with loops."""
    y = x - h * force
    z = np.array([[normalizer(row[k], rate[k], h, beta, method) for k in (0, 1)] for row in y])
    result = np.empty_like(y)
    for i in range(len(y)):
        weights = np.exp(-beta * (y[i] - y) ** 2 / (4 * h)) / z
        if kind == "joint":
            weights = np.prod(weights, axis=1, keepdims=True) * np.ones(y.shape[1])
        mean = np.sum(weights * y, axis=0) / np.sum(weights, axis=0)
        result[i] = y[i] + (soft_threshold(y[i], rate * h) - mean) / 2
    return result


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["A", "B"])
def test_attention_mean_of_the_authors_code(case: str) -> None:
    data = np.load(GOLDEN / "score_l1_marginal.npz")
    x, mean, rate, h, beta = (data[name + case] for name in ("x", "s", "lambda", "h", "beta"))
    moved = splitting_step(
        x,
        jnp.zeros_like,
        rate,
        h,
        inverse_temperature=beta,
        attention="marginal",
        normalizer="laplace",
    )
    expected = x + (soft_threshold(x, rate * h) - mean) / 2
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_iterations_of_the_authors_code() -> None:
    data = np.load(GOLDEN / "mixture_d20.npz")
    centers = jnp.asarray(np.pad(CENTERS, ((0, 0), (0, 18))))

    def f(x: jax.Array) -> jax.Array:
        return -jax.nn.logsumexp(-jnp.sum((x[None] - centers) ** 2, 1) / 8)

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        force = jax.vmap(jax.grad(f))
        return splitting_step(x, force, 0.1, 0.1, attention="marginal", normalizer="laplace")

    x = step(jnp.asarray(data["x_init"]))
    np.testing.assert_allclose(x, data["x_after_1"], rtol=0, atol=1e-12)
    for _ in range(9):
        x = step(x)
    np.testing.assert_allclose(x, data["x_after_10"], rtol=0, atol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["exact", "laplace"])
@pytest.mark.parametrize("kind", ["joint", "marginal"])
def test_update_is_the_formula(kind: Any, method: Any) -> None:
    x, rate, h, beta = particles_of(0, (9, 2)), np.array([0.8, 3.0]), 0.15, 1.7
    moved = splitting_step(
        x,
        lambda x: 0.5 * x,
        rate,
        h,
        inverse_temperature=beta,
        attention=kind,
        normalizer=method,
    )
    expected = reference_step(x, 0.5 * x, rate, h, beta, kind, method)
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-10)
    # Negative control: the other choices give other numbers.
    other = {"joint": "marginal", "marginal": "joint"}[kind]
    wrong = reference_step(x, 0.5 * x, rate, h, beta, other, method)
    assert np.max(np.abs(wrong - moved)) > 1e-3


@pytest.mark.parametrize("kind", ["joint", "marginal"])
def test_single_precision_follows_double(kind: Any) -> None:
    x = particles_of(1, (60, 3))

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        return splitting_step(x, lambda x: x - 1, 2.0, 0.05, attention=kind)

    single = step(x.astype(np.float32))
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, step(x), rtol=0, atol=2e-6)
        assert step(x.astype(np.float32)).dtype == jnp.float32


@pytest.mark.parametrize("kind", ["joint", "marginal"])
def test_order_of_particles_does_not_matter(kind: Any) -> None:
    x = particles_of(2, (30, 2)).astype(np.float32)
    order = np.random.default_rng(3).permutation(30)

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        return splitting_step(x, lambda x: x, 1.0, 0.1, attention=kind)

    np.testing.assert_allclose(step(x[order]), step(x)[order], rtol=0, atol=2e-6)


def test_flow_reaches_a_normal_target() -> None:
    """From far off to N(1, 1), no prior; the ensemble's own spacing is the only error left."""
    x = jnp.asarray(particles_of(4, (200, 1)) * 0.3 + 5, jnp.float32)

    def step(_: int, x: jax.Array) -> jax.Array:
        return splitting_step(x, lambda x: x - 1, 0.0, 0.1)

    x = np.asarray(jax.jit(lambda x: jax.lax.fori_loop(0, 150, step, x))(x))
    assert abs(x.mean() - 1) < 0.02
    assert 0.85 < x.std() < 1.05


@pytest.mark.parametrize("kind", ["joint", "marginal"])
def test_coinciding_particles_move_by_the_threshold_alone(kind: Any) -> None:
    x = np.full((5, 2), 0.7, np.float32)
    step = jax.jit(lambda x: splitting_step(x, jnp.zeros_like, 1.0, 0.1, attention=kind))
    np.testing.assert_allclose(step(x), 0.65, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"particles": np.zeros(8)}, ValueError, r"`particles` must have shape .* got \(8,\)"),
        ({"particles": np.zeros((0, 2))}, ValueError, r"`particles` .* got \(0, 2\)"),
        ({"rate": -1.0}, ValueError, r"`rate` must be >= 0"),
        ({"rate": np.ones(3)}, ValueError, r"`rate` must be a scalar or have shape .*\(3,\)"),
        ({"rate": "strong"}, TypeError, r"`rate` must be a real number"),
        ({"step_size": 0.0}, ValueError, r"`step_size` must be positive and finite; got 0.0"),
        ({"step_size": np.inf}, ValueError, r"`step_size` must be positive and finite"),
        ({"step_size": np.ones(2)}, ValueError, r"`step_size` must be a scalar; got shape \(2,\)"),
        ({"inverse_temperature": -1.0}, ValueError, r"`inverse_temperature` must be positive"),
        ({"inverse_temperature": np.nan}, ValueError, r"`inverse_temperature` must be positive"),
        ({"attention": "copula"}, ValueError, r"`attention` must be one of 'joint', 'marginal'"),
        ({"normalizer": "none"}, ValueError, r"`normalizer` must be one of 'exact', 'laplace'"),
        ({"grad_f": lambda x: x.sum()}, ValueError, r"`grad_f` must return .* got \(\)"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    good = {"particles": np.ones((4, 2)), "grad_f": lambda x: x, "rate": 1.0, "step_size": 0.1}
    with pytest.raises(error, match=match):
        splitting_step(**{**good, **changes})
