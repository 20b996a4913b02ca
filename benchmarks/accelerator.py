"""Measures the benefit of an accelerator: RWPO with increasing numbers of particles, and NUTS.

From the repository root, on the device that JAX finds (the CPU if there is no accelerator)::

    python -m benchmarks.accelerator [--out FOLDER] [--budget SECONDS]

There are four chains. RWPO takes 200 iterations of warm-up and as many draws per chain as it has
particles; NUTS takes 1000 and 1000. Each row is measured in a fresh process, which runs once cold
(including compilation) and once warm, timed and driven like the cells of the main benchmark
(:mod:`benchmarks.cell`). Errors are the largest over the coordinates, relative to the stored
reference posteriors. Matrix products are in full single precision, unless
``JAX_DEFAULT_MATMUL_PRECISION`` says otherwise.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from numpyro.infer import NUTS

from benchmarks.cell import CompileClock, drive, judge, run_summary, write_json
from benchmarks.machine import versions
from benchmarks.problems import load_problem
from benchmarks.report import markdown_table, three_digits
from benchmarks.runner import load_results, run_process
from benchmarks.samplers.numpyro_mcmc import KernelProgram
from benchmarks.samplers.protocol import Settings
from numpyro_rwpo import RWPO

NUM_CHAINS = 4
GRACE_SECONDS = 60.0  # added to a cell's time limit for imports, the reference and statistics


class Case(NamedTuple):
    """A problem and a sampler: RWPO with a number of particles, or NUTS if it is ``None``."""

    problem: str
    num_particles: int | None

    @property
    def name(self) -> str:
        """Name of the result file, without its ending."""
        return f"{self.problem}--{self.num_particles or 'nuts'}"


CASES = [
    *(Case("l1_logistic_d50", n) for n in (None, 128, 1024, 8192)),
    *(Case("logistic_n100k", n) for n in (None, 64, 1024, 4096)),
    Case("p_much_larger_n", 256),
]


def measure(case: Case, budget: float) -> dict[str, Any]:
    """Run a case once cold and once warm in this process, each within ``budget`` seconds."""
    if jax.config.jax_default_matmul_precision is None:  # RWPO does this itself; NUTS does not
        jax.config.update("jax_default_matmul_precision", "highest")
    problem = load_problem(case.problem)
    if case.num_particles is None:
        settings, make_kernel = Settings(NUM_CHAINS, 1000, 1000), NUTS
    else:
        settings = Settings(NUM_CHAINS, 200, case.num_particles)
        make_kernel = partial(RWPO, num_particles=case.num_particles)
    clock = CompileClock()
    jax.block_until_ready(jax.numpy.zeros(()) + 1)  # start the backend before the clock starts
    begin = time.perf_counter()
    program = KernelProgram(problem, settings, make_kernel)
    cold = drive(program, jax.random.key(0), begin + budget, clock, lambda _: None)
    cold_seconds = time.perf_counter() - begin
    if not cold.is_complete:
        return {"status": "over budget", "reason": f"more than {budget:.0f} s", **case._asdict()}
    warm = drive(program, jax.random.key(1), time.perf_counter() + budget, clock, lambda _: None)
    summary = run_summary(warm, None)
    figures = judge(case.problem, warm.draws() or {})
    del figures["errors"], figures["reference_errors"]  # one entry per coordinate: too many
    return {
        "status": "complete",
        **case._asdict(),
        "cold_seconds": cold_seconds,
        "compile_seconds": cold.total("compile_seconds"),
        "warmup_seconds": summary["warmup"]["seconds"],
        "sampling_seconds": summary["sampling"]["seconds"],
        "gradients": summary["warmup"]["evaluations"] + summary["sampling"]["evaluations"],
        "num_divergences": sum(t.segment.num_divergences for t in warm.segments),
        **figures,
        "device": jax.devices()[0].device_kind,
        "precision": jax.config.jax_default_matmul_precision,
        "versions": versions(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table, with one row for each case."""
    order = [case.name for case in CASES]
    rows = []
    for record in sorted(
        records, key=lambda r: order.index(Case(r["problem"], r["num_particles"]).name)
    ):
        n = record["num_particles"]
        label = [record["problem"], "NUTS" if n is None else f"RWPO, {n:,}"]
        if record["status"] != "complete":
            rows.append([*label, record["reason"], *[""] * 8])
            continue
        warm = record["warmup_seconds"] + record["sampling_seconds"]
        figures = [
            record["cold_seconds"],
            warm,
            record["gradients"] / warm,
            record["min_bulk_ess"],
            record["min_bulk_ess"] / warm,
            record["max_mean_error"],
            record["min_sd_ratio"],
            record["max_sd_ratio"],
            record["max_r_hat"],
        ]
        rows.append([*label, *(three_digits(x) for x in figures)])
    header = ["problem", "sampler, particles per chain", "cold, s", "warm, s"]
    header += ["gradients per second", "bulk ESS", "bulk ESS per second", "mean error, sd"]
    header += ["smallest sd ratio", "largest"]
    return markdown_table([*header, "R-hat"], rows)


def main() -> None:
    """Run the cases that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", default=names, choices=names, metavar="CASE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS", help="of one run")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        case = next(case for case in CASES if case.name == args.worker[0])
        write_json(Path(args.worker[1]), measure(case, args.budget))
        return
    folder = args.out / "accelerator"
    folder.mkdir(parents=True, exist_ok=True)
    for case in (case for case in CASES if case.name in args.cases):
        path = folder / f"{case.name}.json"
        if path.exists():
            continue
        arguments = ["benchmarks.accelerator", "--budget", str(args.budget)]
        arguments += ["--worker", case.name, str(path)]
        limit = 2 * args.budget + GRACE_SECONDS
        run_process(arguments, path, limit=limit, record=case._asdict())
        print(path.stem, flush=True)
    records = load_results(folder)
    write_json(args.out / "accelerator.json", {"records": records})
    (args.out / "accelerator.md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
