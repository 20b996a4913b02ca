"""A source bound to its data, once for everything that follows; and whether values fit a source."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from numpyro_rwpo.model.proposal import change_coordinates
from numpyro_rwpo.model.source import Source, layout
from numpyro_rwpo.model.target import Target
from numpyro_rwpo.support.sharding import Placement


def different_model(values: Any) -> ValueError:
    """The error where a state is of another model."""
    return ValueError(
        "The state from which to go on must be of the same model: its latent sites have "
        f"the shapes {jax.tree.map(jnp.shape, values)}; the model's do not. Use the saved "
        "run's model and data, or start anew (`mcmc.post_warmup_state = None`)."
    )


def fits(values: Any, expected: Any) -> bool:
    """Whether values have a layout's structure and shapes, with whatever leading axes."""
    structure, leaves = layout(values)
    pairs = zip(leaves, expected[1], strict=False)
    return structure == expected[0] and all(
        a[max(len(a) - len(b), 0) :] == b[max(len(b) - len(a), 0) :] for (a, _), (b, _) in pairs
    )


class Bound(NamedTuple):
    """A posterior with its data.

    Attributes:
        target: what the moves need of it.
        emit: maps a flat position and a centering to unconstrained values and the log Jacobian of
            the way back.
    """

    target: Target
    emit: Callable[..., Any]


def bind(
    source: Source,
    model_args: tuple[Any, ...],
    model_kwargs: dict[str, Any],
    *,
    proposal: dist.Distribution | None,
    placement: Placement,
    dtype: Any,
) -> Bound:
    """Bind a source to the model's arguments, once for everything that follows."""
    target = source.bind(model_args, model_kwargs)._replace(placement=placement)
    emit = partial(source.emit, model_args=model_args, model_kwargs=model_kwargs)
    if proposal is not None:
        ravel = partial(source.ravel, model_args=model_args, model_kwargs=model_kwargs)
        values = partial(emit, centering=target.centering)
        target = target._replace(proposal=change_coordinates(proposal, dtype, ravel, values))
    return Bound(target, emit)
