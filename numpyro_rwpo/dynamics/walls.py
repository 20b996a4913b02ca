"""Walls that keep an ensemble on its own side of a saddle while it explores a mode.

Over a barrier of a few nats, trajectories carry some particles of an ensemble into the next mode.
Its mean and covariance would then be those of both modes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from numpyro_rwpo.model.target import Target

Array = NDArray[np.floating]

# Points on the way from one mode to another, of which the highest is where the wall stands.
NUM_POINTS = 31
# Height of a wall in nats. No trajectory ends behind it, and yet it is no divergence: those shorten
# the steps of an ensemble, as if it were too coarse for its mode.
HEIGHT = 100.0


class Walls(NamedTuple):
    """Planes around one mode, behind which the potential is higher.

    Attributes:
        normal: outward normals, (num_walls, dim).
        offset: positions x with ``normal @ x`` beyond it are outside, (num_walls,).
    """

    normal: jax.Array
    offset: jax.Array


def within(target: Target, walls: Walls) -> Target:
    """The target with a potential that is ``HEIGHT`` higher outside the walls of one mode.

    Gradients stay as they are: trajectories may pass, but not end outside. This is for warm-up.

    Args:
        target: the posterior.
        walls: normals (num_walls, dim) and offsets (num_walls,).
    """

    def smooth(particles: jax.Array, centering: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient = target.smooth(particles, centering)
        is_outside = (particles @ walls.normal.T > walls.offset[None]).any(1)
        return jnp.where(is_outside, value + HEIGHT, value), gradient

    return target._replace(smooth=smooth)


def walls_between(
    positions: Array,
    is_walled: NDArray[np.bool_],
    evaluate: Callable[[Array], Array],
    dtype: Any,
) -> Walls:
    """Walls on the saddles between modes.

    Args:
        positions: where the potential is low in each mode, (num_modes, dim).
        is_walled: between which modes there is a wall, symmetric, (num_modes, num_modes).
        evaluate: potential at positions, (n, dim) -> (n,).
        dtype: type of the walls.

    Returns:
        Walls with a leading axis of modes; those of modes without a wall are infinitely far away.
    """
    number = len(positions)
    unit = positions.std(0) + np.finfo(np.float32).tiny
    normal = np.zeros((number, number, positions.shape[1]))
    offset = np.full((number, number), np.inf)
    first, second = np.nonzero(np.triu(is_walled, 1))
    if len(first):
        share = np.arange(1, NUM_POINTS + 1) / (NUM_POINTS + 1)
        step = positions[second] - positions[first]
        between = positions[first][:, None] + share[:, None] * step[:, None]
        heights = evaluate(between.reshape(-1, between.shape[2])).reshape(len(first), NUM_POINTS)
        saddle = between[np.arange(len(first)), heights.argmax(1)]
        outward = step / unit**2
        normal[first, second], normal[second, first] = outward, -outward
        offset[first, second] = (outward * saddle).sum(1)
        offset[second, first] = -offset[first, second]
    return Walls(jnp.asarray(normal, dtype), jnp.asarray(offset, dtype))
