"""``compare_runs``: the draws of several samplers side by side, in Monte Carlo standard errors."""

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numpyro_rwpo.diagnostics import convergence
from numpyro_rwpo.diagnostics.differences import QUANTILES, Row, difference_rows, summarize
from numpyro_rwpo.diagnostics.draws import (
    Draws,
    GradientCount,
    columns,
    common_sites,
    default_labels,
    gradients_of,
    is_constant,
    is_noise_free,
    samples_of,
)
from numpyro_rwpo.diagnostics.measurements import plain
from numpyro_rwpo.diagnostics.plots import plot_comparison
from numpyro_rwpo.diagnostics.tables import (
    WIDTH,
    Table,
    count,
    fixed,
    formatted,
    signed,
    table_html,
    table_text,
)
from numpyro_rwpo.diagnostics.thresholds import RELEVANT_ERROR, max_z


class Cost(NamedTuple):
    """What the draws of one sampler cost, and what they are worth.

    R-hat and effective sample sizes are ``None`` for noise-free particles, which are not a Markov
    chain; seconds and gradients where they are unknown.

    Attributes:
        max_r_hat: largest R-hat of all coordinates.
        min_ess: smallest bulk effective sample size of all coordinates.
        seconds: wall time.
        num_gradients: gradient evaluations.
        ess_per_second: ``min_ess`` per second.
        ess_per_gradient: ``min_ess`` per gradient evaluation.
    """

    max_r_hat: float | None
    min_ess: float | None
    seconds: float | None
    num_gradients: int | None
    ess_per_second: float | None
    ess_per_gradient: float | None


class Comparison:
    """What :func:`compare_runs` found: the first sampler against every other.

    Attributes:
        samplers: the draws that were compared, the first sampler's first.
        rows: for the label of each other sampler, one :class:`Row` per coordinate.
    """

    def __init__(self, samplers: list[Draws], rows: dict[str, list[Row]]) -> None:
        self.samplers = samplers
        self.rows = rows

    @property
    def agrees(self) -> bool:
        """Whether no difference is larger than Monte Carlo error explains."""
        limit = self.max_z
        return all(row.worst_z <= limit for rows in self.rows.values() for row in rows)

    @property
    def max_z(self) -> float:
        """The ``|z|`` that samplers which agree exceed anywhere once in a thousand comparisons."""
        return max_z(sum(len(row.z_scores) for rows in self.rows.values() for row in rows))

    @property
    def verdict(self) -> str:
        """A sentence for each other sampler."""
        sentences = [self._sentence(label, rows) for label, rows in self.rows.items()]
        sentences += [
            f"{draws.label} holds noise-free particles: they are biased, and the Monte Carlo "
            "errors are those that as many independent draws would have."
            for draws in self.samplers
            if draws.is_noise_free
        ]
        return "\n".join(sentences)

    def _sentence(self, label: str, rows: list[Row]) -> str:
        first, limit = self.samplers[0].label, self.max_z
        worst = max(rows, key=lambda row: row.worst_z)
        shift = max(rows, key=lambda row: abs(row.mean_difference))
        ratios = [row.sd_ratio for row in rows]
        size = (
            f"largest difference of means {fixed(abs(shift.mean_difference), 3)} posterior sd "
            f"({shift.name}), sd ratios {fixed(min(ratios), 2)} to {fixed(max(ratios), 2)}"
        )
        if worst.worst_z <= limit:
            return (
                f"{first} and {label} agree: no mean, sd or tail quantile of {len(rows)} "
                f"coordinates differs by more than {limit:.1f} Monte Carlo standard errors "
                f"(worst: {fixed(worst.worst_z, 1)}, {worst.name}); {size}."
            )
        number = sum(row.worst_z > limit for row in rows)
        advice = (
            "at least one of them is wrong: look at R-hat, divergences and `diagnose`"
            if any(map(_is_relevant, rows))
            else "a real difference, but small compared with the width of the posterior"
        )
        return (
            f"{first} and {label} differ in {number} of {len(rows)} coordinates by more than "
            f"{limit:.1f} Monte Carlo standard errors (worst: {fixed(worst.worst_z, 1)}, "
            f"{worst.name}); {size}; {advice}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dictionaries, lists, numbers and strings."""
        return {
            "agrees": self.agrees,
            "verdict": self.verdict,
            "rows": plain(self.rows),
            "costs": {draws.label: plain(_cost(draws)) for draws in self.samplers},
        }

    def tables(self) -> list[Table]:
        """The tables that are printed."""
        first = self.samplers[0].label
        tables = [_cost_table(self.samplers)]
        for label, rows in self.rows.items():
            tables += [_row_table(first, label, rows), _tail_table(first, label, rows)]
        return tables

    def __str__(self) -> str:
        """Verdict and tables as text."""
        verdict = "\n".join(textwrap.fill(line, WIDTH) for line in self.verdict.splitlines())
        return "\n\n".join([verdict, *map(table_text, self.tables())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tables = "".join(table_html(table) for table in self.tables())
        return f"<div><p>{html.escape(self.verdict)}</p>{tables}</div>"

    def plot(self, **options: Any) -> Any:
        """Draw the comparison, see :func:`numpyro_rwpo.plots.plot_comparison`."""
        return plot_comparison(self, **options)


def _is_relevant(row: Row) -> bool:
    """Whether a difference matters in practice, whatever its Monte Carlo error."""
    is_shifted = abs(row.mean_difference) > RELEVANT_ERROR
    return is_shifted or not row.sd_ratio > 0 or abs(math.log(row.sd_ratio)) > RELEVANT_ERROR


def compare_runs(
    *runs: Any,
    labels: list[str] | None = None,
    sites: list[str] | None = None,
    seconds: list[float | None] | None = None,
    num_gradients: list[int | None] | None = None,
) -> Comparison:
    """Compare the draws of two or more samplers on the same model, the first with each other one.

    Not to be confused with ``az.compare``, which compares models.

    Args:
        *runs: each a finished NumPyro ``MCMC``, an ArviZ ``InferenceData`` or ``DataTree``, or a
            dictionary of draws (chains, draws, ...) by site.
        labels: names of the runs; without, the names of the kernels, or numbers.
        sites: sites to compare; without, all that the runs have in common. A deterministic site
            that is a dictionary, tuple or list of arrays stands for all of them, which have the
            names that :func:`numpyro_rwpo.diagnostics.draws.flat_sites` gives them.
        seconds: wall time of each run for ESS per second, ``None`` where unknown.
        num_gradients: gradient evaluations of each run, ``None`` where unknown. Without, they are
            read from each ``MCMC``: with an ``RWPO`` kernel warm-up is included; with NUTS they
            are the sum of the extra field ``num_steps``, without warm-up.

    Returns:
        A comparison that prints in a terminal and in a notebook: ``verdict``, ``rows``, ``plot()``.

    Raises:
        TypeError: a run is of another type.
        ValueError: fewer than two runs, lists of another length, sites that are missing or of
            different shapes, or fewer than four draws.

    Example:
        >>> print(compare_runs(mcmc, mcmc_nuts))  # doctest: +SKIP
    """
    if len(runs) < 2:
        raise ValueError(f"`compare_runs` needs at least two runs; got {len(runs)}.")
    labels = default_labels(runs) if labels is None else list(labels)
    seconds = [None] * len(runs) if seconds is None else list(seconds)
    if num_gradients is None:
        gradients = [gradients_of(run) for run in runs]
    else:
        gradients = [GradientCount(number) for number in num_gradients]
    _check_entries(len(runs), labels=labels, seconds=seconds, num_gradients=gradients)
    if len(set(labels)) != len(labels):
        raise ValueError(f"`labels` must differ from each other; got {labels}.")
    posteriors = [samples_of(run) for run in runs]
    names = common_sites(posteriors, labels, sites)
    samplers = [
        Draws(label, *columns(posterior, names), is_noise_free(run), spent, count)
        for label, run, posterior, spent, count in zip(
            labels, runs, posteriors, seconds, gradients, strict=True
        )
    ]
    return _compared(samplers)


def _check_entries(number: int, **lists: Sequence[Any]) -> None:
    """Raise ``ValueError`` unless each list, by the name of its argument, has an entry per run."""
    for name, values in lists.items():
        if len(values) != number:
            raise ValueError(f"`{name}` must have one entry per run, {number}; got {len(values)}.")


def _compared(samplers: list[Draws]) -> Comparison:
    """The first sampler against every other."""
    first, *others = [summarize(draws) for draws in samplers]
    names = samplers[0].names
    labels = [draws.label for draws in samplers[1:]]
    pairs = zip(labels, others, strict=True)
    return Comparison(samplers, {label: difference_rows(first, b, names) for label, b in pairs})


def _cost(draws: Draws) -> Cost:
    seconds, gradients = draws.seconds, draws.gradients.number
    if draws.is_noise_free:
        return Cost(None, None, seconds, gradients, None, None)
    ess = float(np.min(convergence.ess(draws.values)))
    varying = draws.values[:, :, ~is_constant(draws.values)]  # R-hat of a constant is not defined
    return Cost(
        max_r_hat=float(np.max(convergence.r_hat(varying), initial=1.0)),
        min_ess=ess,
        seconds=seconds,
        num_gradients=gradients,
        ess_per_second=ess / seconds if seconds else None,
        ess_per_gradient=ess / gradients if gradients else None,
    )


def _cost_table(samplers: list[Draws]) -> Table:
    costs = [_cost(draws) for draws in samplers]
    marks = ["" if draws.gradients.includes_warmup else "*" for draws in samplers]

    def cells(values: list[Any], form: str, missing: list[str]) -> list[str]:
        pairs = zip(values, missing, strict=True)
        return [word if value is None else formatted(value, form) for value, word in pairs]

    def marked(values: list[str]) -> list[str]:
        pairs = zip(values, marks, strict=True)
        return [value if value == "unknown" else value + mark for value, mark in pairs]

    unknown = ["unknown" for _ in samplers]
    # To noise-free particles these do not apply, which is not the same as being unknown.
    no_chain = ["-" if draws.is_noise_free else "unknown" for draws in samplers]
    per_second = cells([cost.ess_per_second for cost in costs], ",.1f", no_chain)
    per_gradient = cells([cost.ess_per_gradient for cost in costs], ".2g", no_chain)
    gradients = cells([cost.num_gradients for cost in costs], ",d", unknown)
    rows = [
        ["largest R-hat", *cells([cost.max_r_hat for cost in costs], ".3f", no_chain)],
        ["smallest bulk ESS", *cells([cost.min_ess for cost in costs], ",.0f", no_chain)],
        ["seconds", *cells([cost.seconds for cost in costs], ",.1f", unknown)],
        ["gradient evaluations", *marked(gradients)],
        ["smallest ESS per second", *per_second],
        ["smallest ESS per gradient", *marked(per_gradient)],
    ]
    title = "Samplers (*: warm-up not counted)" if any(marks) else "Samplers"
    return Table(title, ["", *(draws.label for draws in samplers)], rows)


def _most_different(rows: list[Row]) -> list[Row]:
    # Ten rows of each table fit on a screen; `rows` and `to_dict` have all coordinates.
    return sorted(rows, key=lambda row: -row.worst_z)[:10]


def _row_table(first: str, label: str, rows: list[Row]) -> Table:
    shown = _most_different(rows)
    title = f"{first} | {label}"
    if len(rows) > len(shown):
        title += f" (the {len(shown)} most different of {len(rows)} coordinates)"
    body = [
        [
            row.name,
            f"{row.mean_a:.3g} | {row.mean_b:.3g}",
            f"{row.sd_a:.3g} | {row.sd_b:.3g}",
            signed(row.mean_z, 1),
            signed(row.mean_difference, 3),
            fixed(row.sd_ratio, 2),
            signed(row.sd_z, 1),
            f"{count(row.ess_a)} | {count(row.ess_b)}",
        ]
        for row in shown
    ]
    header = ["", "mean", "sd", "mean z", "mean diff/sd", "sd ratio", "sd z", "bulk ESS"]
    return Table(title, header, body)


def _tail_table(first: str, label: str, rows: list[Row]) -> Table:
    body = [
        [
            row.name,
            *(
                cell
                for a, b, z in zip(row.quantiles_a, row.quantiles_b, row.quantile_z, strict=True)
                for cell in (f"{a:.3g} | {b:.3g}", signed(z, 1))
            ),
        ]
        for row in _most_different(rows)
    ]
    header = [""]
    for probability in QUANTILES:
        header += [f"{probability:.0%}", "z"]
    return Table(f"{first} | {label}, tail quantiles", header, body)
