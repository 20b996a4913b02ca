"""Measures how far a run is from the smallest possible cost of its gradients.

From the repository root, after ``python -m benchmarks``::

    python -m benchmarks.floor [--out FOLDER]

The likelihoods here are functions of ``X @ beta``, so a gradient for a batch of particles takes two
matrix products: the particles times the transposed covariates, and back. The *floor* is the time of
these two products alone, as XLA computes them here, for the batch of all particles of all chains.
*Gradient* is the whole gradient of NumPyro's model for the same batch. *Run* is the time of RWPO's
benchmark cell over its number of evaluations, including warm-up, attention, metric and draws.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cell import write_json
from benchmarks.machine import versions
from benchmarks.problems import load_problem
from benchmarks.report import markdown_table, three_digits
from benchmarks.samplers.protocol import device_kwargs, flat_target
from numpyro_rwpo.dynamics.settings import default_num_particles

PROBLEMS = (
    "diabetes_lasso",
    "diabetes_lasso_latent_scale",
    "breast_cancer_logistic",
    "l1_logistic_d50",
    "p_much_larger_n",
    "logistic_n100k",
)
NUM_CHAINS = 4
NUM_REPEATS = 15


def _median_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(NUM_REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def measure(name: str) -> dict[str, Any]:
    """Microseconds per gradient of the two products and of the whole gradient, and their GFLOP/s.

    Args:
        name: Key of ``benchmarks.problems.PROBLEMS``; the model has an argument ``X``.

    Returns:
        Shapes and times.
    """
    problem = load_problem(name)
    covariates = device_kwargs(problem)["X"]
    target = flat_target(problem)
    dim = target.dim
    batch = NUM_CHAINS * default_num_particles(dim, False)
    positions = 0.1 * jax.random.normal(jax.random.key(0), (batch, dim))
    rows, columns = covariates.shape
    coefficients = positions[:, :1] * jnp.ones(columns)
    products = _median_seconds(lambda b: (b @ covariates.T) @ covariates, coefficients)
    gradient = _median_seconds(jax.vmap(jax.value_and_grad(target.potential)), positions)
    return {
        "problem": name,
        "rows": rows,
        "columns": columns,
        "batch": batch,
        "floor_us": 1e6 * products / batch,
        "gradient_us": 1e6 * gradient / batch,
        "gflops": 4e-9 * rows * columns * batch / products,
        "versions": versions(),
    }


def run_us(name: str, cells: Path) -> float:
    """Microseconds per gradient of RWPO's warm runs in the benchmark; NaN if there are none."""
    records = [json.loads(path.read_text()) for path in cells.glob(f"{name}--rwpo--seed*.json")]
    runs = [run for record in records for run in (record, *record.get("repeats", ()))]
    costs = [
        1e6
        * (run["warmup_seconds"] + run["sampling_seconds"])
        / (run["warmup_evaluations"] + run["sampling_evaluations"])
        for run in runs
        if run.get("sampling_evaluations")
    ]
    return float(np.median(costs)) if costs else float("nan")


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table, with one row for each problem."""
    rows = []
    for record in records:
        floor, gradient, run = (record[f"{key}_us"] for key in ("floor", "gradient", "run"))
        run = float("nan") if run is None else run
        shape = f"{record['rows']:,} x {record['columns']:,}"
        figures = (record["gflops"], floor, gradient, run, gradient / floor, run / floor)
        rows.append(
            [record["problem"], shape, str(record["batch"]), *(three_digits(x) for x in figures)]
        )
    header = ["problem", "X", "batch", "GFLOP/s", "floor, µs", "gradient, µs", "run, µs"]
    return markdown_table([*header, "gradient / floor", "run / floor"], rows)


def main() -> None:
    """Run the measurements, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    cells = args.out / "cells"
    records = [measure(name) | {"run_us": run_us(name, cells)} for name in PROBLEMS]
    write_json(args.out / "floor.json", {"records": records})
    (args.out / "floor.md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
