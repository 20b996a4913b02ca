"""
Which covariates matter, when each has several classes
======================================================

A covariate with several classes enters a regression as several columns, which belong together: it
matters as a whole, or not at all. This is what a group lasso prior says. Here, ten measurements of
cell nuclei, each cut into five classes at its quintiles, predict whether a tumor is malignant. The
effect of a measurement need not be linear, not even monotone.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer

from numpyro_rwpo import RWPO, compare_runs, diagnose
from numpyro_rwpo.distributions import GroupLaplace

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"num_particles": 8, "attention": "marginal", "dense_mass": False} if FAST else {}

# %%
# Data
# ----
# The columns of a measurement are indicators of its classes, minus their means. All five classes
# have a column: under a group lasso prior none has to serve as a reference.
data = load_breast_cancer()
names, values = list(data.feature_names[:10]), data.data[:, :10]
malignant = 1 - data.target.astype(np.float32)
NUM_CLASSES = 5
edges = np.quantile(values, np.arange(1, NUM_CLASSES) / NUM_CLASSES, axis=0)
classes = (values[:, None] > edges[None]).sum(1)
X = (classes[..., None] == np.arange(NUM_CLASSES)).astype(np.float32)
X -= X.mean(0)


# %%
# Model
# -----
# The scale of the effects is latent. The sampler moves the effects in units of this scale, follows
# the prior between gradients of the likelihood, and needs no gradient of the latter for it.
def model(X, y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 3.0))
    with numpyro.plate("measurements", X.shape[1]):
        effect = numpyro.sample("effect", GroupLaplace(scale, NUM_CLASSES))
    logits = intercept + jnp.einsum("nmc,mc->n", X, effect)
    numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


# %%
# Both samplers
# -------------
runs = {}
for kernel, num_warmup in ((RWPO(model, **OPTIONS), 200), (NUTS(model), 500)):
    mcmc = MCMC(
        kernel,
        num_warmup=8 if FAST else num_warmup,
        num_samples=8 if FAST else 500,
        num_chains=4,
        chain_method="vectorized",
    )
    mcmc.run(jax.random.key(0), X, malignant)
    runs[type(kernel).__name__] = mcmc
print(diagnose(runs["RWPO"]))

# %%
print(compare_runs(*runs.values()))

# %%
# Selection of whole groups
# -------------------------
# A measurement counts as relevant if the log odds differ by more than 2 between two of its classes.
# Probabilities are those of the whole group.
draws = np.asarray(runs["RWPO"].get_samples()["effect"])
spread = draws.max(2) - draws.min(2)
relevant = (spread > 2.0).mean(0)
for k in np.argsort(-relevant):
    print(f"{names[k]:24} P(relevant) = {relevant[k]:.2f}")

figure, axes = plt.subplots(2, 5, figsize=(9, 4.2), sharey=True, layout="constrained")
for k, (name, axis) in enumerate(zip(names, axes.flat, strict=True)):
    low, median, high = np.quantile(draws[:, k], [0.05, 0.5, 0.95], axis=0)
    axis.axhline(0.0, color="0.7", linewidth=0.8)
    axis.vlines(np.arange(NUM_CLASSES), low, high, color="#0072B2", alpha=0.5, linewidth=4)
    axis.plot(median, "o", color="#0072B2", markersize=4)
    axis.set_title(f"{name.removeprefix('mean ')}\nP = {relevant[k]:.2f}", fontsize="small")
    axis.set_xticks(range(NUM_CLASSES), range(1, NUM_CLASSES + 1))
figure.supylabel("effect on the log odds, median and 90% interval", fontsize="small")
figure.supxlabel("class of the measurement", fontsize="small")
plt.show()
