"""
Resuming a long run
===================

A run that takes hours should survive the end of a job, a power cut, or a closed laptop.
``run_in_pieces`` takes the place of ``mcmc.run``: it draws piece by piece and writes the draws and
the state of the sampler to disk after each. When the same script is started again, it continues
where it was; a run that was killed loses only the piece it was working on. The draws are those of
an uninterrupted run.
"""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from sklearn.datasets import load_diabetes

from numpyro_rwpo import RWPO, diagnose, load_state, run_in_pieces, save_state

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"num_particles": 8, "attention": "marginal", "dense_mass": False} if FAST else {}
NUM_SAMPLES = 24 if FAST else 4000
DRAWS_PER_PIECE = 8 if FAST else 500

# %%
# The model
# ---------
# The model is the Bayesian lasso on scikit-learn's diabetes data.

FEATURES = ["age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu"]


def model(covariates, progression=None):
    noise_scale = numpyro.sample("noise_scale", dist.HalfNormal(1.0))
    with numpyro.plate("features", covariates.shape[1]):
        coefficients = numpyro.sample("coefficients", dist.Laplace(0.0, 0.1))
    mean = covariates @ coefficients
    numpyro.sample("progression", dist.Normal(mean, noise_scale), obs=progression)


def standardize(x):
    return jnp.asarray((x - x.mean(axis=0)) / x.std(axis=0))


data = [standardize(x) for x in load_diabetes(return_X_y=True)]


def make_mcmc(num_samples):
    return MCMC(
        RWPO(model, **OPTIONS),
        num_warmup=8 if FAST else 200,
        num_samples=num_samples,
        num_chains=2,
        chain_method="vectorized",
    )


# %%
# First session
# -------------
# The script calls ``run_in_pieces(mcmc, folder, ...)`` instead of ``mcmc.run(...)``. Here the job
# ends after a few pieces. It leaves a folder with the state and the draws of each piece. JAX can
# keep compiled programs on disk, too, so that later sessions start immediately.

folder = Path(tempfile.mkdtemp())
jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
key = jax.random.key(0)
pieces = {"draws_per_piece": DRAWS_PER_PIECE}
num_pieces = -(-NUM_SAMPLES // DRAWS_PER_PIECE)
num_first = min((num_pieces // 3 + 1) * DRAWS_PER_PIECE, NUM_SAMPLES)

run_in_pieces(make_mcmc(num_first), folder, key, *data, **pieces)
for path in sorted(folder.iterdir()):
    print(f"{path.name:16} {path.stat().st_size / 1e3:8.0f} kB")

# %%
# Second session
# --------------
# A new process would run the same lines: only the folder of the first session is used.

resumed = make_mcmc(NUM_SAMPLES)
run_in_pieces(resumed, folder, key, *data, **pieces)
print(diagnose(resumed))

# %%
# The same run without interruption
# ---------------------------------
# For comparison, call ``mcmc.run`` once with the same key. The draws agree bit for bit as long as
# both runs use the same compiled program on the same machine; another processor may round
# differently.

whole = make_mcmc(NUM_SAMPLES)
whole.run(key, *data)
difference = np.abs(resumed.get_samples()["coefficients"] - whole.get_samples()["coefficients"])
print(f"Largest difference of a coefficient in {difference.shape[0]} draws: {difference.max():.1e}")

# %%
# By hand
# -------
# NumPyro's own convention works, too: save the state, load it into ``post_warmup_state``, and run.
# Settings that do not match those in the file are refused.

save_state(resumed, folder / "by_hand.npz")
mcmc = make_mcmc(DRAWS_PER_PIECE)
mcmc.post_warmup_state = load_state(folder / "by_hand.npz", mcmc)
mcmc.run(mcmc.post_warmup_state.rng_key, *data)

# %%
# What the second session added
# -----------------------------
# The Monte Carlo error of the posterior means falls as pieces are added. The figure shows running
# means of chain 0, less the final mean of both chains, in posterior standard deviations.

draws = np.asarray(resumed.get_samples(group_by_chain=True)["coefficients"])
number = np.arange(1, draws.shape[1] + 1)
running = np.cumsum(draws[0], axis=0) / number[:, None]
error = (running - draws.mean((0, 1))) / draws.std((0, 1))

figure, axes = plt.subplots(figsize=(8.0, 4.2), layout="constrained")
axes.axvspan(1, num_first, color="#0072B2", alpha=0.12, lw=0, label="first session")
axes.axvspan(num_first, draws.shape[1], color="#E69F00", alpha=0.15, lw=0, label="second session")
axes.plot(number, error, color="0.25", linewidth=0.8)
axes.fill_between(
    number,
    -2 / np.sqrt(number),
    2 / np.sqrt(number),
    color="0.8",
    lw=0,
    label="two Monte Carlo standard errors",
)
axes.set_xlim(1, draws.shape[1])
axes.set_ylim(-0.4, 0.4)
axes.set_xlabel("draws of the chain")
axes.set_ylabel("running mean less final mean (sd)")
axes.set_title("Ten coefficients of the lasso, one run in two sessions")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(loc="lower right", frameon=False, ncols=3)
plt.show()
