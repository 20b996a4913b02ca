"""Runs the benchmark: every sampler on every problem, then tables and figures.

From the repository root::

    python -m benchmarks [--quick] [--problems NAME ...] [--samplers NAME ...] [--runs N]
        [--seeds N] [--budget SECONDS] [--out FOLDER] [--report-only]

One process runs at a time, and there is one result file for each sampler, problem and seed, in
``FOLDER/cells``. A process runs its sampler once cold and ``--runs`` times warm, each time with
another key. Cells that have a file are skipped, so an interrupted run continues where it was;
delete a file to have it measured again. A cell takes at most its budget, plus the time to load its
process. The report is written after every seed, so that there is one whenever the run is stopped.

``--quick`` ends within ten minutes: after eight minutes no cell is started, and the remaining cells
would run next time. It shows that everything works and gives a rough impression of the results;
with a single seed, its sizes by error are imprecise.
"""

import argparse
import time
from pathlib import Path

from benchmarks.cell import write_json
from benchmarks.machine import describe_machine
from benchmarks.posteriors.posteriordb.models import POSTERIORS
from benchmarks.problems import PROBLEMS
from benchmarks.report import read_machine, write_report
from benchmarks.runner import Cell, load_results, run_cells
from benchmarks.samplers import SAMPLERS

POSTERIORDB_SAMPLERS = ("rwpo", "nuts", "nuts_dense")
# The most informative cells come first, because the last ones are missing if time runs out.
QUICK_CELLS = [
    *(("diabetes_lasso", sampler) for sampler in ("rwpo", "nuts", "nuts_dense", "chees")),
    *(("l1_logistic_d50", sampler) for sampler in ("rwpo", "nuts", "aies", "myula")),
    *(("four_modes", sampler) for sampler in ("rwpo", "nuts", "noise_free")),
]
QUICK_BUDGET = 60.0
QUICK_SECONDS = 480.0  # no cell starts later than this; the last one may take its whole budget
FULL_BUDGET = 900.0


def cells_to_run(args: argparse.Namespace) -> list[Cell]:
    """All cells that the command line requests, ordered by seed.

    The posteriors of posteriordb are for comparing RWPO with NUTS; other samplers run on them only
    if both posterior and sampler are named.
    """
    if args.quick:
        pairs = [
            pair
            for pair in QUICK_CELLS
            if (args.problems is None or pair[0] in args.problems)
            and (args.samplers is None or pair[1] in args.samplers)
        ]
    else:
        pairs = [
            (problem, sampler)
            for problem in args.problems or [*PROBLEMS, *POSTERIORS]
            for sampler in args.samplers or SAMPLERS
            if problem in PROBLEMS
            or sampler in POSTERIORDB_SAMPLERS
            or (args.problems and args.samplers)
        ]
    return [Cell(*pair, seed) for seed in range(args.seeds) for pair in pairs]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare samplers.")
    known = [*PROBLEMS, *POSTERIORS]
    parser.add_argument("--quick", action="store_true", help="a few cells, ten minutes")
    parser.add_argument("--problems", nargs="+", metavar="NAME", help=", ".join(known))
    parser.add_argument("--samplers", nargs="+", metavar="NAME", help=", ".join(SAMPLERS))
    parser.add_argument("--runs", type=int, metavar="N", help="warm runs; default 5, or 1 if quick")
    parser.add_argument("--seeds", type=int, metavar="N", default=1, help="processes; default 1")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="time limit of one cell")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default benchmarks/results or results-quick"
    )
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    for option, given, valid in (
        ("--problems", args.problems, known),
        ("--samplers", args.samplers, list(SAMPLERS)),
    ):
        if unknown := sorted(set(given or ()) - set(valid)):
            parser.error(f"{option}: no {', '.join(unknown)}; choose from {', '.join(valid)}")
    if args.runs is None:
        args.runs = 1 if args.quick else 5
    if args.budget is None:
        args.budget = QUICK_BUDGET if args.quick else FULL_BUDGET
    if args.out is None:
        args.out = Path("benchmarks") / ("results-quick" if args.quick else "results")
    for option in ("runs", "seeds"):
        if getattr(args, option) < 1:
            parser.error(f"--{option}: must be at least 1; got {getattr(args, option)}")
    if not args.budget > 0:
        parser.error(f"--budget: must be positive; got {args.budget}")
    if not args.report_only and not cells_to_run(args):
        parser.error("no cell is left of --quick with these --problems and --samplers")
    return args


def main() -> None:
    """Run the cells that are missing and write the report."""
    args = parse()
    folder = args.out / "cells"
    cells = [] if args.report_only else cells_to_run(args)
    if cells:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "machine.json", describe_machine())
    no_start_after = time.perf_counter() + QUICK_SECONDS if args.quick else None
    for seed in range(args.seeds):
        of_seed = [c for c in cells if c.seed == seed]
        run_cells(
            of_seed,
            folder,
            budget=args.budget,
            num_runs=args.runs,
            no_start_after=no_start_after,
        )
        records = load_results(folder)
        if not records:
            raise SystemExit(f"There are no results in {folder}.")
        write_report(records, read_machine(args.out), args.out)
    print(f"Report: {args.out / 'results.md'}")


if __name__ == "__main__":
    main()
