"""What is read from an ``MCMC``: which particle a draw is, and NumPyro's private attributes."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_rwpo
from numpyro_rwpo import RWPO
from numpyro_rwpo.runs.mcmc import latest_draws, read_finished_run, read_run
from tests.helpers import light_kernel, normal_mean, regression_data, run_mcmc

Y = regression_data()[1]
PACKAGE = Path(numpyro_rwpo.__file__).parent
NUM_PARTICLES = 8


@pytest.fixture(scope="module")
def still() -> MCMC:
    """Noise-free particles: they do not move, so a draw shows which particle it is."""
    kernel = light_kernel(normal_mean, num_particles=NUM_PARTICLES, corrected=False)
    mcmc = MCMC(kernel, num_warmup=20, num_samples=30, num_chains=2, chain_method="vectorized")
    mcmc.progress_bar = True
    mcmc.run(jax.random.key(0), Y)
    return mcmc


def assert_draws_are_these_particles(mcmc: MCMC) -> None:
    run = read_finished_run(mcmc)
    positions = run.state.ensemble.particles[:, run.particles, 0]
    np.testing.assert_array_equal(run.samples["mu"], positions)
    assert len(run.particles) == run.num_draws


def test_draws_are_states_of_the_particles_named(still: MCMC) -> None:
    assert_draws_are_these_particles(still)
    run = read_finished_run(still)
    distinct = np.asarray(run.samples["mu"])[:, run.distinct]
    assert distinct.shape == (2, NUM_PARTICLES)
    np.testing.assert_array_equal(distinct, run.state.ensemble.particles[:, :, 0])


@pytest.mark.parametrize(("thinning", "num_distinct"), [(2, 4), (3, 8), (6, 4), (8, 1)])
def test_thinning(still: MCMC, thinning: int, num_distinct: int) -> None:
    """Also one that does not divide the number of particles, after which fewer are left."""
    mcmc = MCMC(
        still.sampler,
        num_warmup=20,
        num_samples=8 * thinning + 1,  # NumPyro leaves out the first draw then
        num_chains=2,
        chain_method="vectorized",
        thinning=thinning,
    )
    mcmc.progress_bar = True
    mcmc.run(jax.random.key(0), Y)
    assert_draws_are_these_particles(mcmc)
    distinct = np.asarray(mcmc.get_samples(group_by_chain=True)["mu"])[
        :, read_finished_run(mcmc).distinct
    ]
    assert distinct.shape[1] == num_distinct == len(np.unique(distinct[0]))


def test_a_second_run_goes_on_with_the_next_particle(still: MCMC) -> None:
    mcmc = MCMC(
        still.sampler, num_warmup=20, num_samples=13, num_chains=2, chain_method="vectorized"
    )
    mcmc.progress_bar = True
    mcmc.post_warmup_state = still.last_state
    mcmc.run(still.last_state.rng_key, Y)
    assert_draws_are_these_particles(mcmc)


@pytest.mark.parametrize("order", ["in turn", "in blocks"])
def test_latest_draws_are_of_different_particles(order: str) -> None:
    number = np.arange(4)
    particles = np.tile(number, 5) if order == "in turn" else np.repeat(number, 5)
    latest = latest_draws(particles, 4)
    assert sorted(particles[latest]) == [0, 1, 2, 3]
    expected = [16, 17, 18, 19] if order == "in turn" else [4, 9, 14, 19]
    np.testing.assert_array_equal(latest, expected)
    # Every particle once before any particle twice.
    assert sorted(particles[latest_draws(particles, 6)])[:4] != [0, 0, 0, 1]
    assert set(particles[latest_draws(particles, 6)]) == {0, 1, 2, 3}
    np.testing.assert_array_equal(latest_draws(particles, 99), np.arange(20))


def test_what_cannot_be_read(lasso_run: Any) -> None:
    with pytest.raises(TypeError, match="`mcmc` must be .* whose kernel is RWPO; got NUTS. For"):
        read_run(MCMC(NUTS(normal_mean), num_warmup=1, num_samples=1))
    with pytest.raises(ValueError, match="has not been run"):
        read_run(MCMC(RWPO(normal_mean), num_warmup=1, num_samples=1))
    assert read_run(lasso_run.warmed).is_warmup
    with pytest.raises(ValueError, match="draws of a warm-up"):
        read_finished_run(lasso_run.warmed)


def test_a_single_chain_has_its_axis() -> None:
    kernel = light_kernel(normal_mean, num_particles=NUM_PARTICLES)
    run = read_run(run_mcmc(kernel, Y, num_chains=1))
    assert run.samples["mu"].ndim == 2
    assert run.state.ensemble.particles.shape[:2] == (1, NUM_PARTICLES)


def private_attributes(path: Path) -> set[str]:
    """Private attributes of objects other than ``self`` that a module reads or writes."""
    public = {"_replace", "_asdict", "_fields"}  # of named tuples
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        is_super = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
        if owner not in ("self", "cls") and not is_super and not node.attr.startswith("__"):
            found.add(node.attr)
    return found - public


def test_one_module_knows_private_attributes_of_others() -> None:
    """Those of NumPyro's `MCMC`, and two of the kernel."""
    found = {path: private_attributes(path) for path in sorted(PACKAGE.rglob("*.py"))}
    modules = {
        path.relative_to(PACKAGE).as_posix(): names for path, names in found.items() if names
    }
    numpyros = {"_args", "_kwargs", "_last_state", "_states", "_states_flat"}
    assert modules == {"runs/mcmc.py": numpyros | {"_arguments", "_settings"}}
