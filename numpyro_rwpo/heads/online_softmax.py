r"""Softmax attention among particles without the matrix of weights.

The logits are those of the regularized Wasserstein proximal operator (Han, Osher, Li 2025,
arXiv:2502.16773): a Gaussian of the distance between query and key, minus the key's log normalizer.
Keys are read one block at a time, under a running maximum, sum and weighted mean (the "online
softmax" of Milakov and Gimelshein 2018, arXiv:1805.02867).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from numpyro_rwpo.support.broadcasting import same_rank

# Number of keys that are read at a time. With 4,096 queries they make one block of logits.
BLOCK_SIZE = 512
# Number of logits in one block of queries and keys at most. In single precision they take 8 MB, of
# the order of a processor's last-level cache.
_BLOCK_ELEMENTS = 2**21


def streamed_attention(
    queries: jax.Array,
    keys: jax.Array,
    log_normalizer: jax.Array,
    scale: ArrayLike,
    *,
    block_size: int = BLOCK_SIZE,
) -> tuple[jax.Array, jax.Array]:
    r"""Softmax attention with Gaussian logits, one block of keys after the other.

    The logits are :math:`-|x_i - y_j|^2 / (2 s^2) - \log Z_j`; time is O(queries x keys x dim),
    memory linear in queries and in keys.

    Args:
        queries: x, (num_queries, dim).
        keys: y, (num_keys, dim).
        log_normalizer: (num_keys, 1) for one softmax over whole distances, (num_keys, dim) for a
            softmax per coordinate.
        scale: s, scalar or (dim,), position units.
        block_size: Keys in a block.

    Returns:
        Log of the sum of exponentials, (num_queries, 1) or (num_queries, dim), and displacements
        ``attention mean - query``, (num_queries, dim).
    """
    num_keys, dim = keys.shape
    num_softmax = log_normalizer.shape[1]
    block_size = min(block_size, num_keys)
    # Distances and displacements keep their digits far from the origin.
    center = jnp.mean(keys, 0, keepdims=True)
    key_blocks = blocks(keys - center, block_size, 0)
    bias_blocks = blocks(-log_normalizer, block_size, -jnp.inf)

    def attend(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        nothing = no_sums(queries, num_softmax, jnp.result_type(queries, bias_blocks))
        return attention_of(
            absorb_blocks(nothing, queries, key_blocks, bias_blocks, scale), queries
        )

    query_block = queries_in_block(block_size, num_softmax)
    num_queries = queries.shape[0]
    queries = queries - center
    if num_queries <= query_block:
        return attend(queries)
    log_sum, displacement = lax.map(attend, blocks(queries, query_block, 0))
    return (
        log_sum.reshape(-1, num_softmax)[:num_queries],
        displacement.reshape(-1, dim)[:num_queries],
    )


def queries_in_block(block_size: int, num_softmax: int) -> int:
    """Queries that are worked on at a time."""
    return max(1, _BLOCK_ELEMENTS // (block_size * num_softmax))


def blocks(rows: jax.Array, block_size: int, fill: float) -> jax.Array:
    """Cut (n, columns) into (blocks, block_size, columns), the last one filled up."""
    padding = -rows.shape[0] % block_size
    padded = jnp.pad(rows, ((0, padding), (0, 0)), constant_values=fill)
    return padded.reshape(-1, block_size, rows.shape[1])


class Sums(NamedTuple):
    """What queries have gathered from the keys so far, under a running maximum of the logits.

    Attributes:
        peak: largest logit, (num_queries, 1) or (num_queries, dim).
        total: sum of exponentials of the logits less the peak, same shape.
        weighted: sum of keys with these weights, (num_queries, dim).
    """

    peak: jax.Array
    total: jax.Array
    weighted: jax.Array


def no_sums(queries: jax.Array, num_softmax: int, dtype: Any) -> Sums:
    """Before the first key; ``num_softmax`` is 1 or dim."""
    shape = (queries.shape[0], num_softmax)
    lowest = jnp.full(shape, float(np.finfo(dtype).min), dtype)
    return Sums(lowest, jnp.zeros_like(lowest), jnp.zeros_like(queries, dtype))


def absorb_blocks(
    sums: Sums,
    queries: jax.Array,
    key_blocks: jax.Array,
    bias_blocks: jax.Array,
    scale: ArrayLike,
) -> Sums:
    """Add blocks of keys (blocks, block_size, dim) with their biases to the sums of queries."""
    is_joint = bias_blocks.shape[2] == 1
    queries, scale = same_rank(queries, scale)

    def absorb(sums: Sums, block: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
        peak, total, weighted = sums
        keys, bias = block
        if is_joint:
            squares = _squared_distances(queries / scale, keys / scale)
            logits = bias[None] - 0.5 * squares[..., None]
        else:
            distances, widths = same_rank(queries[:, None] - keys[None], scale)
            logits = bias[None] - 0.5 * (distances / widths) ** 2
        # Results do not depend on the peak, so neither do their derivatives.
        new_peak = lax.stop_gradient(jnp.maximum(peak, jnp.max(logits, 1)))
        weights = jnp.exp(logits - new_peak[:, None])
        if is_joint:
            # The sum as a product with ones: a compiled sum would not be vectorized over exp.
            with_one = jnp.hstack([keys, jnp.ones((keys.shape[0], 1), keys.dtype)])
            products = jnp.matmul(weights[..., 0], with_one, precision=lax.Precision.HIGHEST)
            moment, mass = products[:, :-1], products[:, -1:]
        else:
            moment, mass = jnp.sum(weights * keys[None], 1), jnp.sum(weights, 1)
        shrink = jnp.exp(peak - new_peak)
        return Sums(new_peak, total * shrink + mass, weighted * shrink + moment), None

    return lax.scan(absorb, sums, (key_blocks, bias_blocks))[0]


def attention_of(sums: Sums, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log of the sums of exponentials, and displacements ``attention mean - query``."""
    # A query beyond the reach of every key: density 0 and a displacement that is merely finite.
    total = jnp.maximum(sums.total, float(np.finfo(sums.total.dtype).tiny))
    return sums.peak + jnp.log(total), sums.weighted / total - queries


@jax.custom_jvp
def _squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """(m, dim) and (n, dim) to (m, n); from differences, since |x|^2 - 2xy + |y|^2 cancels."""

    def add(total: jax.Array, coordinate: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + (coordinate[0][:, None] - coordinate[1][None]) ** 2, None

    return lax.scan(add, jnp.zeros((x.shape[0], y.shape[0]), x.dtype), (x.T, y.T))[0]


@_squared_distances.defjvp
def _squared_distances_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Products of matrices: the derivative of the loop would keep dim matrices of differences."""
    (x, y), (dx, dy) = primals, tangents
    mixed = jnp.matmul(x, dy.T, precision="highest") + jnp.matmul(dx, y.T, precision="highest")
    own = jnp.sum(x * dx, 1)[:, None] + jnp.sum(y * dy, 1)[None]
    return _squared_distances(x, y), 2 * (own - mixed)
