"""Measures the gradient evaluations that transport needs from NumPyro's default start.

From the repository root::

    python -m benchmarks.transport [--particles N] [--ensembles N] [--out FOLDER]

Ensembles start uniformly on (-2, 2) in unconstrained space, like NumPyro's ``init_to_uniform``, and
move by the quasi-Newton start and noise-free transport alone, without correction. An ensemble has
arrived when the mean of every coordinate is within 0.25 posterior standard deviations of the
reference and its standard deviation is within 25%. Evaluations are those of the start and the
transport, divided by the number of particles.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.cell import write_json
from benchmarks.machine import versions
from benchmarks.problems import load_problem
from benchmarks.references import load_reference
from benchmarks.report import markdown_table, three_digits
from benchmarks.samplers.protocol import device_kwargs
from numpyro_rwpo import RWPO

CLASSIC = ("diabetes_lasso", "breast_cancer_logistic", "l1_logistic_d50")
MAX_MEAN_ERROR = 0.25  # in posterior standard deviations
MAX_SD_ERROR = 0.25  # relative to the posterior standard deviation
NUM_ITERATIONS = 40


def measure(name: str, num_particles: int, num_ensembles: int) -> dict[str, Any]:
    """Errors of independent ensembles during transport.

    Args:
        name: Key of ``PROBLEMS``.
        num_particles: Number of particles per ensemble.
        num_ensembles: Number of ensembles.

    Returns:
        ``evaluations`` per particle (iterations,), ``mean_error`` and ``sd_error`` of the worst
        coordinate (iterations, ensembles), and ``arrival`` in evaluations per particle
        (ensembles,), infinite where an ensemble did not arrive.
    """
    problem, reference = load_problem(name), load_reference(name)
    kwargs = device_kwargs(problem)
    kernel = RWPO(problem.model, num_particles=num_particles, correction=None)
    keys = jax.random.split(jax.random.key(0), num_ensembles)
    # Twice the iterations, so that transport does not run out of them.
    state = kernel.init(keys, 2 * NUM_ITERATIONS, None, (), kwargs)
    step = jax.jit(lambda state: kernel.sample(state, (), kwargs))
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], state.z))
    constrain = kernel.postprocess_fn((), kwargs)
    to_sites = jax.jit(jax.vmap(jax.vmap(lambda x: constrain(unravel(x)))))
    rows = []
    for _ in range(NUM_ITERATIONS):
        state = step(state)
        sites = to_sites(state.ensemble.particles)
        mean_error, sd_error = np.zeros(num_ensembles), np.zeros(num_ensembles)
        for site, moments in reference.items():
            x = np.asarray(sites[site], np.float64).reshape(num_ensembles, num_particles, -1)
            mean, sd = np.ravel(moments["mean"]), np.ravel(moments["sd"])
            mean_error = np.maximum(mean_error, np.abs((x.mean(1) - mean) / sd).max(1))
            sd_error = np.maximum(sd_error, np.abs(x.std(1) / sd - 1).max(1))
        spent = np.asarray(state.num_gradients) / num_particles
        rows.append((spent, mean_error, sd_error))
    spent, mean_error, sd_error = (np.stack(column) for column in zip(*rows, strict=True))
    is_there = (mean_error <= MAX_MEAN_ERROR) & (sd_error <= MAX_SD_ERROR)
    arrival = np.where(is_there, spent, np.inf).min(0)
    return {
        "problem": name,
        "num_particles": num_particles,
        "evaluations": spent.tolist(),
        "mean_error": mean_error.tolist(),
        "sd_error": sd_error.tolist(),
        "arrival": arrival.tolist(),
        "versions": versions(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table, with one row for each problem."""
    rows = []
    for record in records:
        arrival = np.array([np.inf if x is None else x for x in record["arrival"]])
        figures = (np.median(arrival), arrival.min(), arrival.max())
        rows.append(
            [
                record["problem"],
                str(record["num_particles"]),
                str(len(arrival)),
                *(three_digits(x) for x in figures),
            ]
        )
    header = ["problem", "particles", "ensembles", "median evaluations", "fewest", "most"]
    return markdown_table(header, rows)


def main() -> None:
    """Run the measurements, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, nargs="+", default=(256, 512), metavar="N")
    parser.add_argument("--ensembles", type=int, default=8, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if min(args.particles) < 4 or args.ensembles < 1:
        parser.error("--particles: at least 4 each; --ensembles: at least 1")
    records = [measure(name, n, args.ensembles) for name in CLASSIC for n in args.particles]
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "transport.json", {"records": records})
    (args.out / "transport.md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
