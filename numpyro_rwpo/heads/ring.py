"""Softmax attention among particles that devices share: keys travel around a ring.

Every device keeps its queries and their running sums (:mod:`numpyro_rwpo.heads.online_softmax`),
works on the keys it has, and passes them on to the next device; after as many turns as there are
devices every query has seen every key. No device ever holds more than its share of either (ring
attention: Liu, Zaharia and Abbeel 2023, arXiv:2310.01889).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike

from numpyro_rwpo.heads.density import ProximalDensity
from numpyro_rwpo.heads.joint import JointDensity
from numpyro_rwpo.heads.online_softmax import (
    BLOCK_SIZE,
    Sums,
    absorb_blocks,
    attention_of,
    blocks,
    no_sums,
    queries_in_block,
)
from numpyro_rwpo.support.sharding import Placement


def shared_heat_score(
    density: ProximalDensity, particles: jax.Array, placement: Placement
) -> jax.Array:
    """``density.heat_score`` at the particles that it was fitted to, wherever they are.

    Densities on a grid have a copy of it on every device; only the joint one needs all particles.
    """
    if placement.mesh is None or not isinstance(density, JointDensity):
        return density.heat_score(particles)
    attend = partial(ring_attention, mesh=placement.mesh, axis=placement.axis)
    return density.heat_score(particles, attend)


def ring_attention(
    queries: jax.Array,
    keys: jax.Array,
    log_normalizer: jax.Array,
    scale: ArrayLike,
    *,
    mesh: Mesh,
    axis: str,
) -> tuple[jax.Array, jax.Array]:
    """Streamed attention (:mod:`numpyro_rwpo.heads.online_softmax`) of queries and keys shared out.

    Every device sends and receives num_keys x (dim + 1) numbers in all.

    Args:
        queries: x, (num_queries, dim), a multiple of the number of devices.
        keys: y, (num_keys, dim), likewise.
        log_normalizer: (num_keys, 1).
        scale: s, scalar or (dim,).
        mesh: of devices.
        axis: of the mesh, over which queries and keys are shared out.

    Returns:
        As :func:`~numpyro_rwpo.heads.online_softmax.streamed_attention`, rows shared out.
    """
    rows, whole = PartitionSpec(axis), PartitionSpec()
    local = partial(_turn_around, axis=axis, size=mesh.shape[axis])
    attend = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, rows, rows, whole),
        out_specs=(rows, rows),
        check_vma=False,
    )
    return attend(queries, keys, log_normalizer, jnp.asarray(scale))


def _turn_around(
    queries: jax.Array,
    keys: jax.Array,
    log_normalizer: jax.Array,
    scale: jax.Array,
    *,
    axis: str,
    size: int,
) -> tuple[jax.Array, jax.Array]:
    """What one device does."""
    num_queries, dim = queries.shape
    center = lax.pmean(jnp.mean(keys, 0, keepdims=True), axis)
    queries, keys = queries - center, keys - center
    block_size = min(BLOCK_SIZE, keys.shape[0])
    key_blocks = blocks(keys, block_size, 0)
    bias_blocks = blocks(-log_normalizer, block_size, -jnp.inf)
    query_blocks = blocks(queries, min(num_queries, queries_in_block(block_size, 1)), 0)
    dtype = jnp.result_type(queries, log_normalizer)
    sums = jax.vmap(lambda block: no_sums(block, 1, dtype))(query_blocks)
    to_next = [(k, (k + 1) % size) for k in range(size)]

    Carry = tuple[Sums, jax.Array, jax.Array]

    def turn(_: jax.Array, carry: Carry) -> Carry:
        sums, key_blocks, bias_blocks = carry
        sums = lax.map(
            lambda block: absorb_blocks(block[0], block[1], key_blocks, bias_blocks, scale),
            (sums, query_blocks),
        )
        return sums, *lax.ppermute((key_blocks, bias_blocks), axis, to_next)

    sums, _, _ = lax.fori_loop(0, size, turn, (sums, key_blocks, bias_blocks))
    log_sum, displacement = jax.vmap(attention_of)(sums, query_blocks)
    return log_sum.reshape(-1, 1)[:num_queries], displacement.reshape(-1, dim)[:num_queries]
