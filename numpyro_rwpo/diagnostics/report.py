"""The report of ``diagnose``: measurements and findings as text, as HTML, as a dictionary."""

import html
import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from numpyro_rwpo.diagnostics.findings import Finding
from numpyro_rwpo.diagnostics.importance import MAX_RELIABLE
from numpyro_rwpo.diagnostics.measurements import (
    Coordinate,
    CorrectedCoordinate,
    CorrectedMeasurements,
    Measurements,
    plain,
)
from numpyro_rwpo.diagnostics.tables import (
    WIDTH,
    Table,
    common,
    number,
    span,
    table_html,
    table_text,
)

# Coordinates that the report prints, the worst first. They fit on a screen together with the
# other tables; `to_dict` has all coordinates.
_MAX_COORDINATES = 5

_NOISE_FREE = (
    "R-hat and ESS do not apply: noise-free particles are not the draws of a Markov chain. They "
    "are placed by a deterministic flow, and no number of them removes its bias. What is below "
    "compares them with the posterior density."
)


class Report:
    """What :func:`numpyro_rwpo.diagnose` found.

    Attributes:
        measurements: all figures, by topic, see :mod:`numpyro_rwpo.diagnostics.measurements`.
        findings: reasons to doubt the draws, each with a ``sentence``; empty if there are none.
    """

    def __init__(self, measurements: Measurements, findings: Sequence[Finding]) -> None:
        self.measurements = measurements
        self.findings = list(findings)

    @property
    def figures(self) -> dict[str, Any]:
        """Deprecated: all figures as a dictionary; use ``measurements`` or ``to_dict()``."""
        warnings.warn(
            "`Report.figures` is deprecated and will be removed in the next release; use "
            "`Report.measurements`, or `Report.to_dict()` for a dictionary.",
            DeprecationWarning,
            stacklevel=2,
        )
        return dict(plain(self.measurements))

    def to_dict(self) -> dict[str, Any]:
        """All figures and findings as plain dictionaries, lists, numbers and strings."""
        return {**plain(self.measurements), "findings": plain(self.findings)}

    def tables(self) -> list[Table]:
        """The tables that are printed."""
        measured = self.measurements
        if isinstance(measured, CorrectedMeasurements):
            first = [_chains(measured), _corrected_coordinates(measured.coordinates)]
        else:
            first = [_ensembles(measured), _coordinates(measured)]
        return [*first, _density(measured), _laplace(measured)]

    def _heading(self) -> str:
        settings = self.measurements.settings
        noun = "draws" if settings.is_corrected else "noise-free particles"
        return (
            f"RWPO: {settings.num_chains} chains of {settings.num_draws} {noun}, {settings.dim} "
            f"dimensions, {settings.num_particles} particles"
        )

    def _verdict(self) -> str:
        if not self.findings:
            return "Nothing here casts doubt on these draws."
        plural = "s" if len(self.findings) > 1 else ""
        return f"{len(self.findings)} finding{plural} to act on:"

    def __str__(self) -> str:
        """The report as text."""
        lines = [self._heading(), ""]
        if not self.measurements.settings.is_corrected:
            lines += [textwrap.fill(_NOISE_FREE, WIDTH), ""]
        lines.append(self._verdict())
        for finding in self.findings:
            text = f"[{finding.about}] {finding.sentence}"
            lines.append(textwrap.fill(text, WIDTH, initial_indent="* ", subsequent_indent="  "))
        return "\n".join(["\n".join(lines), *("\n" + table_text(t) for t in self.tables())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [f"<h4>{html.escape(self._heading())}</h4>"]
        if not self.measurements.settings.is_corrected:
            parts.append(f"<p>{html.escape(_NOISE_FREE)}</p>")
        parts.append(f"<p>{html.escape(self._verdict())}</p>")
        items = "".join(
            f"<li><b>{html.escape(f.about)}</b>: {html.escape(f.sentence)}</li>"
            for f in self.findings
        )
        parts.append(f"<ul>{items}</ul>" if items else "")
        parts += [table_html(table) for table in self.tables()]
        return f"<div>{''.join(parts)}</div>"


def _transport_row(residuals: list[float]) -> list[str]:
    return ["transport residual", *(number(x, 2) for x in residuals), span(residuals, ".2g")]


def _chains(measured: CorrectedMeasurements) -> Table:
    """One column per chain and one for the run, with R-hat and ESS over all chains."""
    chains, coordinates = measured.chains, measured.coordinates
    trajectories = [f"{c.trajectories_per_draw} x {c.steps_per_trajectory}" for c in chains]
    jumps = [row.jumps_per_draw for row in chains]
    warmup = [row.warmup_gradients for row in chains]
    placements = [row.placement for row in chains]
    residuals = [row.transport_residual for row in chains]
    accept_prob = [row.accept_prob for row in chains]
    divergences = [row.num_divergences for row in chains]
    gradients = [row.num_gradients for row in chains]
    per_draw = [row.gradients_per_draw for row in chains]
    metrics, flows = [row.metric for row in chains], [row.flow for row in chains]
    # A NaN counts as worse than any number.
    r_hat = max((row.r_hat for row in coordinates), key=lambda x: (math.isnan(x), x))
    # A single chain has no other to be compared with.
    between = f"{r_hat:.3f}" if len(chains) > 1 else "-"
    bulk = min(row.ess_bulk for row in coordinates)
    tail = min(row.ess_tail for row in coordinates)
    rows = [
        ["R-hat, worst (a chain: its halves)", *(f"{c.r_hat:.3f}" for c in chains), between],
        ["bulk ESS, worst", *(f"{c.ess_bulk:,.0f}" for c in chains), f"{bulk:,.0f}"],
        ["tail ESS, worst", *(f"{c.ess_tail:,.0f}" for c in chains), f"{tail:,.0f}"],
        ["acceptance", *(f"{x:.2f}" for x in accept_prob), span(accept_prob, ".2f")],
        ["divergent draws", *map(str, divergences), str(sum(divergences))],
    ]
    if all(map(math.isfinite, residuals)):  # infinite where there was no transport
        rows.append(_transport_row(residuals))
    rows += [
        ["gradient evaluations", *(f"{x:,}" for x in gradients), f"{sum(gradients):,}"],
        ["of them in warm-up", *(f"{x:,}" for x in warmup), f"{sum(warmup):,}"],
        ["gradients a draw", *map(str, per_draw), span(per_draw, "d")],
        ["trajectories a draw x steps", *trajectories, common(trajectories)],
    ]
    if any(jumps):
        rows.append(["jumps to the proposal a draw", *map(str, jumps), span(jumps, "d")])
    rows += [
        ["start", *placements, common(placements)],
        ["metric", *metrics, common(metrics)],
        ["flow", *flows, common(flows)],
    ]
    return Table("Chains", ["", *(str(k) for k in range(len(chains))), "all"], rows)


def _ensembles(measured: Measurements) -> Table:
    """One column per noise-free ensemble and one for the run."""
    chains = measured.chains
    steps = [row.transport_steps for row in chains]
    gradients = [row.num_gradients for row in chains]
    rows = [
        _transport_row([row.transport_residual for row in chains]),
        ["transport steps", *map(str, steps), span(steps, "d")],
        ["gradient evaluations", *(f"{x:,}" for x in gradients), f"{sum(gradients):,}"],
    ]
    return Table("Ensembles", ["", *(str(k) for k in range(len(chains))), "all"], rows)


def _coordinates_title(total: int) -> str:
    title = "Coordinates, unconstrained"
    return (
        f"{title} (the worst {_MAX_COORDINATES} of {total})" if total > _MAX_COORDINATES else title
    )


def _corrected_coordinates(coordinates: Sequence[CorrectedCoordinate]) -> Table:
    """The coordinates with the fewest effective draws."""
    worst = sorted(coordinates, key=lambda row: row.ess_bulk)[:_MAX_COORDINATES]
    rows = [
        [
            row.name,
            number(row.mean),
            number(row.sd),
            f"{row.r_hat:.3f}",
            number(row.ess_bulk),
            number(row.ess_tail),
        ]
        for row in worst
    ]
    header = ["", "mean", "sd", "r_hat", "ess_bulk", "ess_tail"]
    return Table(_coordinates_title(len(coordinates)), header, rows)


def _coordinates(measured: Measurements) -> Table:
    """The coordinates of noise-free particles that violate Stein's identity most."""
    pairs: list[tuple[Coordinate, float]] = list(
        zip(measured.coordinates, measured.stein.virial, strict=True)
    )
    worst = sorted(pairs, key=lambda pair: -abs(pair[1] - 1))[:_MAX_COORDINATES]
    rows = [[row.name, number(row.mean), number(row.sd), number(virial)] for row, virial in worst]
    header = ["", "mean", "sd", "E[(x-mean) dU/dx]"]
    return Table(_coordinates_title(len(pairs)), header, rows)


def _density(measured: Measurements) -> Table:
    """How the draws fit the posterior density."""
    coverage, evidence, stein = measured.coverage, measured.evidence, measured.stein
    discrepancy, mixing = stein.discrepancy, measured.mixing
    is_normalized = measured.settings.is_normalized
    label = "log evidence" + (
        "" if is_normalized else ", up to the constants that the density lacks"
    )
    value = (
        f"{evidence.log_evidence:.3f} +- {evidence.standard_error:.3f}"
        if math.isfinite(evidence.log_evidence)
        else "none"
    )
    rows = [
        [
            "Pareto k-hat of an ensemble's density",
            f"{coverage.k_hat:.2f} (good up to {MAX_RELIABLE}; "
            f"{coverage.efficiency:.1%} effective)",
        ],
        [label, f"{value} ({evidence.method}, k-hat {evidence.k_hat:.2f})"],
        [
            "kernel Stein discrepancy, squared",
            f"{discrepancy.squared:.2g} (95% of independent samples: below "
            f"{discrepancy.upper:.2g})",
        ],
        [
            "Stein identity, worst",
            f"{stein.worst_virial:.2f} for {stein.worst_virial_name} (1 is exact; "
            f"z = {stein.worst_virial_z:.1f})",
        ],
    ]
    if mixing is not None:
        rows.append(
            [
                "a particle's next draw, correlation",
                f"{mixing.correlation:.2f} in {mixing.slowest} "
                f"(+- {mixing.correlation_error:.2f}; 0.1 is intended)",
            ]
        )
    return Table("Against the posterior density", ["", ""], rows)


def _laplace(measured: Measurements) -> Table:
    rows = [[name, how] for name, how in measured.laplace_sites.items()] or [["none", ""]]
    return Table("Laplace sites", ["", ""], rows)
