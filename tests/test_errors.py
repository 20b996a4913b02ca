"""Bad input gets one clear error: what is wrong, what was received, what to do.

The table of constructor arguments comes first, then models and starting points, which are
found out at `MCMC.run`. Messages are matched on the argument or site they must name.
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
from helpers import gaussian_potential, lasso_regression, run_mcmc, shrunken_means

from numpyro_rwpo import RWPO, splitting_step

DATA = np.array([0.3, 1.2, -0.5], np.float32)
SCALE = np.float32(0.5)


# -------------------------------------------------------------------------- constructor


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"model": None}, ValueError, "`model`.*`potential_fn`.*neither"),
        ({"potential_fn": gaussian_potential}, ValueError, "`model`.*`potential_fn`.*both"),
        ({"num_particles": 3}, ValueError, "`num_particles` must be at least 4; got 3"),
        ({"num_particles": 0}, ValueError, "`num_particles` must be at least 4; got 0"),
        ({"num_particles": -8}, ValueError, "`num_particles` must be at least 4; got -8"),
        ({"num_particles": 8.0}, TypeError, "`num_particles` must be an integer.*got 8.0"),
        ({"num_particles": True}, TypeError, "`num_particles` must be an integer.*got True"),
        ({"num_particles": "64"}, TypeError, "`num_particles` must be an integer.*got '64'"),
        ({"attention": "full"}, ValueError, "`attention`.*'copula'.*got 'full'"),
        ({"attention": None}, ValueError, "`attention`.*'copula'.*got None"),
        ({"corrected": "mala"}, ValueError, "`corrected`.*True, False; got 'mala'"),
        ({"corrected": None}, ValueError, "`corrected`.*True, False; got None"),
        ({"corrected": 1}, ValueError, "`corrected`.*True, False; got 1"),
        ({"dense_mass": "full"}, ValueError, "`dense_mass`.*'auto'.*got 'full'"),
        ({"dense_mass": [("weights",)]}, ValueError, "`dense_mass`.*'auto'.*got"),
        ({"dense_mass": None}, ValueError, "`dense_mass`.*'auto'.*got None"),
        ({"relative_prox_time": 0.0}, ValueError, "`relative_prox_time`.*got 0.0"),
        ({"relative_prox_time": -0.1}, ValueError, "`relative_prox_time`.*got -0.1"),
        ({"relative_prox_time": np.nan}, ValueError, "`relative_prox_time`.*got nan"),
        ({"relative_prox_time": np.inf}, ValueError, "`relative_prox_time`.*got inf"),
        ({"relative_prox_time": "small"}, TypeError, "`relative_prox_time`.*got 'small'"),
        ({"inverse_temperature": 0}, ValueError, "`inverse_temperature`.*got 0"),
        ({"inverse_temperature": -1.0}, ValueError, "`inverse_temperature`.*got -1.0"),
        ({"inverse_temperature": None}, TypeError, "`inverse_temperature`.*got None"),
        ({"target_accept_prob": 0.0}, ValueError, "`target_accept_prob`.*got 0.0"),
        ({"target_accept_prob": 1.0}, ValueError, "`target_accept_prob`.*got 1.0"),
        ({"target_accept_prob": 80}, ValueError, "`target_accept_prob`.*got 80"),
        ({"laplace_sites": "l1"}, (TypeError, ValueError), "`laplace_sites`.*'auto'.*'l1'"),
        ({"laplace_sites": 1.0}, (TypeError, ValueError), "`laplace_sites`.*'auto'.*1.0"),
        ({"model": "lasso"}, TypeError, "`model`.*callable.*'lasso'"),
        ({"model": None, "potential_fn": 3.0}, TypeError, "`potential_fn`.*callable.*3.0"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_constructor(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        RWPO(**{"model": lasso_regression, **options})


@pytest.mark.parametrize("num_particles", [None, 4, np.int64(64)])
def test_constructor_takes_good_numbers(num_particles: Any) -> None:
    """Negative control of the table; NumPy integers are integers."""
    RWPO(lasso_regression, num_particles=num_particles, target_accept_prob=np.float32(0.9))


@pytest.mark.parametrize("name", ["target_accept_prob", "relative_prox_time"])
def test_traced_numbers(name: str) -> None:
    """They have no value to be checked, but must be real scalars."""

    def make(value: jax.Array) -> jax.Array:
        RWPO(lasso_regression, **{name: value})
        return value

    jax.eval_shape(make, jnp.float32(0.8))
    for wrong in (jnp.ones(2), jnp.int32(1)):
        with pytest.raises(TypeError, match=f"`{name}` must be a number"):
            jax.eval_shape(make, wrong)


def test_options_are_keywords() -> None:
    """Only `model` and `potential_fn` have positions, so that options can be added."""
    with pytest.raises(TypeError, match="positional"):
        RWPO(lasso_regression, None, 64)


# -------------------------------------------------------------------------------- models


def discrete() -> None:
    weight = numpyro.sample("weight", dist.Beta(1.0, 1.0))
    numpyro.sample("switch", dist.Bernoulli(weight))


def sequential() -> None:
    numpyro.sample("weight", dist.Beta(1.0, 1.0))
    numpyro.sample("switch", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})


def endless() -> None:
    numpyro.sample("rate", dist.Gamma(1.0, 1.0))
    numpyro.sample("count", dist.Poisson(3.0), infer={"enumerate": "parallel"})


def counted() -> None:
    numpyro.sample("rate", dist.Gamma(1.0, 1.0))
    numpyro.sample("count", dist.Poisson(3.0))


def with_delta() -> None:
    numpyro.sample("fixed", dist.Delta(2.0))
    numpyro.sample("free", dist.Normal(0.0, 1.0))


def impossible() -> None:
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("never", jnp.where(x > 100, 0.0, -jnp.inf))


def undefined() -> None:
    numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("nan", jnp.nan)


def negative_scale() -> None:
    numpyro.sample("wrong", dist.Laplace(0.0, -1.0))


# NumPyro's own check of distributions, which does not name the site, can be turned off.


def one_negative_scale(scales: Any) -> None:
    with numpyro.plate("features", 3):
        numpyro.sample("wrong", dist.Laplace(0.0, scales, validate_args=False))


def negative_asymmetric_scale() -> None:
    numpyro.sample("wrong", dist.AsymmetricLaplace(0.0, -1.0, 2.0, validate_args=False))


NEGATIVE_SCALES = np.array([1.0, -0.5, 1.0], np.float32)


@pytest.mark.parametrize("num_chains", [1, 2])
@pytest.mark.parametrize(
    ("model", "args", "error", "match"),
    [
        (discrete, (), ValueError, "(?s)'switch'.*discrete.*[Mm]arginali.*'parallel'.*funsor"),
        (sequential, (), ValueError, "'switch'.*'sequential'.*'parallel'"),
        (endless, (), ValueError, "'count'.*Poisson.*cannot be listed"),
        (counted, (), ValueError, "(?s)'count'.*discrete.*[Mm]arginali"),
        (with_delta, (), ValueError, "'fixed'.*delta"),
        (impossible, (), RuntimeError, "Cannot find valid initial parameters"),
        (undefined, (), RuntimeError, "Cannot find valid initial parameters"),
        (negative_scale, (), ValueError, "scale"),
        (one_negative_scale, (NEGATIVE_SCALES,), ValueError, "'wrong'.*positive"),
        (negative_asymmetric_scale, (), ValueError, "'wrong'.*positive"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models(
    model: Callable[..., None],
    args: tuple[Any, ...],
    error: type[Exception],
    match: str,
    num_chains: int,
) -> None:
    with pytest.raises(error, match=match):
        run_mcmc(RWPO(model), *args, num_chains=num_chains)


@pytest.mark.parametrize(
    ("laplace_sites", "match"),
    [
        (["thta"], "`laplace_sites`.*thta.*theta"),
        (["theta", "y"], r"`laplace_sites`.*\['y'\].*theta"),
    ],
)
def test_names_of_no_laplace_site(laplace_sites: list[str], match: str) -> None:
    """An observed Laplace or Normal site is no prior, and a typing error is none either."""
    with pytest.raises(ValueError, match=match):
        run_mcmc(RWPO(shrunken_means, laplace_sites=laplace_sites), DATA, SCALE)


# ---------------------------------------------------------------------- starting points


@pytest.mark.parametrize(
    ("init_params", "num_chains", "match"),
    [
        ({"theta": np.zeros(2, np.float32)}, 1, r"`init_params`.*\(3,\).*\(2,\)"),
        ({"theta": np.zeros((1, 3), np.float32)}, 1, r"`init_params`.*\(3,\).*\(1, 3\)"),
        ({"thta": np.zeros(3, np.float32)}, 1, "`init_params`.*theta.*thta"),
        ({}, 1, "`init_params`.*theta"),
        (np.zeros(3, np.float32), 1, "`init_params`.*theta"),
        ({"theta": np.zeros(3, np.float32), "eta": np.float32(0)}, 1, "`init_params`.*eta"),
        ({"theta": np.zeros((2, 2), np.float32)}, 2, r"`init_params`.*\(3,\).*\(2,\)"),
        ({"theta": np.zeros((3, 3), np.float32)}, 2, "`init_params`.*leading dimension"),
        ({"theta": np.full(3, np.nan, np.float32)}, 1, "`init_params`.*finite"),
        ({"theta": np.full((2, 3), np.inf, np.float32)}, 2, "`init_params`.*finite"),
    ],
)
def test_init_params_of_a_model(init_params: Any, num_chains: int, match: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=f"(?s){match}"):
        run_mcmc(RWPO(shrunken_means), DATA, SCALE, num_chains=num_chains, init_params=init_params)


ORIGIN = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("potential_fn", "init_params", "error", "match"),
    [
        (gaussian_potential, None, ValueError, "`init_params`.*`potential_fn`"),
        (gaussian_potential, np.zeros(2, int), TypeError, "`init_params`.*float"),
        (gaussian_potential, np.zeros((0,), np.float32), ValueError, "`init_params`.*no param"),
        (lambda x: x**2, ORIGIN, ValueError, r"`potential_fn`.*scalar.*\(2,\)"),
        (lambda x: x.sum(keepdims=True), ORIGIN, ValueError, r"`potential_fn`.*scalar.*\(1,\)"),
        (lambda x: (x.sum(), x), ORIGIN, ValueError, "`potential_fn`.*scalar"),
        (lambda x: x.sum() * jnp.nan, ORIGIN, (ValueError, RuntimeError), "`init_params`.*finite"),
        (lambda x: x.sum() + jnp.inf, ORIGIN, (ValueError, RuntimeError), "`init_params`.*finite"),
    ],
)
def test_potential_fn(
    potential_fn: Callable[..., Any], init_params: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=f"(?s){match}"):
        run_mcmc(RWPO(potential_fn=potential_fn), init_params=init_params)


@pytest.mark.parametrize(
    "laplace_sites",
    [
        {"a": dist.Laplace(0.0, 1.0)},
        {"a": dist.Laplace(0.0, 1.0), "b": dist.Normal(0.0, 1.0)},
        {"a": dist.Laplace(0.0, -1.0, validate_args=False), "b": None},
        {"a": dist.Laplace(0.0, np.ones(3, np.float32)), "b": None},
        ["a"],
    ],
    ids=["missing leaf", "not Laplace", "negative scale", "odd shape", "names"],
)
def test_laplace_sites_of_a_potential_fn(laplace_sites: Any) -> None:
    """It must mirror `init_params` with Laplace distributions or None as leaves."""

    def potential(z: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(jnp.abs(z["a"])) + 0.5 * z["b"] ** 2

    init_params = {"a": np.zeros(2, np.float32), "b": np.float32(0.0)}
    with pytest.raises(ValueError, match="`laplace_sites`"):
        run_mcmc(RWPO(potential_fn=potential, laplace_sites=laplace_sites), init_params=init_params)


def test_sample_before_init() -> None:
    with pytest.raises(RuntimeError, match="`init`.*before `sample`"):
        RWPO(lasso_regression).sample(None, (), {})


# -------------------------------------------------------------------- the paper's update


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rate": -1.0}, ValueError, "`rate`"),
        ({"rate": np.array([1.0, -1.0], np.float32)}, ValueError, "`rate`"),
        ({"rate": np.ones(3, np.float32)}, ValueError, r"`rate`.*\(2,\).*\(3,\)"),
        ({"step_size": 0.0}, ValueError, "`step_size`"),
        ({"step_size": -0.1}, ValueError, "`step_size`"),
        ({"inverse_temperature": 0.0}, ValueError, "`inverse_temperature`"),
        ({"attention": "copula"}, ValueError, "`attention`.*'joint'.*'marginal'.*'copula'"),
        ({"normalizer": "none"}, ValueError, "`normalizer`.*'exact'.*'laplace'.*'none'"),
        ({"particles": np.zeros(8, np.float32)}, ValueError, r"`particles`.*\(8,\)"),
        ({"grad_f": lambda x: x.sum(1)}, ValueError, r"`grad_f`.*\(8, 2\).*\(8,\)"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_splitting_step(options: dict[str, Any], error: type[Exception], match: str) -> None:
    good = {
        "particles": np.ones((8, 2), np.float32),
        "grad_f": lambda x: x,
        "rate": 1.0,
        "step_size": 0.1,
    }
    with pytest.raises(error, match=f"(?s){match}"):
        splitting_step(**(good | options))
