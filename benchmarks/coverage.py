"""Measures whether a fitted density covers the posterior, by what the density is fitted to.

From the repository root::

    python -m benchmarks.coverage [--draws FOLDER]
    python -m benchmarks.coverage --render  # rewrite the page from stored figures

For three posteriors, each with several independent runs of ``RWPO`` with default settings, the
copula density is fitted to

- ``ensemble``: the last draws of one chain, as many as an ensemble has particles;
- ``draws``: half of the draws of all chains, 2000;

and judged by 4,000, 16,000 and 64,000 proposals from it: Pareto k-hat and the share of effective
proposals. The rows ``diagnose`` are computed as in the report: 2000 proposals from the ensemble of
each of the four chains, pooled.

The script writes ``coverage.json`` and puts the table into ``docs/diagnostics.md``. ``--draws``
stores the draws of the runs in a folder, and reads them from there if they already exist.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC
from numpyro.infer.util import constrain_fn, initialize_model

from benchmarks.problems import load_problem
from numpyro_rwpo import RWPO, __version__
from numpyro_rwpo.diagnostics.evidence import halves
from numpyro_rwpo.diagnostics.importance import coverage_of_ratios, ensemble_coverage, fitted_ratios
from numpyro_rwpo.diagnostics.posterior import Posterior, model_posterior
from numpyro_rwpo.heads.registry import find_head

PROBLEMS = ("diabetes_lasso", "l1_logistic_d50", "breast_cancer_logistic")
SIZES = (4_000, 16_000, 64_000)
NUM_CHAINS, NUM_SAMPLES, NUM_WARMUP = 4, 1000, 200
BEGIN, END = "<!-- made by benchmarks/coverage.py -->", "<!-- end of benchmarks/coverage.py -->"


def sample(name: str, num_seeds: int) -> dict[str, np.ndarray]:
    """Unconstrained draws of runs with seeds 0, 1, ...: (seeds, chains, draws, dim)."""
    problem, runs = load_problem(name), []
    for seed in range(num_seeds):
        mcmc = MCMC(
            RWPO(problem.model),
            num_warmup=NUM_WARMUP,
            num_samples=NUM_SAMPLES,
            num_chains=NUM_CHAINS,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(seed), **problem.kwargs)
        sites = mcmc.get_samples(group_by_chain=True)
        runs.append(model_posterior(problem.model, (), problem.kwargs, sites).draws)
        particles = mcmc.last_state.ensemble.particles
    return {"draws": np.stack(runs), "particles": np.asarray(particles)}


def posterior(name: str, draws: np.ndarray) -> Posterior:
    """The posterior density in the coordinates of the draws (chains, draws, dim)."""
    problem = load_problem(name)
    info = initialize_model(jax.random.key(0), problem.model, model_kwargs=problem.kwargs)
    unravel = ravel_pytree(info.param_info.z)[1]

    def sites(x: jax.Array) -> Any:
        return constrain_fn(problem.model, (), problem.kwargs, unravel(x))

    return model_posterior(problem.model, (), problem.kwargs, jax.vmap(jax.vmap(sites))(draws))


def measure(name: str, draws: np.ndarray, num_particles: int) -> list[dict[str, Any]]:
    """One row for each run, fit and number of proposals."""
    target, rows = posterior(name, draws[0]), []

    def log_density(x: Any) -> np.ndarray:
        return target.evaluate(x)[0]

    for seed, run in enumerate(draws):
        keys = jax.random.split(jax.random.key(seed), 3)
        row: dict[str, Any] = {"problem": name, "dim": run.shape[2], "seed": seed}
        fits = {"ensemble": run[0, -num_particles:], "draws": np.concatenate(halves(run)[0])}
        for (fit, fitted), key in zip(fits.items(), keys, strict=False):
            ratios = fitted_ratios(
                key,
                fitted,
                log_density,
                target.prior,
                attention=find_head("copula"),
                relative_time=0.1,
                num_proposals=max(SIZES),
            )[1]
            for size in SIZES:
                found = coverage_of_ratios(ratios[:size], len(fitted))
                rows.append(row | {"fit": fit} | found._asdict())
        coverage = ensemble_coverage(keys[2], run[:, -num_particles:], log_density, target.prior)
        rows.append(row | {"fit": "diagnose"} | coverage._asdict())
        print(rows[-1], flush=True)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Smallest and largest values over runs, one line for each fit and number of proposals."""
    lines = ["| posterior | fitted to | proposals | k-hat | effective |", "| --- " * 5 + "|"]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        label = "each ensemble, pooled (`diagnose`)" if row["fit"] == "diagnose" else row["fit"]
        label = {"ensemble": "one ensemble", "draws": "draws"}.get(label, label)
        fitted = f"{label}, {row['num_fitted']}"
        key = f"{row['problem']}, d = {row['dim']}", fitted, row["num_proposals"]
        groups.setdefault(key, []).append(row)
    for (problem, fitted, number), group in groups.items():
        k_hats, shares = ([row[key] for row in group] for key in ("k_hat", "efficiency"))
        lines.append(
            f"| {problem} | {fitted} | {number:,} | {min(k_hats):.2f} to {max(k_hats):.2f} "
            f"| {min(shares):.2%} to {max(shares):.2%} |"
        )
    return "\n".join(lines)


def insert(page: Path, result: dict[str, Any]) -> None:
    """Replace the text between the markers of the page."""
    settings = result["settings"]
    origin = (
        f"Smallest and largest of {settings['num_seeds']} runs; numpyro_rwpo "
        f"{settings['versions']['numpyro_rwpo']}, jax {settings['versions']['jax']}, "
        f"{settings['device']}."
    )
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(result['rows'])}\n\n{origin}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=Path, help="folder that keeps the draws of the runs")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/coverage.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/diagnostics.md"))
    parser.add_argument("--render", action="store_true", help="measure nothing: stored figures")
    arguments = parser.parse_args()
    if not arguments.render:
        begin, rows = time.perf_counter(), []
        for name in PROBLEMS:
            file = arguments.draws / f"draws_{name}_s.npz" if arguments.draws else None
            if file is not None and file.exists():
                runs = dict(np.load(file))
            else:
                runs = sample(name, arguments.seeds)
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    np.savez(file, **runs)
            rows += measure(name, runs["draws"][: arguments.seeds], runs["particles"].shape[-2])
        settings = {
            "num_seeds": arguments.seeds,
            "versions": {"numpyro_rwpo": __version__, "jax": jax.__version__},
            "device": jax.devices()[0].platform,
            "seconds": time.perf_counter() - begin,
        }
        result = {"settings": settings, "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    insert(arguments.page, json.loads(arguments.output.read_text()))


if __name__ == "__main__":
    main()
