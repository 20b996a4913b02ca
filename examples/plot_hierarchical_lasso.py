"""
Hierarchical lasso: how much shrinkage?
=======================================

We regress on the diabetes data with all squares and products. The scale of the Laplace prior is
latent, so the data determine how much the coefficients are shrunk. Nothing has to be
reparameterized by hand: RWPO tries both parameterizations of such a site and keeps the better one.
"""

import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import PolynomialFeatures

from numpyro_rwpo import RWPO, compare_runs, diagnose

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"num_particles": 8, "attention": "marginal", "dense_mass": False} if FAST else {}


def model(X, y):
    scale = numpyro.sample("scale", dist.HalfCauchy(0.1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("columns", X.shape[1]):
        beta = numpyro.sample("beta", dist.Laplace(0.0, scale))
    numpyro.sample("y", dist.Normal(X @ beta, noise), obs=y)


def standardize(x):
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32)


# %%
# Data
# ----
# The ten measurements are standardized first, so that products are interactions. The square of a
# binary column carries no new information and is left out.
diabetes = load_diabetes()
expand = PolynomialFeatures(2, include_bias=False)
X = expand.fit_transform(standardize(diabetes.data))
names = expand.get_feature_names_out(diabetes.feature_names)
X, names = standardize(X[:, names != "sex^2"]), names[names != "sex^2"]
y = standardize(diabetes.target)
print(X.shape)

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
    mcmc.run(jax.random.key(0), X, y)
    runs[type(kernel).__name__] = mcmc
print(diagnose(runs["RWPO"]))

# %%
print(compare_runs(runs["RWPO"], runs["NUTS"]))

# %%
# The scale and its effect
# ------------------------
draws = runs["RWPO"].get_samples()
beta, scale = np.asarray(draws["beta"]), np.asarray(draws["scale"])
largest = np.argsort(-np.abs(np.median(beta, 0)))[:15]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
left.hist(scale, bins=60, density=True, color="#0072B2", alpha=0.7, label="RWPO")
left.hist(
    np.asarray(runs["NUTS"].get_samples()["scale"]),
    bins=60,
    density=True,
    histtype="step",
    color="#D55E00",
    label="NUTS",
)
left.set_xlabel("scale of the Laplace prior")
left.set_yticks([])
left.legend(frameon=False)
low, median, high = np.quantile(beta[:, largest], [0.05, 0.5, 0.95], axis=0)
row = np.arange(len(largest))[::-1]
right.hlines(row, low, high, color="#0072B2")
right.plot(median, row, "o", color="#0072B2", markersize=4)
right.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
right.set_yticks(row, names[largest])
right.set_xlabel("coefficient: median and 90% interval")
right.set_title(f"the largest of {X.shape[1]}", fontsize="medium")
plt.show()
