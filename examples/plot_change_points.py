"""
Change points in a time series
==============================

The data are the annual flow of the Nile at Aswan from 1871 to 1970. If the level changes rarely and
abruptly, its increments are sparse, so each of them gets a Laplace prior. The posterior shows when
the level changed, and by how much.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from numpyro_rwpo import RWPO, compare_runs, diagnose

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"num_particles": 8, "attention": "marginal", "dense_mass": False} if FAST else {}
SCALE = 0.1  # scale of the increments, in standard deviations of the flow

# %%
# Data
# ----
# In 10^8 cubic meters per year, from Cobb (1978), "The problem of the Nile", Biometrika 65; also
# available as R's ``datasets::Nile``.

# fmt: off
flow = np.array([
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180,
    799, 958, 1140, 1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833,
    701, 916, 692, 1020, 1050, 969, 831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845,
    864, 862, 698, 845, 744, 796, 1040, 759, 781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649,
    846, 812, 742, 801, 1040, 860, 874, 848, 890, 744, 749, 838, 1050, 918, 986, 797, 923, 975, 815,
    1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740,
], np.float32)
# fmt: on
years = np.arange(1871, 1971)
data = (flow - flow.mean()) / flow.std()


def model(data):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    first = numpyro.sample("first", dist.Normal(0.0, 2.0))
    with numpyro.plate("increments", data.shape[0] - 1):
        increments = numpyro.sample("increment", dist.Laplace(0.0, SCALE))
    level = first + jnp.concatenate([jnp.zeros(1), jnp.cumsum(increments)])
    level = numpyro.deterministic("level", level)
    numpyro.sample("data", dist.Normal(level, noise), obs=data)


# %%
# Both samplers
# -------------
runs = {}
for kernel, num_warmup in (
    (RWPO(model, **OPTIONS), 200),
    (NUTS(model), 1000),
):
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
print(compare_runs(*runs.values(), sites=["level", "noise"]))

# %%
# When did it change?
# -------------------
# We compute the probability that the level fell by more than 50 (10^8 cubic meters) from one year
# to the next.
draws = runs["RWPO"].get_samples()
level = np.asarray(draws["level"]) * flow.std() + flow.mean()
fell = (np.diff(level, axis=1) < -50).mean(0)
for k in np.argsort(-fell)[:3]:
    print(f"{years[k]} to {years[k + 1]}: {fell[k]:.2f}")

figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(9, 5), sharex=True, layout="constrained", height_ratios=[2, 1]
)
low, median, high = np.quantile(level, [0.05, 0.5, 0.95], axis=0)
top.fill_between(years, low, high, color="#0072B2", alpha=0.3, linewidth=0, label="90% band")
top.plot(years, median, color="#0072B2", label="median of the level")
top.plot(years, flow, ".", color="0.3", markersize=4, label="flow")
top.set_ylabel("10^8 m³ per year")
top.legend(frameon=False, fontsize="small", ncols=3)
bottom.bar(years[1:], fell, color="#0072B2")
bottom.set_ylabel("P(fall > 50)")
bottom.set_xlabel("year")
plt.show()
