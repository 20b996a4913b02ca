"""The argument ``attention``: a built-in head's name, or a function of the user's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import run_mcmc, shrunken_means
from numpyro.infer import MCMC

from numpyro_rwpo import RWPO, fit_copula, fit_marginal, laplace_prior, load_state, save_state
from numpyro_rwpo.heads.marginal import MarginalDensity
from numpyro_rwpo.heads.registry import BUILT_IN_HEADS, find_head

Y = np.array([2.0, 0.1, -0.3], np.float32)


def own_head(particles: jax.Array, prior: Any, prox_time: jax.Array) -> MarginalDensity:
    return fit_marginal(particles, prior, prox_time)


class Callable:
    def __call__(self, particles: jax.Array, prior: Any, prox_time: jax.Array) -> MarginalDensity:
        return fit_marginal(particles, prior, prox_time)


def light(attention: Any) -> RWPO:
    """Uncorrected, because only transport uses the head."""
    return RWPO(
        shrunken_means, num_particles=8, attention=attention, dense_mass=False, corrected=False
    )


def run(attention: Any) -> MCMC:
    return run_mcmc(light(attention), Y, 0.5, num_warmup=8, num_samples=8)


def draws(mcmc: MCMC) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(mcmc.get_samples())])


@pytest.fixture(scope="module")
def own_head_run() -> MCMC:
    """A run with the user's function."""
    return run(own_head)


def test_the_registry_cannot_grow() -> None:
    with pytest.raises(TypeError):
        BUILT_IN_HEADS["own"] = own_head  # type: ignore[index]


@pytest.mark.parametrize(
    ("attention", "name"),
    [
        ("joint", "joint"),
        (fit_copula, "copula"),
        (own_head, f"{__name__}.own_head"),
        (partial(own_head), f"{__name__}.own_head"),
        (Callable(), f"{__name__}.Callable"),
    ],
    ids=["name", "built-in", "function", "partial", "object"],
)
def test_name(attention: Any, name: str) -> None:
    assert find_head(attention).name == name
    assert light(attention)._arguments.record()["attention"] == name


@pytest.mark.parametrize("attention", ["sparse", None, 3])
def test_neither_name_nor_function(attention: Any) -> None:
    message = r"`attention` must be one of 'joint', .*, or a function fit\(.*\) .*; got"
    with pytest.raises(ValueError, match=message):
        light(attention)


def test_a_function_is_what_transports(own_head_run: MCMC) -> None:
    expected = draws(run("marginal"))
    np.testing.assert_array_equal(draws(own_head_run), expected)
    assert (draws(run("joint")) != expected).any()


def test_a_function_that_returns_no_density() -> None:
    with pytest.raises(TypeError, match=r"'.*<lambda>' must return a density .*; got tuple"):
        find_head(lambda *_: (1, 2)).fit(np.zeros((4, 1)), laplace_prior(1.0), 0.1)


def test_saved_runs_compare_functions_by_name(own_head_run: MCMC, tmp_path: Path) -> None:
    mcmc = own_head_run
    save_state(mcmc, tmp_path / "run.npz")
    assert load_state(tmp_path / "run.npz", mcmc).z.keys() == mcmc.last_state.z.keys()
    other = MCMC(light("copula"), num_warmup=8, num_samples=8)
    with pytest.raises(ValueError, match="attention was '.*own_head' and is 'copula'"):
        load_state(tmp_path / "run.npz", other)
