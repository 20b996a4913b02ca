"""Properties that hold for every input, with Hypothesis looking for one for which they do not."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import OPTIMIZED, light_kernel, run_mcmc
from hypothesis import given
from hypothesis import strategies as st

from numpyro_rwpo import RWPO
from numpyro_rwpo.diagnostics.thresholds import max_z
from numpyro_rwpo.priors.laplace import LaplacePrior
from tests.random_models import Regression, make_regression, regressions, stein_scores

# The same examples every time: a test must not fail for someone who changed nothing.
FEW = hypothesis.settings(max_examples=3, deadline=None, derandomize=True)
MANY = hypothesis.settings(max_examples=200, deadline=None, derandomize=True)

SIZE = 32
EPS32 = float(np.finfo(np.float32).eps)
LARGEST = 2.0**40  # squares, and products of three squares, are then finite in single precision


def floats(low: float, high: float) -> st.SearchStrategy[np.ndarray]:
    """Arrays of `SIZE` numbers, the smallest and the signed zeros among them."""
    elements = st.floats(low, high, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, SIZE, elements=elements)


positions = floats(-LARGEST, LARGEST)
rates = floats(0.0, LARGEST)
positives = floats(2.0**-40, LARGEST)


def in_both_precisions(function: Any, *arguments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    single = np.asarray(function(*arguments), np.float64)
    with jax.enable_x64(True):
        double = np.asarray(function(*(a.astype(np.float64) for a in arguments)))
    return single, double


@jax.jit
def proximal_map(
    location: jax.Array, left: jax.Array, right: jax.Array, x: jax.Array, step: jax.Array
) -> jax.Array:
    prior = LaplacePrior(location, left, right)
    return jnp.stack([prior.prox(x, step), prior.moreau_gradient(x, step)])


@MANY
@given(positions, rates, rates, positions, positives)
def test_proximal_map_of_any_floats(
    location: np.ndarray, left: np.ndarray, right: np.ndarray, x: np.ndarray, step: np.ndarray
) -> None:
    """It lies between the point and the kink, and the envelope's slope between the rates."""
    single, double = in_both_precisions(proximal_map, location, left, right, x, step)
    nearest, slope = single
    assert (nearest >= np.minimum(x, location)).all()
    assert (nearest <= np.maximum(x, location)).all()
    assert (slope >= -left).all()
    assert (slope <= right).all()
    size = np.abs(x).astype(float) + np.abs(location) + step.astype(float) * (left + right)
    assert (np.abs(nearest - double[0]) <= 4 * EPS32 * size).all()


@jax.jit
def kernel(
    location: jax.Array, left: jax.Array, right: jax.Array, x: jax.Array, y: jax.Array
) -> jax.Array:
    prior = LaplacePrior(location, left, right)
    return jnp.stack(
        [
            prior.log_normalizer(y, 0.5),
            prior.cdf(x, y, 0.5),
            jnp.exp(prior.log_survival(x, y, 0.5)),
            prior.log_prob(x, y, 0.5),
        ]
    )


@MANY
@given(positions, rates, rates, positions, positions)
def test_kernel_of_any_floats(
    location: np.ndarray, left: np.ndarray, right: np.ndarray, x: np.ndarray, y: np.ndarray
) -> None:
    """Logs are numbers, probabilities are, and those of both sides add to one."""
    log_normalizer, below, above, log_prob = np.asarray(kernel(location, left, right, x, y))
    assert np.isfinite(log_normalizer).all()
    assert not np.isnan(log_prob).any()
    for probability in (below, above):
        assert ((probability >= 0) & (probability <= 1)).all()
    np.testing.assert_allclose(below + above, 1, atol=2e-6)


@partial(jax.jit, compiler_options=OPTIMIZED)
def flow(
    left: jax.Array, right: jax.Array, x: jax.Array, p: jax.Array, time: jax.Array
) -> jax.Array:
    prior = LaplacePrior(jnp.zeros_like(x), left, right)
    return jnp.stack(prior.hamiltonian_flow(x, p, time))


@MANY
@given(rates, rates, positions, positions, positions)
def test_hamiltonian_flow_of_any_floats(
    left: np.ndarray, right: np.ndarray, x: np.ndarray, p: np.ndarray, time: np.ndarray
) -> None:
    """The energy is kept to rounding, whatever the number of oscillations."""
    new_x, new_p = np.asarray(flow(left, right, x, p, time), np.float64)

    def energy(x: np.ndarray, p: np.ndarray) -> np.ndarray:
        x, p = x.astype(float), p.astype(float)
        return p**2 / 2 + right * np.maximum(x, 0.0) + left * np.maximum(-x, 0.0)

    before = energy(x, p)
    # Free flight without a force: the position may be as large as momentum times time.
    reach = np.abs(x) + np.abs(p.astype(float) * time) + (left + right) * time.astype(float) ** 2
    representable = reach < 1e37
    assert np.isfinite(new_x[representable]).all()
    after = energy(new_x, new_p)
    error = np.abs(after - before)[representable]
    # A momentum below the smallest normal number squares to nothing.
    assert (error <= 16 * EPS32 * before[representable] + 1e-30).all()


# ---------------------------------------------------------------------------- pytrees and sizes


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    return hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)


def pytrees() -> st.SearchStrategy[Any]:
    """Nested dicts, lists and tuples of arrays."""
    leaves = st.builds(lambda shape: np.full(shape, 0.5, np.float32), shapes())
    return st.recursive(
        leaves,
        lambda inner: (
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)
            | st.lists(inner, min_size=1, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=4,
    )


def standard_normal(z: Any) -> jax.Array:
    return sum(0.5 * jnp.sum(leaf**2) for leaf in jax.tree.leaves(z))  # type: ignore[return-value]


@pytest.mark.slow
@FEW
@given(pytrees(), st.integers(4, 40), st.integers(1, 3), st.sampled_from([0, 7, 50]), st.booleans())
def test_any_pytree_any_precision_any_number_of_particles(
    init: Any, num_particles: int, num_chains: int, num_warmup: int, double: bool
) -> None:
    """Draws have the structure, shapes and dtype of the starting values, and are numbers."""
    with jax.enable_x64(double):
        init = jax.tree.map(lambda a: a.astype(np.float64 if double else np.float32), init)
        start = jax.tree.map(lambda a: np.broadcast_to(a, (num_chains, *a.shape)), init)
        mcmc = run_mcmc(
            light_kernel(potential_fn=standard_normal, num_particles=num_particles),
            num_chains=num_chains,
            num_warmup=num_warmup,
            num_samples=num_particles + 3,
            init_params=start if num_chains > 1 else init,
        )
        draws = mcmc.get_samples(group_by_chain=True)
    assert jax.tree.structure(draws) == jax.tree.structure(init)
    for drawn, leaf in zip(jax.tree.leaves(draws), jax.tree.leaves(init), strict=True):
        assert drawn.shape == (num_chains, num_particles + 3, *leaf.shape)
        assert drawn.dtype == leaf.dtype
        assert np.isfinite(drawn).all()


# ------------------------------------------------------------------- generalized linear models


@MANY
@given(regressions())
def test_gradient_of_the_reference(regression: Regression) -> None:
    """The formulas that judge the sampler, against differences of the potential they belong to."""
    rng = np.random.default_rng(0)
    column = np.maximum(np.abs(regression.X).max(0), 1e-3)
    beta, direction = rng.normal(size=(2, regression.X.shape[1])) / column
    step = 1e-6
    # No kink of the prior between the two points.
    beta = np.where(np.abs(beta) < 10 * step * np.abs(direction), direction, beta)
    up, down = (regression.potential(beta + s * step * direction) for s in (1, -1))
    expected = regression.gradient(beta) @ direction
    scale = np.abs(regression.gradient(beta)) @ np.abs(direction) + np.abs(up)
    assert abs((up - down) / (2 * step) - expected) <= 1e-7 * (1 + scale)


HARD = [
    ("normal", 20, 30, 0.999, 0.0, frozenset({"missing", "repeated"})),
    ("logistic", 200, 3, 0.9, 3.0, frozenset({"constant"})),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "n", "p", "correlation", "log_scale", "flaws"), HARD)
def test_draws_of_generalized_linear_models(
    family: str, n: int, p: int, correlation: float, log_scale: float, flaws: frozenset[str]
) -> None:
    """Stein's identities against double precision; right draws fail once in a thousand runs."""
    regression = make_regression(1, family, n, p, correlation, log_scale, 0.3, flaws)
    mcmc = run_mcmc(
        RWPO(regression.model), *regression.args, num_chains=4, num_warmup=200, num_samples=1000
    )
    scores = stein_scores(regression, mcmc.get_samples(group_by_chain=True)["beta"])
    assert scores.ess > 400
    assert scores.max_z < max_z(scores.number)
