"""One posterior in several guises: both centerings, and the particles of all chains at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import init_to_uniform
from numpyro.infer.util import log_density

from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.target import Differentiation, pool_chains

Y = np.array([0.3, -1.2, 2.0], np.float32)


def hierarchy(y):
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    beta = numpyro.sample("beta", dist.Laplace(0.3, scale).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(beta, 0.5).to_event(1), obs=y)


def skewed_hierarchy(y):
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    beta = numpyro.sample("beta", dist.AsymmetricLaplace(0.0, scale, 2.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(beta, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("model", [hierarchy, skewed_hierarchy])
def test_both_centerings_have_the_posteriors_density_with_its_constants(model, beta):
    """The user's joint density, and the same less the Jacobian of the standardized sites."""
    with jax.enable_x64(True):
        y = jnp.asarray(Y, float)
        source = ModelSource(
            model,
            (y,),
            {},
            init_strategy=init_to_uniform,
            laplace_sites="auto",
            differentiation=Differentiation(beta, False),
        )
        bound = source.bind((y,), {})
        target = bound.target()
        for centering in (0.0, 1.0):
            c = jnp.asarray(centering)
            at = target._replace(centering=c)
            x = jax.random.normal(jax.random.key(1), (4,))
            potential = at.value_and_grad(x[None])[0][0] + at.prior_potential(x)
            z, log_jacobian = bound.emit(x, c)
            scale = jnp.exp(z["scale"])
            joint, _ = log_density(model, (y,), {}, {"scale": scale, "beta": z["beta"]})
            expected = -(joint + z["scale"])  # and the Jacobian of the scale's logarithm
            np.testing.assert_allclose(potential / beta - log_jacobian, expected, rtol=1e-10)


def test_pooled_gradient_is_that_of_every_chain():
    def smooth(x, centering):
        return jnp.sin(x).sum() + x[0] ** 2

    target = Differentiation(1.0, False).target(smooth, None)
    x = jax.random.normal(jax.random.key(0), (3, 5, 2))  # chains, particles, coordinates
    apart = jax.vmap(target.value_and_grad)(x)
    together = jax.vmap(
        lambda x: pool_chains(target, "chain").value_and_grad(x), axis_name="chain"
    )(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), apart, together)
