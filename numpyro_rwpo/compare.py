"""``compare``: the draws of several samplers side by side, in Monte Carlo standard errors."""

import html
import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from numpyro_rwpo import convergence
from numpyro_rwpo.report import Table, table_html, table_text
from numpyro_rwpo.runs import num_distinct_draws
from numpyro_rwpo.unconstrained import coordinate_names

QUANTILES = (0.05, 0.95)
_FALSE_ALARM = 1e-3  # of the verdict on two samplers that agree, over all coordinates
_RELEVANT = 0.1  # posterior standard deviations: a difference that matters
_MAX_SHOWN = 10  # rows printed; `to_dict` and `rows` have all


class Draws(NamedTuple):
    """Draws of one sampler.

    Attributes:
        label: its name in tables and figures.
        values: (chains, draws, num_coordinates).
        names: of the coordinates.
        is_noise_free: whether these are particles without correction, not a chain's draws.
        seconds: wall time that the draws took, ``None`` if unknown.
        num_gradients: gradient evaluations that they took, ``None`` if unknown.
        is_without_warmup: whether ``num_gradients`` leaves the warm-up out.
    """

    label: str
    values: np.ndarray
    names: list[str]
    is_noise_free: bool
    seconds: float | None
    num_gradients: int | None
    is_without_warmup: bool


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
        """Largest |z| of mean, sd and quantiles; infinite where one is not a number."""
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
        """The |z| that samplers which agree exceed anywhere once in a thousand comparisons."""
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
        return [*tables, *(_row_table(first, label, rows) for label, rows in self.rows.items())]

    def __str__(self) -> str:
        """Verdict and tables as text."""
        return "\n\n".join([self.verdict, *map(table_text, self.tables())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tables = "".join(table_html(table) for table in self.tables())
        return f"<div><p>{html.escape(self.verdict)}</p>{tables}</div>"

    def plot(self, **options: Any) -> Any:
        """Draw the comparison, see :func:`numpyro_rwpo.plots.plot_comparison`."""
        from numpyro_rwpo.plots import plot_comparison

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
        sites: the sites to compare; all that the runs have in common without.
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
    labels = _labels(runs) if labels is None else list(labels)
    seconds = [None] * len(runs) if seconds is None else list(seconds)
    counts = [_num_gradients(run) for run in runs]
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
    posteriors = [_samples(run) for run in runs]
    names = _common_sites(posteriors, labels, sites)
    samplers = [
        Draws(label, *_columns(posterior, names), _is_noise_free(run), spent, count, without)
        for label, run, posterior, spent, count, without in zip(
            labels, runs, posteriors, seconds, gradients, partial, strict=True
        )
    ]
    first = _Summary.of(samplers[0])
    return Comparison(
        samplers,
        {other.label: _rows(first, _Summary.of(other), other.names) for other in samplers[1:]},
    )


# ------------------------------------------------------------------------------ reading runs


def _labels(runs: tuple[Any, ...]) -> list[str]:
    names = [type(run.sampler).__name__ if hasattr(run, "sampler") else "draws" for run in runs]
    return [
        f"{name} {k}" if names.count(name) > 1 else name for k, name in enumerate(names, start=1)
    ]


def _samples(run: Any) -> dict[str, np.ndarray]:
    """Draws by site, (chains, draws, ...)."""
    if hasattr(run, "get_samples") and hasattr(run, "sampler"):
        if run.last_state is None:
            raise ValueError("A run has no draws yet; call `mcmc.run(...)` first.")
        samples = run.get_samples(group_by_chain=True)
        if hasattr(samples, "_asdict"):
            samples = samples._asdict()
        samples = samples if isinstance(samples, Mapping) else {"x": samples}
        distinct = num_distinct_draws(run)
        samples = {name: values[:, :distinct] for name, values in samples.items()}
    elif isinstance(run, dict):
        samples = run
    elif isinstance(run, Mapping) and "posterior" in run:
        data = run["posterior"]
        dims = ("chain", "draw", ...)
        samples = {str(k): data[k].transpose(*dims).values for k in data.data_vars}
    else:
        raise TypeError(
            "`compare` takes MCMC objects, InferenceData or DataTree with a group 'posterior', or "
            f"dictionaries of draws (chains, draws, ...); got {type(run).__name__}."
        )
    return {str(name): np.asarray(values) for name, values in samples.items()}


def _is_noise_free(run: Any) -> bool:
    settings = getattr(getattr(run, "sampler", None), "settings", None)
    return settings is not None and not settings.corrected


def _num_gradients(run: Any) -> tuple[int | None, bool]:
    """Gradient evaluations where they are known, and whether those of the warm-up are missing."""
    if not hasattr(run, "get_extra_fields") or run.last_state is None:
        return None, False
    total = getattr(run.last_state, "num_gradients", None)
    if total is not None:
        return int(np.sum(total)), False
    steps = run.get_extra_fields().get("num_steps")
    return (None, False) if steps is None else (int(np.sum(steps)), True)


def _common_sites(
    posteriors: list[dict[str, np.ndarray]], labels: list[str], sites: list[str] | None
) -> list[str]:
    common = [name for name in posteriors[0] if all(name in other for other in posteriors)]
    names = common if sites is None else list(sites)
    missing = sorted(set(names) - set(common))
    if missing or not names:
        raise ValueError(
            f"The runs must have the compared sites in common; {missing or 'all'} are missing in "
            f"at least one of {labels}, which share {sorted(common)}."
        )
    for name in names:
        shapes = [posterior[name].shape for posterior in posteriors]
        if any(len(s) < 2 or s[1] < 4 or s[2:] != shapes[0][2:] for s in shapes):
            raise ValueError(
                f"Site '{name}' must have draws of shape (chains, draws, ...) with at least 4 "
                f"draws and the same trailing shape in all runs; got {shapes}. Group draws by "
                "chain: `mcmc.get_samples(group_by_chain=True)`."
            )
    return names


def _columns(samples: dict[str, np.ndarray], sites: list[str]) -> tuple[np.ndarray, list[str]]:
    values, names = [], []
    for site in sites:
        draws = samples[site]
        values.append(draws.reshape(*draws.shape[:2], -1))
        names += coordinate_names(site, draws.shape[2:])
    return np.concatenate(values, axis=2).astype(np.float64), names


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
        return cls(
            values.mean((0, 1)),
            convergence.mcse(values),
            values.std((0, 1), ddof=1),
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
            "mean_difference": (a.mean - b.mean) / pooled,
            "sd_z": _z(a.sd - b.sd, a.sd_error, b.sd_error),
            "sd_ratio": a.sd / b.sd,
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
    ess = float(np.min(convergence.ess(draws.values)))
    return {
        "max_r_hat": float(np.max(convergence.r_hat(draws.values))),
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
            return "unknown"
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


def _row_table(first: str, label: str, rows: list[Row]) -> Table:
    shown = sorted(rows, key=lambda row: -row.worst_z)[:_MAX_SHOWN]
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
            f"{row.quantile_z[0]:+.1f} {row.quantile_z[1]:+.1f}",
            f"{row.ess_a:,.0f} | {row.ess_b:,.0f}",
        ]
        for row in shown
    ]
    low, high = (f"{100 * p:g}" for p in QUANTILES)
    header = [
        "", "mean", "sd", "mean z", "mean diff/sd", "sd ratio", "sd z", f"q{low} q{high} z", "ESS",
    ]  # fmt: skip
    return Table(title, header, body)
