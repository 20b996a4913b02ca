"""
Filling in a table with missing entries
=======================================

Thirteen chemical measurements of wines vary together, because they reflect a few causes: the grape
and the region. A table of such measurements is close to a matrix of low rank, and what is missing
in it can be inferred from the rest. A nuclear norm prior says so without fixing the rank. Here, a
third of the entries are hidden, and the posterior is compared with them.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from sklearn.datasets import load_wine

from numpyro_rwpo import RWPO, diagnose
from numpyro_rwpo.distributions import NuclearNorm

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"num_particles": 8, "attention": "marginal", "dense_mass": False} if FAST else {}

# %%
# Data
# ----
# Twelve wines, four of each grape, and eight measurements, in units of their standard deviations
# around their means over all wines.
data = load_wine()
table = (data.data - data.data.mean(0)) / data.data.std(0)
wines = np.concatenate([np.flatnonzero(data.target == k)[:4] for k in range(3)])
columns = [0, 2, 3, 5, 6, 9, 11, 12]
table = table[np.ix_(wines, columns)].astype(np.float32)
names = [data.feature_names[k] for k in columns]
is_hidden = np.random.default_rng(0).random(table.shape) < 1 / 3
rows, cols = np.nonzero(~is_hidden)
print(f"{table.shape[0]} wines, {table.shape[1]} measurements, {is_hidden.sum()} entries hidden")


# %%
# Model
# -----
# The scale of the matrix is latent, and so is the noise. The normalizer of the nuclear norm prior
# is exact in the scale; without it, the posterior of the scale would be wrong.
def model(rows, cols, y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    noise = numpyro.sample("noise", dist.LogNormal(jnp.log(0.4), 0.3))
    matrix = numpyro.sample("matrix", NuclearNorm(scale, table.shape))
    numpyro.sample("y", dist.Normal(matrix[rows, cols], noise), obs=y)


mcmc = MCMC(
    RWPO(model, **OPTIONS),
    num_warmup=8 if FAST else 200,
    num_samples=8 if FAST else 500,
    num_chains=4,
    chain_method="vectorized",
)
mcmc.run(jax.random.key(0), rows, cols, table[rows, cols])
print(diagnose(mcmc))

# %%
# Hidden entries
# --------------
# Intervals are predictive: they contain the noise. A column's mean over all wines, 0 in these
# units, is the prediction to beat.
draws = {name: np.asarray(x) for name, x in mcmc.get_samples().items()}
matrix, rng = draws["matrix"], np.random.default_rng(1)
predicted = matrix + draws["noise"][:, None, None] * rng.normal(size=matrix.shape)
low, high = np.quantile(predicted, [0.05, 0.95], axis=0)
truth, mean = table[is_hidden], matrix.mean(0)
covered = ((low < table) & (table < high))[is_hidden].mean()
error, size = (np.sqrt((x**2).mean()) for x in (mean[is_hidden] - truth, truth))
print(f"hidden entries: root mean square {size:.2f}, of the error {error:.2f}")
print(f"hidden entries in their 90% intervals    {covered:.0%}")

# %%
# Rank
# ----
# No draw of a continuous posterior has a low rank. The rank here is the number of singular values
# needed for 90 % of the sum of squares of a draw's entries.
singular = np.linalg.svd(matrix, compute_uv=False)
share = np.cumsum(singular**2, 1) / (singular**2).sum(1, keepdims=True)
rank = 1 + (share < 0.9).sum(1)
for k in np.unique(rank):
    print(f"P(rank = {k}) = {(rank == k).mean():.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
middle = mean[is_hidden]
span = np.stack([low[is_hidden], high[is_hidden]])
left.vlines(truth, *span, color="#0072B2", alpha=0.4, linewidth=3)
left.plot(truth, middle, "o", color="#0072B2", markersize=4)
left.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
left.set(xlabel="hidden entry", ylabel="posterior mean and 90% predictive interval")
left.set_title("Entries that the model has not seen", fontsize="medium")
position = np.arange(1, singular.shape[1] + 1)
right.vlines(position, *np.quantile(singular, [0.05, 0.95], axis=0), color="#D55E00", linewidth=4)
right.plot(position, np.median(singular, 0), "o", color="#D55E00", markersize=5)
right.set(xlabel="number of the singular value", ylabel="median and 90% interval", ylim=(0, None))
right.set_title("Singular values of the table", fontsize="medium")
plt.show()
