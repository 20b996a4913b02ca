"""
Comparing models by their evidence
==================================

How many powers of x does a curve need? From the draws of each model, ``diagnose`` estimates its
evidence, the integral of likelihood times prior. With normal priors and known noise the evidence
has a closed form, so the estimates can be checked.
"""

import sys
from functools import partial

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from scipy.stats import multivariate_normal

from numpyro_rwpo import RWPO, diagnose

FAST = "--fast" in sys.argv  # few draws, only to check that the script runs
OPTIONS = {"num_particles": 8, "attention": "marginal", "dense_mass": False} if FAST else {}
NOISE = 0.3
PRIORS = {"normal": dist.Normal(0.0, 1.0), "Laplace": dist.Laplace(0.0, 2**-0.5)}  # equal variances


def model(X, y, prior):
    with numpyro.plate("powers", X.shape[1]):
        beta = numpyro.sample("beta", PRIORS[prior])
    numpyro.sample("y", dist.Normal(X @ beta, NOISE), obs=y)


rng = np.random.default_rng(4)
x = np.linspace(-1, 1, 40)
y = 1.0 * x - 1.5 * x**3 + NOISE * rng.normal(size=x.size)


def make_mcmc(prior):
    return MCMC(
        RWPO(partial(model, prior=prior), **OPTIONS),
        num_warmup=8 if FAST else 200,
        num_samples=8 if FAST else 1000,
        num_chains=4,
        chain_method="vectorized",
        jit_model_args=True,
    )


# %%
# One program for all degrees
# ---------------------------
# Powers above the degree are replaced by columns of zeros. Their coefficients keep their prior, so
# the evidence is that of the smaller model; and since the shapes are the same, nothing is compiled
# again.
degrees = [1] if FAST else [1, 2, 3, 4]


def run(mcmc, degree, prior):
    powers = np.arange(max(degrees) + 1)
    X = np.where(powers <= degree, x[:, None] ** powers, 0.0).astype(np.float32)
    mcmc.run(jax.random.key(degree), X, y.astype(np.float32))
    exact = multivariate_normal(cov=X @ X.T + NOISE**2 * np.eye(len(y))).logpdf(y)
    return diagnose(mcmc), exact if prior == "normal" else np.nan


# %%
# Polynomials of increasing degree
# --------------------------------
# Besides the normal prior we use a Laplace prior, for which the evidence has no closed form.
results = {}
for prior in PRIORS:
    mcmc = make_mcmc(prior)
    for degree in degrees:
        report, exact = run(mcmc, degree, prior)
        evidence = report.to_dict()["evidence"]
        results[prior, degree] = evidence["log_evidence"], evidence["standard_error"], exact
        print(
            f"{prior:7} degree {degree}: log evidence {evidence['log_evidence']:8.3f} "
            f"± {evidence['standard_error']:.3f} ({evidence['method']})"
            + (f", exact {exact:8.3f}" if prior == "normal" else "")
        )

# %%
# The report for the last model includes the evidence:
print(report)

# %%
# Quadratic curves pay for a coefficient that they do not need, whereas for cubic curves the extra
# coefficient is worth its cost. Degree 4 fits as well as degree 3, but has less evidence.
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for prior, marker, shift in (("normal", "o", -0.05), ("Laplace", "s", 0.05)):
    values, errors, exact = np.array([results[prior, degree] for degree in degrees]).T
    place = np.array(degrees) + shift
    axes.errorbar(place, values, 2 * errors, fmt=marker, label=f"{prior} prior, ± 2 se")
    if prior == "normal":
        axes.plot(degrees, exact, "_", color="black", markersize=24, label="exact")
axes.set_xticks(degrees)
axes.set_xlabel("degree of the polynomial")
axes.set_ylabel("log evidence")
axes.legend(frameon=False)
plt.show()
