"""Loops and branches that cost little under ``vmap``."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Carry = TypeVar("Carry")


def run_if(active: jax.Array, body: Callable[[Carry], Carry], carry: Carry) -> Carry:
    """Run ``body`` once where ``active``.

    This is a loop with zero or one iterations instead of ``lax.cond``, because XLA passes the carry
    of a loop through in place, and the iterations that only emit a particle must not copy the
    ensemble. The barrier keeps the computations that ``body`` does with ``carry`` inside the loop.
    XLA may move computations that use only other arrays out of the loop, and thus into every
    iteration.
    """

    def once(state: tuple[jax.Array, Carry]) -> tuple[jax.Array, Carry]:
        active, carry = lax.optimization_barrier(state)
        return jnp.zeros_like(active), body(carry)

    return lax.while_loop(lambda state: state[0], once, (active, carry))[1]


def batched_like(x: jax.Array, tree: Carry) -> Carry:
    """The arrays of ``tree``, batched by ``vmap`` wherever ``x`` is.

    ``vmap`` traces the body of a loop again until it knows which parts of the carry are batched,
    and every body in it as many times again. If all of them are from the start, once is enough.
    Compiled programs contain no trace of this.
    """
    first = x.ravel()[0]
    never = jnp.zeros((), bool)
    return jax.tree.map(lambda leaf: jnp.where(never, first.astype(leaf.dtype), leaf), tree)
