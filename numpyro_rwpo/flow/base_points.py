"""Points of a flow's base ensemble: standard normal, and spread more evenly than random points.

The number of n random points that fall in a region has an error of about the square root of n, and
so do the weights of modes that a flow makes of them, and their correlations. The error of Sobol's
sequence (Joe and Kuo 2008, as in SciPy) is little more than one point. With a random shift modulo
1, each point is uniform, and another shift gives other points (Cranley and Patterson 1976).
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from scipy.stats import qmc


def base_points(rng_key: jax.Array, num_particles: int, dim: int) -> jax.Array:
    """Standard normal points, (num_particles, dim)."""
    return _shifted(rng_key, jnp.asarray(_sobol(num_particles, dim), jnp.result_type(float)))


def fresh_points(rng_key: jax.Array, points: jax.Array) -> jax.Array:
    """Other points of the same evenness, shape (num_particles, dim) and dtype."""
    return _shifted(rng_key, ndtr(points))


def _shifted(rng_key: jax.Array, uniform: jax.Array) -> jax.Array:
    shift = jax.random.uniform(rng_key, uniform.shape[1:], uniform.dtype)
    edge = float(jnp.finfo(uniform.dtype).epsneg) / 2
    return ndtri(jnp.clip((uniform + shift[None]) % 1, edge, 1 - 2 * edge))


@cache
def _sobol(num_points: int, dim: int) -> np.ndarray:
    """Points in the unit cube, (num_points, dim); coordinates beyond SciPy's table are random."""
    even = min(dim, qmc.Sobol.MAXDIM)
    rng = np.random.default_rng(0)
    # The sequence is balanced for a power of two.
    sequence = qmc.Sobol(even, scramble=True, seed=rng).random_base2((num_points - 1).bit_length())
    return np.concatenate([sequence[:num_points], rng.random((num_points, dim - even))], 1)
