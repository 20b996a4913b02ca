"""
A lasso with ten times more coefficients than observations
==========================================================

There are 200 observations with a lot of noise and 2000 coefficients, three of which are not zero.
The data say little about nearly all of them, so they stay where the prior puts them, close to its
kink, where NUTS can only take short steps. RWPO follows the prior exactly, so its steps can be as
long as the likelihood permits.
"""

import sys
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

from numpyro_rwpo import RWPO, compare_runs, diagnose

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"num_particles": 8, "attention": "marginal", "dense_mass": False} if FAST else {}
NUM_ROWS, NUM_COLUMNS = (20, 40) if FAST else (200, 2000)
NOISE, PRIOR_SCALE = 6.0, 0.15


def model(X, y):
    with numpyro.plate("columns", X.shape[1]):
        beta = numpyro.sample("beta", dist.Laplace(0.0, PRIOR_SCALE))
    numpyro.sample("y", dist.Normal(X @ beta, NOISE), obs=y)


# %%
# Data
# ----
rng = np.random.default_rng(0)
X = rng.normal(size=(NUM_ROWS, NUM_COLUMNS)).astype(np.float32)
true_beta = np.zeros(NUM_COLUMNS, np.float32)
true_beta[:3] = [3.0, -2.0, 1.5]
y = (X @ true_beta + NOISE * rng.normal(size=NUM_ROWS)).astype(np.float32)


# %%
# RWPO
# ----
# This is the usual run with four chains.
def timed_run(mcmc):
    start = time.perf_counter()
    mcmc.run(jax.random.key(0), X, y, extra_fields=("num_steps",))
    jax.block_until_ready(mcmc.get_samples())
    return time.perf_counter() - start


mcmc = MCMC(
    RWPO(model, **OPTIONS),
    num_warmup=8 if FAST else 200,
    num_samples=8 if FAST else 500,
    num_chains=4,
    chain_method="vectorized",
)
seconds_rwpo = timed_run(mcmc)
print(diagnose(mcmc))

# %%
# NUTS
# ----
# We run one chain, with far fewer draws than one would want, because each of them costs hundreds of
# gradients.
nuts = MCMC(NUTS(model), num_warmup=8 if FAST else 150, num_samples=8 if FAST else 100)
seconds_nuts = timed_run(nuts)
num_steps = nuts.get_extra_fields()["num_steps"]
print(f"NUTS: {np.mean(num_steps):.0f} gradients per draw, {seconds_nuts:.0f} s in total")

# %%
# In the comparison, the Monte Carlo errors are large because there are so few draws of NUTS. Check
# its own R-hat and ESS before looking at the differences.
print(compare_runs(mcmc, nuts, labels=["RWPO", "NUTS"], seconds=[seconds_rwpo, seconds_nuts]))

# %%
# What was found
# --------------
# The figure shows the three coefficients that are not zero and twelve of the others.
draws = np.asarray(mcmc.get_samples()["beta"])[:, :15]
low, median, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
row = np.arange(15)
left.hlines(row, low, high, color="#0072B2", label="90% interval")
left.plot(median, row, "o", color="#0072B2", markersize=4, label="median")
left.plot(true_beta[:15], row, "|", color="black", markersize=10, label="truth")
left.set_yticks(row, [f"beta[{k}]" for k in row], fontsize="small")
left.invert_yaxis()
left.set_xlabel("coefficient")
left.legend(frameon=False, fontsize="small", loc="lower right")
for name, run, seconds in (("RWPO", mcmc, seconds_rwpo), ("NUTS", nuts, seconds_nuts)):
    ess = effective_sample_size(np.asarray(run.get_samples(group_by_chain=True)["beta"]))
    right.hist(np.log10(ess / seconds), bins=40, alpha=0.7, label=name)
right.set_xlabel("effective draws per second, log10")
right.set_ylabel("coefficients")
right.legend(frameon=False)
plt.show()
