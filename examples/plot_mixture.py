"""
Several modes: the joint attention head
=======================================

Four modes with unequal shares, too far apart for a chain of NUTS to walk between them. Particles
do not jump between modes either; but an ensemble starts everywhere, and the transport with the
``joint`` head, the attention of the papers, keeps particles in all of them.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_uniform

from numpyro_rwpo import RWPO, compare, diagnose

FAST = "--fast" in sys.argv  # draw little, only to see that the script runs
SHARES = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
CENTRES = 3.0 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32)


def model():
    component = dist.Normal(jnp.asarray(CENTRES), 1.0).to_event(1)
    mixing = dist.Categorical(jnp.asarray(SHARES))
    numpyro.sample("x", dist.MixtureSameFamily(mixing, component))


# %%
# The start covers all modes: NumPyro's ``init_to_uniform`` with a larger radius.
def run(kernel, num_warmup, num_samples=1000):
    mcmc = MCMC(
        kernel,
        num_warmup=40 if FAST else num_warmup,
        num_samples=50 if FAST else num_samples,
        num_chains=4,
        chain_method="vectorized",
    )
    mcmc.run(jax.random.key(0))
    return mcmc


start = init_to_uniform(radius=6.0)
rwpo = run(RWPO(model, attention="joint", num_particles=1000, init_strategy=start), 200)
print(diagnose(rwpo))

# %%
# NUTS from the same start, one chain a colour in the figure below.
nuts = run(NUTS(model, init_strategy=start), 1000)
print(compare(rwpo, nuts))


# %%
# Shares of the modes
# -------------------
def shares(draws):
    nearest = np.argmin(((draws[..., None, :] - CENTRES) ** 2).sum(-1), -1)
    return np.stack([(nearest == k).mean(-1) for k in range(4)], -1)


samples = {
    name: np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    for name, mcmc in (("RWPO", rwpo), ("NUTS", nuts))
}
with np.printoptions(precision=2, suppress=True):
    print("exact:", SHARES)
    for name, draws in samples.items():
        print(f"{name}, chain by chain:\n{shares(draws)}")

figure, panels = plt.subplots(1, 2, figsize=(9, 4.4), sharex=True, sharey=True)
for axes, (name, draws) in zip(panels, samples.items(), strict=True):
    for chain in draws:
        axes.plot(*chain.T, ".", markersize=2, alpha=0.5)
    axes.set_title(f"{name}: four chains")
    axes.set_aspect("equal")
figure.tight_layout()
plt.show()
