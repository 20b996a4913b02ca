"""Wrong models and wrong data: the error names the site or the argument and says what to do.

`test_errors.py` has the arguments of the constructor and starting points. Errors that a model
raises itself come through unchanged, with a note on what the model was called with. Nearly all of
these calls fail before anything is compiled.
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
from helpers import (
    gaussian_potential,
    lasso_regression,
    normal_mean,
    regression_data,
    run_mcmc,
    shrunken_means,
)
from numpyro.infer import MCMC

from numpyro_rwpo import RWPO, compare_runs, diagnose, to_arviz

X, Y = regression_data()
DATA = np.array([0.3, 1.2, -0.5], np.float32)


def spoilt(array: np.ndarray, value: float) -> np.ndarray:
    """The array with one entry replaced."""
    array = array.copy()
    array.flat[1] = value
    return array


def normal(name: str = "x", *shape: int) -> Any:
    return numpyro.sample(name, dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))


# ---------------------------------------------------------------------- data and arguments


def scaled(scale: Any) -> None:
    numpyro.sample("x", dist.Normal(0.0, scale, validate_args=False))


def validated(scale: Any) -> None:
    numpyro.sample("x", dist.Normal(0.0, scale))


def counts(y: Any) -> None:
    rate = numpyro.sample("rate", dist.Gamma(1.0, 1.0))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def shares(y: Any) -> None:
    a = numpyro.sample("a", dist.Gamma(1.0, 1.0))
    numpyro.sample("y", dist.Beta(a, 1.0), obs=y)


def in_plate(y: Any) -> None:
    mu = normal("mu")
    with numpyro.plate("data", 4):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def half_plate(y: Any) -> None:
    mu = normal("mu")
    with numpyro.plate("data", 3, subsample_size=2):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=numpyro.subsample(y, event_dim=0))


def linear(X: Any, y: Any) -> None:
    beta = normal("beta", X.shape[1])
    numpyro.sample("y", dist.Normal(X @ beta, 1.0).to_event(1), obs=y)


NO_START = "Cannot find valid initial parameters.*"


# NumPyro warns of data outside the support before it gives up.
@pytest.mark.filterwarnings("ignore:.*Out-of-support values")
@pytest.mark.parametrize(
    ("model", "args", "error", "match"),
    [
        (normal_mean, (spoilt(DATA, np.nan),), RuntimeError, NO_START + "'y'.*1 of its 3 values"),
        (normal_mean, (spoilt(DATA, np.inf),), RuntimeError, NO_START + "'y'.*1 of its 3 values"),
        (normal_mean, (spoilt(DATA, -np.inf),), RuntimeError, NO_START + "'y'.*1 of its 3 values"),
        (linear, (spoilt(X, np.nan), Y), ValueError, r"float32, shape \(24, 3\) with 1 values nan"),
        (linear, (spoilt(X, np.inf), Y), ValueError, r"float32, shape \(24, 3\) with 1 values nan"),
        (linear, (X, spoilt(Y, np.nan)), RuntimeError, NO_START + "'y'.*1 of its 24 values"),
        (counts, (-1,), RuntimeError, NO_START + "'y' has a log density of -inf"),
        (counts, (np.array([1.5], np.float32),), RuntimeError, NO_START + "'y'"),
        (shares, (np.float32(2.0),), RuntimeError, NO_START + "'y'"),
        (scaled, (np.float32(0.0),), RuntimeError, NO_START + "'x'"),
        (scaled, (np.float32(1e-30),), RuntimeError, NO_START + "'x'"),
        (scaled, (np.float32(np.inf),), RuntimeError, NO_START + "'x'"),
        (scaled, (np.float32(np.nan),), RuntimeError, NO_START + "'x'.*1 values nan"),
        (validated, (np.float32(0.0),), ValueError, "scale.*arguments were"),
        (shrunken_means, (DATA, np.float32(np.nan)), ValueError, "scale.*1 values nan"),
        (shrunken_means, (DATA, np.float32(np.inf)), ValueError, "'theta'.*finite.*inf"),
        (shrunken_means, (DATA, np.float32(0.0)), ValueError, "scale.*arguments were"),
        (shrunken_means, (DATA, np.float32(1e-30)), ValueError, "'theta'.*above 5e-20.*1.0.*e-30"),
        (lasso_regression, (X, Y[:-1]), ValueError, r"broadcast.*\(24, 3\).*\(23,\)"),
        (linear, (X[:, 0], Y), IndexError, r"float32, shape \(24,\)"),
        (in_plate, (DATA,), ValueError, r"broadcast.*shape \(3,\)"),
        (half_plate, (DATA,), ValueError, "Plate 'data' draws 2 of 3.*`subsample_size`"),
        (normal_mean, (np.zeros(0, np.float32),), ValueError, r"plate.*one row.*shape \(0,\)"),
        (lasso_regression, (X[:, :0], Y), ValueError, r"plate.*one row.*shape \(24, 0\)"),
        (lasso_regression, (X[:0], Y[:0]), ValueError, r"plate.*one row.*shape \(0, 3\)"),
        (normal_mean, ("data",), AttributeError, "arguments were: 'data'"),
        (normal_mean, ([1.0, 2.0],), AttributeError, r"arguments were: \[1.0, 2.0\]"),
        (normal_mean, (None,), AttributeError, "arguments were: None"),
        (normal_mean, (np.array(["1", "2"]),), TypeError, "arguments were: array of <U1"),
        (normal_mean, (np.array([1.0, None]),), TypeError, "arguments were: array of object"),
        (normal_mean, (np.array([1, 2j]),), TypeError, "arguments were: array of complex128"),
        (normal_mean, (), TypeError, "'y'.*arguments were: none"),
        (normal_mean, (DATA, DATA), TypeError, "takes 1 positional.*arguments were: array"),
    ],
)
def test_data(
    model: Callable[..., None], args: tuple[Any, ...], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=f"(?s){match}"):
        run_mcmc(RWPO(model, num_particles=4), *args)


# --------------------------------------------------------------------------------- structure


def raising() -> None:
    raise KeyError("lost")


def asserting() -> None:
    raise AssertionError("my own")


def twice() -> None:
    normal("x")
    normal("x")


def twice_laplace() -> None:
    for _ in range(2):
        numpyro.sample("x", dist.Laplace(0.0, 1.0))


def in_scan() -> None:
    jax.lax.scan(lambda c, _: (c + normal(), None), 0.0, None, length=3)


def in_loop() -> None:
    normal("z")
    jax.lax.fori_loop(0, 3, lambda _, c: c + normal("x"), 0.0)


def in_cond() -> None:
    jax.lax.cond(normal("z") > 0, lambda: normal("x"), lambda: 0.0)


def in_jit() -> None:
    jax.jit(lambda: normal("x"))()


def branching() -> None:
    if normal("z") > 0:
        normal("x")


def concrete() -> None:
    numpyro.factor("f", -(float(normal("z")) ** 2))


def in_numpy() -> None:
    numpyro.factor("f", -np.exp(normal("z")))


def sized() -> None:
    normal("x", int(normal("z")) + 1)


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (raising, KeyError, "lost.*arguments were: none"),
        (asserting, AssertionError, "my own.*arguments were: none"),
        (twice, ValueError, "`x` duplicated.*name of its own"),
        (twice_laplace, ValueError, "`x` duplicated.*name of its own"),
        (in_scan, ValueError, "'x'.*lax.scan.*numpyro.contrib.control_flow"),
        (in_loop, ValueError, "'x'.*fori_loop.*numpyro.contrib.control_flow"),
        (in_cond, ValueError, "'x'.*cond.*numpyro.contrib.control_flow"),
        (in_jit, ValueError, "'x'.*jax.jit.*numpyro.contrib.control_flow"),
        (branching, jax.errors.TracerBoolConversionError, "bool.*arguments were: none"),
        (concrete, jax.errors.ConcretizationTypeError, "float.*arguments were: none"),
        (in_numpy, jax.errors.TracerArrayConversionError, "numpy.*arguments were: none"),
        (sized, jax.errors.ConcretizationTypeError, "int.*arguments were: none"),
    ],
)
def test_structure(model: Callable[..., None], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=f"(?s){match}"):
        run_mcmc(RWPO(model, num_particles=4))


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("comes", r"'y' of shape \(2,\) is new; the first call had {'x': \(\)}"),
        ("goes", r"\['y'\] are missing"),
        ("grows", r"'y' now has the shape \(3,\)"),
    ],
)
def test_model_that_changes_between_calls(change: str, calls: int, match: str) -> None:
    """Whenever it does: in the first calls, or when the sampler is compiled.

    Without the check a site that goes stays among the coordinates without a density, and its draws
    wander off without a word.
    """
    number = 0

    def model() -> None:
        nonlocal number
        number += 1
        normal("x")
        is_changed = number > calls
        if is_changed == (change == "comes") or change == "grows":
            normal("y", 3 if is_changed and change == "grows" else 2)

    with pytest.raises(ValueError, match=match):
        run_mcmc(RWPO(model, num_particles=4, attention="marginal", dense_mass=False))


def test_integers_are_data_and_sites_that_follow_the_data_cannot_be_resumed() -> None:
    """Integers where floats are meant are no mistake, as for NUTS; sites of another shape are."""
    kernel = RWPO(shrunken_means, num_particles=4, attention="marginal", dense_mass=False)
    init_params = {"theta": np.zeros(3, int)}
    sizes = {"num_warmup": 4, "num_samples": 4}
    mcmc = run_mcmc(kernel, np.array([1, 2, 3]), 1, init_params=init_params, **sizes)
    theta = mcmc.get_samples()["theta"]
    assert theta.dtype == np.float32
    assert np.isfinite(theta).all()
    mcmc.post_warmup_state = mcmc.last_state
    with pytest.raises(ValueError, match=r"'theta' now has the shape \(4,\).*post_warmup_state"):
        mcmc.run(jax.random.key(1), np.array([1, 2, 3, 4]), 1)


# ----------------------------------------------------------------------- calls of everything


ORIGIN = np.zeros(2, np.float32)


def complex_potential(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2) * 1j


def integer_potential(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2).astype(int)


def raising_potential(x: jax.Array) -> jax.Array:
    raise ZeroDivisionError("inside")


def potential_with_data(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum((x - y) ** 2)


@pytest.mark.parametrize(
    ("potential_fn", "init_params", "error", "match"),
    [
        (gaussian_potential, np.zeros(2, bool), TypeError, "`init_params`.*bool"),
        (gaussian_potential, np.zeros(2, complex), TypeError, "`init_params`.*complex"),
        (gaussian_potential, np.zeros(2, np.float16), TypeError, "`init_params`.*float16"),
        (gaussian_potential, jnp.zeros(2, jnp.bfloat16), TypeError, "`init_params`.*bfloat16"),
        (complex_potential, ORIGIN, TypeError, "`potential_fn`.*complex64"),
        (integer_potential, ORIGIN, TypeError, "`potential_fn`.*int32"),
        (raising_potential, ORIGIN, ZeroDivisionError, "inside"),
        (potential_with_data, ORIGIN, TypeError, "missing 1 required positional argument: 'y'"),
        (lambda x: None, ORIGIN, ValueError, "`potential_fn`.*scalar.*None"),
    ],
)
def test_potential(
    potential_fn: Callable[..., Any], init_params: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=f"(?s){match}"):
        run_mcmc(RWPO(potential_fn=potential_fn, num_particles=4), init_params=init_params)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"init_strategy": "median"}, TypeError, "`init_strategy`.*init_to_median.*'median'"),
        ({"init_strategy": None}, TypeError, "`init_strategy`.*init_to_median.*None"),
        ({"forward_mode_differentiation": "yes"}, ValueError, "`forward_mode.*True, False.*'yes'"),
        ({"forward_mode_differentiation": 1}, ValueError, "`forward_mode.*True, False.*1"),
        ({"inverse_temperature": 1e300}, ValueError, r"`inverse_temperature`.*1e\+18.*1e\+300"),
        ({"inverse_temperature": 1e-300}, ValueError, "`inverse_temperature`.*1e-18.*1e-300"),
        ({"relative_prox_time": 1e30}, ValueError, r"`relative_prox_time`.*1e\+18.*1e\+30"),
        ({"num_particles": 10**13}, ValueError, "`num_particles` must be at most.*10000000000000"),
        ({"particles": 100}, TypeError, "unexpected keyword argument 'particles'"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        RWPO(normal_mean, **options)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"chain_method": "batched", "num_chains": 2}, ValueError, '"vectorized"'),
        ({"chain_method": 3, "num_chains": 2}, ValueError, '"vectorized"'),
        ({"num_warmup": -1}, ValueError, "num_warmup must be a nonnegative integer"),
        ({"num_warmup": 10.5}, ValueError, "num_warmup must be a nonnegative integer"),
        ({"num_samples": 0}, ValueError, "num_samples must be a positive integer"),
        ({"thinning": 0}, ValueError, "thinning must be a positive integer"),
        ({"key": None}, TypeError, "`rng_key`.*jax.random.key.*None"),
        ({"key": 1.5}, TypeError, "`rng_key`.*jax.random.key.*1.5"),
    ],
)
def test_calls_of_mcmc(options: dict[str, Any], error: type[Exception], match: str) -> None:
    """NumPyro's own checks come through, and name what they are about."""
    kernel = RWPO(normal_mean, num_particles=4, attention="marginal", dense_mass=False)
    with pytest.raises(error, match=match):
        run_mcmc(kernel, DATA, **options)


@pytest.mark.parametrize("read", [diagnose, to_arviz])
def test_runs_that_have_no_draws(read: Callable[[Any], Any]) -> None:
    mcmc = MCMC(RWPO(normal_mean), num_warmup=4, num_samples=4)
    with pytest.raises(ValueError, match="has not been run"):
        read(mcmc)
    with pytest.raises(TypeError, match="RWPO.*dict"):
        read({"mu": np.zeros((2, 10))})


def test_compare_refuses_runs_of_other_models() -> None:
    with pytest.raises(ValueError, match="mu"):
        compare_runs({"mu": np.zeros((2, 10))}, {"nu": np.zeros((2, 10))})
