"""Options that a version of XLA does not have are not passed to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from numpyro_rwpo.support import compilation


@pytest.mark.parametrize(
    ("num_elements", "gradient_size"),
    [(1, 1), (2 * compilation.SMALL, 1), (1, 2 * compilation.SMALL_GRADIENT)],
)
def test_programs_compile_with_the_options(num_elements: int, gradient_size: int) -> None:
    options = compilation.compiler_options(num_elements, gradient_size)
    assert jax.jit(jnp.sum, compiler_options=options)(jnp.ones(3)) == 3


def test_unknown_options_are_left_out() -> None:
    options = (("xla_backend_optimization_level", 0), ("xla_of_another_version", False))
    assert compilation._known(options) == {"xla_backend_optimization_level": 0}
