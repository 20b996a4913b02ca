"""A prior is added in one file, the guide's: found in models, used, saved, and checked."""

from __future__ import annotations

import pickle
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import (
    assert_moments,
    light_kernel,
    log_laplace,
    log_normal,
    quadrature,
    run_mcmc,
    scalar_moments,
    stack_moments,
)
from numpyro.infer import MCMC, init_to_uniform

from numpyro_rwpo import RWPO, diagnose, load_state, save_state
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.prior_registry import BUILT_IN_PRIORS, find_kind, registry_with
from numpyro_rwpo.model.split_check import describe_laplace_sites
from numpyro_rwpo.model.target import Differentiation, Target
from numpyro_rwpo.priors.composite import CompositePrior
from numpyro_rwpo.priors.laplace import LaplacePrior

GUIDE = runpy.run_path(
    str(Path(__file__).parents[2] / "examples" / "developer" / "normal_prior.py")
)
# The guide's prior is written as users write, without a thought for rank promotion.
pytestmark = pytest.mark.usefixtures("silent_broadcasting")

NORMAL = {dist.Normal: GUIDE["normal_prior"]}
Y = np.array([2.0, 0.1, -0.7], np.float32)


def twice_too_narrow(site: Any) -> Any:
    return GUIDE["NormalPrior"](site.loc, 4 / site.scale**2)


def two_kinds(y: Any) -> None:
    """Normal and Laplace means of the same observations, and a scale on its own."""
    a = numpyro.sample("a", dist.Normal(1.0, 0.5).expand([3]).to_event(1))
    b = numpyro.sample("b", dist.Laplace(0.0, 0.5).expand([3]).to_event(1))
    numpyro.sample("s", dist.HalfNormal(2.0))
    numpyro.sample("ya", dist.Normal(a, 1.0).to_event(1), obs=y)
    numpyro.sample("yb", dist.Normal(b, 1.0).to_event(1), obs=y)


def latent_parameters() -> None:
    t = numpyro.sample("t", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(t, 1.0))
    numpyro.sample("z", dist.Laplace(t, 1.0))


def source(model: Any, *args: Any, priors: Any = None) -> ModelSource:
    return ModelSource(
        model,
        args,
        {},
        init_strategy=init_to_uniform,
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
        registry=registry_with(priors),
    )


def light(model: Any = two_kinds, **options: Any) -> RWPO:
    return light_kernel(model, num_particles=32, **options)


@pytest.fixture(scope="module")
def normal_prior_run() -> MCMC:
    """A long run of `two_kinds` with the guide's prior."""
    with jax.numpy_rank_promotion("allow"):
        return run_mcmc(
            light(priors=NORMAL), Y, num_warmup=100, num_samples=600, num_chains=4, key=3
        )


def treatment(model: Any, *args: Any, priors: Any) -> dict[str, str]:
    """What `diagnose` says about the sites of a model."""
    return describe_laplace_sites(model, args, {}, "auto", np.zeros(1), registry_with(priors))


@pytest.mark.parametrize(
    ("priors", "error", "message"),
    [
        ([dist.Normal], TypeError, "`priors` must map classes of NumPyro distributions to"),
        ({"Normal": GUIDE["normal_prior"]}, TypeError, "`priors` must map classes"),
        ({dist.Normal: 3.0}, TypeError, "`priors` must map classes"),
        (
            {dist.HalfNormal: GUIDE["normal_prior"]},
            ValueError,
            "whole real line; `priors` has an entry for HalfNormal, whose support is Positive",
        ),
        (
            {dist.MultivariateNormal: GUIDE["normal_prior"]},
            ValueError,
            "has an entry for MultivariateNormal",
        ),
    ],
)
def test_errors(priors: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RWPO(two_kinds, priors=priors)


def test_a_function_that_makes_no_prior() -> None:
    kernel = light(priors={dist.Normal: lambda site: site.loc})
    with pytest.raises(
        TypeError, match="function for Normal in `priors` must return an object with the methods"
    ):
        run_mcmc(kernel, Y, num_warmup=4, num_samples=4)


def test_nothing_is_registered_for_good() -> None:
    with pytest.raises(TypeError):
        BUILT_IN_PRIORS[dist.Normal] = GUIDE["normal_prior"]  # type: ignore[index]
    registry = registry_with(NORMAL)
    assert find_kind(dist.Normal(0.0, 1.0), registry) is dist.Normal
    assert find_kind(dist.Normal(0.0, 1.0), registry_with(None)) is None


def test_which_distributions_are_of_a_kind() -> None:
    class Renamed(dist.Normal):
        pass

    class Truncated(dist.Normal):
        def log_prob(self, value: Any) -> Any:
            return super().log_prob(value) + jnp.log(2.0)

    registry = registry_with(NORMAL)
    assert find_kind(Renamed(0.0, jnp.ones(3)).to_event(1).expand([2]), registry) is dist.Normal
    assert find_kind(Truncated(0.0, 1.0), registry) is None
    assert find_kind(dist.StudentT(3.0), registry) is None
    assert find_kind(dist.AsymmetricLaplace(0.0, 1.0, 2.0), registry) is dist.AsymmetricLaplace


def test_each_kind_is_found_and_the_smooth_part_has_neither() -> None:
    """Coordinates in alphabetical order: a (3), b (3), s, of which only s has a smooth prior."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7)), jnp.float32)

    def parts(target: Target) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(target.value_and_grad(x)[0]), np.asarray(target.prior_potential(x))

    target = source(two_kinds, Y, priors=NORMAL).bind((Y,), {}).target()
    assert isinstance(target.prior, CompositePrior)
    assert target.prior.slices == (((0, 3),), ((3, 7),))
    assert [type(part).__name__ for part in target.prior.parts] == ["NormalPrior", "LaplacePrior"]
    alone = source(two_kinds, Y).bind((Y,), {}).target()
    assert isinstance(alone.prior, LaplacePrior)
    (smooth, prior), (other_smooth, other_prior) = parts(target), parts(alone)
    normal = 2 * ((np.asarray(x)[:, :3] - 1.0) ** 2).sum(1)
    np.testing.assert_allclose(prior - other_prior, normal, rtol=1e-5)
    gap = other_smooth - smooth - normal
    np.testing.assert_allclose(gap, gap[0], atol=1e-4)


def test_draws_are_those_of_the_model(normal_prior_run: MCMC) -> None:
    mcmc = normal_prior_run
    normal = [scalar_moments((4.0 + y) / 5.0, 1 / 5.0) for y in Y.astype(float)]
    laplace = [
        quadrature(lambda x, v=y: log_laplace(x, 0, 0.5) + log_normal(v, x, 1), -12, 12)
        for y in Y.astype(float)
    ]
    half_normal = quadrature(lambda x: log_normal(x, 0, 2.0), 0, 30)
    truth = {"a": stack_moments(normal), "b": stack_moments(laplace), "s": half_normal}
    assert_moments(mcmc.get_samples(group_by_chain=True), truth)
    sites = diagnose(mcmc).to_dict()["laplace_sites"]
    assert sites["a"] == sites["b"] == "known location and scale: split off, closed forms"


def test_latent_parameters_stay_as_written() -> None:
    sites = treatment(latent_parameters, priors=NORMAL)
    assert sites["t"] == "known location and scale: split off, closed forms"
    assert sites["x"].startswith("left in the smooth part: cannot be split")
    assert sites["z"].startswith("latent location or scale: standardi")


def test_a_prior_that_is_not_the_distribution_is_left_alone() -> None:
    sites = treatment(two_kinds, Y, priors={dist.Normal: twice_too_narrow})
    assert sites["a"].startswith("left in the smooth part: with this site split off")
    assert sites["b"] == "known location and scale: split off, closed forms"


def test_potential_fn() -> None:
    """Normal(1, 1/2) and Laplace(0, 1/2) coordinates, and one without a prior."""

    def potential_fn(x: dict[str, jax.Array]) -> jax.Array:
        normal = 2 * (x["a"] - 1) ** 2
        return (normal + 2 * jnp.abs(x["b"]) + 0.5 * x["c"] ** 2).sum()

    laplace_sites = {"a": dist.Normal(1.0, 0.5), "b": dist.Laplace(0.0, 0.5), "c": None}
    options = {"num_particles": 32, "laplace_sites": laplace_sites}
    start = {name: jnp.zeros((4, 2)) for name in "abc"}
    with pytest.raises(ValueError, match="leaves are Laplace, AsymmetricLaplace, Group"):
        run_mcmc(
            light_kernel(potential_fn=potential_fn, **options),
            init_params={n: start[n][0] for n in start},
        )
    kernel = light_kernel(potential_fn=potential_fn, priors=NORMAL, **options)
    mcmc = run_mcmc(kernel, init_params=start, num_warmup=100, num_samples=600, num_chains=4)
    moments = {
        "a": scalar_moments(1.0, 0.25),
        "b": scalar_moments(0.0, 0.5),
        "c": scalar_moments(0.0, 1.0),
    }
    truth = {name: stack_moments([m, m]) for name, m in moments.items()}
    assert_moments(mcmc.get_samples(group_by_chain=True), truth)


def test_saved_runs_compare_priors_by_name(normal_prior_run: MCMC, tmp_path: Path) -> None:
    function = "<run_path>.normal_prior"
    mcmc = normal_prior_run
    names = mcmc.sampler._arguments.record()["priors"]
    assert list(names) == ["numpyro.distributions.continuous.Normal"]
    assert names["numpyro.distributions.continuous.Normal"] == function
    save_state(mcmc, tmp_path / "run.npz")
    load_state(tmp_path / "run.npz", mcmc)
    options = {"num_chains": 4, "chain_method": "vectorized"}
    other = MCMC(light(), num_warmup=100, num_samples=600, **options)
    assert other.sampler._arguments.record()["priors"] is None
    with pytest.raises(ValueError, match="priors was {.*} and is None"):
        load_state(tmp_path / "run.npz", other)


def test_pickling() -> None:
    kernel = light(priors={dist.Normal: twice_too_narrow})
    again = pickle.loads(pickle.dumps(kernel))
    assert again.priors[dist.Normal] is twice_too_narrow
