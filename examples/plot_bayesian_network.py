"""
Bayesian neural network with Laplace weights
============================================

A small network for the Wine data of the UCI repository predicts the color intensity of 178 wines
from twelve other measurements. Laplace priors on the weights of the first layer show which
measurements the network needs. The posterior of the weights has many equivalent modes (hidden units
can be exchanged), so the quantity of interest is the prediction.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Predictive
from sklearn.datasets import load_wine

from numpyro_rwpo import RWPO, compare_runs, diagnose

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = (
    {"num_particles": 8, "attention": "marginal", "dense_mass": False}
    if FAST
    else {"num_particles": 64}
)
NUM_HIDDEN = 4


def model(X, y=None):
    shape = [X.shape[1], NUM_HIDDEN]
    first = numpyro.sample("first", dist.Laplace(0.0, 0.3).expand(shape).to_event(2))
    bias = numpyro.sample("bias", dist.Normal(0.0, 1.0).expand([NUM_HIDDEN]).to_event(1))
    second = numpyro.sample("second", dist.Normal(0.0, 1.0).expand([NUM_HIDDEN]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(0.5))
    mean = jnp.tanh(X @ first + bias) @ second
    mean = numpyro.deterministic("mean", mean)
    numpyro.sample("y", dist.Normal(mean, noise), obs=y)


# %%
# Data
# ----
# A quarter of the wines is held out.
wine = load_wine()
target = wine.feature_names.index("color_intensity")
table = ((wine.data - wine.data.mean(0)) / wine.data.std(0)).astype(np.float32)
names = np.delete(wine.feature_names, target)
X, y = np.delete(table, target, axis=1), table[:, target]
is_test = np.random.default_rng(3).permutation(len(y)) < len(y) // 4
train, test = (X[~is_test], y[~is_test]), (X[is_test], y[is_test])

# %%
# Sampling
# --------
# What ``diagnose`` reports about R-hat of individual weights is true, but harmless if the
# predictions agree between chains. ``compare_runs`` therefore looks at the predictions, the site
# ``mean``.
runs = {}
for kernel, num_warmup in (
    (RWPO(model, **OPTIONS), 200),
    (NUTS(model), 300),
):
    mcmc = MCMC(
        kernel,
        num_warmup=8 if FAST else num_warmup,
        num_samples=8 if FAST else 128,
        num_chains=4,
        chain_method="vectorized",
    )
    mcmc.run(jax.random.key(0), *train)
    runs[type(kernel).__name__] = mcmc
print(diagnose(runs["RWPO"]))

# %%
print(compare_runs(*runs.values(), sites=["mean", "noise"]))

# %%
# Prediction
# ----------
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for (name, mcmc), color, shift in zip(
    runs.items(), ("#0072B2", "#D55E00"), (-0.012, 0.012), strict=True
):
    predict = Predictive(model, mcmc.get_samples())
    predicted = np.asarray(predict(jax.random.key(1), test[0])["y"])
    low, median, high = np.quantile(predicted, [0.05, 0.5, 0.95], axis=0)
    inside = np.mean((low < test[1]) & (test[1] < high))
    rmse = np.sqrt(np.mean((predicted.mean(0) - test[1]) ** 2))
    print(f"{name}: RMSE on held-out wines {rmse:.3f}, 90% intervals contain {inside:.0%}")
    left.vlines(test[1] + shift, low, high, color=color, alpha=0.5, linewidth=1)
    left.plot(test[1] + shift, median, "o", color=color, markersize=3, label=name)
limits = [test[1].min() - 0.2, test[1].max() + 0.2]
left.plot(limits, limits, color="0.6", linewidth=0.8, zorder=0)
left.set_xlabel("measured color intensity (standardized)")
left.set_ylabel("predicted: median, 90% interval")
left.legend(frameon=False, loc="upper left")

weights = np.abs(np.asarray(runs["RWPO"].get_samples()["first"])).sum(-1)
order = np.argsort(weights.mean(0))
low, median, high = np.quantile(weights[:, order], [0.05, 0.5, 0.95], axis=0)
right.hlines(np.arange(len(order)), low, high, color="#0072B2")
right.plot(median, np.arange(len(order)), "o", color="#0072B2", markersize=4)
right.set_yticks(np.arange(len(order)), names[order], fontsize="small")
right.set_xlabel("sum of absolute weights")
plt.show()
