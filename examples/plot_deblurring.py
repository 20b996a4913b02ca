"""
Deblurring a photograph, with error bars
========================================

Many images explain a blurred one equally well. A total-variation prior prefers those with few
edges, and the posterior says for every pixel how well it is known. This posterior has 4,098
parameters: 64 x 64 pixels, the scale of the prior, and the size of the noise.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from sklearn.datasets import load_sample_image

from numpyro_rwpo import RWPO, diagnose
from numpyro_rwpo.distributions import TotalVariation

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"attention": "marginal", "dense_mass": False} if FAST else {}
SIZE, BLUR, NOISE = (16 if FAST else 64), 1.5, 0.02

# %%
# The problem
# -----------
# A photograph that scikit-learn ships is shrunk, from 0 (black) to 1 (white). Blurred along columns
# and rows, it loses its details, and noise hides what is left of them.
square = load_sample_image("china.jpg").mean(2)[40:360, 130:450] / 255
block = 320 // SIZE
truth = square.reshape(SIZE, block, SIZE, block).mean((1, 3))

offset = np.subtract.outer(np.arange(SIZE), np.arange(SIZE))
blur = np.exp(-0.5 * (offset / BLUR) ** 2)
blur = (blur / blur.sum(1, keepdims=True)).astype(np.float32)
noise = NOISE * np.random.default_rng(0).normal(size=truth.shape)
data = (blur @ truth @ blur.T + noise).astype(np.float32)


# %%
# ``isotropic=True`` measures the slope of the image at a pixel by its length. It has its kink where
# both differences are 0 at once, a point that paths pass beside. The sum of two absolute values has
# kinks that every path crosses, and takes four times as many gradients.
def model(blur, data):
    scale = numpyro.sample("scale", dist.LogNormal(jnp.log(0.05), 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(jnp.log(0.05), 1.0))
    image = numpyro.sample("image", TotalVariation(scale, data.shape, isotropic=True))
    numpyro.sample("data", dist.Normal(blur @ image @ blur.T, noise).to_event(2), obs=data)


# %%
# Sampling
# --------
# In so many dimensions, an ensemble tells the metric only the width of every pixel, for which four
# particles are enough. The run is kept short: ``diagnose`` asks for a longer warm-up, because the
# scale of the prior still drifts. The error bars of the pixels hardly depend on that.
mcmc = MCMC(
    RWPO(model, num_particles=4, **OPTIONS),
    num_warmup=8 if FAST else 60,
    num_samples=8 if FAST else 250,
    num_chains=4,
    chain_method="vectorized",
)
mcmc.run(jax.random.key(0), blur, data)
print(diagnose(mcmc))

# %%
# The true photograph is known here, so that the error bars can be checked. They are too wide rather
# than too narrow: a photograph has smoother areas and sharper edges than images that have
# the prior's density.
draws = {name: np.asarray(values) for name, values in mcmc.get_samples().items()}
low, high = np.quantile(draws["image"], [0.05, 0.95], axis=0)
mean, sd = draws["image"].mean(0), draws["image"].std(0)
covered = np.mean((low < truth) & (truth < high))
print(f"true pixels in their 90% intervals: {covered:.0%}")
print(f"RMSE: {np.sqrt(np.mean((data - truth) ** 2)):.3f} of the data,", end=" ")
print(f"{np.sqrt(np.mean((mean - truth) ** 2)):.3f} of the posterior mean")
print(f"noise: {draws['noise'].mean():.4f} +- {draws['noise'].std():.4f} (truth {NOISE})")

# %%
# The standard deviations are largest along edges, whose place the blur hides.
pictures = {"truth": truth, "data": data, "posterior mean": mean, "standard deviation": sd}
figure = plt.figure(figsize=(9, 4.7), layout="constrained")
grid = figure.add_gridspec(2, 4, height_ratios=[1.2, 1])
for place, (title, picture) in enumerate(pictures.items()):
    axes = figure.add_subplot(grid[0, place])
    is_sd = title == "standard deviation"
    limits = {} if is_sd else {"vmin": 0, "vmax": 1}
    shown = axes.imshow(picture, cmap="viridis" if is_sd else "gray", **limits)
    axes.set_title(title, fontsize="medium")
    axes.set_xticks([])
    axes.set_yticks([])
    if is_sd:
        figure.colorbar(shown, ax=axes, shrink=0.7)
axes = figure.add_subplot(grid[1, :])
row = SIZE // 2
axes.fill_between(np.arange(SIZE), low[row], high[row], color="#0072B2", alpha=0.3, linewidth=0)
axes.plot(mean[row], color="#0072B2", label="mean, 90% band")
axes.plot(data[row], ".", color="0.4", markersize=4, label="data")
axes.plot(truth[row], color="black", linewidth=0.8, label="truth")
axes.set_title(f"row {row}", fontsize="medium")
axes.set_xlabel("column")
axes.legend(frameon=False, fontsize="small", ncols=3, loc="lower right")
plt.show()
