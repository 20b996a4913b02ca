"""Sites of structured distributions in the sampler: how they are split, and exact draws.

References are weighted draws of the prior, a million each, in NumPy: their own error is below a
hundredth of a standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import Moments, assert_moments, light_kernel, run_mcmc
from numpyro.infer import init_to_uniform

from numpyro_rwpo.distributions import FusedLaplace, GroupLaplace, SparseGroupLaplace
from numpyro_rwpo.model.laplace_sites import split_laplace_sites
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.prior_registry import BUILT_IN_PRIORS
from numpyro_rwpo.model.site_bits import all_centered
from numpyro_rwpo.model.split_check import describe_laplace_sites, split_errors
from numpyro_rwpo.model.target import Differentiation

GROUPS = [[0, 2], [1, 3, 4]]
NUM_REFERENCE = 1_000_000


def every_kind(y: Any) -> None:
    """Each family, in plates and expanded, with fixed and with latent scales."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    trend = numpyro.sample("trend", FusedLaplace(tau, 20, 2))
    lines = numpyro.sample("lines", FusedLaplace(0.3, 20, start_scale=3.0).expand([2]))
    with numpyro.plate("plate", 3):
        plate = numpyro.sample("plated", GroupLaplace(tau, 4))
    sparse = numpyro.sample("sparse", SparseGroupLaplace(tau, groups=GROUPS, l1_ratio=0.3))
    fixed = GroupLaplace(jnp.array([0.3, 0.7]), groups=GROUPS).expand([2]).to_event(1)
    fixed = numpyro.sample("fixed", fixed)
    scales = numpyro.sample("scales", GroupLaplace(tau * jnp.ones(2), groups=GROUPS))
    rest = plate.sum() + sparse.sum() + fixed.sum() + scales.sum()
    numpyro.sample("y", dist.Normal(trend + lines.sum(0) + rest, 1.0), obs=y)


Y = jnp.arange(20.0) / 10


def test_every_kind_is_split_off_and_the_density_is_that_of_the_model() -> None:
    split = split_laplace_sites(every_kind, (Y,), {}, "auto", BUILT_IN_PRIORS)
    assert split.fixed == ("fixed",)
    assert set(split.rewritten) == {"trend", "lines", "plated", "sparse", "scales"}
    assert not split.smooth
    errors = jax.jit(lambda: split_errors(split, (Y,), {}))()
    assert set(errors) == {"fixed", *split.rewritten}
    assert max(map(float, errors.values())) < 1e-6


def one_of_each_treatment(y: Any) -> None:
    """Of `every_kind`: describing a site evaluates its densities operation by operation."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    trend = numpyro.sample("trend", FusedLaplace(tau, 20, 2))
    sparse = numpyro.sample("sparse", SparseGroupLaplace(tau, groups=GROUPS, l1_ratio=0.3))
    fixed = numpyro.sample("fixed", GroupLaplace(0.3, 4))
    numpyro.sample("y", dist.Normal(trend + sparse.sum() + fixed.sum(), 1.0), obs=y)


def test_what_diagnose_says() -> None:
    texts = describe_laplace_sites(one_of_each_treatment, (Y,), {}, "auto", np.zeros(1))
    assert texts["fixed"] == "known location and scale: split off, closed forms"
    assert texts["sparse"].startswith("latent location or scale: standardized and split off")
    assert texts["trend"].startswith("moved as its start and differences: split off in 1 of 1")


def test_values_there_and_back() -> None:
    split = split_laplace_sites(every_kind, (Y,), {}, "auto", BUILT_IN_PRIORS)
    shapes = split.unconstrained_shapes((Y,), {})
    values = {
        name: jax.random.normal(jax.random.key(i), x.shape)
        for i, (name, x) in enumerate(shapes.items())
    }

    @jax.jit
    def round_trips(values: Any) -> Any:
        zero = jnp.zeros(())
        one = zero + all_centered(len(split.rewritten))
        users, log_jacobian = split.to_user_values(values, zero, (Y,), {})
        back = split.from_user_values(users, (Y,), {})
        there, log_scale = split.recentered(values, zero, (Y,), {})
        again, _ = split.recentered(there, one, (Y,), {})
        same, _ = split.to_user_values(there, one, (Y,), {})
        return users, back, again, same, log_jacobian + log_scale.sum()

    users, back, again, same, total = round_trips(values)
    for name in values:
        np.testing.assert_allclose(back[name], values[name], atol=2e-5)
        np.testing.assert_allclose(again[name], values[name], atol=2e-5)
        np.testing.assert_allclose(same[name], users[name], atol=2e-4)
    assert abs(float(total)) < 1e-4


def test_parts_of_the_target_add_up() -> None:
    """Smooth part plus prior is the model's potential in other coordinates, up to a constant."""
    source = ModelSource(
        every_kind,
        (Y,),
        {},
        init_strategy=init_to_uniform,
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )
    bound = source.bind((Y,), {})
    target = bound.target()
    dim = sum(np.size(x) for x in source.prototype.values())
    x = 0.5 * jax.random.normal(jax.random.key(0), (2, dim))

    def whole(x: jax.Array) -> jax.Array:
        values = source.values(x)
        users, log_jacobian = source.split.to_user_values(values, jnp.zeros(()), (Y,), {})
        user_split = source.split.without(source.split.names)
        return user_split.potential(users, 0, (Y,), {}) + log_jacobian

    @jax.jit
    def gaps(x: jax.Array) -> jax.Array:
        parts = target.value_and_grad(x)[0] + target.prior_potential(x)
        return parts - jax.lax.map(whole, x)

    found = gaps(x)
    assert abs(found[0] - found[1]) < 1e-2  # both are some hundreds


# ------------------------------------------------------------------------------------- draws

Weigh = Callable[[np.ndarray], np.ndarray]


def weighted(values: dict[str, np.ndarray], log_weight: np.ndarray) -> dict[str, Moments]:
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = {name: np.tensordot(weight, x, 1) for name, x in values.items()}
    return {
        name: Moments(mean[name], np.tensordot(weight, (x - mean[name]) ** 2, 1))
        for name, x in values.items()
    }


GROUP_DATA = np.array([[1.0, -0.5, 0.3], [0.2, 0.1, -0.2]], np.float32)


def group_model(y: Any) -> None:
    """Two groups of three with one latent scale, each observed once with unit noise."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", 2):
        x = numpyro.sample("x", GroupLaplace(tau, 3))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def group_moments() -> dict[str, Moments]:
    rng = np.random.default_rng(0)
    tau = np.abs(rng.normal(size=NUM_REFERENCE))
    x = rng.normal(size=(NUM_REFERENCE, 2, 3))
    radius = rng.gamma(3, size=(NUM_REFERENCE, 2)) * tau[:, None]
    x *= (radius / np.linalg.norm(x, axis=2))[..., None]
    return weighted({"tau": tau, "x": x}, -((x - GROUP_DATA) ** 2).sum((1, 2)) / 2)


def sparse_model(y: Any) -> None:
    """A partition into groups of two and one, with known scales."""
    x = numpyro.sample("x", SparseGroupLaplace(0.7, groups=[[0, 2], [1]], l1_ratio=0.5))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y[0])


def sparse_moments() -> dict[str, Moments]:
    """Laplace draws of the L1 part, weighted by the rest."""
    x = np.random.default_rng(1).laplace(scale=1.4, size=(NUM_REFERENCE, 3))
    norms = np.hypot(x[:, 0], x[:, 2]) + np.abs(x[:, 1])
    return weighted({"x": x}, -norms / 1.4 - ((x - GROUP_DATA[0]) ** 2).sum(1) / 2)


LINE_DATA = np.array([0.5, 0.8, 1.5, 1.4], np.float32)


def line_model(y: Any) -> None:
    """A proper piecewise linear line of four values with a latent scale."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    x = numpyro.sample("x", FusedLaplace(tau, 4, 2, start_scale=1.0))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def line_moments() -> dict[str, Moments]:
    rng = np.random.default_rng(2)
    tau = np.abs(rng.normal(size=4 * NUM_REFERENCE))
    start, slope = rng.laplace(size=(2, 4 * NUM_REFERENCE))
    bend = rng.laplace(size=(4 * NUM_REFERENCE, 2)) * tau[:, None]
    slopes = np.stack([slope, slope + bend[:, 0], slope + bend.sum(1)], 1)
    x = start[:, None] + np.concatenate([np.zeros((len(tau), 1)), np.cumsum(slopes, 1)], 1)
    return weighted({"tau": tau, "x": x}, -2 * ((x - LINE_DATA) ** 2).sum(1))


def level_model(y: Any) -> None:
    """An improper line of three values with a known scale; its level is only in the data."""
    x = numpyro.sample("x", FusedLaplace(0.4, 3))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y[:3])


def level_moments() -> dict[str, Moments]:
    rng = np.random.default_rng(3)
    first = LINE_DATA[0] + 0.5 * rng.normal(size=NUM_REFERENCE)
    steps = np.cumsum(rng.laplace(scale=0.4, size=(NUM_REFERENCE, 2)), 1)
    x = first[:, None] + np.concatenate([np.zeros((NUM_REFERENCE, 1)), steps], 1)
    return weighted({"x": x}, -2 * ((x[:, 1:] - LINE_DATA[1:3]) ** 2).sum(1))


@pytest.mark.parametrize(
    ("model", "data", "moments"),
    [
        (group_model, GROUP_DATA, group_moments),
        # The tests above have the densities of these, too.
        pytest.param(line_model, LINE_DATA, line_moments, marks=pytest.mark.slow),
        pytest.param(sparse_model, GROUP_DATA, sparse_moments, marks=pytest.mark.slow),
        pytest.param(level_model, LINE_DATA, level_moments, marks=pytest.mark.slow),
    ],
)
def test_draws_are_those_of_the_model(model: Any, data: Any, moments: Any) -> None:
    kernel = light_kernel(model, num_particles=32)
    mcmc = run_mcmc(kernel, data, num_warmup=100, num_samples=600, num_chains=4, key=1)
    assert_moments(mcmc.get_samples(group_by_chain=True), moments())
