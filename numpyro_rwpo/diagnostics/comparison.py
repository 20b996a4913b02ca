"""``compare``: the draws of several samplers side by side, in Monte Carlo standard errors."""

import html
import math
import textwrap
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from numpyro_rwpo.diagnostics import convergence
from numpyro_rwpo.diagnostics.draws import (
    Draws,
    columns,
    common_sites,
    default_labels,
    is_constant,
    is_noise_free,
    num_gradients_of,
    samples_of,
)
from numpyro_rwpo.diagnostics.report import Table, table_html, table_text

QUANTILES = (0.05, 0.95)
_FALSE_ALARM = 1e-3  # of the verdict on two samplers that agree, over all coordinates
_RELEVANT = 0.1  # posterior standard deviations: a difference that matters
_WIDTH = 88  # of sentences in a terminal
_KNOWN_OF_PARTICLES = ("seconds", "num_gradients")  # of noise-free ones; they have no ESS
_MAX_SHOWN = 10  # rows printed; `to_dict` and `rows` have all


class Row(NamedTuple):
    """One coordinate in two samplers, a the first and b the other.

    Attributes:
        name: of the coordinate.
        mean_a: posterior mean; ``mean_b`` likewise.
        sd_a: posterior standard deviation; ``sd_b`` likewise.
        mean_z: difference of the means (a - b) in Monte Carlo standard errors of the difference.
        mean_difference: the same in posterior standard deviations (of both samplers pooled).
        sd_z: difference of the standard deviations in Monte Carlo standard errors.
        sd_ratio: sd of a over that of b.
        quantiles_a: the 5 % and 95 % quantiles; ``quantiles_b`` likewise.
        quantile_z: differences of these in Monte Carlo standard errors.
        ess_a: bulk effective sample size; ``ess_b`` likewise.
    """

    name: str
    mean_a: float
    mean_b: float
    sd_a: float
    sd_b: float
    mean_z: float
    mean_difference: float
    sd_z: float
    sd_ratio: float
    quantiles_a: tuple[float, float]
    quantiles_b: tuple[float, float]
    quantile_z: tuple[float, float]
    ess_a: float
    ess_b: float

    @property
    def worst_z(self) -> float:
        """Largest ``|z|`` of mean, sd and quantiles; infinite where one is not a number."""
        z = np.abs([self.mean_z, self.sd_z, *self.quantile_z])
        return float(np.max(np.where(np.isnan(z), np.inf, z)))


class Comparison:
    """What :func:`compare` found: the first sampler against every other.

    Attributes:
        samplers: the draws that were compared, the first one first.
        rows: for each other sampler's label, one :class:`Row` a coordinate.
    """

    def __init__(self, samplers: list[Draws], rows: dict[str, list[Row]]) -> None:
        self.samplers = samplers
        self.rows = rows

    @property
    def agrees(self) -> bool:
        """Whether no difference is larger than Monte Carlo error explains."""
        return all(row.worst_z <= self.max_z for rows in self.rows.values() for row in rows)

    @property
    def max_z(self) -> float:
        """The ``|z|`` that samplers which agree exceed anywhere once in a thousand comparisons."""
        number = 4 * sum(len(rows) for rows in self.rows.values())
        return NormalDist().inv_cdf(1 - _FALSE_ALARM / (2 * number))

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
        size = (
            f"largest difference of means {abs(shift.mean_difference):.3f} posterior sd "
            f"({shift.name}), sd ratios {min(r.sd_ratio for r in rows):.2f} to "
            f"{max(r.sd_ratio for r in rows):.2f}"
        )
        if worst.worst_z <= limit:
            return (
                f"{first} and {label} agree: no mean, sd or tail quantile of {len(rows)} "
                f"coordinates differs by more than {limit:.1f} Monte Carlo standard errors "
                f"(worst: {worst.worst_z:.1f}, {worst.name}); {size}."
            )
        number = sum(row.worst_z > limit for row in rows)
        relevant = abs(shift.mean_difference) > _RELEVANT or any(
            abs(math.log(row.sd_ratio)) > _RELEVANT if row.sd_ratio > 0 else True for row in rows
        )
        advice = (
            "at least one of them is wrong: look at R-hat, divergences and `diagnose`"
            if relevant
            else "a real difference, but a small one beside the posterior's width"
        )
        return (
            f"{first} and {label} differ in {number} of {len(rows)} coordinates by more than "
            f"{limit:.1f} Monte Carlo standard errors (worst: {worst.worst_z:.1f}, {worst.name}); "
            f"{size}; {advice}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dictionaries, lists, numbers and strings."""
        return {
            "agrees": self.agrees,
            "verdict": self.verdict,
            "rows": {label: [r._asdict() for r in rows] for label, rows in self.rows.items()},
            "costs": {draws.label: _costs(draws) for draws in self.samplers},
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
        verdict = "\n".join(textwrap.fill(line, _WIDTH) for line in self.verdict.splitlines())
        return "\n\n".join([verdict, *map(table_text, self.tables())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tables = "".join(table_html(table) for table in self.tables())
        return f"<div><p>{html.escape(self.verdict)}</p>{tables}</div>"

    def plot(self, **options: Any) -> Any:
        """Draw the comparison, see :func:`numpyro_rwpo.diagnostics.plots.plot_comparison`."""
        from numpyro_rwpo.diagnostics.plots import plot_comparison

        return plot_comparison(self, **options)


def compare(
    *runs: Any,
    labels: list[str] | None = None,
    sites: list[str] | None = None,
    seconds: list[float | None] | None = None,
    num_gradients: list[int | None] | None = None,
) -> Comparison:
    """Put the draws of two or more samplers side by side: the first against each other one.

    Args:
        *runs: each a finished NumPyro ``MCMC``, an ArviZ ``InferenceData`` or ``DataTree``, or a
            dictionary of draws (chains, draws, ...) by site.
        labels: their names; the names of the kernels, or numbers, without.
        sites: the sites to compare; all that the runs have in common without. A deterministic site
            that is a dictionary, tuple or list of arrays stands for all of them; their own names
            are those of :func:`numpyro_rwpo.diagnostics.draws.flat_sites`.
        seconds: wall time of each run, ``None`` where unknown, for ESS per second.
        num_gradients: gradient evaluations of each run, ``None`` where unknown. Of an ``MCMC``
            with an ``RWPO`` kernel it is known, warm-up included; of NUTS it is the sum of
            the extra field ``num_steps``, without warm-up.

    Returns:
        A comparison that prints in a terminal and in a notebook: ``verdict``, ``rows``, ``plot()``.

    Raises:
        TypeError: a run is of another type.
        ValueError: fewer than two runs, lists of another length, sites that are missing or of
            different shapes, or fewer than four draws.

    Example:
        >>> print(compare(mcmc, mcmc_nuts))  # doctest: +SKIP
    """
    if len(runs) < 2:
        raise ValueError(f"`compare` needs at least two runs; got {len(runs)}.")
    labels = default_labels(runs) if labels is None else list(labels)
    seconds = [None] * len(runs) if seconds is None else list(seconds)
    counts = [num_gradients_of(run) for run in runs]
    gradients = [count for count, _ in counts] if num_gradients is None else list(num_gradients)
    partial = [without and num_gradients is None for _, without in counts]
    lists: dict[str, list[Any]] = {
        "labels": labels,
        "seconds": seconds,
        "num_gradients": gradients,
    }
    for name, values in lists.items():
        if len(values) != len(runs):
            raise ValueError(f"`{name}` must have one entry a run, {len(runs)}; got {len(values)}.")
    if len(set(labels)) != len(labels):
        raise ValueError(f"`labels` must differ from each other; got {labels}.")
    posteriors = [samples_of(run) for run in runs]
    names = common_sites(posteriors, labels, sites)
    samplers = [
        Draws(label, *columns(posterior, names), is_noise_free(run), spent, count, without)
        for label, run, posterior, spent, count, without in zip(
            labels, runs, posteriors, seconds, gradients, partial, strict=True
        )
    ]
    first = _Summary.of(samplers[0])
    return Comparison(
        samplers,
        {other.label: _rows(first, _Summary.of(other), other.names) for other in samplers[1:]},
    )


# ------------------------------------------------------------------------------- comparing


class _Summary(NamedTuple):
    """Estimates with their Monte Carlo standard errors, each (num_coordinates,)."""

    mean: np.ndarray
    mean_error: np.ndarray
    sd: np.ndarray
    sd_error: np.ndarray
    quantiles: np.ndarray  # (2, num_coordinates)
    quantile_errors: np.ndarray
    ess: np.ndarray

    @classmethod
    def of(cls, draws: Draws) -> "_Summary":
        values = draws.values
        constant = is_constant(values)  # their mean and sd must not differ by rounding
        return cls(
            np.where(constant, values[0, 0], values.mean((0, 1))),
            convergence.mcse(values),
            np.where(constant, 0.0, values.std((0, 1), ddof=1)),
            convergence.mcse(values, "sd"),
            np.quantile(values, QUANTILES, axis=(0, 1)),
            np.stack([convergence.mcse(values, "quantile", prob=p) for p in QUANTILES]),
            convergence.ess(values),
        )


def _z(difference: np.ndarray, *errors: np.ndarray) -> np.ndarray:
    error = np.sqrt(sum(e**2 for e in errors))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / error)


def _rows(a: _Summary, b: _Summary, names: list[str]) -> list[Row]:
    pooled = np.sqrt((a.sd**2 + b.sd**2) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "mean_a": a.mean,
            "mean_b": b.mean,
            "sd_a": a.sd,
            "sd_b": b.sd,
            "mean_z": _z(a.mean - b.mean, a.mean_error, b.mean_error),
            "mean_difference": np.where(a.mean == b.mean, 0.0, (a.mean - b.mean) / pooled),
            "sd_z": _z(a.sd - b.sd, a.sd_error, b.sd_error),
            "sd_ratio": np.where(a.sd == b.sd, 1.0, a.sd / b.sd),
            "ess_a": a.ess,
            "ess_b": b.ess,
        }
    quantile_z = _z(a.quantiles - b.quantiles, a.quantile_errors, b.quantile_errors)
    pairs = {"quantiles_a": a.quantiles, "quantiles_b": b.quantiles, "quantile_z": quantile_z}
    rows = []
    for k, name in enumerate(names):
        fields: dict[str, Any] = {key: float(values[k]) for key, values in columns.items()}
        fields |= {key: (float(v[0, k]), float(v[1, k])) for key, v in pairs.items()}
        rows.append(Row(name=name, **fields))
    return rows


# -------------------------------------------------------------------------------- printing


def _costs(draws: Draws) -> dict[str, float | None]:
    if draws.is_noise_free:  # no Markov chain: R-hat and ESS do not apply
        none = dict.fromkeys(("max_r_hat", "min_ess", "ess_per_second", "ess_per_gradient"))
        return none | {"seconds": draws.seconds, "num_gradients": draws.num_gradients}
    ess = float(np.min(convergence.ess(draws.values)))
    varying = draws.values[:, :, ~is_constant(draws.values)]  # of a constant there is no R-hat
    return {
        "max_r_hat": float(np.max(convergence.r_hat(varying), initial=1.0)),
        "min_ess": ess,
        "seconds": draws.seconds,
        "num_gradients": draws.num_gradients,
        "ess_per_second": ess / draws.seconds if draws.seconds else None,
        "ess_per_gradient": ess / draws.num_gradients if draws.num_gradients else None,
    }


def _cost_table(samplers: list[Draws]) -> Table:
    def cell(draws: Draws, key: str, form: str) -> str:
        value = costs[draws.label][key]
        if value is None:
            return "-" if draws.is_noise_free and key not in _KNOWN_OF_PARTICLES else "unknown"
        mark = "*" if "gradient" in key and draws.is_without_warmup else ""
        return format(value, form) + mark

    costs = {draws.label: _costs(draws) for draws in samplers}
    partial = any(draws.is_without_warmup for draws in samplers)
    rows = [
        [name, *(cell(draws, key, form) for draws in samplers)]
        for name, key, form in [
            ("largest R-hat", "max_r_hat", ".3f"),
            ("smallest bulk ESS", "min_ess", ",.0f"),
            ("seconds", "seconds", ",.1f"),
            ("gradient evaluations", "num_gradients", ",d"),
            ("smallest ESS per second", "ess_per_second", ",.1f"),
            ("smallest ESS per gradient", "ess_per_gradient", ".2g"),
        ]
    ]
    title = "Samplers (*: warm-up not counted)" if partial else "Samplers"
    return Table(title, ["", *(draws.label for draws in samplers)], rows)


def _most_different(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row.worst_z)[:_MAX_SHOWN]


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
            f"{row.mean_z:+.1f}",
            f"{row.mean_difference:+.3f}",
            f"{row.sd_ratio:.2f}",
            f"{row.sd_z:+.1f}",
            f"{row.ess_a:,.0f} | {row.ess_b:,.0f}",
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
                for cell in (f"{a:.3g} | {b:.3g}", f"{z:+.1f}")
            ),
        ]
        for row in _most_different(rows)
    ]
    header = [""]
    for probability in QUANTILES:
        header += [f"{probability:.0%}", "z"]
    return Table(f"{first} | {label}, tail quantiles", header, body)
