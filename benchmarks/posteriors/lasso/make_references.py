"""Makes the reference posteriors in the folder of this file.

Run from the repository root; it takes about 15 minutes on one core (and the same again for the
horseshoe, which is made with ``--draws 4000 --check-draws 1000``)::

    PYTHONPATH=. python benchmarks/posteriors/lasso/make_references.py [names]

Each problem is sampled by an exact method that shares no code with the package, in double
precision: NUTS with a dense metric (diagonal for the horseshoe, whose 932 latent values are too
many); Gibbs sampling for the lasso with 2000 columns; importance sampling from a normal
approximation for the 100,000 rows, whose posterior is nearly normal. A second, shorter run with
another seed checks the first, and the z-scores between the two are stored with it. The moments of
the mixture are computed. The Gibbs draws must also satisfy Stein's identities, E[dV/dx_k] = 0 and
E[x_k dV/dx_k] = 1, which depend on the posterior's density only and not on how the sampler was
derived.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
from gibbs import sample as sample_gibbs
from importance import run as run_importance
from numpy.typing import NDArray
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

from benchmarks.problems import PROBLEMS, Problem
from benchmarks.references import r_hat

Array = NDArray[np.float64]
Draws = dict[str, Array]
NUM_CHAINS = 4
COLUMNS_AT_ONCE = 50  # bounds the memory of the autocorrelations


def run_nuts(problem: Problem, seed: int, num_samples: int, *, dense: bool = True) -> Draws:
    """Draws of NUTS, arrays of shape (chains, draws, ...)."""
    kernel = NUTS(problem.model, dense_mass=dense, target_accept_prob=0.9)
    mcmc = MCMC(
        kernel,
        num_warmup=1000,
        num_samples=num_samples,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), **problem.kwargs)
    samples = mcmc.get_samples(group_by_chain=True)
    return {site: np.asarray(samples[site]) for site in problem.sites}


def run_gibbs(problem: Problem, seed: int, num_samples: int) -> Draws:
    """Draws of the Gibbs sampler, arrays of shape (chains, draws, columns)."""
    chains = [
        sample_gibbs(seed + i, **problem.kwargs, num_warmup=500, num_samples=num_samples)
        for i in range(NUM_CHAINS)
    ]
    return {"beta": np.stack(chains)}


def mean_and_error(x: Array) -> tuple[Array, Array, Array]:
    """Mean, Monte Carlo standard error and effective sample size over (chains, draws, columns)."""
    half = x.shape[1] // 2
    split = np.concatenate([x[:, :half], x[:, -half:]])
    blocks = np.array_split(split, max(1, x.shape[2] // COLUMNS_AT_ONCE), axis=2)
    ess = np.concatenate([effective_sample_size(block) for block in blocks])
    return x.mean((0, 1)), x.std((0, 1)) / np.sqrt(ess), ess


def summarize(draws: Draws) -> dict[str, dict[str, Array]]:
    """Posterior mean and sd of every scalar, with their Monte Carlo standard errors."""
    summary = {}
    for site, x in draws.items():
        flat = x.reshape(*x.shape[:2], -1)
        mean, mcse_mean, ess = mean_and_error(flat)
        variance, mcse_variance, _ = mean_and_error((flat - mean) ** 2)
        sd = np.sqrt(variance)
        columns = {
            "mean": mean,
            "sd": sd,
            "ess": ess,
            "mcse_mean": mcse_mean,
            "mcse_sd": mcse_variance / (2.0 * sd),
            "r_hat": np.array([r_hat(flat[:, :, k]) for k in range(flat.shape[2])]),
        }
        summary[site] = {key: value.reshape(x.shape[2:]) for key, value in columns.items()}
    return summary


def max_and_rms(z: Array) -> dict[str, float]:
    """Largest and root mean square z-score; the latter is near 1 if the errors are correct."""
    return {"max": rounded(np.abs(z).max(), 3), "rms": rounded(np.sqrt(np.mean(z**2)), 3)}


def z_scores(
    first: dict[str, dict[str, Array]], second: dict[str, dict[str, Array]], key: str
) -> dict[str, float]:
    """Differences of two runs in units of their joint standard error."""
    z = np.concatenate(
        [
            np.ravel(
                (first[site][key] - second[site][key])
                / np.hypot(first[site][f"mcse_{key}"], second[site][f"mcse_{key}"])
            )
            for site in first
        ]
    )
    return max_and_rms(z)


def stein_z_scores(problem: Problem, beta: Array) -> dict[str, dict[str, float]]:
    """Stein's identities for the lasso with known noise, in units of their standard errors."""
    X, y = (np.asarray(problem.kwargs[key], np.float64) for key in ("X", "y"))
    gradient = (beta @ X.T - y) @ X / problem.kwargs["noise"] ** 2
    gradient += np.sign(beta) / problem.kwargs["scale"]
    scores = {}
    for key, x, expected in (("gradient", gradient, 0.0), ("virial", beta * gradient, 1.0)):
        mean, error, _ = mean_and_error(x)
        scores[key] = max_and_rms((mean - expected) / error)
    return scores


def rounded(value: Array, digits: int) -> list | float:
    """Convert to nested lists with this many significant digits."""
    if value.ndim:
        return [rounded(v, digits) for v in value]
    return float(f"{value:.{digits - 1}e}")


def make_exact(name: str) -> None:
    """Write the moments of the normal mixture."""
    problem = PROBLEMS[name]()
    weights, means = (np.asarray(problem.kwargs[key], np.float64) for key in ("weights", "means"))
    weights = weights / weights.sum()
    mean = weights @ means
    sd = np.sqrt(weights @ (1.0 + means**2) - mean**2)
    zero = np.zeros_like(mean)
    columns = {"mean": mean, "sd": sd, "mcse_mean": zero, "mcse_sd": zero}
    record = {"problem": name, "sampler": "none: exact moments"}
    record["max_mcse_mean_over_sd"] = record["max_mcse_sd_over_sd"] = 0.0
    record["sites"] = {"x": {key: rounded(value, 9) for key, value in columns.items()}}
    write(record)


def write(record: dict[str, Any]) -> None:
    """Write a reference into the folder of this script."""
    path = Path(__file__).with_name(f"{record['problem']}.json")
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n")


def make_by_importance(name: str, seed: int) -> None:
    """Write the moments of importance sampling, checked against a second run."""
    problem = PROBLEMS[name]()
    kwargs = problem.kwargs
    start = time.perf_counter()
    first, second = (
        run_importance(s, kwargs["X"], kwargs["y"], scale=kwargs["scale"], num_draws=n)
        for s, n in ((seed, 40_000), (seed + 1000, 10_000))
    )
    sites = {key: (first.sites[key], second.sites[key]) for key in problem.sites}
    main, check = ({key: pair[i] for key, pair in sites.items()} for i in (0, 1))
    record = {
        "problem": name,
        "sampler": "importance sampling from a normal approximation",
        "draws": 40_000,
        "seed": seed,
        "ess": rounded(np.asarray(first.ess), 4),
        "pareto_k": rounded(np.asarray(first.pareto_k), 3),
        "max_mcse_mean_over_sd": rounded(
            np.max([np.max(s["mcse_mean"] / s["sd"]) for s in main.values()]), 3
        ),
        "max_mcse_sd_over_sd": rounded(
            np.max([np.max(s["mcse_sd"] / s["sd"]) for s in main.values()]), 3
        ),
        "second_run": {
            "seed": seed + 1000,
            "draws": 10_000,
            "z_mean": z_scores(main, check, "mean"),
            "z_sd": z_scores(main, check, "sd"),
        },
    }
    print(f"{time.perf_counter() - start:.0f} s", json.dumps(record, indent=1), flush=True)
    record["sites"] = {
        site: {key: rounded(value, 6) for key, value in columns.items()}
        for site, columns in main.items()
    }
    write(record)


class Method(NamedTuple):
    """Sample a problem by the method chosen for it; the default is NUTS with a dense metric."""

    run: Callable[..., Draws] = run_nuts
    label: str = f"NUTS of NumPyro {numpyro.__version__}, dense metric"


METHODS = {
    "p_much_larger_n": Method(run_gibbs, "Gibbs"),
    "horseshoe_logistic": Method(
        partial(run_nuts, dense=False), f"NUTS of NumPyro {numpyro.__version__}, diagonal metric"
    ),
}


def make(name: str, num_samples: int, num_check: int, seed: int) -> None:
    """Sample one problem twice and write its file."""
    problem = PROBLEMS[name]()
    run, label = METHODS.get(name, Method())
    start = time.perf_counter()
    draws = run(problem, seed, num_samples)
    summary = summarize(draws)
    check = summarize(run(problem, seed + 1000, num_check))
    record = {
        "problem": name,
        "sampler": label,
        "chains": NUM_CHAINS,
        "draws_per_chain": num_samples,
        "seed": seed,
        "max_r_hat": rounded(np.max([s["r_hat"].max() for s in summary.values()]), 6),
        "min_ess": rounded(np.min([s["ess"].min() for s in summary.values()]), 4),
        "max_mcse_mean_over_sd": rounded(
            np.max([(s["mcse_mean"] / s["sd"]).max() for s in summary.values()]), 3
        ),
        "max_mcse_sd_over_sd": rounded(
            np.max([(s["mcse_sd"] / s["sd"]).max() for s in summary.values()]), 3
        ),
        "second_run": {
            "seed": seed + 1000,
            "draws_per_chain": num_check,
            "z_mean": z_scores(summary, check, "mean"),
            "z_sd": z_scores(summary, check, "sd"),
        },
    }
    if run is run_gibbs:
        record["stein_z"] = stein_z_scores(problem, draws["beta"])
    print(f"{time.perf_counter() - start:.0f} s", json.dumps(record, indent=1), flush=True)
    digits = {"mean": 6, "sd": 6, "ess": 3, "mcse_mean": 3, "mcse_sd": 3}
    record["sites"] = {
        site: {key: rounded(columns[key], n) for key, n in digits.items()}
        for site, columns in summary.items()
    }
    write(record)


def main() -> None:
    """Make the files of the named problems."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--draws", type=int, default=10000, help="kept draws per chain")
    parser.add_argument("--check-draws", type=int, default=2500, help="the same, second run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    numpyro.enable_x64()
    for name in args.names:
        if name == "four_modes":
            make_exact(name)
        elif name == "logistic_n100k":
            make_by_importance(name, args.seed)
        else:
            make(name, args.draws, args.check_draws, args.seed)


if __name__ == "__main__":
    main()
