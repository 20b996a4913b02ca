"""The user's density, such as that of a guide, from which particles start and to which they jump.

It is a distribution of flat unconstrained vectors in the coordinates of the user's model. The
sampler may use other coordinates, see :mod:`numpyro_rwpo.model.laplace_sites`.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree

from numpyro_rwpo.model.source import Bound
from numpyro_rwpo.model.target import Proposal, Target


def check_proposal(value: Any) -> None:
    """Raise unless the value is ``None`` or a continuous distribution of vectors."""
    if value is None:
        return
    if not isinstance(value, dist.Distribution):
        raise TypeError(
            "`proposal` must be a numpyro.distributions.Distribution of flat unconstrained "
            f"vectors, such as guide.get_posterior(params); got {value!r}."
        )
    if value.batch_shape != () or len(value.event_shape) != 1 or value.is_discrete:
        raise ValueError(
            "`proposal` must be a continuous distribution with batch shape () and event shape "
            f"(dim,); got {type(value).__name__} with batch shape {value.batch_shape} and event "
            f"shape {value.event_shape}. For independent coordinates add `.to_event(1)`."
        )


def check_proposal_dim(proposal: dist.Distribution, dim: int) -> None:
    """Raise ``ValueError`` unless the proposal has the posterior's dimension."""
    if proposal.event_shape != (dim,):
        raise ValueError(
            f"`proposal` must be a distribution of all {dim} unconstrained parameters; got event "
            f"shape {proposal.event_shape}. Use the guide of this model, trained on it."
        )


def fingerprint(proposal: dist.Distribution | None) -> str | None:
    """A string that identifies a proposal: its class and a checksum of its parameters."""
    if proposal is None:
        return None
    numbers = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(proposal))
    return f"{type(proposal).__name__} {zlib.crc32(numbers):08x}"


def with_proposal(target: Target, bound: Bound, proposal: dist.Distribution, dtype: Any) -> Target:
    """The target with a proposal; positions have the type ``dtype``."""

    def to_values(position: jax.Array) -> tuple[Any, jax.Array]:
        return bound.emit(position, target.centering)

    changed = change_coordinates(proposal, dtype, bound.ravel, to_values)
    return target._replace(proposal=changed)


def change_coordinates(
    proposal: dist.Distribution,
    dtype: Any,
    to_position: Callable[[Any], jax.Array],
    to_values: Callable[[jax.Array], tuple[Any, jax.Array]],
) -> Proposal:
    """The proposal in the sampler's coordinates.

    Args:
        proposal: Distribution of the user's unconstrained values, flat, (dim,).
        dtype: Type of positions.
        to_position: Maps such values, in the user's structure, to a position (dim,).
        to_values: The inverse map, which also returns the log Jacobian determinant of
            ``to_position``.
    """
    shapes, _ = jax.eval_shape(to_values, jax.ShapeDtypeStruct(proposal.event_shape, dtype))
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))

    def sample(rng_key: jax.Array, num_samples: int) -> jax.Array:
        with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions need it for batches.
            draws = proposal.sample(rng_key, (num_samples,)).astype(flat.dtype)
        return jax.vmap(lambda x: to_position(unravel(x)))(draws)

    def log_prob(positions: jax.Array) -> jax.Array:
        values, log_jacobian = jax.vmap(to_values)(positions)
        users = jax.vmap(lambda x: ravel_pytree(x)[0])(values)
        with jax.numpy_rank_promotion("allow"):
            log_prob = proposal.log_prob(users)
        return log_prob.astype(dtype) - log_jacobian

    return Proposal(sample, log_prob)
