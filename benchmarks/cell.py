"""One cell of the benchmark: one sampler on one problem with one seed, in a process of its own.

It is started by :mod:`benchmarks.runner`, or by hand::

    python -m benchmarks.cell PROBLEM SAMPLER SEED FILE [--budget SECONDS] [--runs N]

**What is timed.** The clock starts when Python, JAX, NumPyro and the data are loaded. The sampler
is prepared and run (*cold*: including tracing and compilation), then run again from a new starting
point with a new key by the same compiled program (*warm*). NumPyro's ``MCMC`` would compile its
loop anew on the second run, so all samplers are driven segment by segment by this package's own
loop (:mod:`benchmarks.samplers.protocol`); ``benchmarks.mcmc_times`` times ``MCMC.run`` itself.

- Cold seconds cover the whole first run: preparation, initialization, warm-up and sampling.
- Warm seconds cover warm-up and sampling of the second run. Its initialization (tracing the model
  and finding valid initial values, which is Python code outside the sampler) is reported separately
  and counted for no sampler. No program is compiled in these phases: JAX's own compile events are
  recorded, and ``compile_seconds`` of the warm run confirms it.
- Draws are copied to the host within the time of their segment; statistics are not timed.
- With ``--runs N`` the same program then runs N - 1 more times with other keys, each judged like
  the second run, because errors need many seeds while compilation does not.

JAX's persistent compilation cache is off, and the precision is single.

**The budget** covers all runs. A run is stopped between two segments, which aim to last a few
seconds, when the budget is spent, and the draws made until then are judged. The second run is
skipped if there is no time for it; the warm seconds are then those of the first run less tracing
and compilation, and are marked as estimated. A process that does not stop is terminated by the
runner, which records what the process last wrote next to its result file.
"""

import argparse
import json
import resource
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.effective_size import smallest_ess
from benchmarks.machine import versions
from benchmarks.posteriors.posteriordb.models import POSTERIORS
from benchmarks.problems import PROBLEMS, load_problem
from benchmarks.references import Scalars, accuracy_of, scalars
from benchmarks.samplers import SAMPLERS
from benchmarks.samplers.protocol import Draws, Program, Segment

COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
MIN_DRAWS = 4  # per chain, because R-hat compares the variances of its halves


class Timed(NamedTuple):
    """A segment, the seconds it took, and those of them spent compiling."""

    segment: Segment
    seconds: float
    compile_seconds: float


class Run(NamedTuple):
    """One run of a program.

    Attributes:
        segments: All segments until it ended or was stopped.
        is_complete: Whether it ended by itself.
    """

    segments: list[Timed]
    is_complete: bool

    def total(self, field: str, *phases: str) -> float:
        """Sum of a field of the timed segments over some phases, or over all if none is named."""
        chosen = [t for t in self.segments if not phases or t.segment.phase in phases]
        return sum(getattr(t, field) for t in chosen)

    def draws(self) -> Draws | None:
        """All draws by site, or only the last segment's where each replaces the previous ones."""
        parts = [t.segment for t in self.segments if t.segment.draws is not None]
        if not parts:
            return None
        if parts[-1].replaces:
            return parts[-1].draws
        return {
            site: np.concatenate([part.draws[site] for part in parts], 1) for site in parts[0].draws
        }


class CompileClock:
    """Seconds that JAX has spent tracing and compiling, from its own monitoring events.

    Events are nested (tracing a function traces the functions it calls), so the union of their
    spans is measured, not the sum of their durations.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_time_span_listener(self.add)

    @property
    def seconds(self) -> float:
        """Length of the union of all spans so far."""
        return sum(end - start for start, end in self._spans)

    def add(self, event: str, start: float, end: float, **_: Any) -> None:
        """Add a span; JAX reports them in the order in which they end."""
        if event not in COMPILE_EVENTS:
            return
        while self._spans and self._spans[-1][1] > start:
            start = min(start, self._spans.pop()[0])
        self._spans.append((start, end))


def drive(
    program: Program, rng_key: jax.Array, deadline: float, clock: CompileClock, note: Any
) -> Run:
    """Run a program until it ends or the deadline has passed.

    Args:
        program: The sampler.
        rng_key: Key of the run.
        deadline: In seconds of ``time.perf_counter``.
        clock: The process's compile clock.
        note: Called after each segment with all timed segments so far.

    Returns:
        The run.
    """
    segments: list[Timed] = []
    begin, compiled = time.perf_counter(), clock.seconds
    for segment in program.run(rng_key):
        now = time.perf_counter()
        segments.append(Timed(segment, now - begin, clock.seconds - compiled))
        note(segments)
        if now > deadline:
            return Run(segments, False)
        begin, compiled = time.perf_counter(), clock.seconds
    return Run(segments, True)


def run_summary(run: Run, rate: float | None) -> dict[str, Any]:
    """Seconds, iterations and evaluations of a run by phase.

    Args:
        run: The run.
        rate: Evaluations per iteration, for programs that do not count them.

    Returns:
        A record for JSON.
    """
    summary: dict[str, Any] = {"is_complete": run.is_complete}
    for phase in ("start", "warmup", "sampling"):
        of_phase = [t.segment for t in run.segments if t.segment.phase == phase]
        iterations = sum(s.num_iterations for s in of_phase)
        counts = [s.num_evaluations for s in of_phase]
        known = sum(c for c in counts if c is not None)
        missing = sum(s.num_iterations for s in of_phase if s.num_evaluations is None)
        summary[phase] = {
            "seconds": run.total("seconds", phase),
            "compile_seconds": run.total("compile_seconds", phase),
            "iterations": iterations,
            "evaluations": known + (round(missing * rate) if missing and rate else 0),
        }
    return summary


def error_curve(name: str, run: Run, rate: float | None, is_warm: bool) -> list[dict[str, float]]:
    """Error of the running mean after every segment with draws.

    Args:
        name: The problem.
        run: The run.
        rate: Evaluations per iteration, for programs that do not count them.
        is_warm: If false, the time of compile events is subtracted from the seconds.

    Returns:
        For each segment: the seconds and evaluations so far, including warm-up, the number of draws
        over all chains, and the root mean squared error of the means in reference sds.
    """
    curve = []
    seconds, evaluations, count, total = 0.0, 0.0, 0, 0.0
    for timed in run.segments:
        segment = timed.segment
        if segment.phase == "start":
            continue
        seconds += timed.seconds - (0.0 if is_warm else timed.compile_seconds)
        known = segment.num_evaluations
        evaluations += segment.num_iterations * (rate or 0.0) if known is None else known
        if segment.draws is None:
            continue
        part = scalars(name, segment.draws)
        num_new = part.draws.shape[1] * part.draws.shape[2]
        if segment.replaces:
            count, total = 0, 0.0
        count, total = count + num_new, total + part.draws.sum((1, 2))
        error = (total / count - part.mean) / part.sd
        curve.append(
            {
                "seconds": seconds,
                "evaluations": evaluations,
                "draws": count,
                "error": float(np.sqrt(np.mean(error**2))),
            }
        )
    return curve


def judge(name: str, draws: Draws) -> dict[str, Any]:
    """Accuracy and effective sizes of draws.

    Args:
        name: The problem.
        draws: By site, arrays (chains, draws, ...).

    Returns:
        A record for JSON.
    """
    columns: Scalars = scalars(name, draws)
    figures: dict[str, Any] = accuracy_of(name, draws)._asdict()
    del figures["min_ess"]  # the same quantity from another implementation
    figures["min_bulk_ess"] = smallest_ess(columns.draws, "bulk")
    figures["min_tail_ess"] = smallest_ess(columns.draws, "tail")
    errors = (columns.draws.mean((1, 2)) - columns.mean) / columns.sd
    figures["errors"] = [float(f"{e:.5g}") for e in errors]
    figures["reference_errors"] = [float(f"{e:.5g}") for e in columns.mcse / columns.sd]
    figures["num_chains"], figures["num_draws"] = columns.draws.shape[1:]
    return figures


def measure(
    problem_name: str,
    sampler_name: str,
    seed: int,
    *,
    budget: float,
    num_runs: int = 1,
    num_warmup: int | None = None,
    num_samples: int | None = None,
    progress: Path | None = None,
) -> dict[str, Any]:
    """Run a cell in this process.

    Args:
        problem_name: Key of ``PROBLEMS`` or ``POSTERIORS``.
        sampler_name: Key of ``SAMPLERS``.
        seed: Seed of the keys of all runs.
        budget: Seconds for all runs together.
        num_runs: Number of warm runs; fewer are made if the budget runs out.
        num_warmup: Replaces the sampler's own number.
        num_samples: Replaces the sampler's own number.
        progress: File for notes on progress, in case the process has to be terminated.

    Returns:
        The cell's record; its ``status`` is ``"complete"``, ``"over budget"`` (some draws),
        ``"too few draws"`` (to be judged), or ``"no draws"`` (over budget in warm-up).
    """
    sampler = SAMPLERS[sampler_name]
    settings = sampler.settings
    if num_warmup is not None:
        settings = settings._replace(num_warmup=num_warmup)
    if num_samples is not None:
        settings = settings._replace(num_samples=num_samples)
    record: dict[str, Any] = {
        "problem": problem_name,
        "sampler": sampler_name,
        "seed": seed,
        "num_warmup": num_warmup,
        "settings": settings._asdict(),
        "budget": budget,
        "versions": versions(),
    }
    problem = load_problem(problem_name)
    clock = CompileClock()
    jax.block_until_ready(jax.numpy.zeros(()) + 1)  # start the backend before the clock starts
    key_cold, *keys_warm = jax.random.split(jax.random.key(seed), 1 + num_runs)
    begin = time.perf_counter()
    deadline = begin + budget

    def note(segments: list[Timed]) -> None:
        if progress is not None:
            so_far = Run(segments, False)
            known = record | {"known": run_summary(so_far, None)}
            progress.write_text(json.dumps(known, default=float))

    program = sampler.prepare(problem, settings)
    prepare_seconds = time.perf_counter() - begin
    cold = drive(program, key_cold, deadline, clock, note)
    cold_seconds = prepare_seconds + cold.total("seconds")
    needed = cold.total("seconds") - cold.total("compile_seconds")
    warm: list[Run] = []
    for key in keys_warm if cold.is_complete else ():
        if time.perf_counter() + needed > deadline:
            break
        run = drive(program, key, deadline, clock, note)
        if run.draws() is None:
            break
        warm.append(run)

    uncounted = any(t.segment.num_evaluations is None for t in cold.segments)
    rate = program.evaluations_per_iteration() if uncounted else None
    record |= {
        "cold_seconds": cold_seconds,
        "prepare_seconds": prepare_seconds,
        "cold": run_summary(cold, rate),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    first, *others = warm or [cold]
    record |= judged_run(problem_name, first, rate, is_warm=bool(warm))
    repeats = [judged_run(problem_name, run, rate, is_warm=True) for run in others]
    return record | {"repeats": repeats}


def judged_run(problem_name: str, run: Run, rate: float | None, *, is_warm: bool) -> dict[str, Any]:
    """The costs of one run and the quality of its draws.

    Args:
        problem_name: The problem.
        run: The run.
        rate: Evaluations per iteration, for programs that do not count them.
        is_warm: If false, the time of compile events is subtracted from the seconds.

    Returns:
        The part of a cell's record that differs from run to run.
    """
    summary = run_summary(run, rate)
    record: dict[str, Any] = {
        "warm": summary if is_warm else None,
        "is_warm_estimated": not is_warm,
        "num_divergences": sum(t.segment.num_divergences for t in run.segments),
    }
    for phase in ("warmup", "sampling"):
        compiling = 0.0 if is_warm else run.total("compile_seconds", phase)
        record[f"{phase}_seconds"] = run.total("seconds", phase) - compiling
        record[f"{phase}_evaluations"] = summary[phase]["evaluations"]
    draws = run.draws()
    if draws is None:
        return record | {"status": "no draws"}
    if next(iter(draws.values())).shape[1] < MIN_DRAWS:
        return record | {"status": "too few draws"}
    return record | {
        "figures": judge(problem_name, draws),
        "curve": error_curve(problem_name, run, rate, is_warm),
        "status": "complete" if run.is_complete else "over budget",
    }


def replace_nan(value: Any) -> Any:
    """Replace numbers that are not finite by ``None``, which JSON can represent."""
    if isinstance(value, dict):
        return {key: replace_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record atomically: a file that exists is complete."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(replace_nan(record)) + "\n")
    temporary.replace(path)


def main() -> None:
    """Measure one cell and write its file, even if it fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=[*PROBLEMS, *POSTERIORS], metavar="problem")
    parser.add_argument("sampler", choices=list(SAMPLERS), metavar="sampler")
    parser.add_argument("seed", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--budget", type=float, default=600.0)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--num-warmup", type=int)
    parser.add_argument("--num-samples", type=int)
    args = parser.parse_args()
    try:
        record = measure(
            args.problem,
            args.sampler,
            args.seed,
            budget=args.budget,
            num_runs=args.runs,
            num_warmup=args.num_warmup,
            num_samples=args.num_samples,
            progress=args.file.with_suffix(".progress"),
        )
    except Exception as error:  # the failure of a sampler is a result, too
        record = {
            "problem": args.problem,
            "sampler": args.sampler,
            "seed": args.seed,
            "num_warmup": args.num_warmup,
            "status": "failed",
            "reason": f"{type(error).__name__}: {error}"[:500],
            "traceback": traceback.format_exc()[-4000:],
        }
    write_json(args.file, record)


if __name__ == "__main__":
    main()
