"""Group priors: closed forms against brute force, quadrature, and one another, in double precision.

Groups of sizes 1, 2, and 3 with weights, steps, and units that differ within them, with and without
an L1 part. The contract of separable priors is in test_contract_of_priors.py.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss

from numpyro_rwpo.heads.copula import fit_copula
from numpyro_rwpo.heads.joint import fit_joint
from numpyro_rwpo.heads.marginal import fit_marginal
from numpyro_rwpo.priors.composite import CompositePrior, compose_prior
from numpyro_rwpo.priors.group import GroupPrior
from numpyro_rwpo.priors.laplace import LaplacePrior, laplace_prior
from numpyro_rwpo.priors.partition import group_sums, labels_of
from numpyro_rwpo.priors.protocol import Prior, StructuredPrior, is_separable, separable_part

pytestmark = pytest.mark.usefixtures("x64")

LABELS = (0, 1, 0, 2, 2, 2)
WEIGHT = np.array([1.0, 0.5, 3.0, 2.0, 0.7, 1.3])
RATE = np.array([0.5, 0.2, 0.7, 0.1, 1.0, 0.4])
LOCATION = np.array([0.0, 0.3, -0.2, 0.0, 0.1, -1.0])
TIME = np.array([0.5, 0.3, 1.0, 0.7, 0.2, 0.4])
BETA = 0.8
DIM = len(LABELS)
GROUPS = [[0, 2], [1], [3, 4, 5]]


def group_prior(is_sparse: bool, labels: Any = LABELS) -> GroupPrior:
    rate = jnp.asarray(RATE) if is_sparse else None
    return GroupPrior(jnp.asarray(LOCATION), jnp.asarray(WEIGHT), rate, labels)


SPARSE = pytest.mark.parametrize("is_sparse", [False, True], ids=["group", "sparse-group"])


def call(name: str, prior: Any, *arguments: Any) -> Any:
    return jax.tree.map(np.asarray, _call(name, prior, *map(jnp.asarray, arguments)))


_call = jax.jit(lambda name, prior, *x: getattr(prior, name)(*x), static_argnums=0)


def points(seed: int, number: int) -> np.ndarray:
    draws = np.random.default_rng(seed).standard_t(2, size=(number, DIM))
    return LOCATION + draws * np.where(np.arange(number) % 2, 2.0, 0.3)[:, None]


def potential_by_hand(x: np.ndarray, is_sparse: bool) -> np.ndarray:
    distance = x - LOCATION
    norms = [np.sqrt(((WEIGHT * distance)[..., g] ** 2).sum(-1)) for g in GROUPS]
    return sum(norms) + is_sparse * (RATE * np.abs(distance)).sum(-1)


def test_sums_over_groups_of_unequal_size() -> None:
    x = np.random.default_rng(0).normal(size=(3, 2 * DIM))
    expected = np.empty_like(x)
    for row in range(2):
        for group in GROUPS:
            index = np.array(group) + row * DIM
            expected[:, index] = x[:, index].sum(1, keepdims=True)
    np.testing.assert_allclose(group_sums(jnp.asarray(x), LABELS), expected, rtol=1e-12)
    assert labels_of(GROUPS) == LABELS


@SPARSE
def test_potential_and_subgradient(is_sparse: bool) -> None:
    prior, x = group_prior(is_sparse), points(1, 50)
    assert isinstance(prior, StructuredPrior) and not isinstance(prior, Prior)
    np.testing.assert_allclose(
        call("potential", prior, x).sum(-1), potential_by_hand(x, is_sparse), rtol=1e-12
    )
    slope = jax.jit(jax.vmap(jax.grad(lambda v: prior.potential(v).sum())))(jnp.asarray(x))
    np.testing.assert_allclose(call("subgradient", prior, x), slope, rtol=1e-10)
    np.testing.assert_array_equal(call("subgradient", prior, LOCATION), 0.0)
    value, slope = call("smoothed", prior, x)
    gradient = jax.jit(jax.vmap(jax.grad(lambda v: prior.smoothed(v)[0].sum())))(jnp.asarray(x))
    np.testing.assert_allclose(slope, gradient, atol=1e-8)
    gap = potential_by_hand(x, is_sparse) - value.sum(-1)
    assert np.all((gap >= -1e-12) & (gap <= DIM / 2))


@SPARSE
def test_prox_minimizes_its_objective(is_sparse: bool) -> None:
    """By strong convexity, in units of the step: excess at z >= |z - minimizer|^2 / 2 for all z."""
    prior, x = group_prior(is_sparse), points(2, 40)
    rng = np.random.default_rng(3)
    for factor in (0.05, 1.0, 10.0):
        time = factor * TIME
        minimizer = call("prox", prior, x, time)

        def objective(z: np.ndarray, time: np.ndarray = time) -> np.ndarray:
            return potential_by_hand(z, is_sparse) + ((z - x) ** 2 / (2 * time)).sum(-1)

        for size in (1e-3, 0.1, 1.0):
            z = minimizer + size * rng.normal(size=(200, *x.shape))
            bound = objective(minimizer) + ((z - minimizer) ** 2 / (2 * time)).sum(-1)
            assert np.all(objective(z) - bound >= -1e-9 * (1 + np.abs(bound)))
        moreau = call("moreau_gradient", prior, x, time)
        np.testing.assert_allclose(moreau, (x - minimizer) / time, rtol=1e-9, atol=1e-9)
    assert np.any(minimizer == LOCATION)
    np.testing.assert_allclose(call("prox", prior, x, 0.0), x, atol=1e-12)


def test_isotropic_prox_is_group_shrinkage() -> None:
    """Yuan and Lin's formula, exactly zero within the threshold."""
    prior = GroupPrior(jnp.zeros(3), jnp.full(3, 2.0), None, (0, 0, 0))
    x = points(4, 30)[:, :3]
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    expected = np.maximum(1 - 0.4 * 2.0 / norm, 0) * x
    found = call("prox", prior, x, 0.4)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(found == 0, expected == 0)


def grid(low: np.ndarray, high: np.ndarray, kinks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre pieces in two dimensions, cut at the kinks and finer close to them."""
    root, weight = leggauss(24)
    axes = []
    for a, b, kink in zip(low, high, kinks, strict=True):
        near = kink + np.concatenate(
            [-np.geomspace(1e-3, 30, 14), [0.0], np.geomspace(1e-3, 30, 14)]
        )
        edges = np.unique(np.clip(np.concatenate([near, np.linspace(a, b, 8)]), a, b))
        middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
        axes.append(
            ((middle[:, None] + half[:, None] * root).ravel(), np.outer(half, weight).ravel())
        )
    (x, wx), (y, wy) = axes
    return np.stack(np.meshgrid(x, y, indexing="ij"), -1), np.outer(wx, wy)


slope_of = jax.jit(jax.grad(lambda y, p: p.log_normalizer(y, TIME, BETA).sum()))


@SPARSE
def test_kernel_of_a_pair_against_quadrature(is_sparse: bool) -> None:
    """Normalizer to 1e-7, the smallest pieces around the origin being 1e-3, and its derivative."""
    prior, pair = group_prior(is_sparse), [0, 2]
    centers = np.array([[1.0, 0.0, -1.0], [0.1, 0.0, -0.2], [6.0, 0.0, 3.0], [0.0, 0.0, -9.0]])
    y = np.concatenate([centers, np.zeros((4, 3))], 1)
    found = call("log_normalizer", prior, y, TIME, BETA)[:, pair].sum(1)
    slope = np.asarray(slope_of(jnp.asarray(y), prior))
    scale = np.sqrt(2 * TIME / BETA)[pair]
    nearest = call("prox", prior, y, TIME)[:, pair]
    for i in range(len(y)):
        low, high = nearest[i] - 9 * scale, nearest[i] + 9 * scale
        x, weight = grid(low, high, LOCATION[pair])
        distance = x - LOCATION[pair]
        norm = np.sqrt(((WEIGHT[pair] * distance) ** 2).sum(-1))
        g = norm + is_sparse * (RATE[pair] * np.abs(distance)).sum(-1)
        mass = weight * np.exp(-BETA / 2 * (g + ((x - y[i, pair]) ** 2 / (2 * TIME[pair])).sum(-1)))
        assert abs(np.log(mass.sum()) - found[i]) < 1e-7
        mean = (mass[..., None] * x).sum((0, 1)) / mass.sum()
        np.testing.assert_allclose(slope[i, pair] * scale**2, mean - y[i, pair], atol=1e-6)
        # The density is that of the kernel: normalized, in shares.
        point = np.array(y[i])
        log_prob = call("log_prob", prior, point, y[i], TIME, BETA)[pair].sum()
        expected = -BETA / 2 * call("potential", prior, point)[pair].sum() - np.log(mass.sum())
        assert abs(log_prob - expected) < 1e-7


def test_a_group_of_one_is_a_laplace_prior() -> None:
    prior = GroupPrior(jnp.asarray(LOCATION), jnp.asarray(WEIGHT), None, tuple(range(DIM)))
    laplace = laplace_prior(WEIGHT, LOCATION)
    x, y = points(5, 20), points(6, 20)
    for method, arguments in (
        ("potential", (x,)),
        ("subgradient", (x,)),
        ("smoothed", (x,)),
        ("prox", (x, TIME)),
        ("moreau_gradient", (x, TIME)),
        ("log_normalizer", (y, TIME, BETA)),
        ("log_prob", (x, y, TIME, BETA)),
        ("log_mass", ()),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8),
            call(method, prior, *arguments),
            call(method, laplace, *arguments),
        )
    mean, scale = points(7, 20), 0.1 + np.abs(points(8, 20))
    for a, b in zip(*(call("normal_fit", p, mean, scale) for p in (prior, laplace)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # the rule of normal_fit ends at e^-24


@SPARSE
def test_draws_of_the_kernel(is_sparse: bool) -> None:
    """Means and second moments of 5000 draws within 5 standard errors of derivatives of log Z.

    The derivative in y is ``(mean - y) / s^2``, and the second one ``variance / s^4 - 1 / s^2``.
    """
    prior, y, number = group_prior(is_sparse), points(9, 3)[2], 5000
    draws = call("sample", prior, jax.random.key(1), np.tile(y, (number, 1)), TIME, BETA)
    square = 2 * TIME / BETA

    def log_normalizer(v: jax.Array) -> jax.Array:
        return prior.log_normalizer(v, TIME, BETA).sum()

    mean = y + square * np.asarray(jax.jit(jax.grad(log_normalizer))(jnp.asarray(y)))
    covariance = np.asarray(jax.jit(jax.jacfwd(jax.grad(log_normalizer)))(jnp.asarray(y)))
    covariance = np.diag(square) + covariance * np.outer(square, square)
    error = np.sqrt(np.diag(covariance) / number)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * error)
    products = (draws - mean)[:, :, None] * (draws - mean)[:, None, :]
    assert np.all(np.abs(products.mean(0) - covariance) < 5 * products.std(0) / number**0.5 + 1e-9)
    # Negative control: another temperature is found out.
    assert np.any(np.abs(products.mean(0) - 0.9 * covariance) > 5 * products.std(0) / number**0.5)


@SPARSE
def test_normal_fit_against_averages(is_sparse: bool) -> None:
    """Within 5 standard errors of 100,000 draws (Stein's identity), about 0.01 to 0.05."""
    prior, mean = group_prior(is_sparse), points(10, 2)[0]
    scale = np.array([0.5, 0.2, 0.3, 1.0, 0.4, 2.0])
    slope, curvature = call("normal_fit", prior, mean, scale)
    noise = np.random.default_rng(11).normal(size=(100_000, DIM))
    values = call("subgradient", prior, mean + scale * noise)
    for found, samples in ((slope, values), (curvature, values * noise / scale)):
        assert np.all(np.abs(found - samples.mean(0)) < 5 * samples.std(0) / 1e5**0.5 + 1e-4)


@SPARSE
def test_motion_is_reversible_keeps_volume_and_nearly_energy(is_sparse: bool) -> None:
    prior, x = group_prior(is_sparse), points(12, 30)
    p = np.random.default_rng(13).normal(size=x.shape)
    time = np.linspace(-1.0, 1.0, 30)[:, None]
    moved, momentum = call("hamiltonian_flow", prior, x, p, time)
    back, velocity = call("hamiltonian_flow", prior, moved, -momentum, time)
    np.testing.assert_allclose(back, x, atol=1e-9)
    np.testing.assert_allclose(velocity, -p, atol=1e-9)

    def energy(x: np.ndarray, p: np.ndarray) -> np.ndarray:
        return potential_by_hand(x, is_sparse) + (p**2).sum(-1) / 2

    # A median error of 0.01 nats over times up to 1, in which the fastest coordinate turns.
    assert np.median(np.abs(energy(moved, momentum) - energy(x, p))) < 0.01

    def flow(state: jax.Array) -> jax.Array:
        return jnp.concatenate(prior.hamiltonian_flow(state[:DIM], state[DIM:], 0.7))

    states = jnp.asarray(np.concatenate([x, p], 1)[:5])
    determinants = np.linalg.det(np.asarray(jax.jit(jax.vmap(jax.jacfwd(flow)))(states)))
    np.testing.assert_allclose(determinants, 1.0, rtol=1e-8)


@SPARSE
def test_changes_of_variables(is_sparse: bool) -> None:
    prior, x, y = group_prior(is_sparse), points(14, 20), points(15, 20)
    unit = np.array([2.0, 0.1, 1.0, 3.0, 0.5, 1.5])
    scaled = prior.scaled(unit)
    close = dict(rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(
        call("potential", scaled, x / unit), call("potential", prior, x), **close
    )
    np.testing.assert_allclose(
        unit * call("prox", scaled, x / unit, TIME / unit**2), call("prox", prior, x, TIME), **close
    )
    gap = call("log_normalizer", prior, y, TIME, BETA).sum(-1)
    gap -= call("log_normalizer", scaled, y / unit, TIME / unit**2, BETA).sum(-1)
    np.testing.assert_allclose(gap, np.log(unit).sum(), **close)
    np.testing.assert_allclose(
        call("potential", prior.tempered(1.7), x), 1.7 * call("potential", prior, x), **close
    )
    mass = call("log_mass", prior).sum() - call("log_mass", prior.scaled(3.0)).sum()
    np.testing.assert_allclose(mass, DIM * np.log(3.0), rtol=1e-8)
    # One power for each of several rows, as where paths or chains differ in their centering.
    rows = prior.tempered(np.array([[0.0], [1.0], [2.0]]) + np.zeros(DIM))
    values, slopes = call("smoothed", rows, x[:3])
    np.testing.assert_array_equal(values[0], 0.0)
    np.testing.assert_allclose(slopes[1], call("smoothed", prior, x[1])[1], **close)
    flat = prior.tempered(0.0)
    np.testing.assert_array_equal(call("prox", flat, x, TIME), x)
    np.testing.assert_array_equal(call("subgradient", flat, x), 0 * x)
    np.testing.assert_array_equal(np.stack(call("normal_fit", flat, x, TIME)), 0)
    free = call("log_normalizer", flat, y, TIME, BETA)
    np.testing.assert_allclose(free.sum(-1), 0.5 * np.log(4 * np.pi * TIME / BETA).sum(), rtol=1e-8)


def test_single_precision() -> None:
    """Relative to one, results of single and double precision differ by less than 1e-4."""
    for is_sparse in (False, True):
        prior = group_prior(is_sparse)
        single = jax.tree.map(lambda field: jnp.asarray(field, jnp.float32), prior)
        x, y = (points(seed, 40).astype(np.float32) for seed in (16, 17))
        time = TIME.astype(np.float32)
        for method, arguments in (
            ("prox", (x, time)),
            ("moreau_gradient", (x, time)),
            ("smoothed", (x,)),
            ("normal_fit", (x, time)),
            ("log_normalizer", (y, time, np.float32(BETA))),
            ("hamiltonian_flow", (x, y, np.float32(0.5))),
        ):
            found = call(method, single, *arguments)
            exact = call(method, prior, *(np.asarray(a, float) for a in arguments))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
                assert a.dtype == np.float32
                assert np.all(np.abs(a - b) < 1e-4 * (1 + np.abs(b))), (method, is_sparse)


# -------------------------------------------------------------------- beside others, and in heads


def side_by_side() -> CompositePrior:
    prior = compose_prior(
        [(laplace_prior(np.ones(2), np.zeros(2)), [(0, 1), (7, 8)]), (group_prior(True), [(1, 7)])]
    )
    assert isinstance(prior, CompositePrior)
    return prior


def test_beside_a_separable_prior() -> None:
    prior, x = side_by_side(), np.random.default_rng(18).normal(size=(10, DIM + 2))
    inner = group_prior(True)
    assert not is_separable(prior)
    np.testing.assert_allclose(
        call("prox", prior, x, 0.3)[:, 1:7], call("prox", inner, x[:, 1:7], 0.3), rtol=1e-12
    )
    part = separable_part(prior)
    assert is_separable(part) and all(isinstance(p, LaplacePrior) for p in part.parts)
    np.testing.assert_allclose(
        call("potential", part, x)[:, 1:7], RATE * np.abs(x[:, 1:7] - LOCATION), rtol=1e-12
    )


@pytest.mark.parametrize("fit", [fit_joint, fit_marginal, fit_copula])
def test_heads_with_a_structured_prior(fit: Any) -> None:
    """The score is the gradient of the log density, and the heat score adds half the prior's slope.

    At points where the grid's piecewise straight log density has a slope. The marginal and the
    copula head's heat score is interpolated, by up to 0.2 here.
    """
    prior = side_by_side()
    rng = np.random.default_rng(19)
    particles = jnp.asarray(rng.normal(size=(60, DIM + 2)))
    density = jax.jit(fit)(particles, prior, 0.2)
    x = jnp.asarray(rng.normal(size=(5, DIM + 2)))
    score, heat, slope = jax.jit(
        lambda x: (density.score(x), density.heat_score(x), prior.subgradient(x))
    )(x)
    gradient = jax.jit(jax.vmap(jax.grad(density.log_prob)))(x)
    np.testing.assert_allclose(score, gradient, rtol=1e-6, atol=1e-6)
    expected = score + 0.5 * slope
    tolerance = 1e-6 if fit is fit_joint else 0.5
    assert np.all(np.abs(heat - expected) < tolerance)
    draws = jax.jit(lambda d: d.sample(jax.random.key(0), 100))(density)
    assert draws.shape == (100, DIM + 2) and np.isfinite(draws).all()


def test_joint_head_is_normalized_and_exact() -> None:
    """One group of two and three particles: the mixture integrates to 1, to 1e-4 on a grid."""
    prior = GroupPrior(jnp.zeros(2), jnp.full(2, 2.0), None, (0, 0))
    particles = jnp.asarray([[1.0, 0.0], [0.2, -0.1], [-2.0, 1.0]])
    density = jax.jit(fit_joint)(particles, prior, 0.2)
    axis = np.linspace(-7, 7, 401)
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    total = float(jnp.exp(jax.jit(density.log_prob)(x)).sum()) * (axis[1] - axis[0]) ** 2
    assert abs(total - 1) < 1e-4
