"""Runs processes one after another, each with its own time limit and result file."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cell import write_json
from benchmarks.samplers import SAMPLERS

GRACE_SECONDS = 240.0  # added for imports, data and statistics, which the budget does not cover


class Cell(NamedTuple):
    """One sampler on one problem with one seed.

    Attributes:
        problem: Key of ``PROBLEMS`` or ``POSTERIORS``.
        sampler: Key of ``SAMPLERS``.
        seed: Seed.
        num_warmup: Warm-up iterations, ``None`` for the sampler's own number.
    """

    problem: str
    sampler: str
    seed: int
    num_warmup: int | None = None

    def path(self, folder: Path) -> Path:
        """The cell's result file."""
        length = "" if self.num_warmup is None else f"--warmup{self.num_warmup}"
        return folder / f"{self.problem}--{self.sampler}{length}--seed{self.seed}.json"


def parse_cells(
    parser: argparse.ArgumentParser, arguments: list[str] | None, *, seeds: int, out: str
) -> argparse.Namespace:
    """Parse a command line that also says which seeds to run, where to write, and who works.

    Args:
        parser: Knows the other options.
        arguments: The command line; ``None`` for that of this process.
        seeds: Default number of seeds.
        out: Default file of the results.
    """
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--worker", nargs=2, metavar=("SEED", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.seeds < 1:
        parser.error(f"--seeds: must be at least 1; got {args.seeds}")
    return args


def run_process(arguments: list[str], path: Path, *, limit: float, record: dict[str, Any]) -> None:
    """Run a module in a fresh process that writes ``path``; write a record if it does not.

    Args:
        arguments: Module and its arguments.
        path: File that the process should write.
        limit: Seconds after which the process and its children are terminated.
        record: Record to write, with a status and the notes of the process, if it failed.
    """
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    progress = path.with_suffix(".progress")
    progress.unlink(missing_ok=True)
    with path.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            outcome = {"status": "failed", "reason": f"the process ended with code {code}"}
        except subprocess.TimeoutExpired:
            outcome = {"status": "ended", "reason": f"still running after {limit:.0f} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if not path.exists():
        known = json.loads(progress.read_text()) if progress.exists() else {}
        write_json(path, record | known | outcome)
    else:
        path.with_suffix(".log").unlink()
    progress.unlink(missing_ok=True)


def run_cells(
    cells: Iterable[Cell],
    folder: Path,
    *,
    budget: float,
    num_runs: int = 1,
    no_start_after: float | None = None,
) -> None:
    """Run the cells that have no result yet, one process at a time.

    Args:
        cells: Cells to run, in this order.
        folder: Folder of the results.
        budget: Seconds for each cell.
        num_runs: Number of warm runs of each cell.
        no_start_after: Time of ``time.perf_counter`` in seconds after which no cell is started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = list(cells)
    for i, cell in enumerate(cells, 1):
        path = cell.path(folder)
        if path.exists():
            continue
        if no_start_after is not None and time.perf_counter() > no_start_after:
            print(f"No time left for {len(cells) - i + 1} cells; run again to go on.", flush=True)
            return
        record = cell._asdict()
        begin = time.perf_counter()
        if (reason := SAMPLERS[cell.sampler].left_out.get(cell.problem)) is not None:
            write_json(path, record | {"status": "left out", "reason": reason})
        else:
            arguments = ["benchmarks.cell", cell.problem, cell.sampler, str(cell.seed), str(path)]
            arguments += ["--budget", str(budget), "--runs", str(num_runs)]
            if cell.num_warmup is not None:
                arguments += ["--num-warmup", str(cell.num_warmup)]
            run_process(arguments, path, limit=budget + GRACE_SECONDS, record=record)
        status = json.loads(path.read_text())["status"]
        seconds = time.perf_counter() - begin
        print(f"[{i}/{len(cells)}] {path.stem}: {status}, {seconds:.0f} s", flush=True)


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All runs in a folder in the order of their files; the runs of a cell share its cold run."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*--*.json"))]
    return [cell | run for cell in cells for run in ({}, *cell.pop("repeats", ()))]
