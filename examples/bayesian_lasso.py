"""
Bayesian lasso on real data, compared with NUTS
===============================================

This example runs RWPO and NUTS on the same model and compares them.

.. image:: /images/bayesian_lasso.png
   :alt: Posteriors of the ten coefficients: intervals and densities of both samplers agree

The data are scikit-learn's diabetes measurements: 442 patients, ten standardized covariates, and
the progression of the disease after one year. The coefficients have a Laplace prior, as in the
Bayesian lasso of Park and Casella (2008).

Run it with ``python examples/bayesian_lasso.py``; ``--help`` lists the settings. It prints ArviZ's
summary of both posteriors, a table that compares them and their costs, and the name of the file
with the figure. Each sampler runs in its own process, so that nothing is compiled before its first
run.
"""

# sphinx_gallery_thumbnail_path = 'images/bayesian_lasso.png'

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpyro.infer import MCMC, NUTS
from scipy.stats import gaussian_kde
from sklearn.datasets import load_diabetes

from numpyro_rwpo import RWPO

NUM_CHAINS = 4
NUTS_NUM_WARMUP = 1000
FEATURES = ["age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu"]
COLORS = {"RWPO": "#0072B2", "NUTS": "#D55E00"}  # Okabe and Ito: safe for color-blind readers


class Result(NamedTuple):
    """The posterior and the costs of one sampler."""

    posterior: Any  # ArviZ's InferenceData (0.x) or DataTree (1.x)
    seconds_cold: float  # the first run, including compilation
    seconds_warm: float  # the same run again, already compiled
    num_gradients: int  # including warm-up, summed over chains and particles


def model(covariates: jax.Array, progression: jax.Array | None = None) -> None:
    """Regress the standardized progression; the prior shrinks small coefficients toward zero."""
    noise_scale = numpyro.sample("noise_scale", dist.HalfNormal(1.0))
    with numpyro.plate("features", covariates.shape[1]):
        coefficients = numpyro.sample("coefficients", dist.Laplace(0.0, 0.1))
    mean = covariates @ coefficients
    numpyro.sample("progression", dist.Normal(mean, noise_scale), obs=progression)


def load_data() -> tuple[jax.Array, jax.Array]:
    """Covariates (442, 10) and progression (442,), each with mean 0 and standard deviation 1."""

    def standardize(x: np.ndarray) -> jax.Array:
        return jax.numpy.asarray((x - x.mean(axis=0)) / x.std(axis=0))

    covariates, progression = load_diabetes(return_X_y=True)
    return standardize(covariates), standardize(progression)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Call a function and wait for its arrays; return the result and the seconds it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - start


def run_sampler(name: str, num_warmup: int, num_samples: int, seed: int) -> Result:
    """Run one sampler as a user would, then again as one compiled program to measure its costs."""
    data = load_data()
    rng_key = jax.random.key(seed)

    def make_mcmc() -> MCMC:
        return MCMC(
            {"RWPO": RWPO, "NUTS": NUTS}[name](model),
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=NUM_CHAINS,
            chain_method="vectorized",
            progress_bar=False,
        )

    def run_first(key: jax.Array) -> Any:
        mcmc.run(key, *data)
        return mcmc.get_samples()

    def run_and_count(key: jax.Array) -> tuple[Any, jax.Array]:
        again = make_mcmc()
        if name == "RWPO":  # counts them itself, warm-up included
            again.run(key, *data)
            return again.get_samples(), again.last_state.num_gradients.sum()
        again.warmup(key, *data, collect_warmup=True, extra_fields=("num_steps",))
        num_gradients = again.get_extra_fields()["num_steps"].sum()
        again.run(key, *data, extra_fields=("num_steps",))
        return again.get_samples(), num_gradients + again.get_extra_fields()["num_steps"].sum()

    mcmc = make_mcmc()
    _, seconds_cold = timed(run_first, rng_key)
    compiled = jax.jit(run_and_count).lower(rng_key).compile()
    (_, num_gradients), seconds_warm = timed(compiled, rng_key)
    posterior = az.from_numpyro(
        mcmc, coords={"feature": FEATURES}, dims={"coefficients": ["feature"]}
    )
    return Result(posterior, seconds_cold, seconds_warm, int(num_gradients))


def run_in_fresh_process(*arguments: Any) -> Result:
    """Run a sampler in a process where nothing has been compiled yet."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run_sampler, *arguments).result()


def posterior_table(summaries: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean, standard deviation, and bulk ESS of every parameter, one column per sampler."""
    columns = {
        (quantity, name): summary[column]
        for quantity, column in [("mean", "mean"), ("sd", "sd"), ("bulk ESS", "ess_bulk")]
        for name, summary in summaries.items()
    }
    table = pd.DataFrame(columns)
    table["bulk ESS"] = table["bulk ESS"].round().astype(int)
    return table


def cost_table(results: dict[str, Result], summaries: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Seconds, gradients, and the resulting smallest ESS, one column per sampler."""
    table = {}
    for name, result in results.items():
        smallest_ess = summaries[name]["ess_bulk"].min()
        table[name] = {
            "seconds, first run (compiles)": f"{result.seconds_cold:.1f}",
            "seconds, compiled": f"{result.seconds_warm:.2f}",
            "gradient evaluations": f"{result.num_gradients:,}",
            "smallest bulk ESS": f"{smallest_ess:,.0f}",
            "smallest bulk ESS per second, compiled": f"{smallest_ess / result.seconds_warm:,.0f}",
            "largest R-hat": f"{summaries[name]['r_hat'].max():.3f}",
        }
    return pd.DataFrame(table)


def draw_intervals(axes: Axes, draws: dict[str, np.ndarray], rows: np.ndarray) -> None:
    """Draw the median and the 50% and 94% intervals of each coefficient for both samplers."""
    for name, offset in zip(draws, (0.13, -0.13), strict=True):
        low, lower, median, upper, high = np.quantile(
            draws[name], [0.03, 0.25, 0.5, 0.75, 0.97], axis=0
        )
        style = {"color": COLORS[name], "capstyle": "round"}
        axes.hlines(rows + offset, low, high, linewidth=1.5, **style)
        axes.hlines(rows + offset, lower, upper, linewidth=4.5, **style)
        axes.plot(median, rows + offset, "o", color="white", markersize=3.0)
    axes.set_title("median, 50% and 94% interval")


def draw_densities(axes: Axes, draws: dict[str, np.ndarray], rows: np.ndarray) -> None:
    """Draw the posterior density of each coefficient: RWPO filled, NUTS as a line on top."""
    for column, row in enumerate(rows):
        densities = {name: gaussian_kde(values[:, column]) for name, values in draws.items()}
        both = np.concatenate([values[:, column] for values in draws.values()])
        grid = np.linspace(*np.quantile(both, [0.001, 0.999]), 200)
        heights = {name: density(grid) for name, density in densities.items()}
        scale = 0.8 / max(height.max() for height in heights.values())
        base = row - 0.35
        axes.fill_between(
            grid, base, base + scale * heights["RWPO"], color=COLORS["RWPO"], alpha=0.45, lw=0
        )
        axes.plot(grid, base + scale * heights["NUTS"], color=COLORS["NUTS"], linewidth=1.4)
    axes.set_title("density, each row on its own scale")


def plot_posteriors(draws: dict[str, np.ndarray]) -> Figure:
    """Draw the posterior of each coefficient, from draws (num_draws, num_features) by sampler."""
    rows = np.arange(len(FEATURES))[::-1]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.0, 5.2), sharex=True, sharey=True, layout="constrained"
    )
    draw_intervals(left, draws, rows)
    draw_densities(right, draws, rows)
    left.set_yticks(rows, FEATURES)
    left.set_ylim(-0.6, len(FEATURES) - 0.4)
    for axes in (left, right):
        axes.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
        axes.set_xlabel("coefficient (standard deviations)")
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [
        Patch(color=COLORS["RWPO"], alpha=0.8, label="RWPO"),
        Line2D([], [], color=COLORS["NUTS"], linewidth=2.0, label="NUTS"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Bayesian lasso on the diabetes data: RWPO compared with NUTS.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-samples", type=int, default=1000, help="draws per chain")
    parser.add_argument(
        "--num-warmup", type=int, default=200, help=f"for RWPO; NUTS takes {NUTS_NUM_WARMUP}"
    )
    parser.add_argument("--output", type=Path, default=Path("bayesian_lasso.png"), help="figure")
    return parser.parse_args()


def main() -> None:
    settings = parse_arguments()
    num_warmup = {"RWPO": settings.num_warmup, "NUTS": NUTS_NUM_WARMUP}
    results, summaries, draws = {}, {}, {}
    for name in COLORS:
        print(f"{name}: {NUM_CHAINS} chains, {num_warmup[name]} + {settings.num_samples} draws ...")
        results[name] = run_in_fresh_process(
            name, num_warmup[name], settings.num_samples, settings.seed
        )
        posterior = results[name].posterior
        summaries[name] = az.summary(posterior, round_to="none")
        draws[name] = posterior["posterior"]["coefficients"].values.reshape(-1, len(FEATURES))
        print(az.summary(posterior).to_string(), end="\n\n")

    print("Side by side")
    print(posterior_table(summaries).to_string(float_format="{:.3f}".format), end="\n\n")
    print(cost_table(results, summaries).to_string(), end="\n\n")

    plot_posteriors(draws).savefig(settings.output, dpi=160)
    print(f"Figure saved to {settings.output.resolve()}")


if __name__ == "__main__":
    main()
