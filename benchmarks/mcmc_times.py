"""Measures the wall time of ``MCMC.run`` as a user calls it, for RWPO and NUTS, cold and warm.

From the repository root::

    python -m benchmarks.mcmc_times [NAME ...] [--seeds N] [--out FOLDER]

For the lassos of the benchmark, except the two on which NUTS takes ten minutes, and every posterior
of posteriordb (or for the named problems), and for both kernels, a fresh process runs 4 vectorized
chains of 1000 draws twice, after 200 (RWPO) and 1000 (NUTS) iterations of warm-up.
*Cold* is the first run, everything but imports. NumPyro compiles its loop anew on every run without
a progress bar, so the second run as a user calls it (*again*) compiles, too; NUTS needs a new
``MCMC`` object for it, since its second vectorized run on one object fails (NumPyro 0.22). *Warm*
is the second run less the seconds in which, according to JAX's own events, it traced or compiled.
The same rule applies to both samplers.

There is one result file for each kernel, problem and seed; runs with a file are not repeated.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS

from benchmarks.cell import CompileClock, write_json
from benchmarks.machine import versions
from benchmarks.posteriors.posteriordb.models import POSTERIORS
from benchmarks.problems import LAPLACE_PROBLEMS, PROBLEMS, load_problem
from benchmarks.references import accuracy_of
from benchmarks.report import markdown_table, three_digits
from benchmarks.runner import load_results, run_process
from numpyro_rwpo import RWPO

KERNELS = {"rwpo": (RWPO, 200), "nuts": (NUTS, 1000)}
LONG = ("p_much_larger_n", "logistic_n100k")
DEFAULT = (*(name for name in LAPLACE_PROBLEMS if name not in LONG), *POSTERIORS)
NUM_CHAINS, NUM_SAMPLES = 4, 1000
LIMIT_SECONDS = 600.0


def measure(problem_name: str, kernel_name: str, seed: int) -> dict[str, Any]:
    """Run one kernel on one problem twice.

    Args:
        problem_name: Key of ``PROBLEMS`` or ``POSTERIORS``.
        kernel_name: Key of :data:`KERNELS`.
        seed: Seed of the first run; the second uses the next one.

    Returns:
        Seconds and accuracy.
    """
    problem = load_problem(problem_name)
    make_kernel, num_warmup = KERNELS[kernel_name]
    clock = CompileClock()
    jax.block_until_ready(jax.numpy.zeros(()) + 1)

    def make() -> MCMC:
        return MCMC(
            make_kernel(problem.model),
            num_warmup=num_warmup,
            num_samples=NUM_SAMPLES,
            num_chains=NUM_CHAINS,
            chain_method="vectorized",
            progress_bar=False,
        )

    def timed(mcmc: MCMC, seed: int) -> tuple[float, float]:
        begin, compiled = time.perf_counter(), clock.seconds
        mcmc.run(jax.random.key(seed), **problem.kwargs)
        jax.block_until_ready(mcmc.get_samples())
        return time.perf_counter() - begin, clock.seconds - compiled

    mcmc = make()
    cold, _ = timed(mcmc, seed)
    accuracy = accuracy_of(problem_name, mcmc.get_samples(group_by_chain=True))
    # NumPyro 0.22 cannot run NUTS with vectorized chains twice.
    again, compiling = timed(make() if kernel_name == "nuts" else mcmc, seed + 1)
    return {
        "problem": problem_name,
        "kernel": kernel_name,
        "seed": seed,
        "status": "complete",
        "cold_seconds": cold,
        "again_seconds": again,
        "warm_seconds": again - compiling,
        "accuracy": accuracy._asdict(),
        "versions": versions(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table of medians over seeds and their ratios."""
    rows = []
    for problem in dict.fromkeys(r["problem"] for r in records):
        row, medians = [problem], {}
        for kernel in KERNELS:
            chosen = [
                r
                for r in records
                if (r["problem"], r["kernel"], r["status"]) == (problem, kernel, "complete")
            ]
            for key in ("cold", "again", "warm"):
                values = [r[f"{key}_seconds"] for r in chosen]
                medians[kernel, key] = float(np.median(values)) if values else float("nan")
            errors = [r["accuracy"]["max_mean_error"] or np.nan for r in chosen]
            medians[kernel, "error"] = float(np.median(errors)) if errors else float("nan")
        for key in ("cold", "again", "warm"):
            rwpo, nuts = medians["rwpo", key], medians["nuts", key]
            row += [three_digits(rwpo), three_digits(nuts), f"{rwpo / nuts:.2f}"]
        row += [three_digits(medians[kernel, "error"]) for kernel in KERNELS]
        rows.append(row)
    columns = [
        f"{key} {kind}" for key in ("cold", "again", "warm") for kind in ("RWPO", "NUTS", "ratio")
    ]
    return markdown_table(["problem", *columns, "error RWPO", "error NUTS"], rows)


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--worker", nargs=2, metavar=("KERNEL", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - {*PROBLEMS, *POSTERIORS}):
        parser.error(f"no {', '.join(unknown)}; choose from {', '.join([*PROBLEMS, *POSTERIORS])}")
    if args.seeds < 1:
        parser.error(f"--seeds: must be at least 1; got {args.seeds}")
    if args.worker:
        kernel, file = args.worker
        write_json(Path(file), measure(args.names[0], kernel, args.seed))
        return
    folder = args.out / "mcmc_times"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for name in args.names or DEFAULT:
            for kernel in KERNELS:
                path = folder / f"{name}--{kernel}--seed{seed}.json"
                if path.exists():
                    continue
                # Seeds are far apart because each run uses two consecutive ones.
                arguments = ["benchmarks.mcmc_times", name, "--worker", kernel, str(path)]
                arguments += ["--seed", str(10 * seed)]
                record = {"problem": name, "kernel": kernel, "seed": seed}
                run_process(arguments, path, limit=LIMIT_SECONDS, record=record)
                print(path.stem, flush=True)
    records = load_results(folder)
    write_json(args.out / "mcmc_times.json", {"records": records})
    (args.out / "mcmc_times.md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
