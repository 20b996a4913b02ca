"""What the kernel needs to know of a posterior, before and after it is bound to its data.

:class:`numpyro_rwpo.model.model_source.ModelSource` and
:class:`numpyro_rwpo.model.potential_source.PotentialSource` hold the layout of the parameters and
which of them have a Laplace prior. Their ``bind`` adds the model's arguments, also inside a
compiled program, so that new data of the same shape need no new compilation.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer import init_to_uniform

from numpyro_rwpo.model.preparation import Preparation
from numpyro_rwpo.model.target import Target


class Bound(Protocol):
    """A posterior with its data.

    Attributes:
        has_prior: whether any coordinate has a Laplace prior with closed forms.
    """

    @property
    def has_prior(self) -> bool:
        """See the class."""

    def prepare(self, rng_keys: jax.Array, init_params: Any) -> Preparation:
        """Find a starting position for each key.

        It is that of ``init_params``, which have a chain axis. Without them, positions are tried
        until one has a finite potential and gradient.
        """

    def wrong_sites(self, prepared: Preparation) -> frozenset[str]:
        """Names of the sites that cannot be split off without a change of the posterior."""

    def target(self) -> Target:
        """The density that transport and the moves need."""

    def emit(self, position: jax.Array, centering: jax.Array) -> tuple[Any, jax.Array]:
        """A flat position (dim,) as unconstrained values, and the log Jacobian of the map back."""

    def ravel(self, values: Any) -> jax.Array:
        """A user's unconstrained values for one chain as a position (dim,) at centering 0."""

    def constrain(self, values: Any) -> Any:
        """Unconstrained values as those of the sites of the user's model."""


class Source(Protocol):
    """A posterior without its data.

    Attributes:
        site_bits: see :class:`numpyro_rwpo.model.target.Target`.
        layout: hashable description of the latent values and of the sites that are split off.
    """

    site_bits: np.ndarray | None
    layout: Hashable

    def bind(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]) -> Bound:
        """The posterior with the arguments of the model."""


def start_radius(init_strategy: Callable[..., Any], init_params: Any) -> float | None:
    """Half the width of the uniform start; ``None`` if the user chose the start."""
    strategy = init_strategy if isinstance(init_strategy, partial) else init_strategy()
    if init_params is not None or strategy.func is not init_to_uniform:
        return None
    return float(strategy.keywords.get("radius", 2.0))


def layout(values: Any) -> tuple[Any, tuple[Any, ...]]:
    """Structure, shapes and types of a pytree of arrays, hashable, for comparison."""
    leaves, structure = jax.tree.flatten(values)
    return structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)


def fits(values: Any, expected: Any) -> bool:
    """Whether values have a layout's structure and shapes, whatever their leading axes are."""
    structure, leaves = layout(values)
    pairs = zip(leaves, expected[1], strict=False)
    return structure == expected[0] and all(
        a[max(len(a) - len(b), 0) :] == b[max(len(b) - len(a), 0) :] for (a, _), (b, _) in pairs
    )


def different_model(values: Any) -> ValueError:
    """The error for a state that belongs to another model."""
    return ValueError(
        "The state from which to go on must be of the same model: its latent sites have "
        f"the shapes {jax.tree.map(jnp.shape, values)}; the model's do not. Use the saved "
        "run's model and data, or start anew (`mcmc.post_warmup_state = None`)."
    )


def ravel_like(values: Any, prototype: Any) -> jax.Array:
    """Flatten ``values`` after checking their structure and shapes against ``prototype``."""
    return ravel_pytree(values_like(values, prototype))[0]


def values_like(values: Any, prototype: Any) -> Any:
    """``values`` in the types of ``prototype``, after a check of their structure and shapes."""
    structure: Any = jax.tree.structure(prototype)
    if jax.tree.structure(values) != structure:
        raise ValueError(
            "`init_params` must have the structure of the unconstrained latent values, "
            f"{jax.tree.map(np.shape, prototype)}; got {jax.tree.map(np.shape, values)}."
        )
    shapes = [np.shape(x) for x in jax.tree.leaves(values)]
    expected = [np.shape(x) for x in jax.tree.leaves(prototype)]
    if shapes != expected:
        raise ValueError(
            f"`init_params` must have the shapes {jax.tree.map(np.shape, prototype)} "
            "(unconstrained, after the chain axis if there are several chains); got "
            f"{jax.tree.map(np.shape, values)}."
        )
    return jax.tree.map(lambda x, p: jnp.asarray(x, p.dtype), values, prototype)
