"""What the distributions of this package share: a scale family on vectors, and its standard form.

The sampler moves a site of these families in other coordinates if that helps: the site is a linear
map of scale times the standard coordinates. A family says what its standard form is and what the
map is; :mod:`numpyro_rwpo.model.location_scale` does the rest.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints


class StructuredDistribution(dist.Distribution):
    """A scale family of vectors, whose density does not factorize over coordinates.

    Attributes:
        scale: In the units of the vector, > 0.
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.real_vector
    reparametrized_params = ["scale"]
    scale: Any

    def standard(self, scale: Any) -> dist.Distribution:
        """The distribution of the standard coordinates times ``scale``, of this one's shape.

        Args:
            scale: In the shape of :attr:`scale`.
        """
        raise NotImplementedError

    def coordinate_scale(self) -> jax.Array:
        """The scale of each standard coordinate, in the shape of the vector."""
        raise NotImplementedError

    def to_vector(self, coordinates: jax.Array) -> jax.Array:
        """The vector, from the standard coordinates times their scales; its determinant is 1."""
        return coordinates

    def to_coordinates(self, vector: jax.Array) -> jax.Array:
        """The inverse of :meth:`to_vector`."""
        return vector


def checked_size(name: str, value: Any, least: int) -> int:
    """A number of coordinates as an integer, if it is at least ``least``.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer; got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}; got {value}.")
    return int(value)


def checked_scale(name: str, value: Any) -> jax.Array:
    """A scale as a floating-point array, if it is positive and finite where it is known.

    Raises:
        TypeError: If it is no real number or array.
        ValueError: If a concrete value is not positive or not finite.
    """
    if not isinstance(value, jax.core.Tracer):
        concrete = np.asarray(value)
        if concrete.dtype.kind not in "iuf":
            raise TypeError(f"`{name}` must be a real number or array; got {value!r}.")
        if not (np.isfinite(concrete) & (concrete > 0)).all():
            raise ValueError(f"`{name}` must be positive and finite; got {value!r}.")
    return jnp.asarray(value, jnp.result_type(float, value))


def check_event(name: str, value: jax.Array, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless the last axes of a value have the event's shape."""
    if jnp.shape(value)[-len(shape) :] != shape:
        raise ValueError(
            f"A value of {name} must have shape {('...', *shape)}; got {jnp.shape(value)}."
        )
