"""Trees: exact moves for posteriors that trajectories of one length do not suit; who gets them."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import two_islands
from jax import random
from test_moves import SCALE, exact_draws, largest_z, make_target

from numpyro_rwpo import RWPO
from numpyro_rwpo.dynamics.ensemble import evaluate
from numpyro_rwpo.dynamics.flows import ExactFlow
from numpyro_rwpo.dynamics.moves import HamiltonianMove
from numpyro_rwpo.dynamics.state import MAX_CORRELATION, agree
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


def do_agree(
    particles: np.ndarray,
    is_settled: bool = True,
    correlation: float = 0.5,
    centering: tuple[float, ...] | None = None,
) -> bool:
    """Whether ensembles (chains, particles, dim) agree, with what warm-up says of them.

    With a centering for each chain, coordinate 7 has another meaning at each.
    """
    chains = len(particles)
    ready = SimpleNamespace(
        ensemble=SimpleNamespace(particles=particles),
        potential=0.5 * (particles**2).sum(-1),
        centering=np.zeros(chains) if centering is None else np.array(centering),
        warm_up=SimpleNamespace(
            is_settled=np.full(chains, is_settled), correlation=np.full(chains, correlation)
        ),
    )
    is_rewritten = None if centering is None else np.arange(particles.shape[2]) == 7
    return agree(ready, is_rewritten)


def test_ensembles_that_disagree_or_have_not_settled_start_anew() -> None:
    normal = np.random.default_rng(0).normal(size=(4, 64, 30))
    assert do_agree(normal)
    assert not do_agree(normal, is_settled=False)
    shifted, wide = normal.copy(), normal.copy()
    shifted[0, :, 7] += 2
    wide[0, :, 7] *= 6
    assert not do_agree(shifted)
    assert not do_agree(wide)
    # What cannot be compared says nothing.
    assert do_agree(shifted, centering=(1, 0, 0, 0))
    assert not do_agree(shifted, centering=(0, 0, 0, 0))
    # A single chain has no other to disagree with.
    assert do_agree(shifted[:1])
    assert not do_agree(normal[:1], correlation=MAX_CORRELATION + 0.01)


@pytest.mark.parametrize(("starts", "move"), [((20, 20), HamiltonianMove), ((20, -20), TreeMove)])
def test_chains_in_different_modes_get_trees(starts: tuple[float, float], move: type) -> None:
    kernel = RWPO(two_islands, num_particles=16)
    keys = random.split(random.key(0), 2)
    init_params = {"x": jnp.asarray(starts, jnp.float32)}
    state = kernel.init(keys, 100, init_params, (), {})
    assert isinstance(state.move, move)
    number = NUM_PARTICLES if move is TreeMove else 16
    assert state.ensemble.particles.shape == (2, number, 1)
    assert np.all(np.sign(state.ensemble.particles[..., 0]) == np.sign(starts)[:, None])
