"""Tables of the everyday models' cells: what each sampler gave, and RWPO over NUTS.

Medians over seeds, but for errors, standard deviations, R-hat and scores, of which the worst seed
counts.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.posteriors.everyday import MODELS
from benchmarks.report import markdown_table, three_digits

SAMPLERS = ("rwpo", "nuts", "nuts_dense")
MIN_ESS = 400  # below it, errors of errors are large
NAN = float("nan")

Record = dict[str, Any]


class Summary(NamedTuple):
    """The seeds of one sampler on one model; not a number is what is not known.

    Attributes:
        model: Model.
        sampler: Sampler.
        num_seeds: Seeds that were run.
        num_right: Seeds that are within Monte Carlo error of the reference; -1 without one.
        problem: Why there are no figures.
        max_score: Largest score of a mean or variance.
        limit: What it should not exceed.
        mean_error: Largest error of a mean, in sds of the reference.
        min_sd_ratio: Smallest sd, over the reference's.
        max_sd_ratio: Largest one.
        max_r_hat: Largest R-hat.
        ess: Smallest bulk effective sample size.
        divergences: Divergent draws.
        gradients_warmup: Gradients of all chains in warm-up.
        gradients_before: Gradients of all chains before the first draw.
        gradients: Gradients of all chains.
        first: Wall seconds of the first run.
        again: Wall seconds of the second run.
    """

    model: str
    sampler: str
    num_seeds: int
    num_right: int = 0
    problem: str = ""
    max_score: float = NAN
    limit: float = NAN
    mean_error: float = NAN
    min_sd_ratio: float = NAN
    max_sd_ratio: float = NAN
    max_r_hat: float = NAN
    ess: float = NAN
    divergences: float = NAN
    gradients_warmup: float = NAN
    gradients_before: float = NAN
    gradients: float = NAN
    first: float = NAN
    again: float = NAN

    @property
    def right(self) -> str:
        """Right seeds of all."""
        return self.problem or ("?" if self.num_right < 0 else f"{self.num_right}/{self.num_seeds}")


def _known(value: float | None) -> float:
    return NAN if value is None else float(value)  # JSON has no nan


def is_right(record: Record) -> bool:
    """Whether a complete cell with a reference is within Monte Carlo error of it."""
    score, ess = _known(record["accuracy"]["max_score"]), _known(record["min_bulk_ess"])
    return score <= record["accuracy"]["limit"] and ess >= MIN_ESS


def summarize(records: list[Record]) -> Summary:
    """Put the seeds of one sampler on one model together."""
    model, sampler = records[0]["model"], records[0]["sampler"]
    complete = [r for r in records if r["status"] == "complete"]
    if not complete:
        problem = records[0].get("reason", records[0]["status"])
        return Summary(model, sampler, len(records), problem=problem)
    judged = [r["accuracy"] for r in complete if "accuracy" in r]
    errors: dict[str, float] = {}
    if judged:
        for key in ("max_score", "limit", "mean_error", "max_sd_ratio"):
            errors[key] = float(np.max([_known(a[key]) for a in judged]))
        errors["min_sd_ratio"] = float(np.min([_known(a["min_sd_ratio"]) for a in judged]))

    def median(key: str) -> float:
        return float(np.median([_known(r[key]) for r in complete]))

    return Summary(
        model,
        sampler,
        len(records),
        sum(map(is_right, complete)) if judged else -1,
        max_r_hat=float(np.max([_known(r["max_r_hat"]) for r in complete])),
        ess=median("min_bulk_ess"),
        divergences=median("num_divergences"),
        gradients_warmup=median("gradients_warmup"),
        gradients_before=median("gradients_before"),
        gradients=median("gradients"),
        first=median("first_seconds"),
        again=median("again_seconds"),
        **errors,
    )


def summaries(records: Iterable[Record]) -> list[Summary]:
    """One summary for each model and sampler that occur, in the order of the registries."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["model"], record["sampler"]), []).append(record)
    order = [(m, s) for m in MODELS for s in SAMPLERS]
    return [summarize(groups[pair]) for pair in order if pair in groups]


def cells(s: Summary) -> list[str]:
    """A row of the long table."""
    return [
        s.model,
        s.sampler,
        s.right,
        f"{s.max_score:.1f} ({s.limit:.1f})",
        f"{s.mean_error:.3f}",
        f"{s.min_sd_ratio:.2f}-{s.max_sd_ratio:.2f}",
        f"{s.max_r_hat:.3f}",
        three_digits(s.ess),
        three_digits(s.divergences),
        f"{s.gradients_warmup:,.0f}",
        f"{s.gradients_before:,.0f}",
        f"{s.gradients:,.0f}",
        three_digits(s.first),
        three_digits(s.again),
        three_digits(1000 * s.first / s.ess),
        three_digits(1000 * s.again / s.ess),
    ]


def long_table(all_summaries: list[Summary]) -> str:
    """What every sampler gave on every model, as Markdown."""
    header = ["model", "sampler", "right", "worst score (limit)", "mean error, sd", "sd ratios"]
    header += ["R-hat", "bulk ESS", "divergences", "warm-up gradients"]
    header += ["before the first draw", "gradients"]
    header += ["first, s", "again, s", "first, ms an effective draw", "again"]
    return markdown_table(header, [cells(s) for s in all_summaries])


def ratio_table(all_summaries: list[Summary]) -> str:
    """RWPO over NUTS, the metric with the quicker effective draws, as Markdown."""
    by_pair = {(s.model, s.sampler): s for s in all_summaries}
    rows = []
    for model in MODELS:
        rwpo = by_pair.get((model, "rwpo"))
        nuts = [by_pair[model, s] for s in SAMPLERS[1:] if (model, s) in by_pair]
        if rwpo is None or not nuts:
            continue
        best = min(nuts, key=lambda s: np.nan_to_num(s.first / s.ess, nan=np.inf))
        ratios = (
            rwpo.first / best.first,
            rwpo.again / best.again,
            rwpo.first / rwpo.ess * best.ess / best.first,
            rwpo.again / rwpo.ess * best.ess / best.again,
            rwpo.gradients / best.gradients,
        )
        errors = [f"{s.mean_error:.3f}" for s in (rwpo, best)]
        rows.append([model, best.sampler, rwpo.right, best.right, *errors, *map(_ratio, ratios)])
    header = ["model", "beside", "right, RWPO", "right, NUTS", "mean error, RWPO", "NUTS"]
    header += ["first run", "again", "first, an effective draw", "again, an effective draw"]
    return markdown_table([*header, "gradients"], rows)


def _ratio(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


def page(records: Iterable[Record]) -> str:
    """Both tables."""
    found = summaries(records)
    return f"RWPO over NUTS:\n\n{ratio_table(found)}\n\nEach of them:\n\n{long_table(found)}\n"
