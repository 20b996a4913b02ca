"""
Several modes: the joint attention head
=======================================

The target has four modes with unequal weights, so far apart that a chain of NUTS rarely moves from
one to another. An ensemble is initialized in all of them, and transport with the ``joint`` head,
the attention of the papers, represents each as a separate cluster. The moves that follow carry
particles across often enough to get the weights right. Between modes that no move can connect, the
weights would remain those of the initialization, as for every sampler that makes local moves.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_uniform

from numpyro_rwpo import RWPO, compare_runs, diagnose

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
SHARES = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
CENTERS = 3.0 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32)


def model():
    component = dist.Normal(jnp.asarray(CENTERS), 1.0).to_event(1)
    mixing = dist.Categorical(jnp.asarray(SHARES))
    numpyro.sample("x", dist.MixtureSameFamily(mixing, component))


# %%
# The initialization covers all modes: NumPyro's ``init_to_uniform`` with a larger radius.
def run(kernel, num_warmup, num_samples=1000):
    mcmc = MCMC(
        kernel,
        num_warmup=8 if FAST else num_warmup,
        num_samples=8 if FAST else num_samples,
        num_chains=4,
        chain_method="vectorized",
    )
    mcmc.run(jax.random.key(0))
    return mcmc


start = init_to_uniform(radius=6.0)
rwpo = run(
    RWPO(model, attention="joint", num_particles=8 if FAST else 1000, init_strategy=start), 200
)
print(diagnose(rwpo))

# %%
# The report warns of slow particles: a particle rarely changes its mode, so its next draw is not
# independent of its last one. A thousand particles compensate for this.
#
# Here is NUTS with the same initialization:
nuts = run(NUTS(model, init_strategy=start), 1000)
print(compare_runs(rwpo, nuts))


# %%
# Weights of the modes
# --------------------
def shares(draws):
    nearest = np.argmin(((draws[..., None, :] - CENTERS) ** 2).sum(-1), -1)
    return np.stack([(nearest == k).mean(-1) for k in range(4)], -1)


samples = {
    name: np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    for name, mcmc in (("RWPO", rwpo), ("NUTS", nuts))
}
with np.printoptions(precision=2, suppress=True):
    print("exact:", SHARES)
    for name, draws in samples.items():
        print(f"{name}, chain by chain:\n{shares(draws)}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for chain in samples["RWPO"]:
    left.plot(*chain.T, ".", markersize=2, alpha=0.5)
left.set_title("draws of RWPO, one color per chain", fontsize="medium")
left.set_aspect("equal")
colors = {"RWPO": "#0072B2", "NUTS": "#D55E00"}
for (name, draws), shift in zip(samples.items(), (-0.15, 0.15), strict=True):
    by_chain = shares(draws)
    for k in range(4):
        label = f"{name}, four chains" if k == 0 else None
        place = np.full(len(by_chain), k + shift)
        right.plot(place, by_chain[:, k], "o", color=colors[name], alpha=0.7, label=label)
right.plot(range(4), SHARES, "_", color="black", markersize=45, label="exact")
right.set_xticks(range(4), [f"({x:g}, {y:g})" for x, y in CENTERS])
right.set_xlabel("mode")
right.set_ylabel("share of the draws")
right.set_ylim(bottom=0)
right.legend(frameon=False, markerscale=0.6, loc="upper left")
plt.show()
