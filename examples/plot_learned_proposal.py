r"""
Modes far apart: a learned proposal
===================================

A frequency :math:`\omega` is observed through :math:`\cos(\omega t)` at six times, about one unit
apart. At these times a frequency and its aliases :math:`2\pi k \pm \omega` look nearly the same, so
the posterior has many narrow modes, and only the Laplace prior favors the low frequencies. No
gradient leads from one mode to another. ``RWPO`` alone searches for the modes and jumps between
them, and the table at the end shows that each has its right share. A mode that no descent of any
chain finds would be missed, though. A density that is known to cover the posterior can take the
place of this search.

Here the *sparse transformer*, a learned flow with the attention layers of this package, is fitted
to the posterior. Its density then serves as a proposal: particles are initialized from its draws
and jump to further draws. The density need not be exact as long as it covers the posterior, because
a Metropolis step corrects the difference.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from numpyro.infer.util import potential_energy

from numpyro_rwpo import RWPO, diagnose
from numpyro_rwpo.flow import ForwardKL, ProximalDistribution, SparseTransformerFlow, train

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
NUM_SAMPLES = 100 if FAST else 1000
NUM_STEPS = 50 if FAST else 600
NOISE, PRIOR_SCALE = 0.5, 3.0

# %%
# Data and model
# --------------

rng = np.random.default_rng(1)
times = np.arange(1, 7) + 0.05 * rng.normal(size=6)
y = np.cos(2.5 * times) + NOISE * rng.normal(size=6)


def model(times, y):
    frequency = numpyro.sample("frequency", dist.Laplace(0.0, PRIOR_SCALE))
    mean = jnp.cos(frequency * times)
    numpyro.sample("y", dist.Normal(mean, NOISE).to_event(1), obs=y)


# %%
# The flow
# --------
# Its base is as wide as the prior, and it is trained by the forward KL divergence, which covers the
# posterior. The reverse KL divergence, which SVI minimizes, ends in a single mode here, and
# particles would not find modes that the proposal does not cover.


def log_density(x):
    def one(x):
        return -potential_energy(model, (times, y), {}, {"frequency": x[0]})

    return jax.vmap(one)(x)


flow = SparseTransformerFlow(
    1,
    num_layers=2,
    width=16,
    rate=1 / PRIOR_SCALE,
    scale=np.sqrt(2) * PRIOR_SCALE,
    rng_key=jax.random.key(0),
)
loss = ForwardKL(log_density, num_samples=1024)
result = train(
    jax.random.key(0), flow, loss, num_steps=NUM_STEPS, learning_rate=0.02, progress_bar=not FAST
)
proposal = ProximalDistribution(result.flow.density(), 1)

# %%
# Sampling without and with the proposal
# --------------------------------------


def sample(kernel):
    mcmc = MCMC(
        kernel,
        num_warmup=200,
        num_samples=NUM_SAMPLES,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=not FAST,
    )
    mcmc.run(jax.random.key(1), times, y)
    return mcmc


alone = sample(RWPO(model))
print(diagnose(alone))

# %%
# With the proposal, there is no search, and no list of modes.

helped = sample(RWPO(model, proposal=proposal))
print(diagnose(helped))

# %%
# Comparison with quadrature
# --------------------------
# The table shows the weights of the modes, within half a unit of 2.5 and of its aliases.

grid = np.linspace(-15, 15, 30_001)
residual = (y[:, None] - np.cos(grid * times[:, None])) / NOISE
density = np.exp(-0.5 * (residual**2).sum(0) - np.abs(grid) / PRIOR_SCALE)
density /= density.sum() * (grid[1] - grid[0])
sampled = {
    "RWPO": np.asarray(alone.get_samples()["frequency"]),
    "RWPO, proposal": np.asarray(helped.get_samples()["frequency"]),
    "flow": np.asarray(result.flow.sample(jax.random.key(2), 4000))[:, 0],
}
modes = np.array([2.5, 2 * np.pi - 2.5, 2 * np.pi + 2.5, 4 * np.pi - 2.5])
modes = np.concatenate([-modes[::-1], modes])


def shares(points, weights=None):
    near = np.abs(points - modes[:, None]) < 0.5
    return np.average(near, axis=1, weights=weights)


print("mode           ", *(f"{mode:6.1f}" for mode in modes))
print("quadrature     ", *(f"{share:6.3f}" for share in shares(grid, density)))
for name, draws in sampled.items():
    print(f"{name:15s}", *(f"{share:6.3f}" for share in shares(draws)))

figure, rows = plt.subplots(3, 1, figsize=(8, 6), sharex=True, layout="constrained")
for axes, (name, draws) in zip(rows, sampled.items(), strict=True):
    axes.hist(draws, np.linspace(-15, 15, 301), density=True, color="0.7", label=name)
    axes.plot(grid, density, color="firebrick", linewidth=0.8, label="quadrature")
    axes.legend(frameon=False, loc="upper left")
rows[-1].set_xlabel("frequency")
plt.show()
