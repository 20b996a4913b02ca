"""
Sparse deconvolution with credible bands
========================================

This is a Bayesian inverse problem: a few spikes are observed through a blur and noise. The Laplace
prior says that most of the signal is close to zero, and the posterior says how well each spike is
determined.
"""

import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

from numpyro_rwpo import RWPO, diagnose

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"num_particles": 8, "attention": "marginal", "dense_mass": False} if FAST else {}
SIZE, BLUR, NOISE = 100, 2.0, 0.02

# %%
# The problem
# -----------
# The matrix ``blur`` maps the signal to the blurred signal; its rows are normal densities.
grid = np.arange(SIZE)
blur = np.exp(-0.5 * ((grid[:, None] - grid) / BLUR) ** 2)
blur = (blur / blur.sum(1, keepdims=True)).astype(np.float32)

rng = np.random.default_rng(1)
spikes = {12: 1.0, 30: 1.5, 36: -1.0, 60: 0.7, 85: 1.2}
signal = np.zeros(SIZE, np.float32)
signal[list(spikes)] = list(spikes.values())
data = (blur @ signal + NOISE * rng.normal(size=SIZE)).astype(np.float32)


def model(blur, data):
    noise = numpyro.sample("noise", dist.HalfNormal(0.1))
    with numpyro.plate("cells", blur.shape[1]):
        signal = numpyro.sample("signal", dist.Laplace(0.0, 0.1))
    blurred = numpyro.deterministic("blurred", blur @ signal)
    numpyro.sample("data", dist.Normal(blurred, noise), obs=data)


# %%
# Sampling
# --------
mcmc = MCMC(
    RWPO(model, **OPTIONS),
    num_warmup=8 if FAST else 200,
    num_samples=8 if FAST else 1000,
    num_chains=4,
    chain_method="vectorized",
)
mcmc.run(jax.random.key(0), blur, data)
print(diagnose(mcmc))

# %%
# Isolated spikes are found. The two of opposite sign, six cells apart, blur into each other, and
# the band shows this: a spike may be in one cell or the next. The sum over neighboring cells is
# determined far better than any single cell.
draws = {name: np.asarray(values) for name, values in mcmc.get_samples().items()}
for place, height in spikes.items():
    mass = draws["signal"][:, place - 2 : place + 3].sum(1)
    low, high = np.quantile(mass, [0.05, 0.95])
    print(f"spike at {place}: height {height:4.1f}, sum of five cells {low:.2f} to {high:.2f}")


def draw_band(axes, values, color, label):
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
    axes.fill_between(grid, low, high, color=color, alpha=0.3, linewidth=0, label=label)
    axes.plot(grid, median, color=color, linewidth=1.2, label="median")


figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5.4), sharex=True, layout="constrained")
draw_band(top, draws["signal"], "#0072B2", "90% band")
top.vlines(list(spikes), 0, list(spikes.values()), color="black", linewidth=1.0, label="truth")
top.set_ylabel("signal")
draw_band(bottom, draws["blurred"], "#009E73", "90% band")
bottom.plot(grid, data, ".", color="black", markersize=4, label="data")
bottom.set_ylabel("blurred signal")
bottom.set_xlabel("cell")
for axes in (top, bottom):
    axes.legend(frameon=False, fontsize="small", ncols=3, loc="lower right")
plt.show()
