"""Trees: exact moves for posteriors that trajectories of one length do not suit; who gets them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import light_kernel, two_islands
from jax import random
from test_moves import SCALE, exact_draws, largest_z, make_target

from numpyro_rwpo.dynamics import choice
from numpyro_rwpo.dynamics.ensemble import evaluate
from numpyro_rwpo.dynamics.flows import ExactFlow
from numpyro_rwpo.dynamics.mode_moves import ModeMove
from numpyro_rwpo.dynamics.moves import HamiltonianMove
from numpyro_rwpo.dynamics.state import MAX_CORRELATION, RWPOState, has_converged
from numpyro_rwpo.dynamics.trees import NUM_PARTICLES, TreeMove, tree_sweep, warm_up_trees
from numpyro_rwpo.model.target import Differentiation, Target


def test_trees_leave_the_target_invariant() -> None:
    """As the Hamiltonian sweeps are tested, with fewer draws: trees wait for the longest."""
    draws, fresh = exact_draws(random.key(0), 60_000), exact_draws(random.key(1), 400_000)
    move = TreeMove(ExactFlow(jnp.asarray(SCALE)), jnp.asarray(0.8))

    def moved(target: Target) -> tuple[jax.Array, jax.Array]:
        after, sweep = jax.jit(lambda e: tree_sweep(random.key(2), e, move, target, 5))(
            evaluate(draws, target)
        )
        return after.particles, sweep

    particles, sweep = moved(make_target())
    assert 0.3 < sweep.accept_prob.mean() < 0.99
    assert not sweep.diverging.any()
    assert sweep.num_steps.min() >= 1
    assert np.mean(np.any(particles != draws, axis=1)) > 0.8
    assert largest_z(particles, fresh) < 4.5
    # Negative control: the same moves for another target are noticed.
    assert largest_z(moved(make_target(prior=False))[0], fresh) > 10


def test_trees_learn_scales_and_step_size() -> None:
    """Scales over four decades, from a start far off in most of them."""
    scales = np.geomspace(1e-2, 1e2, 5).astype(np.float32)
    target = Differentiation(1.0, False).target(lambda x, c: 0.5 * ((x / scales) ** 2).sum(), None)
    start = random.uniform(random.key(0), (NUM_PARTICLES, 5), minval=-2, maxval=2)
    warm = jax.jit(lambda x: warm_up_trees(random.key(1), x, target, 1000, 0.8))(start)
    np.testing.assert_allclose(np.log(warm.move.flow.scale / scales), 0.0, atol=np.log(1.5))
    _, sweep = tree_sweep(random.key(2), warm.ensemble, warm.move, target, 10)
    assert 0.6 < sweep.accept_prob.mean() < 0.98
    assert warm.num_gradients >= warm.num_rows > 0


def test_what_has_not_converged_starts_anew() -> None:
    def report(*is_settled: bool, correlation: float = 0.5) -> SimpleNamespace:
        settled = np.array(is_settled)
        return SimpleNamespace(is_settled=settled, correlation=np.full(settled.shape, correlation))

    assert has_converged(report(True, True))
    assert not has_converged(report(True, False))
    assert has_converged(report(True))
    assert not has_converged(report(True, correlation=MAX_CORRELATION + 0.01))


@pytest.mark.parametrize(("starts", "move"), [((20, 20), HamiltonianMove), ((20, -20), ModeMove)])
def test_chains_in_different_modes_get_jumps(starts: tuple[float, float], move: type) -> None:
    """And not trees, which would stay where they are. A mode that no chain found is not entered."""
    kernel = light_kernel(two_islands)
    keys = random.split(random.key(0), 2)
    init_params = {"x": jnp.asarray(starts, jnp.float32)}
    state = kernel.init(keys, 100, init_params, (), {})
    assert isinstance(state.move, move)
    assert state.ensemble.particles.shape == (2, 16, 1)
    right = np.asarray(state.ensemble.particles[..., 0] > 0).mean(1)
    if move is HamiltonianMove:
        assert np.all(right == 1)
    else:  # Of 16 fair coins, 2 to 14 show heads with a probability of 0.9995.
        assert np.all((right > 0.1) & (right < 0.9))
        np.testing.assert_array_equal(state.move.is_found.sum(1), 1)


@pytest.mark.parametrize("verdicts", [[True], [False, True], [False, False]])
def test_chains_that_disagree_are_transported_before_they_have_trees(
    verdicts: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = iter(verdicts)
    monkeypatch.setattr(choice, "has_converged", lambda report: next(rest))
    init_params = {"x": jnp.full(2, 20.0)}
    keys = random.split(random.key(0), 2)
    state = light_kernel(two_islands).init(keys, 100, init_params, (), {})
    is_transported, has_trees = len(verdicts) > 1, not verdicts[-1]
    assert next(rest, None) is None
    assert isinstance(state.move, TreeMove if has_trees else HamiltonianMove)
    assert (np.isfinite(state.warm_up.evidence) == is_transported).all()


@pytest.mark.parametrize("first", [True, False])
def test_chains_one_after_another_have_moves_of_one_kind(
    first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPyro stacks their states; whether the next run has trees is decided anew."""
    kernel, run = light_kernel(two_islands), {}

    def started(has_converged: bool, model_kwargs: dict[str, Any]) -> RWPOState:
        monkeypatch.setattr(choice, "has_converged", lambda report: has_converged)
        init_params = {"x": jnp.asarray(20.0)}
        return kernel.init(random.key(0), 100, init_params, (), model_kwargs)

    states = [started(verdict, run) for verdict in (first, not first, not first)]
    moves = [HamiltonianMove if first else TreeMove] * 3
    assert [type(state.move) for state in states] == moves
    again = started(not first, {})
    assert type(again.move) is (TreeMove if first else HamiltonianMove)
