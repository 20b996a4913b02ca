"""Measures errors of RWPO and NUTS after 50, 100, 200 and 400 iterations of warm-up.

From the repository root::

    python -m benchmarks.warmup_length [--problems NAME ...] [--samplers NAME ...] [--seeds N]
        [--budget SECONDS] [--out FOLDER]

The cells are those of :mod:`benchmarks` with another length of warm-up, and their files are in
``FOLDER/warmup_length``.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.cell import write_json
from benchmarks.posteriors.posteriordb.models import POSTERIORS
from benchmarks.problems import PROBLEMS
from benchmarks.report import markdown_table, summarize, three_digits
from benchmarks.runner import Cell, load_results, run_cells
from benchmarks.samplers import SAMPLERS

LENGTHS = (50, 100, 200, 400)
DEFAULT_PROBLEMS = (
    "diabetes_lasso",
    "diabetes_lasso_latent_scale",
    "breast_cancer_logistic",
    "l1_logistic_d50",
)


def table(records: list[dict[str, Any]]) -> str:
    """The Markdown table, with one row for each problem, sampler and length."""
    rows = []
    by_length = {
        length: summarize([r for r in records if r["num_warmup"] == length]) for length in LENGTHS
    }
    pairs = dict.fromkeys((s.problem, s.sampler) for group in by_length.values() for s in group)
    for pair in pairs:
        for length, group in by_length.items():
            for s in (s for s in group if (s.problem, s.sampler) == pair):
                figures = (s.max_mean_error, s.min_sd_ratio, s.max_sd_ratio, s.max_r_hat)
                figures += (s.bulk_ess, s.by_error.size, s.warm_seconds, s.num_divergences)
                label = f"{s.problem}, {SAMPLERS[s.sampler].label}"
                rows.append([label, str(length), *(three_digits(x) for x in figures)])
    header = ["problem", "warm-up", "mean error", "min sd", "max sd", "R-hat", "bulk ESS"]
    return markdown_table([*header, "size by error", "warm s", "divergences"], rows)


def main() -> None:
    """Run the cells that are missing and print the table."""
    known = [*PROBLEMS, *POSTERIORS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=DEFAULT_PROBLEMS, metavar="NAME")
    parser.add_argument("--samplers", nargs="+", default=("rwpo", "nuts"), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=300.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    for given, valid in ((args.problems, known), (args.samplers, list(SAMPLERS))):
        if unknown := sorted(set(given) - set(valid)):
            parser.error(f"no {', '.join(unknown)}; choose from {', '.join(valid)}")
    if args.seeds < 1:
        parser.error(f"--seeds: must be at least 1; got {args.seeds}")
    folder = args.out / "warmup_length"
    cells = [
        Cell(problem, sampler, seed, length)
        for seed in range(args.seeds)
        for problem in args.problems
        for sampler in args.samplers
        for length in LENGTHS
    ]
    run_cells(cells, folder, budget=args.budget)
    records = load_results(folder)
    write_json(args.out / "warmup_length.json", {"records": records})
    (args.out / "warmup_length.md").write_text(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
