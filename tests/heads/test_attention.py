"""The attention heads: invariants over the registry, then what each head is for.

Statistical bounds state their false-alarm rate; seeds were not picked.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from numpyro_rwpo.heads import online_softmax
from numpyro_rwpo.heads.copula import CopulaDensity, fit_copula
from numpyro_rwpo.heads.correlation import _factorized
from numpyro_rwpo.heads.density import ProximalDensity, relative_prox_time
from numpyro_rwpo.heads.joint import fit_joint
from numpyro_rwpo.heads.online_softmax import streamed_attention
from numpyro_rwpo.heads.registry import BUILT_IN_HEADS
from numpyro_rwpo.priors.laplace import LaplacePrior, laplace_prior

BETA = 1.3
PRIOR = laplace_prior(np.array([1.5, 0.0], np.float32), np.array([0.2, 0.0], np.float32))
HEAD_NAMES = pytest.mark.parametrize("head", sorted(BUILT_IN_HEADS))


@partial(jax.jit, static_argnames="head")
def fit(
    head: str,
    particles: jax.Array,
    prior: LaplacePrior = PRIOR,
    relative: float = 0.1,
) -> ProximalDensity:
    prior = jax.tree.map(lambda field: jnp.asarray(field, particles.dtype), prior)
    prox_time = relative_prox_time(particles, relative)
    return BUILT_IN_HEADS[head].function(particles, prior, prox_time, BETA)


@jax.jit
def sample(density: Any, rng_key: jax.Array) -> jax.Array:
    return density.sample(rng_key, 5000)


@jax.jit
def evaluate(density: Any, x: jax.Array) -> dict[str, jax.Array]:
    methods = ("log_prob", "score", "heat_score")
    return {method: getattr(density, method)(x) for method in methods}


def ensemble(num_particles: int = 80, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Correlated, skewed, two-dimensional."""
    z = np.random.default_rng(seed).normal(size=(num_particles, 2))
    z[:, 1] = 0.8 * z[:, 0] + 0.6 * z[:, 1]
    return np.stack([z[:, 0], 3 * np.sinh(0.7 * z[:, 1]) - 1], 1).astype(dtype)


@HEAD_NAMES
def test_density_integrates_to_one(head: str) -> None:
    """Midpoint rule on 800 x 800 points over the range +- 8 standard deviations."""
    particles = ensemble()
    axes = [np.linspace(c.min() - 8 * c.std(), c.max() + 8 * c.std(), 800) for c in particles.T]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    area = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])

    @jax.jit
    def sum_rows(density: Any, x: jax.Array) -> jax.Array:
        return jax.lax.map(lambda row: jnp.sum(jnp.exp(density.log_prob(row))), x)

    total = np.sum(np.asarray(sum_rows(fit(head, particles), x), float)) * area
    np.testing.assert_allclose(total, 1, atol=1e-3)


@pytest.mark.usefixtures("x64")
@HEAD_NAMES
def test_score_is_the_gradient_of_the_log_density(head: str) -> None:
    particles = ensemble(dtype=np.float64)
    x = 1.3 * particles + 0.1
    density = fit(head, particles)
    values = evaluate(density, x)
    derivative = jax.jit(lambda density, x: jax.grad(lambda x: jnp.sum(density.log_prob(x)))(x))
    np.testing.assert_allclose(values["score"], derivative(density, x), rtol=1e-6, atol=1e-8)
    if head != "joint":
        # On a grid the heat part is interpolated between the middles of the cells.
        origin, spacing = density.grid.origin[None], density.grid.spacing[None]
        x = origin + spacing * (np.floor((x - origin) / spacing) + 0.5)
        values = evaluate(density, x)
    expected = values["score"] + BETA / 2 * PRIOR.subgradient(x)
    np.testing.assert_allclose(values["heat_score"], expected, rtol=1e-6, atol=1e-6)


@HEAD_NAMES
def test_samples_come_from_the_density(head: str) -> None:
    """Kolmogorov-Smirnov tests after mapping draws to independent standard normals.

    Copula and marginal: each coordinate, and (which sees a wrong correlation) sum and difference
    of the two. Joint: each coordinate against the mixture of the kernels' own distribution
    functions. Threshold 1e-4, four statistics a head: false alarm below 4e-4. Negative control: the
    particles' own smoothing left out (5000 draws of the particles themselves) fails.
    """
    particles = ensemble()
    density: Any = fit(head, particles, relative=0.5)
    draws = sample(density, jax.random.key(1))
    assert draws.shape == (5000, 2) and draws.dtype == jnp.float32
    bare = particles[np.random.default_rng(2).integers(0, 80, 5000)]

    def normals(x: np.ndarray) -> np.ndarray:
        if head == "joint":
            time = density.prox_time
            cdf = jax.jit(lambda x: jnp.mean(PRIOR.cdf(x[:, None], particles, time, BETA), 1))
            return scipy.stats.norm.ppf(cdf(x))
        normal = np.asarray(density.grid.to_normal(x))
        if head == "copula":
            normal = np.linalg.solve(density.correlation.factor, normal.T).T
        turned = np.stack([normal[:, 0] + normal[:, 1], normal[:, 0] - normal[:, 1]], 1)
        return np.concatenate([normal, turned / np.sqrt(2)], 1)

    def p_value(x: np.ndarray) -> float:
        columns = np.asarray(normals(x), float).T
        return min(scipy.stats.kstest(column, "norm").pvalue for column in columns)

    assert p_value(draws) > 1e-4
    assert p_value(bare) < 1e-4


@HEAD_NAMES
def test_order_of_particles_does_not_matter(head: str) -> None:
    particles, x = ensemble(), ensemble(seed=5)
    order = np.random.default_rng(6).permutation(len(particles))
    values = evaluate(fit(head, particles), x)
    others = evaluate(fit(head, particles[order]), x)
    for method in values:
        np.testing.assert_allclose(others[method], values[method], rtol=1e-3, atol=1e-3)


@HEAD_NAMES
def test_units_do_not_matter(head: str) -> None:
    particles, unit = ensemble(), np.array([8.0, 0.125], np.float32)  # exact in binary
    values = evaluate(fit(head, particles), particles)
    scaled = evaluate(fit(head, particles / unit, PRIOR.scaled(unit)), particles / unit)
    expected = values["log_prob"] + np.sum(np.log(unit))
    np.testing.assert_allclose(scaled["log_prob"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scaled["score"] / unit[None], values["score"], atol=2e-3)


@HEAD_NAMES
def test_single_precision_follows_double(head: str) -> None:
    particles, x = ensemble(), 2 * ensemble(seed=7)
    values = evaluate(fit(head, particles), x)
    with jax.enable_x64(True):
        exact = evaluate(fit(head, particles.astype(float)), x.astype(float))
    for method, value in values.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, exact[method], rtol=1e-3, atol=2e-3)


@HEAD_NAMES
def test_ensembles_batch_and_loop(head: str) -> None:
    """A few steps of a flow inside while_loop, under vmap, equal each ensemble's own."""

    def flow(particles: jax.Array) -> jax.Array:
        def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            count, particles = carry
            density = fit(head, particles)
            return count + 1, particles - 0.05 * (particles + density.heat_score(particles))

        return jax.lax.while_loop(lambda carry: carry[0] < 3, step, (0, particles))[1]

    batch = np.stack([ensemble(seed=seed) for seed in range(3)])
    together = jax.jit(jax.vmap(flow))(batch)
    np.testing.assert_allclose(together[2], jax.jit(flow)(batch[2]), rtol=1e-3, atol=1e-3)


@HEAD_NAMES
@pytest.mark.parametrize(
    "particles",
    [np.zeros((80, 2)), np.resize([1.0, 2.0, 1.0, 300.0], (80, 2)), np.full((80, 2), 1e6)],
    ids=["zeros", "one-column", "far"],
)
def test_collapsed_particles_stay_finite(head: str, particles: np.ndarray) -> None:
    particles = particles.astype(np.float32)
    density = fit(head, particles)
    for x in (particles, particles + np.float32(1e-3)):
        for method, value in evaluate(density, x).items():
            assert np.all(np.isfinite(value)), method


@HEAD_NAMES
def test_particles_must_be_a_matrix(head: str) -> None:
    for shape in ((8,), (0, 2), (4, 2, 3)):
        with pytest.raises(ValueError, match=r"`particles` must have shape .* got "):
            BUILT_IN_HEADS[head].function(np.zeros(shape, np.float32), PRIOR, 0.1)


def test_relative_prox_time_is_relative() -> None:
    particles = np.array([[0.0, 5.0, 0.0, 1e6], [2.0, 5.0, 0.0, 1e6]], np.float32)
    prox_time = np.asarray(relative_prox_time(particles, 0.1))
    np.testing.assert_allclose(prox_time[0], 0.1)
    assert np.all(prox_time > 0) and prox_time[1] < 1e-8 and prox_time[2] < 1e-15
    # The floor is a number of roundings: below what the coordinate can resolve in any case.
    assert 1e6 * np.finfo(np.float32).eps < np.sqrt(prox_time[3]) < 1e2 * np.sqrt(0.1)


# ----------------------------------------------------------------------------- the softmax


def dense_attention(
    queries: np.ndarray, keys: np.ndarray, log_normalizer: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    logits = -0.5 * ((queries[:, None] - keys) / scale) ** 2
    if log_normalizer.shape[1] == 1:
        logits = logits.sum(2, keepdims=True)
    logits = logits - log_normalizer
    weights = scipy.special.softmax(logits, 1)
    return scipy.special.logsumexp(logits, 1), np.sum(weights * keys, 1) - queries


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("block_size", "block_elements"), [(64, 2**21), (7, 2**21), (5, 50)])
def test_streamed_is_dense(
    groups: int, block_size: int, block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_softmax, "_BLOCK_ELEMENTS", block_elements)
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(11, 3)) + 100, rng.normal(size=(23, 3)) + 100
    log_normalizer, scale = rng.normal(size=(23, groups)), np.array([0.3, 1.0, 2.0])
    attend = jax.jit(partial(streamed_attention, block_size=block_size))
    log_sum, displacement = attend(queries, keys, log_normalizer, scale)
    expected = dense_attention(queries, keys, log_normalizer, scale)
    np.testing.assert_allclose(log_sum, expected[0], rtol=1e-10)
    np.testing.assert_allclose(displacement, expected[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 3])
def test_weights_sum_to_one(groups: int) -> None:
    """The average of a column of equal keys is that key, whatever the weights."""
    rng = np.random.default_rng(1)
    queries, keys = rng.normal(size=(40, 3)), rng.normal(size=(30, 3))
    keys[:, 1] = 7.0
    arrays = [a.astype(np.float32) for a in (queries, keys, rng.normal(size=(30, groups)))]
    _, displacement = jax.jit(streamed_attention)(*arrays, 0.5)
    mean = queries + displacement
    np.testing.assert_allclose(mean[:, 1], 7, rtol=1e-6)
    assert np.all((mean > keys.min(0)[None] - 1e-5) & (mean < keys.max(0)[None] + 1e-5))


def test_far_queries_are_finite() -> None:
    keys = np.zeros((4, 2), np.float32)
    query, log_normalizer = np.full((1, 2), 1e25, np.float32), np.zeros((4, 1), np.float32)
    log_sum, displacement = jax.jit(streamed_attention)(query, keys, log_normalizer, 1e-3)
    assert np.all(log_sum < -1e30) and np.all(np.isfinite(displacement))


@pytest.mark.parametrize("groups", [1, 2])
def test_memory_is_linear(groups: int) -> None:
    """20,000 particles: the matrix of weights would take 1.6 GB a coordinate. Compiled, not run."""
    shapes = [jax.ShapeDtypeStruct((20_000, n), jnp.float32) for n in (2, 2, groups)]
    compiled = jax.jit(lambda *args: streamed_attention(*args, 0.1)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64e6


def test_memory_up_to_100_000_particles_in_50_dimensions() -> None:
    """At most six arrays of the particles' size, and a block of logits; 40 GB for all weights."""
    for number in (25_000, 50_000, 100_000):
        shapes = [jax.ShapeDtypeStruct((number, n), jnp.float32) for n in (50, 50, 1)]
        compiled = jax.jit(lambda *args: streamed_attention(*args, 0.1)).lower(*shapes).compile()
        particles, block = 4 * 50 * number, 4 * 2**21
        assert compiled.memory_analysis().temp_size_in_bytes < 6 * particles + 8 * block


def product_attention(
    queries: jax.Array, keys: jax.Array, scale: float, dtype: jnp.dtype
) -> jax.Array:
    """Displacements by matrix products: queries [x, 1], keys [x/s^2, -|x|^2/(2 s^2)], values x."""
    center = jnp.mean(keys, 0, keepdims=True)
    queries, keys = queries - center, keys - center
    bias = -jnp.sum(keys**2, 1, keepdims=True) / (2 * scale**2)
    parts = (
        jnp.hstack([queries, jnp.ones((queries.shape[0], 1))]),
        jnp.hstack([keys / scale**2, bias]),
        jnp.hstack([keys, jnp.zeros((keys.shape[0], 1))]),
    )
    attended = jax.nn.dot_product_attention(
        *(part[None, :, None].astype(dtype) for part in parts), scale=1.0
    )
    return attended[0, :, 0, :-1].astype(queries.dtype) - queries


def test_half_precision_is_not_enough_for_fused_attention() -> None:
    """Why there is no `jax.nn.dot_product_attention`: its fused kernels take half precision only.

    In single precision the product form agrees with the streamed one. In bfloat16 the error of
    what the flow adds up in every step is 2 per cent of it.
    """
    particles = np.random.default_rng(0).normal(size=(512, 3)).astype(np.float32)
    scale = np.float32(np.sqrt(0.2))
    log_normalizer = np.zeros((512, 1), np.float32)
    _, expected = jax.jit(streamed_attention)(particles, particles, log_normalizer, scale)
    expected = np.asarray(expected)
    typical = np.sqrt(np.mean(expected**2))
    product = jax.jit(product_attention, static_argnums=3)
    errors = {
        dtype: np.sqrt(np.mean((product(particles, particles, scale, dtype) - expected) ** 2))
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    print({dtype.__name__: error / typical for dtype, error in errors.items()})
    assert errors[jnp.float32] < 1e-5 * typical
    assert errors[jnp.bfloat16] > 0.01 * typical


def test_joint_takes_a_prox_time_per_coordinate() -> None:
    particles = ensemble()
    prox_time = np.array([0.05, 0.8], np.float32)

    @jax.jit
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernels = jnp.sum(PRIOR.log_prob(x[:, None], particles, prox_time, BETA), -1)
        density = fit_joint(particles, PRIOR, prox_time, BETA)
        return density.log_prob(x), jax.nn.logsumexp(kernels, 1) - np.log(len(particles))

    value, expected = both(ensemble(seed=9))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------ the copula


def test_more_coordinates_than_particles_have_no_square_matrix() -> None:
    def largest(num_particles: int) -> bool:
        particles = jnp.asarray(np.random.default_rng(0).normal(size=(num_particles, 70)))
        prior = laplace_prior(1.0)
        text = str(jax.make_jaxpr(lambda y: fit_copula(y, prior, 0.1).heat_score(y))(particles))
        return "[70,70]" in text

    assert not largest(69)
    assert largest(71)  # negative control: the matrix does show up where it is wanted


@pytest.mark.parametrize("shape", [(60, 50), (64, 64), (300, 3)])
def test_correlation_is_positive_definite(shape: tuple[int, int]) -> None:
    """Also where all coordinates are one and the same, or few distinct particles are left."""
    base = np.random.default_rng(0).normal(size=shape)
    few = np.resize(base[:4], shape)
    same = np.repeat(base[:, :1], shape[1], 1)
    for particles in (base, few, same):
        density = fit("copula", particles.astype(np.float32), laplace_prior(0.0))
        assert isinstance(density, CopulaDensity)
        assert np.all(np.isfinite(density.correlation.factor)) and np.all(
            np.isfinite(density.correlation.coupling)
        )
        correlation = density.correlation.factor @ density.correlation.factor.T
        np.testing.assert_allclose(np.diagonal(correlation), 1, atol=1e-5)


def test_shrinkage_follows_the_evidence() -> None:
    """Independent data lose nearly all their chance correlations, strong ones nearly nothing."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(100, 20)).astype(np.float32)
    common = (0.3 * noise + rng.normal(size=(100, 1))).astype(np.float32)

    def off_diagonal(particles: np.ndarray) -> np.ndarray:
        density = fit("copula", particles, laplace_prior(0.0))
        assert isinstance(density, CopulaDensity)
        fitted = density.correlation.factor @ density.correlation.factor.T
        return np.asarray(fitted)[np.triu_indices(20, 1)]

    raw = np.corrcoef(noise.T)[np.triu_indices(20, 1)]
    assert np.sqrt(np.mean(off_diagonal(noise) ** 2)) < 0.3 * np.sqrt(np.mean(raw**2))
    assert np.mean(off_diagonal(common)) > 0.85  # the population's is 1 / 1.09 = 0.917


@partial(jax.jit, static_argnames=("head", "log_target"))
def efficiency(head: str, particles: jax.Array, prior: LaplacePrior, log_target: Any) -> jax.Array:
    """Effective share of 4000 importance draws from a head, 1 if it is the target itself."""
    density = BUILT_IN_HEADS[head].function(particles, prior, relative_prox_time(particles, 0.1))
    draws = density.sample(jax.random.key(3), 4000)
    log_weights = jax.vmap(log_target)(draws) - density.log_prob(draws)
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    return jnp.mean(weights) ** 2 / jnp.mean(weights**2)


def lasso_posterior(dim: int) -> tuple[np.ndarray, LaplacePrior, Any]:
    """Exact draws (by rejection) of exp(-|x|_1) times a correlated normal, and its log density."""
    covariance = 0.95 + 0.05 * np.eye(dim)
    rng = np.random.default_rng(8)
    proposals = rng.multivariate_normal(np.full(dim, 0.6), covariance, size=60_000)
    draws = proposals[rng.uniform(size=60_000) < np.exp(-np.abs(proposals).sum(1))]
    precision = np.linalg.inv(covariance)

    def log_target(x: jax.Array) -> jax.Array:
        return -jnp.sum(jnp.abs(x)) - 0.5 * (x - 0.6) @ precision @ (x - 0.6)

    return draws[:400].astype(np.float32), laplace_prior(1.0), log_target


@pytest.mark.parametrize("target", ["normal", "lasso"])
def test_copula_is_the_better_proposal(target: str) -> None:
    """400 exact draws in 5 dimensions with strong correlations.

    Marginal is the negative control: what it loses is the correlations alone.
    """
    if target == "normal":
        covariance = 0.75 + 0.25 * np.eye(5)
        rng = np.random.default_rng(4)
        particles = rng.multivariate_normal(np.zeros(5), covariance, 400).astype(np.float32)
        prior, precision = laplace_prior(0.0), np.linalg.inv(covariance)

        def log_target(x: jax.Array) -> jax.Array:
            return -0.5 * x @ precision @ x
    else:
        particles, prior, log_target = lasso_posterior(5)
        assert len(particles) == 400
    copula, marginal = (
        float(efficiency(head, particles, prior, log_target)) for head in ("copula", "marginal")
    )
    assert copula > 0.6, copula
    assert marginal < 0.3, marginal


def test_streamed_attention_has_the_derivatives_of_the_dense_softmax() -> None:
    """In keys, biases and scale; several blocks, and a dimension above the number of keys."""
    keys, queries = jax.random.normal(jax.random.key(0), (2, 9, 12))
    bias = jax.random.normal(jax.random.key(1), (9, 1))

    def dense(keys: jax.Array, bias: jax.Array, scale: jax.Array) -> jax.Array:
        square = jnp.sum((queries[:, None] - keys[None]) ** 2, -1)
        logits = -0.5 * square / scale**2 - bias[None, :, 0]
        mean = jax.nn.softmax(logits, 1) @ keys
        return jnp.sum(jax.nn.logsumexp(logits, 1)) + jnp.sum((mean - queries) ** 2)

    def streamed(keys: jax.Array, bias: jax.Array, scale: jax.Array) -> jax.Array:
        log_sum, displacement = streamed_attention(queries, keys, bias, scale, block_size=4)
        return jnp.sum(log_sum) + jnp.sum(displacement**2)

    arguments = keys, bias, jnp.asarray(2.0)
    expected = jax.jit(jax.grad(dense, (0, 1, 2)))(*arguments)
    found = jax.jit(jax.grad(streamed, (0, 1, 2)))(*arguments)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@jax.jit
def copula_results(particles: jax.Array, rate: jax.Array, prox_time: jax.Array) -> jax.Array:
    """A few numbers that depend on all of a fitted copula."""
    density = fit_copula(particles, laplace_prior(rate, 0.1), prox_time)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, particles.shape[1])))
    heat_score = density.heat_score(x)
    values = [
        jnp.sum(density.log_prob(x)),
        jnp.sum(jnp.sin(x) * heat_score),
        density.correlation.half_log_det,
    ]
    correlation = density.correlation.factor @ density.correlation.factor.T
    return jnp.stack([*values, jnp.sum(jnp.triu(correlation, 1))])


copula_gradients = jax.jit(jax.jacrev(copula_results, (0, 1, 2)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mixing", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_copula_has_the_derivatives_of_finite_differences(mixing: float) -> None:
    """In particles and rates, as correlations follow, and where they have been shrunk to none.

    The outermost particles stay where they are: the grid moves with them, and of that part of the
    values, an error of the grid, the derivatives are meant to know nothing.
    """
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 2))
    base[:, 1] -= base[:, 0] * np.sum(base[:, 0] * base[:, 1]) / np.sum(base[:, 0] ** 2)
    particles = base @ np.array([[1.0, mixing], [0.0, 1.0]])
    is_outermost = (particles == particles.min(0)) | (particles == particles.max(0))
    direction = np.where(is_outermost, 0, rng.normal(size=particles.shape))
    rate, slope, prox_time = np.array([1.5, 0.7]), np.array([0.6, -0.4]), np.array(0.1)
    gradients = copula_gradients(particles, rate, prox_time)
    for gradient, moves in ((gradients[0], (direction, 0)), (gradients[1], (0, slope))):
        above, below = (
            copula_results(particles + step * moves[0], rate + step * moves[1], prox_time)
            for step in (1e-6, -1e-6)
        )
        found = np.sum(gradient * (moves[0] + moves[1])[None], axis=tuple(range(1, gradient.ndim)))
        np.testing.assert_allclose(found, (above - below) / 2e-6, rtol=1e-6, atol=1e-8)
    correlation = copula_results(particles, rate, prox_time)[3]
    assert (correlation == 0) == (mixing == 0)  # both cases are what they are meant to be


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_prox_time_has_the_derivative_of_the_kernels() -> None:
    """Of a grid against the mixture itself, in one dimension; 5 % is what the grid leaves off.

    Its values' own finite differences are further away: the grid moves with the prox time.
    """

    def log_prob(prox_time: jax.Array, particles: jax.Array, head: str) -> jax.Array:
        prior = laplace_prior(jnp.array([1.5]), 0.1)
        density = BUILT_IN_HEADS[head].fit(particles, prior, prox_time)
        return density.log_prob(jnp.linspace(-2, 2, 9)[:, None])

    particles = jax.random.normal(jax.random.key(0), (10, 40, 1))
    exact, found = (
        jax.jit(jax.vmap(jax.jacfwd(partial(log_prob, head=head)), (None, 0)))(0.1, particles)
        for head in ("joint", "copula")
    )
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.05 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize(
    "particles",
    [
        pytest.param(np.zeros((40, 2)), id="zeros"),
        pytest.param(np.resize([1.0, 2.0, 1.0, 300.0], (40, 2)), id="one-column"),
        pytest.param(np.ones((40, 1)), id="one-dimensional", marks=pytest.mark.slow),
    ],
)
def test_copula_has_finite_derivatives_of_collapsed_particles(particles: np.ndarray) -> None:
    rate = np.ones(particles.shape[1], np.float32)
    for gradient in copula_gradients(particles.astype(np.float32), rate, np.float32(0.1)):
        assert np.all(np.isfinite(gradient))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mixing", [0.0, 0.3])
def test_factors_have_derivatives_where_eigenvalues_coincide(mixing: float) -> None:
    """At the unit matrix, and at equal correlations, of whose eigenvalues two are the same."""
    correlation = (1 - mixing) * np.eye(3) + mixing
    change = np.array([[0.0, 0.2, -0.1], [0.2, 0.0, 0.4], [-0.1, 0.4, 0.0]])

    def results(step: jax.Array) -> tuple[jax.Array, ...]:
        factor, coupling, half_log_det = _factorized(correlation + step * change)
        return factor @ factor.T, coupling, half_log_det

    _, found = jax.jvp(results, (0.0,), (1.0,))
    above, below = results(1e-6), results(-1e-6)
    for derivative, one, other in zip(found, above, below, strict=True):
        np.testing.assert_allclose(derivative, (one - other) / 2e-6, rtol=1e-7, atol=1e-8)
