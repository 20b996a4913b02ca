"""The report of ``diagnose``: figures and findings, as text, as HTML, as a dictionary."""

import html
import math
import textwrap
from typing import Any, NamedTuple

from numpyro_rwpo.diagnostics.findings import Finding

_WIDTH = 88
_MAX_COORDINATES = 5  # shown: the worst ones; `to_dict` has them all
_NOISE_FREE = (
    "R-hat and ESS do not apply: noise-free particles are not the draws of a Markov chain. They "
    "are placed by a deterministic flow, and no number of them removes its bias. What is below "
    "compares them with the posterior density."
)


class Table(NamedTuple):
    """A titled table: what a report is made of."""

    title: str
    header: list[str]
    rows: list[list[str]]


class Report:
    """What :func:`numpyro_rwpo.diagnose` found.

    Attributes:
        figures: all figures, by topic.
        findings: reasons to doubt the draws, each with a ``sentence``; empty if there are none.
    """

    def __init__(self, figures: dict[str, Any], findings: list[Finding]) -> None:
        self.figures = figures
        self.findings = findings

    def to_dict(self) -> dict[str, Any]:
        """All figures and findings as plain dictionaries, lists, numbers and strings."""
        return self.figures | {"findings": [finding._asdict() for finding in self.findings]}

    def tables(self) -> list[Table]:
        """The tables that are printed."""
        is_corrected = self.figures["settings"]["is_corrected"]
        chains = _chains(self.figures) if is_corrected else _flows(self.figures)
        rest = (_coordinates(self.figures), _density(self.figures), _laplace(self.figures))
        return [chains, *rest]

    def _heading(self) -> str:
        s = self.figures["settings"]
        noun = "draws" if s["is_corrected"] else "noise-free particles"
        return (
            f"RWPO: {s['num_chains']} chains of {s['num_draws']} {noun}, {s['dim']} dimensions, "
            f"{s['num_particles']} particles"
        )

    def _verdict(self) -> str:
        if not self.findings:
            return "Nothing here speaks against these draws."
        number = len(self.findings)
        return f"{number} finding{'s' if number > 1 else ''} to act on:"

    def __str__(self) -> str:
        """The report as text."""
        lines = [self._heading(), ""]
        if not self.figures["settings"]["is_corrected"]:
            lines += [textwrap.fill(_NOISE_FREE, _WIDTH), ""]
        lines.append(self._verdict())
        for finding in self.findings:
            text = f"[{finding.about}] {finding.sentence}"
            lines.append(textwrap.fill(text, _WIDTH, initial_indent="* ", subsequent_indent="  "))
        for table in self.tables():
            lines += ["", table.title, *_text_rows(table)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [f"<h4>{html.escape(self._heading())}</h4>"]
        if not self.figures["settings"]["is_corrected"]:
            parts.append(f"<p>{html.escape(_NOISE_FREE)}</p>")
        parts.append(f"<p>{html.escape(self._verdict())}</p>")
        items = "".join(
            f"<li><b>{html.escape(f.about)}</b>: {html.escape(f.sentence)}</li>"
            for f in self.findings
        )
        parts.append(f"<ul>{items}</ul>" if items else "")
        parts += [table_html(table) for table in self.tables()]
        return f"<div>{''.join(parts)}</div>"


def _text_rows(table: Table) -> list[str]:
    columns = list(zip(table.header, *table.rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in [table.header, *table.rows] if any(table.header) else table.rows:
        cells = [row[0].ljust(widths[0])]
        align = str.rjust if any(table.header) else str.ljust
        cells += [align(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def table_html(table: Table) -> str:
    """A table as HTML."""

    def cells(tag: str, row: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(x)}</{tag}>" for x in row) + "</tr>"

    body = "".join(cells("td", row) for row in table.rows)
    head = cells("th", table.header) if any(table.header) else ""
    title = html.escape(table.title)
    return f"<table><caption>{title}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"


def table_text(table: Table) -> str:
    """A table as aligned text."""
    return "\n".join([table.title, *_text_rows(table)])


def _number(value: float, digits: int = 3) -> str:
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def _span(values: list[Any], form: str) -> str:
    """The smallest and the largest of formatted values, or the one that all have."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _common(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else "mixed"


def _chains(figures: dict[str, Any]) -> Table:
    """One column a chain, and one for the run: between chains where that is what counts."""
    chains, coordinates = figures["chains"], figures["coordinates"]

    def each(key: str, form: str = "") -> list[str]:
        return [format(chain[key], form) for chain in chains]

    def whole(key: str) -> Any:
        return [row[key] for row in coordinates]

    def column(key: str) -> list[Any]:
        return [chain[key] for chain in chains]

    sweeps = [f"{c['independent_sweeps']} + {c['hamiltonian_sweeps']}" for c in chains]
    short, residuals = column("short_sweeps"), column("transport_residual")
    r_hat = max(whole("r_hat"), key=lambda value: (value != value, value))
    between = f"{r_hat:.3f}" if len(chains) > 1 else "-"  # one chain has nothing to differ from
    rows = [
        ["R-hat, worst (a chain: its halves)", *each("r_hat", ".3f"), between],
        ["bulk ESS, worst", *each("ess_bulk", ",.0f"), f"{min(whole('ess_bulk')):,.0f}"],
        ["tail ESS, worst", *each("ess_tail", ",.0f"), f"{min(whole('ess_tail')):,.0f}"],
        ["acceptance", *each("accept_prob", ".2f"), _span(column("accept_prob"), ".2f")],
        ["divergent draws", *each("num_divergences"), str(sum(column("num_divergences")))],
        *(
            [["transport residual", *(_number(x, 2) for x in residuals), _span(residuals, ".2g")]]
            if all(map(math.isfinite, residuals))  # infinite where there was no transport
            else []
        ),
        ["gradient evaluations", *each("num_gradients", ","), f"{sum(column('num_gradients')):,}"],
        ["gradients a draw", *each("gradients_per_draw"), _span(column("gradients_per_draw"), "d")],
        ["sweeps a draw (independent + Hamiltonian)", *sweeps, _common(sweeps)],
        *(
            [["of them with short steps", *each("short_sweeps"), _span(short, "d")]]
            if any(short)
            else []
        ),
        ["metric", *each("metric"), _common(column("metric"))],
        ["flow", *each("flow"), _common(column("flow"))],
    ]
    return Table("Chains", ["", *(str(k) for k in range(len(chains))), "all"], rows)


def _flows(figures: dict[str, Any]) -> Table:
    chains = figures["chains"]
    residuals, steps, gradients = (
        [chain[key] for chain in chains]
        for key in ("transport_residual", "transport_steps", "num_gradients")
    )
    rows = [
        ["transport residual", *(_number(x, 2) for x in residuals), _span(residuals, ".2g")],
        ["transport steps", *map(str, steps), _span(steps, "d")],
        ["gradient evaluations", *(f"{x:,}" for x in gradients), f"{sum(gradients):,}"],
    ]
    return Table("Ensembles", ["", *(str(k) for k in range(len(chains))), "all"], rows)


def _coordinates(figures: dict[str, Any]) -> Table:
    rows = figures["coordinates"]
    columns = ["mean", "sd"]
    title = "Coordinates, unconstrained"
    if figures["settings"]["is_corrected"]:
        columns += ["r_hat", "ess_bulk", "ess_tail"]
        rows = sorted(rows, key=lambda row: row["ess_bulk"])
    else:
        virial = figures["stein"]["virial"]
        rows = [row | {"E[(x-mean) dU/dx]": v} for row, v in zip(rows, virial, strict=True)]
        columns.append("E[(x-mean) dU/dx]")
        rows = sorted(rows, key=lambda row: -abs(row["E[(x-mean) dU/dx]"] - 1))
    if len(rows) > _MAX_COORDINATES:
        title += f" (the worst {_MAX_COORDINATES} of {len(rows)})"
    shown = [
        [row["name"], *(f"{row[c]:.3f}" if c == "r_hat" else _number(row[c]) for c in columns)]
        for row in rows[:_MAX_COORDINATES]
    ]
    return Table(title, ["", *columns], shown)


def _density(figures: dict[str, Any]) -> Table:
    coverage, evidence, stein = figures["coverage"], figures["evidence"], figures["stein"]
    settings, passes = figures["settings"], figures["passes"]
    discrepancy = stein["discrepancy"]
    known = "" if settings["is_normalised"] else ", up to the constants that the density lacks"
    rows = [
        [
            "Pareto k-hat of an ensemble's density",
            f"{coverage['k_hat']:.2f} (good up to 0.7; {coverage['efficiency']:.1%} effective)",
        ],
        [
            "log evidence" + known,
            (
                f"{evidence['log_evidence']:.3f} +- {evidence['standard_error']:.3f} "
                if math.isfinite(evidence["log_evidence"])
                else "none "
            )
            + f"({evidence['method']}, k-hat {evidence['k_hat']:.2f})",
        ],
        [
            "kernel Stein discrepancy, squared",
            f"{discrepancy['squared']:.2g} (95 % of independent samples: below "
            f"{discrepancy['upper']:.2g})",
        ],
        [
            "Stein identity, worst",
            f"{stein['worst_virial']:.2f} for {stein['worst_virial_name']} (1 is exact; "
            f"z = {stein['worst_virial_z']:.1f})",
        ],
    ]
    if passes is not None:
        rows.append(
            [
                "a particle's next draw, correlation",
                f"{passes['correlation']:.2f} in {passes['slowest']} "
                f"(+- {passes['correlation_error']:.2f}; 0.1 is intended)",
            ]
        )
    return Table("Against the posterior density", ["", ""], rows)


def _laplace(figures: dict[str, Any]) -> Table:
    sites = figures["laplace_sites"]
    rows = [[name, how] for name, how in sites.items()] or [["none", ""]]
    return Table("Laplace sites", ["", ""], rows)
