"""Which sites are moved as the user wrote them, as one number.

Sites with a latent scale can be moved in two parameterizations, each in its own. The *centering* of
them all is a whole number: the bit of a site is 1 if the site is centered, that is moved as
written, and 0 if it is standardized. As a number it can go wherever a scalar can, from the compiled
programs to a checkpoint.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# A float32 holds whole numbers of this many bits exactly. If there are more sites, the last ones
# share a bit, and so a parameterization.
MAX_BITS = 24


def number_of_bits(num_sites: int) -> int:
    """Number of parameterizations that can be chosen independently."""
    return min(num_sites, MAX_BITS)


def site_bit(index: int) -> int:
    """The value of the bit of the site with that index, a power of two."""
    return 1 << min(index, MAX_BITS - 1)


def all_centered(num_sites: int) -> int:
    """The centering at which all sites are moved as written."""
    return (1 << number_of_bits(num_sites)) - 1


def is_centered(centering: ArrayLike, bit: ArrayLike) -> jax.Array:
    """Whether a site is centered, in the shape to which its bit and the centering broadcast.

    A bit of 0 is that of sites that have only one parameterization, which counts as standardized.
    """
    bit = jnp.asarray(bit, float)
    return (jnp.floor(centering / jnp.where(bit > 0, bit, 1.0)) % 2 == 1) & (bit > 0)
