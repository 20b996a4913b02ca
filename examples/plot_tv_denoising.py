"""
Denoising with a total-variation prior
======================================

A total-variation prior is a Laplace prior on the differences between neighbors. In one dimension
the differences are the parameters, and RWPO follows the whole prior exactly. In two dimensions an
image has about twice as many differences as pixels, so only those along rows can be parameters;
those along columns are treated as part of the likelihood, including their kinks. The draws are
exact nevertheless.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

from numpyro_rwpo import RWPO, diagnose

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
LIGHT = {"num_particles": 8, "attention": "marginal", "dense_mass": False}
NOISE = 0.25
LINE_SCALE, IMAGE_SCALE = 0.05, 0.4  # scales of the differences; an image has more of them


def run(model, data, **options):
    mcmc = MCMC(
        RWPO(model, **(LIGHT if FAST else options)),
        num_warmup=8 if FAST else 200,
        num_samples=8 if FAST else 500,
        num_chains=4,
        chain_method="vectorized",
    )
    mcmc.run(jax.random.key(0), data)
    return mcmc


# %%
# One dimension
# -------------
# A prior on the differences alone would be improper for the level, so the first value has a wide
# normal prior; each increment has a Laplace prior.
def line_model(data):
    first = numpyro.sample("first", dist.Normal(0.0, 1.0))
    with numpyro.plate("increments", data.shape[0] - 1):
        increments = numpyro.sample("increment", dist.Laplace(0.0, LINE_SCALE))
    line = first + jnp.concatenate([jnp.zeros(1), jnp.cumsum(increments)])
    line = numpyro.deterministic("line", line)
    numpyro.sample("data", dist.Normal(line, NOISE), obs=data)


rng = np.random.default_rng(2)
true_line = np.repeat([0.0, 1.0, 0.4, -0.5], 25).astype(np.float32)
line_data = (true_line + NOISE * rng.normal(size=true_line.size)).astype(np.float32)
line_run = run(line_model, line_data)
print(diagnose(line_run))


# %%
# Two dimensions
# --------------
# ``factor`` adds the differences along columns to the log density. Their kinks require short steps,
# hundreds of gradients per draw, so fewer particles are quicker.
def image_model(data):
    rows, columns = data.shape
    first = numpyro.sample("first", dist.Normal(0.0, 1.0).expand([rows, 1]).to_event(2))
    shape = [rows, columns - 1]
    increments = numpyro.sample(
        "increment", dist.Laplace(0.0, IMAGE_SCALE).expand(shape).to_event(2)
    )
    image = jnp.cumsum(jnp.concatenate([first, increments], axis=1), axis=1)
    image = numpyro.deterministic("image", image)
    numpyro.factor("columns", -jnp.abs(jnp.diff(image, axis=0)).sum() / IMAGE_SCALE)
    numpyro.sample("data", dist.Normal(image, NOISE).to_event(2), obs=data)


size = 6 if FAST else 12
row, column = np.mgrid[:size, :size] / size
disc = (row - 0.35) ** 2 + (column - 0.35) ** 2 < 0.06
block = (row > 0.55) & (column > 0.5)
true_image = (1.0 * disc - 0.7 * block).astype(np.float32)
image_data = (true_image + NOISE * rng.normal(size=true_image.shape)).astype(np.float32)
image_run = run(image_model, image_data, num_particles=64)
print(diagnose(image_run))


# %%
# The posterior mean removes most of the noise, and the standard deviation shows where it could not:
# at the edges.
def rmse(estimate, truth):
    return np.sqrt(np.mean((estimate - truth) ** 2))


line = np.asarray(line_run.get_samples()["line"])
image = np.asarray(image_run.get_samples()["image"])
print(f"line:  RMSE {rmse(line_data, true_line):.3f} -> {rmse(line.mean(0), true_line):.3f}")
print(f"image: RMSE {rmse(image_data, true_image):.3f} -> {rmse(image.mean(0), true_image):.3f}")

figure = plt.figure(figsize=(9, 5.6), layout="constrained")
grid = figure.add_gridspec(2, 4)
axes = figure.add_subplot(grid[0, :])
low, median, high = np.quantile(line, [0.05, 0.5, 0.95], axis=0)
axes.fill_between(np.arange(len(low)), low, high, color="#0072B2", alpha=0.3, linewidth=0)
axes.plot(median, color="#0072B2", label="median, 90% band")
axes.plot(line_data, ".", color="0.4", markersize=4, label="data")
axes.plot(true_line, color="black", linewidth=0.8, label="truth")
axes.legend(frameon=False, fontsize="small", ncols=3, loc="lower left")
pictures = [
    ("truth", true_image),
    ("data", image_data),
    ("posterior mean", image.mean(0)),
    ("standard deviation", image.std(0)),
]
for place, (title, picture) in enumerate(pictures):
    axes = figure.add_subplot(grid[1, place])
    is_sd = title == "standard deviation"
    limits = {} if is_sd else {"vmin": -1.2, "vmax": 1.4}
    shown = axes.imshow(picture, cmap="viridis" if is_sd else "gray", **limits)
    axes.set_title(title, fontsize="medium")
    axes.set_xticks([])
    axes.set_yticks([])
    if is_sd:
        figure.colorbar(shown, ax=axes, shrink=0.7)
plt.show()
