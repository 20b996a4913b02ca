"""How many particles an ensemble gets when the user gives no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numpyro_rwpo.dynamics.settings import default_num_particles
from numpyro_rwpo.model.target import Differentiation, gradient_work


def product(x, centering):
    return jnp.sum((jnp.ones((5, x.size)) @ x) ** 2)


def recursion(x, centering):
    return lax.scan(lambda state, y: (0.5 * state + y, None), 0.0, x)[0] ** 2


@pytest.mark.parametrize(
    ("potential", "expected"),
    [
        (product, False),
        (recursion, True),
        (jax.jit(recursion), True),
        (jax.checkpoint(recursion), True),
        (lambda x, c: lax.cond(x[0] > 0, recursion, product, x, c), True),
        (jax.custom_jvp(product), False),
    ],
)
def test_loops_are_found_however_deep(potential, expected):
    if isinstance(potential, jax.custom_jvp):
        potential.defjvp(lambda primals, tangents: jax.jvp(product, primals, tangents))
    target = Differentiation(1.0, False).target(potential, None)
    assert gradient_work(lambda: target, 3, jnp.float32).has_loop is expected


def test_the_size_of_a_gradient_grows_with_the_data():
    def size(potential, dim):
        target = Differentiation(1.0, False).target(potential, None)
        return gradient_work(lambda: target, dim, jnp.float32).num_elements

    def fit(number):
        return lambda x, centering: jnp.sum((jnp.ones((number, x.size)) @ x) ** 2)

    products = [size(fit(number), 3) for number in (1000, 2000, 3000)]
    loops = [size(recursion, length) for length in (1000, 2000, 3000)]
    for sizes in (products, loops):
        first, second = np.diff(sizes)
        assert first == second >= 1000


def test_more_dimensions_get_more_particles_up_to_a_limit():
    """Twice the dimension where that is affordable; a metric of few directions serves beyond."""
    for with_loop, least, most in ((False, 64, 128), (True, 32, 64)):
        numbers = [default_num_particles(dim, with_loop) for dim in (1, 2, 10, 20, 50, 64, 2000)]
        assert numbers == [least] * 4 + [most] * 2 + [least]
