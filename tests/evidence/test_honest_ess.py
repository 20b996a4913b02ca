"""The effective sample size that ArviZ reports is the one the errors of the means have.

Many independent ensembles sample a posterior with known means in one compiled run; each gives a
z-score (mean - truth) / mcse per coordinate. Their variance is 1 if the Monte-Carlo standard error
is honest. It would be (1 + r) / (1 - r) if a particle's successive states had a correlation r that
ArviZ did not notice: they stand next to each other in a chain so that it does.
"""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from scipy import integrate

from numpyro_rwpo import RWPO

NUM_CHAINS = 60
NUM_NORMAL = 4
OBSERVED = np.array([0.3, 1.2, -0.5, 3.0], np.float32)


def model(observed, precision):
    theta = numpyro.sample("theta", dist.Laplace(0.0, 0.5).expand([observed.size]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, 0.7), obs=observed)
    numpyro.sample("x", dist.MultivariateNormal(jnp.ones(len(precision)), None, precision))


def true_means():
    def density(t, y):
        return np.exp(-abs(t) / 0.5 - 0.5 * ((y - t) / 0.7) ** 2)

    def mean(y):
        mass = [integrate.quad(density, a, b, (y,))[0] for a, b in ((-9, 0), (0, 9))]
        first = [integrate.quad(lambda t: t * density(t, y), a, b)[0] for a, b in ((-9, 0), (0, 9))]
        return sum(first) / sum(mass)

    return {"theta": np.array([mean(y) for y in OBSERVED]), "x": np.ones(NUM_NORMAL)}


@pytest.mark.parametrize(
    "passes",
    [
        8,  # half of the particles in one refresh
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(64, marks=pytest.mark.slow),  # four refreshes
    ],
)
def test_z_scores_have_unit_variance(passes):
    """With so many draws for each particle on average."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(NUM_NORMAL, NUM_NORMAL)))[0]
    precision = (basis * np.geomspace(1, 100, NUM_NORMAL)) @ basis.T
    num_particles = 64
    mcmc = MCMC(
        RWPO(model, num_particles=num_particles),
        num_warmup=200,
        num_samples=passes * num_particles,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), jnp.asarray(OBSERVED), jnp.asarray(precision, jnp.float32))
    samples = mcmc.get_samples(group_by_chain=True)
    scores = []
    for name, truth in true_means().items():
        draws = np.asarray(samples[name], np.float64)
        for k, value in enumerate(truth):
            mcse = np.array([az.mcse(chain) for chain in draws[:, :, k]])
            scores.append((draws[:, :, k].mean(1) - value) / mcse)
    scores = np.array(scores)
    variance, mean = scores.var(), scores.mean()
    # The standard error of a variance of n normal scores is sqrt(2 / n), about 0.06 here.
    error = np.sqrt(2 / scores.size)
    print(
        f"\n{passes} passes: z-scores have mean {mean:.3f}, variance {variance:.3f} +- {error:.3f}"
    )
    assert abs(mean) < 4 / np.sqrt(scores.size)
    assert variance < 1.25 + 4 * error
