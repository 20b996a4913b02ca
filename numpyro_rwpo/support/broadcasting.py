"""Broadcasting written out, for users who forbid JAX to do it silently.

With ``jax_numpy_rank_promotion="raise"``, which catches many mistakes of shape, JAX refuses to add
arrays of different rank. The tests of this package run with that setting.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def same_rank(*arrays: ArrayLike) -> tuple[jax.Array, ...]:
    """The arrays, with leading axes of length 1 added where another one has more axes.

    Scalars remain scalars: they go with arrays of any rank.
    """
    converted = [jnp.asarray(x) for x in arrays]
    rank = max(x.ndim for x in converted)
    return tuple(
        jnp.expand_dims(x, tuple(range(rank - x.ndim))) if 0 < x.ndim < rank else x
        for x in converted
    )
