"""
A trend in straight pieces
==========================

The data are the passenger miles flown by commercial airlines in the United States from 1937 to
1960. On a logarithmic scale, they grow at a rate that changes now and then. A Laplace prior on
second differences says that most changes of slope are small, and a few are large. The posterior
shows when growth changed, and with which probability.
"""

import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from numpyro_rwpo import RWPO, compare_runs, diagnose
from numpyro_rwpo.distributions import FusedLaplace

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"target_accept_prob": 0.95}
if FAST:
    OPTIONS = {"num_particles": 8, "attention": "marginal", "dense_mass": False}

# %%
# Data
# ----
# In millions of miles, from the F.A.A. Statistical Handbook of Aviation; also available as R's
# ``datasets::airmiles``.

# fmt: off
miles = np.array([
    412, 480, 683, 1052, 1385, 1418, 1634, 2178, 3362, 5948, 6109, 5981, 6753, 8003, 10566, 12528,
    14760, 16769, 19819, 22362, 25340, 25343, 29269, 30514,
], np.float32)
# fmt: on
years = np.arange(1937, 1961)
data = np.log2(miles / 1000)


# %%
# Model
# -----
# ``order=2`` penalizes changes of slope. Without ``start_scale``, the prior says nothing about the
# level and the first slope of the line. Both scales are latent. The prior of the noise, around 4
# percent, keeps it from 0: with so few years, a line through all data would otherwise be plausible.
def model(data):
    scale = numpyro.sample("scale", dist.HalfNormal(0.5))
    noise = numpyro.sample("noise", dist.LogNormal(np.log(0.05), 0.5))
    trend = numpyro.sample("trend", FusedLaplace(scale, data.shape[0], order=2))
    numpyro.sample("data", dist.Normal(trend, noise), obs=data)


# %%
# Both samplers
# -------------
# The sampler moves the start of the line and its second differences: in units of their scale, where
# it follows their Laplace densities exactly, or in their own units, if the data are informative, as
# they are here. NUTS moves the values of the line. With few data, small
# scales make the posterior narrow: a higher acceptance probability makes the steps shorter, so that
# particles do not miss this part.
runs = {}
for kernel, num_warmup in ((RWPO(model, **OPTIONS), 200), (NUTS(model), 1000)):
    mcmc = MCMC(
        kernel,
        num_warmup=8 if FAST else num_warmup,
        num_samples=8 if FAST else 1000,
        num_chains=4,
        chain_method="vectorized",
    )
    mcmc.run(jax.random.key(0), data)
    runs[type(kernel).__name__] = mcmc
print(diagnose(runs["RWPO"]))

# %%
# The noise may still drift when the first draws are kept: it is the coordinate that mixes most
# slowly. The comparison shows whether that matters.
print(compare_runs(*runs.values()))

# %%
# When did growth change?
# -----------------------
# We compute the probability that growth in one year and in the next differ by more than a tenth of
# a doubling.
trend = np.asarray(runs["RWPO"].get_samples()["trend"])
changed = (np.abs(np.diff(trend, 2, axis=1)) > 0.1).mean(0)
for k in np.argsort(-changed)[:4]:
    print(f"{years[k + 1]}: {changed[k]:.2f}")

figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(9, 5), sharex=True, layout="constrained", height_ratios=[2, 1]
)
low, median, high = np.quantile(trend, [0.05, 0.5, 0.95], axis=0)
top.fill_between(years, low, high, color="#0072B2", alpha=0.3, linewidth=0, label="90% band")
top.plot(years, median, color="#0072B2", label="median of the trend")
top.plot(years, data, ".", color="0.3", markersize=5, label="data")
top.set_ylabel("log2 of 10^9 passenger miles")
top.legend(frameon=False, fontsize="small", ncols=3)
bottom.bar(years[1:-1], changed, color="#0072B2")
bottom.set_ylabel("P(growth changed)")
bottom.set_xlabel("year")
plt.show()
