"""Regressions with plain priors, networks and Gaussian processes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.posteriors.everyday.registry import Everyday, everyday, single


@everyday
def bayesian_network() -> Everyday:
    """Shape of ``bnn.py``: a network 3-5-5-1 with normal weights and 100 rows.

    Hidden units can be exchanged and change signs, so it is the network's values that are compared.
    """
    rng = np.random.default_rng(0)
    x = np.linspace(-1.0, 1.0, 100)
    X = np.power(x[:, None], np.arange(3))
    y = X @ (0.5 * rng.normal(size=3)) + 0.5 * (0.5 + x) ** 2 * np.sin(4.0 * x)
    y += 0.05 * rng.normal(size=100)
    y = (y - y.mean()) / y.std()

    def model(X: Any, y: Any, num_hidden: int) -> None:
        def weights(name: str, *shape: int) -> Any:
            return numpyro.sample(name, dist.Normal(jnp.zeros(shape), jnp.ones(shape)))

        hidden = jnp.tanh(X @ weights("w1", X.shape[1], num_hidden))
        hidden = jnp.tanh(hidden @ weights("w2", num_hidden, num_hidden))
        mean = hidden @ weights("w3", num_hidden, 1)
        numpyro.deterministic("mean", mean[::11, 0])
        prec_obs = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0 / jnp.sqrt(prec_obs)), obs=y)

    return Everyday(model, (single(X), single(y[:, None]), 5), sites=("mean", "prec_obs"))
