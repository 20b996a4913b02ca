"""Measures time and memory of a transport step against the number of particles.

From the repository root::

    python -m benchmarks.scaling [--particles N ...] [--out FOLDER]

One ensemble of RWPO with the copula head is transported on the 50-dimensional L1 logistic
regression, for a fixed number of steps. There is a
fresh process for each number of particles: peak memory is the maximum of its resident set less its
size when the model was loaded. The time is the median over steps of the compiled loop and includes
the gradient, attention and preconditioner.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.cell import write_json
from benchmarks.machine import versions
from benchmarks.problems import load_problem
from benchmarks.report import markdown_table, three_digits
from benchmarks.runner import load_results, run_process
from benchmarks.samplers.protocol import compiled_loop
from benchmarks.transport import transport_of

PARTICLES = (64, 256, 1_000, 4_000, 16_000, 100_000)
PROBLEM = "l1_logistic_d50"
NUM_STEPS = 12
LIMIT_SECONDS = 300.0


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(num_particles: int) -> dict[str, Any]:
    """Time steps of one ensemble in this process.

    Args:
        num_particles: Size of the ensemble.

    Returns:
        Seconds per step and peak memory.
    """
    problem = load_problem(PROBLEM)
    before = _memory_mb()
    transport = transport_of(problem, num_particles)
    flow = jax.jit(transport.start)(jax.random.key(0))
    loop = compiled_loop(lambda flow, _: transport.step(flow), lambda flow: flow.progress.steps, 1)
    flow, _ = jax.block_until_ready(loop(flow, None, 1))  # compiles the loop
    seconds = []
    for _ in range(NUM_STEPS):
        begin = time.perf_counter()
        flow, _ = jax.block_until_ready(loop(flow, None, 1))
        seconds.append(time.perf_counter() - begin)
    return {
        "num_particles": num_particles,
        "status": "complete",
        "num_steps": len(seconds),
        "step_seconds": float(np.median(seconds)),
        "peak_memory_mb": _memory_mb() - before,
        "dim": transport.dim,
        "versions": versions(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table, with one row for each number of particles."""
    rows = []
    for record in sorted(records, key=lambda r: r["num_particles"]):
        n = record["num_particles"]
        if record["status"] != "complete":
            rows.append([f"{n:,}", record["reason"], "", ""])
            continue
        seconds = record["step_seconds"]
        seconds = float("nan") if seconds is None else seconds
        times = three_digits(1e3 * seconds), three_digits(1e6 * seconds / n)
        rows.append([f"{n:,}", *times, three_digits(record["peak_memory_mb"])])
    header = ["particles", "ms per step", "µs per step and particle", "peak memory, MB"]
    return markdown_table(header, rows)


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, nargs="+", default=PARTICLES, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--worker", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.particles) < 4:
        parser.error(f"--particles: at least 4 each; got {min(args.particles)}")
    if args.worker:
        write_json(args.worker, measure(args.particles[0]))
        return
    folder = args.out / "scaling"
    folder.mkdir(parents=True, exist_ok=True)
    for n in args.particles:
        path = folder / f"scaling--{n}.json"
        if path.exists():
            continue
        arguments = ["benchmarks.scaling", "--particles", str(n), "--worker", str(path)]
        run_process(arguments, path, limit=LIMIT_SECONDS, record={"num_particles": n})
        print(path.stem, flush=True)
    records = load_results(folder)
    write_json(args.out / "scaling.json", {"records": records})
    (args.out / "scaling.md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
