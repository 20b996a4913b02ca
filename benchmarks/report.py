"""Tables and figures for a folder of results.

Writes ``results.json``, ``results.md``, ``error_vs_time.png`` and ``error_vs_gradients.png``. Every
figure is computed from the records of the cells; nothing is typed in. Figures are medians over
seeds, except for the effective size by error, which is one figure over all seeds
(:mod:`benchmarks.effective_size`).
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.cell import write_json
from benchmarks.effective_size import SizeByError, size_by_error
from benchmarks.posteriors.posteriordb.models import POSTERIORS
from benchmarks.problems import LAPLACE_PROBLEMS, PROBLEMS
from benchmarks.samplers import SAMPLERS

REGRESSIONS = (*LAPLACE_PROBLEMS, "horseshoe_logistic")
NUTS_NAMES = ("nuts", "nuts_dense")
EFFECTIVE_DRAWS = 4000
SEEDS_TO_RELY_ON = 5

Record = dict[str, Any]


def _ratio(of: float, to: float) -> float:
    return of / to if to else math.nan


class Summary(NamedTuple):
    """One sampler on one problem, over seeds. Figures that are not known are NaN.

    Attributes:
        problem: Problem.
        sampler: Sampler.
        statuses: Status of every seed.
        reason: Why there are no figures, if there are none.
        num_seeds: Number of seeds with figures.
        is_estimated: Whether the warm seconds of some seed come from a cold run.
        cold_seconds: Seconds of the whole first run.
        warmup_seconds: Seconds of warm-up in the second run.
        sampling_seconds: Seconds of sampling in the second run.
        overhead_seconds: Seconds of the first run without sampling but with its compilation.
        evaluations: Gradients (or potentials) in warm-up and sampling.
        bulk_ess: Bulk ESS of the worst coordinate, by ArviZ.
        tail_ess: Tail ESS of the worst coordinate, by ArviZ.
        by_error: Effective size by error.
        max_mean_error: Largest error of a mean in reference sds.
        min_sd_ratio: Smallest sd in reference sds.
        max_sd_ratio: Largest sd in reference sds.
        max_r_hat: Largest R-hat.
        num_divergences: Divergent transitions.
    """

    problem: str
    sampler: str
    statuses: tuple[str, ...]
    reason: str
    num_seeds: int = 0
    is_estimated: bool = False
    cold_seconds: float = math.nan
    warmup_seconds: float = math.nan
    sampling_seconds: float = math.nan
    overhead_seconds: float = math.nan
    evaluations: float = math.nan
    bulk_ess: float = math.nan
    tail_ess: float = math.nan
    by_error: SizeByError = SizeByError(math.nan, math.nan, math.nan, math.nan)
    max_mean_error: float = math.nan
    min_sd_ratio: float = math.nan
    max_sd_ratio: float = math.nan
    max_r_hat: float = math.nan
    num_divergences: float = math.nan

    @property
    def size(self) -> float:
        """The smaller of ArviZ's bulk size and the size by error."""
        return float(np.minimum(self.bulk_ess, self.by_error.size))

    @property
    def warm_seconds(self) -> float:
        """Seconds of warm-up and sampling in the second run."""
        return self.warmup_seconds + self.sampling_seconds

    @property
    def rate(self) -> float:
        """Effective draws per second, including warm-up."""
        return _ratio(self.size, self.warm_seconds)

    @property
    def rate_after_warmup(self) -> float:
        """Effective draws per second of sampling; NaN if there is no warm-up to leave out."""
        return _ratio(self.size, self.sampling_seconds) if self.warmup_seconds else math.nan

    @property
    def seconds_to_effective_draws(self) -> float:
        """Seconds from a cold start to :data:`EFFECTIVE_DRAWS` effective draws."""
        passes = _ratio(EFFECTIVE_DRAWS, self.size)
        return self.overhead_seconds + passes * self.sampling_seconds


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _median(values: Iterable[float | None]) -> float:
    return float(np.median([_number(v) for v in values]))


def summarize(records: Iterable[Record]) -> list[Summary]:
    """Combine the seeds of every problem and sampler, in the order of the registries.

    Args:
        records: Records of the cells.

    Returns:
        One summary for each pair that occurs.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["problem"], record["sampler"]].append(record)
    order = [(p, s) for p in [*PROBLEMS, *POSTERIORS] for s in SAMPLERS]
    return [_summary(*pair, groups[pair]) for pair in order if pair in groups]


def _summary(problem: str, sampler: str, records: list[Record]) -> Summary:
    statuses = tuple(r["status"] for r in records)
    judged = [r for r in records if "figures" in r]
    if not judged:
        return Summary(problem, sampler, statuses, next((_reason(r) for r in records), ""))

    def median(key: str) -> float:
        return _median(r[key] for r in judged)

    def figure(key: str) -> float:
        return _median(r["figures"][key] for r in judged)

    def overhead(record: Record) -> float:
        sampling = record["cold"]["sampling"]
        return record["cold_seconds"] - sampling["seconds"] + sampling["compile_seconds"]

    # A run that was stopped is shorter than the others, so its error is not comparable.
    whole = [r for r in judged if r["status"] == "complete"] or judged
    errors = [[_number(e) for e in r["figures"]["errors"]] for r in whole]
    return Summary(
        problem,
        sampler,
        statuses,
        "",
        len(judged),
        any(r["is_warm_estimated"] for r in judged),
        median("cold_seconds"),
        median("warmup_seconds"),
        median("sampling_seconds"),
        _median(overhead(r) for r in judged),
        _median(r["warmup_evaluations"] + r["sampling_evaluations"] for r in judged),
        figure("min_bulk_ess"),
        figure("min_tail_ess"),
        size_by_error(errors, whole[0]["figures"]["reference_errors"]),
        figure("max_mean_error"),
        figure("min_sd_ratio"),
        figure("max_sd_ratio"),
        figure("max_r_hat"),
        median("num_divergences"),
    )


def _reason(record: Record) -> str:
    """Why a cell has no figures, with the progress it had noted before it was stopped."""
    known = record.get("known") or record.get("cold") or {}
    parts = [
        f"{phase} of {known[phase]['iterations']} iterations, "
        f"{known[phase]['evaluations']:,} evaluations in {known[phase]['seconds']:.0f} s"
        for phase in ("warmup", "sampling")
        if known.get(phase, {}).get("iterations")
    ]
    return "; ".join([record.get("reason") or record["status"], *parts])


def three_digits(value: float, unit: str = "") -> str:
    """Format a number for a table: three significant digits, with thousands separators."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}{unit}"
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}{unit}"
    return f"{value:#.3g}".rstrip(".") + unit


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    ruler = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ruler, *rows])


HEADER = [
    "sampler",
    "cold s",
    "warm s",
    "evaluations",
    "bulk ESS",
    "tail ESS",
    "size by error (95%)",
    "ESS/s",
    "after warm-up",
    "ESS/1000 eval.",
    "mean error",
    "sd ratios",
    "R-hat",
]


def _row(summary: Summary) -> list[str]:
    label = SAMPLERS[summary.sampler].label
    if not summary.num_seeds:
        return [label, f"*{summary.reason}*", *[""] * (len(HEADER) - 2)]
    marks = "".join(
        mark
        for mark, applies in (
            ("ᵃ", SAMPLERS[summary.sampler].family == "approximate"),
            ("ᵇ", "over budget" in summary.statuses),
            ("ᶜ", summary.is_estimated),
            ("ᵖ", SAMPLERS[summary.sampler].evaluates == "potential"),
        )
        if applies
    )
    low, high = (three_digits(x) for x in (summary.by_error.low, summary.by_error.high))
    interval = f" ({low}–{high})" if summary.num_seeds > 1 else ""
    return [
        f"{label}{marks}",
        three_digits(summary.cold_seconds),
        three_digits(summary.warm_seconds),
        three_digits(summary.evaluations),
        three_digits(summary.bulk_ess),
        three_digits(summary.tail_ess),
        three_digits(summary.by_error.size) + interval,
        three_digits(summary.rate),
        three_digits(summary.rate_after_warmup),
        three_digits(_ratio(1000 * summary.size, summary.evaluations)),
        three_digits(summary.max_mean_error),
        f"{three_digits(summary.min_sd_ratio)}–{three_digits(summary.max_sd_ratio)}",
        f"{summary.max_r_hat:.3f}",
    ]


NOTES = """\
Cold: the whole first run in a fresh process, including compilation. Warm: warm-up and sampling of a
second run by the same compiled program. Evaluations: gradients over all chains, including warm-up.
Bulk and tail ESS: those of ArviZ, for the worst coordinate. Size by error: from the errors of the
posterior means relative to the reference. ESS/s, after warm-up, and ESS/1000 evaluations use the
smaller of bulk ESS and size by error. Mean error: the largest, in reference sds. All figures are
medians over seeds.
ᵃ no acceptance step, so the answer is biased. ᵇ stopped at the time limit. ᶜ warm seconds are those
of the cold run less compilation. ᵖ evaluations of the potential, not of the gradient.
"""


def _verdict(ratio: float, limit: float, at_least: bool = True) -> str:
    if math.isnan(ratio):
        return "–"
    is_met = ratio >= limit if at_least else ratio <= limit
    return f"{three_digits(ratio)} {'✓' if is_met else '✗'}"


def targets_table(summaries: list[Summary]) -> str:
    """RWPO's ratios to NUTS and to BlackJAX, together with the goals for them.

    Args:
        summaries: From :func:`summarize`.

    Returns:
        A Markdown table, empty if there is nothing to compare.
    """
    by_pair = {(s.problem, s.sampler): s for s in summaries}
    blackjax = [name for name, s in SAMPLERS.items() if s.family == "blackjax"]
    rows = []
    for problem in dict.fromkeys(s.problem for s in summaries):
        rwpo = by_pair.get((problem, "rwpo"))
        if rwpo is None or not rwpo.num_seeds:
            continue

        def best(names: Iterable[str], field: str, pick: Any, problem: str = problem) -> float:
            found = [by_pair[problem, n] for n in names if (problem, n) in by_pair]
            values = [getattr(s, field) for s in found]
            known = [v for v in values if not math.isnan(v)]
            return pick(known) if known else math.nan

        warm = _ratio(rwpo.rate, best(NUTS_NAMES, "rate", max))
        after = _ratio(rwpo.rate_after_warmup, best(NUTS_NAMES, "rate_after_warmup", max))
        name = "seconds_to_effective_draws"
        cold = _ratio(rwpo.seconds_to_effective_draws, best(NUTS_NAMES, name, min))
        other = _ratio(rwpo.rate, best(blackjax, "rate", max))
        least = 50.0 if problem == "p_much_larger_n" else 5.0
        least_other = 1.5 if problem in LAPLACE_PROBLEMS else 0.8
        if problem in REGRESSIONS:
            verdicts = [
                f"{_verdict(warm, least)} (≥ {least:.0f})",
                f"{_verdict(after, 20.0)} (≥ 20)",
                f"{_verdict(cold, 0.5, at_least=False)} (≤ 0.5)",
            ]
        else:
            verdicts = [three_digits(warm), three_digits(after), three_digits(cold)]
        rows.append([problem, *verdicts, f"{_verdict(other, least_other)} (≥ {least_other})"])
    if not rows:
        return ""
    header = [
        "problem",
        "ESS/s over NUTS, warm",
        "after warm-up",
        f"seconds to {EFFECTIVE_DRAWS:,} effective draws over NUTS, cold",
        "ESS/s over the best of BlackJAX, warm",
    ]
    return markdown_table(header, rows)


FAMILY_COLORS = {
    "rwpo": "Reds",
    "numpyro": "Blues",
    "blackjax": "Greens",
    "nutpie": "Purples",
    "approximate": "Greys",
}
LINE_STYLES = ("-", "--", ":", "-.")


def _line_format(sampler: str) -> dict[str, Any]:
    """Line format of a sampler: color by family, shade and dashes by position in the family."""
    family = SAMPLERS[sampler].family
    members = [name for name, s in SAMPLERS.items() if s.family == family]
    place = members.index(sampler)
    shade = 0.85 - 0.45 * place / max(1, len(members) - 1)
    return {
        "color": matplotlib.colormaps[FAMILY_COLORS[family]](shade),
        "linestyle": LINE_STYLES[place % len(LINE_STYLES)],
        "linewidth": 2.4 if family == "rwpo" else 1.5,
        "label": SAMPLERS[sampler].label,
    }


def mean_curve(curves: list[list[dict[str, float]]], key: str) -> tuple[list[float], list[float]]:
    """Median cost and root mean square error over seeds, where all have the same number of draws.

    Particles that move have the same number of draws at every point of a curve, so their points are
    matched by position. For all other samplers, position and number are equivalent unless a run was
    slowed down.

    Args:
        curves: The curve of each seed.
        key: ``"seconds"`` or ``"evaluations"``.

    Returns:
        Costs and errors.
    """
    by_point: dict[tuple[int, int], list[dict[str, float]]] = defaultdict(list)
    for curve in curves:
        moves = len({point["draws"] for point in curve}) == 1 and len(curve) > 1
        for i, point in enumerate(curve):
            by_point[i if moves else 0, point["draws"]].append(point)
    whole = [points for points in by_point.values() if len(points) == len(curves)]
    costs = [float(np.median([p[key] for p in points])) for points in whole]
    errors = [
        float(np.sqrt(np.mean([_number(p["error"]) ** 2 for p in points]))) for points in whole
    ]
    return costs, errors


def _label_decades(axis: Any) -> None:
    """Label the powers of ten with plain numbers, and also 2 and 5 if the axis is short."""
    low, high = axis.get_view_interval()
    is_short = high < 30 * low
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_short else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(labelsize=8)


def draw_errors(records: list[Record], key: str, label: str, path: Path) -> None:
    """Plot the error of the means against the cost, with one panel for each problem.

    Args:
        records: Records of the cells.
        key: ``"seconds"`` or ``"evaluations"``.
        label: Label of the cost axis.
        path: PNG file to write.
    """
    records = [r for r in records if r.get("curve")]
    names = [p for p in PROBLEMS if any(r["problem"] == p for r in records)]
    if not names:
        return
    num_columns = min(3, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=(4.6 * num_columns, 3.4 * num_rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    lines = {}
    for ax, problem in zip(axes.flat, names, strict=False):
        for sampler in SAMPLERS:
            chosen = [r for r in records if (r["problem"], r["sampler"]) == (problem, sampler)]
            if not chosen:
                continue
            costs, errors = mean_curve([r["curve"] for r in chosen], key)
            form = _line_format(sampler)
            marker = "o" if len(costs) == 1 else None
            (lines[form["label"]],) = ax.loglog(costs, errors, marker=marker, markersize=4, **form)
        reference = next(r for r in records if r["problem"] == problem)["figures"]
        noise = np.sqrt(np.mean(np.square(reference["reference_errors"])))
        if noise > 0:
            ax.axhline(noise, color="0.75", linewidth=1, zorder=0)
            ax.text(
                0.02, noise, "error of the reference", color="0.5", size=7, va="bottom",
                transform=ax.get_yaxis_transform(),
            )  # fmt: skip
        ax.set_title(problem, size=10)
        ax.grid(True, which="major", color="0.92")
        for axis in (ax.xaxis, ax.yaxis):
            _label_decades(axis)
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("RMS error of means / sd")
    for ax in list(axes.flat)[max(0, len(names) - num_columns) : len(names)]:  # lowest in a column
        ax.set_xlabel(label, size=9)
    ordered = {s.label: lines[s.label] for s in SAMPLERS.values() if s.label in lines}
    figure.legend(
        ordered.values(),
        ordered.keys(),
        loc="outside lower center",
        ncols=min(len(ordered), 3 * num_columns - 2),
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write_report(records: list[Record], machine: Record, folder: Path) -> None:
    """Write all tables and figures.

    Args:
        records: Records of the cells.
        machine: From :func:`benchmarks.machine.describe_machine`.
        folder: Folder to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summaries = summarize(records)
    stripped = [
        {k: v for k, v in r.items() if k not in ("figures", "traceback", "versions")}
        | ({"figures": {k: v for k, v in r["figures"].items() if not k.endswith("errors")}}
           if "figures" in r else {})
        for r in records
    ]  # fmt: skip
    rows = [
        s._asdict()
        | {"by_error": s.by_error._asdict(), "size": s.size, "warm_seconds": s.warm_seconds}
        | {"rate": s.rate, "rate_after_warmup": s.rate_after_warmup}
        for s in summaries
    ]
    write_json(folder / "results.json", {"machine": machine, "summary": rows, "cells": stripped})
    (folder / "results.md").write_text(_page(summaries, machine))
    draw_errors(records, "seconds", "warm seconds, warm-up included", folder / "error_vs_time.png")
    draw_errors(
        records,
        "evaluations",
        "gradient evaluations (AIES, ESS: of the potential)",
        folder / "error_vs_gradients.png",
    )


def _page(summaries: list[Summary], machine: Record) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    seeds = sorted({len(s.statuses) for s in summaries})
    parts = [
        "# Benchmark results",
        "Written by `python -m benchmarks`; do not edit.",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}; {versions}. Seeds per cell: {', '.join(map(str, seeds))}.",
    ]
    if seeds and seeds[-1] < SEEDS_TO_RELY_ON:
        parts.append(
            f"**Preliminary:** the size by error needs {SEEDS_TO_RELY_ON} seeds to be reliable."
        )
    if table := targets_table(summaries):
        parts += ["## RWPO beside the others", table]
    for problem in dict.fromkeys(s.problem for s in summaries):
        rows = [_row(s) for s in summaries if s.problem == problem]
        parts += [f"## {problem}", markdown_table(HEADER, rows)]
    return "\n\n".join([*parts, NOTES])


def read_machine(folder: Path) -> Record:
    """The description that was saved with the results."""
    return json.loads((folder / "machine.json").read_text())
