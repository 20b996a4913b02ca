"""Branches that stay cheap where they are not taken, also under ``vmap``."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Carry = TypeVar("Carry")


def run_if(active: jax.Array, body: Callable[[Carry], Carry], carry: Carry) -> Carry:
    """Run ``body`` once where ``active``.

    A loop of no or one trip and not ``lax.cond``, because XLA passes a loop's carry through in
    place: the iterations that only emit a particle must not copy the ensemble. The barrier keeps
    what ``body`` computes from ``carry`` inside; what it computes from other arrays alone XLA may
    move out of the loop, into every iteration.
    """

    def once(state: tuple[jax.Array, Carry]) -> tuple[jax.Array, Carry]:
        active, carry = lax.optimization_barrier(state)
        return jnp.zeros_like(active), body(carry)

    return lax.while_loop(lambda state: state[0], once, (active, carry))[1]
