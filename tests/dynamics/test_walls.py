"""Walls between modes that trajectories cross, and particles in modes that are not in the list."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.dynamics.ensemble import evaluate
from numpyro_rwpo.dynamics.mode_fit import Fitted
from numpyro_rwpo.dynamics.modes import Modes
from numpyro_rwpo.dynamics.several_modes import _in_listed_modes
from numpyro_rwpo.dynamics.walls import HEIGHT, walls_between, within
from numpyro_rwpo.model.target import Differentiation

# Minima at (-1, 0) and (3, 0), a saddle at (1, 0).
POSITIONS = np.array([[-1.0, 0.0], [3.0, 0.0], [9.0, 9.0]])
IS_WALLED = np.array([[False, True, False], [True, False, False], [False, False, False]])


def double_well(x):
    return ((x[..., 0] - 1) ** 2 - 4) ** 2 / 8 + x[..., 1] ** 2


def test_walls_stand_on_the_saddle():
    walls = walls_between(POSITIONS, IS_WALLED, double_well, jnp.float32)
    assert walls.offset[0, 1] / walls.normal[0, 1, 0] == 1.0
    assert walls.offset[1, 0] / walls.normal[1, 0, 0] == 1.0
    assert np.isinf(walls.offset[2]).all()  # There is no wall around the third.


def test_the_potential_is_higher_behind_a_wall_only():
    walls = walls_between(POSITIONS, IS_WALLED, double_well, jnp.float32)
    target = Differentiation(1.0, False).target(lambda x, centering: double_well(x), None)
    x = jnp.array([[0.9, 5.0], [1.1, 5.0], [-50.0, 0.0]])
    height, slope = target.value_and_grad(x)
    for mode, is_inside in ((0, [True, False, True]), (1, [False, True, False]), (2, [True] * 3)):
        here = within(target, jax.tree.map(lambda wall, k=mode: wall[k], walls))
        value, gradient = here.value_and_grad(x)
        np.testing.assert_allclose(value - height, np.where(is_inside, 0.0, HEIGHT), rtol=1e-3)
        np.testing.assert_allclose(gradient, slope)


def unit_modes(means, log_weight):
    number, dim = means.shape
    eye = jnp.broadcast_to(jnp.eye(dim), (number, dim, dim))
    return Modes(jnp.asarray(means), eye, eye, jnp.zeros(number), jnp.asarray(log_weight))


def test_particles_in_a_mode_that_is_not_in_the_list_move_onto_others():
    means = np.array([[0.0], [10.0], [20.0]], np.float32)
    distinct = unit_modes(means, np.log(np.array([0.5, 1e-6, 0.5], np.float32)))
    fitted = Fitted(unit_modes(means[[0, 2]], np.log([0.5, 0.5])), np.array([0, 2]), distinct,
                    np.array([True, False, True]))  # fmt: skip
    target = Differentiation(1.0, False).target(lambda x, centering: (x**2).sum(), None)
    # The second chain has no other particles, and keeps them.
    chains = jnp.array([[[0.1], [9.9], [20.1], [10.2]], [[10.0], [10.1], [10.2], [10.3]]])
    ensemble = jax.vmap(lambda x: evaluate(x, target))(chains)
    moved = _in_listed_modes(ensemble, fitted)
    np.testing.assert_allclose(moved.particles[0, :, 0], [0.1, 0.1, 20.1, 20.1])
    np.testing.assert_allclose(moved.particles[1], chains[1])
    np.testing.assert_allclose(moved.smooth, (moved.particles**2).sum(2), rtol=1e-6)
