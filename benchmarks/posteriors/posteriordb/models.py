"""NumPyro versions of seven posteriors from posteriordb.

Every model is an ordinary NumPyro model whose keyword arguments are the entries
of ``data/<name>.json`` that it needs.  Extra entries are absorbed by
``**unused``, so the usual way to run one is::

    from models import POSTERIORS, load_data

    model, to_reference = POSTERIORS["arK-arK"]
    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=1000, num_chains=4,
                chain_method="vectorized")
    mcmc.run(jax.random.PRNGKey(0), **load_data("arK-arK"))
    reference_like = to_reference(mcmc.get_samples(group_by_chain=True))

``to_reference`` turns the dictionary of samples into one keyed by the parameter
names used in the reference draws (arrays keep their leading chain and draw axes).

The models are written from their statistical definitions.  "Flat" means an
improper uniform density on the parameter's support, as in the originals.
"""

import json
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

HERE = os.path.dirname(os.path.abspath(__file__))


class Posterior(NamedTuple):
    """One posterior."""

    model: Callable  # NumPyro model, called with the data as keyword arguments
    to_reference: Callable  # samples dict -> dict keyed by reference names


def load_data(name):
    """The data of one posterior: lists become arrays, numbers stay numbers."""
    with open(os.path.join(HERE, "data", name + ".json")) as f:
        raw = json.load(f)
    return {k: np.asarray(v) if isinstance(v, list) else v for k, v in raw.items()}


def load_reference(name):
    """Summaries of the reference draws: scalar parameter name -> statistics."""
    with open(os.path.join(HERE, "reference", name + ".json")) as f:
        return json.load(f)["parameters"]


def same_names(*names):
    """A ``to_reference`` for sites that are already named as in the reference."""
    return lambda samples: {name: samples[name] for name in names}


def flat(name, size=None):
    """A parameter (scalar, or vector of ``size``) with a flat density on R."""
    if size is None:
        return numpyro.sample(name, dist.ImproperUniform(constraints.real, (), ()))
    return numpyro.sample(name, dist.ImproperUniform(constraints.real_vector, (), (size,)))


def flat_positive(name):
    """A scalar parameter with a flat density on the positive half-line."""
    return numpyro.sample(name, dist.ImproperUniform(constraints.positive, (), ()))


# --------------------------------------------------------------------------
# Linear regressions


def kidscore_momhsiq(kid_score, mom_hs, mom_iq, **unused):
    """Test score of children given their mother's schooling and IQ."""
    beta = flat("beta", 3)
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq
    numpyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def logmesquite_logvash(weight, diam1, diam2, canopy_height, total_height, group, **unused):
    """Log weight of mesquite bushes given log sizes."""
    columns = [
        np.ones(len(weight)),
        np.log(diam1 * diam2 * canopy_height),  # canopy volume
        np.log(diam1 * diam2),  # canopy area
        np.log(diam1 / diam2),  # canopy shape
        np.log(total_height),
        group,
    ]
    X = jnp.asarray(np.stack(columns, axis=1))
    beta = flat("beta", 6)
    sigma = flat_positive("sigma")
    numpyro.sample("log_weight", dist.Normal(X @ beta, sigma), obs=np.log(weight))


def logearn_interaction(earn, height, male, **unused):
    """Log earnings given height, sex and their product."""
    X = jnp.asarray(np.stack([np.ones(len(earn)), height, male, height * male], 1))
    beta = flat("beta", 4)
    sigma = flat_positive("sigma")
    numpyro.sample("log_earn", dist.Normal(X @ beta, sigma), obs=np.log(earn))


def blr(X, y, **unused):
    """Linear regression with weak normal priors."""
    X = jnp.asarray(X)
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


# --------------------------------------------------------------------------
# Time series


def ar_k(y, K, **unused):
    """Autoregression of order K."""
    lags = np.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], axis=1)
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    with numpyro.plate("lag", K):
        beta = numpyro.sample("beta", dist.Normal(0, 10))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = alpha + jnp.asarray(lags) @ beta
    numpyro.sample("y", dist.Normal(mean, sigma), obs=y[K:])


def arma11(y, **unused):
    """ARMA(1, 1)."""
    y = jnp.asarray(y)
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    phi = numpyro.sample("phi", dist.Normal(0, 2))
    theta = numpyro.sample("theta", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))

    # One-step prediction errors; before the first observation the series is
    # taken to be at mu with an error of zero.
    def step(error, pair):
        previous, current = pair
        error = current - (mu + phi * previous + theta * error)
        return error, error

    first = y[0] - (mu + phi * mu)
    _, rest = jax.lax.scan(step, first, (y[:-1], y[1:]), unroll=8)
    errors = jnp.concatenate([first[None], rest])
    numpyro.sample("errors", dist.Normal(0, sigma), obs=errors)


# --------------------------------------------------------------------------
# Hierarchical


def eight_schools_noncentered(y, sigma, **unused):
    """Effects of coaching in eight schools, non-centered."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(y)):
        effect = numpyro.sample("effect", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * effect)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


# --------------------------------------------------------------------------

POSTERIORS = {
    "kidiq-kidscore_momhsiq": Posterior(kidscore_momhsiq, same_names("beta", "sigma")),
    "mesquite-logmesquite_logvash": Posterior(logmesquite_logvash, same_names("beta", "sigma")),
    "arma-arma11": Posterior(arma11, same_names("mu", "phi", "theta", "sigma")),
    "eight_schools-eight_schools_noncentered": Posterior(
        eight_schools_noncentered, same_names("theta", "mu", "tau")
    ),
    "earnings-logearn_interaction": Posterior(logearn_interaction, same_names("beta", "sigma")),
    "sblrc-blr": Posterior(blr, same_names("beta", "sigma")),
    "arK-arK": Posterior(ar_k, same_names("alpha", "beta", "sigma")),
}
