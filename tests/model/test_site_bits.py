"""The centerings of many sites in one number."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.model.site_bits import MAX_BITS, all_centered, is_centered, site_bit


def test_bits_of_a_centering_are_read_one_by_one() -> None:
    bits = jnp.asarray([site_bit(index) for index in range(4)])
    expected = [False, True, True, False]
    np.testing.assert_array_equal(is_centered(jnp.asarray(6.0), bits), expected)
    np.testing.assert_array_equal(is_centered(all_centered(4), bits), [True] * 4)
    assert not is_centered(jnp.asarray(6.0), 0)


def test_sites_beyond_the_last_bit_share_it() -> None:
    """A float32 holds all these numbers exactly."""
    centering = jnp.asarray(all_centered(100), jnp.float32)
    assert int(centering) == all_centered(100) == 2**MAX_BITS - 1
    assert site_bit(MAX_BITS - 1) == site_bit(99)
    for index in range(MAX_BITS):
        without = centering - site_bit(index)
        kept = [bool(is_centered(without, site_bit(k))) for k in range(MAX_BITS)]
        assert kept == [k != index for k in range(MAX_BITS)]
