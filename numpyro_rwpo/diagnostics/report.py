"""The report of ``diagnose``: measurements and findings as text, as HTML, as a dictionary."""

import html
import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from numpyro_rwpo.diagnostics.density_findings import Finding
from numpyro_rwpo.diagnostics.importance import MAX_RELIABLE
from numpyro_rwpo.diagnostics.measurements import (
    Coordinate,
    CorrectedCoordinate,
    CorrectedMeasurements,
    Measurements,
    plain,
)
from numpyro_rwpo.diagnostics.modes import modes_table
from numpyro_rwpo.diagnostics.tables import (
    WIDTH,
    Table,
    common,
    count,
    fixed,
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

_REMARKS = "This concerns the evidence and the densities fitted to ensembles, not the draws:"


class Report:
    """What :func:`numpyro_rwpo.diagnose` found.

    Attributes:
        measurements: all figures, by topic, see :mod:`numpyro_rwpo.diagnostics.measurements`.
        findings: reasons to doubt the draws, each with a ``sentence``; empty if there are none.
        remarks: what concerns the evidence and the fitted densities, but not the draws, likewise.
    """

    def __init__(
        self,
        measurements: Measurements,
        findings: Sequence[Finding],
        remarks: Sequence[Finding] = (),
    ) -> None:
        self.measurements = measurements
        self.findings = list(findings)
        self.remarks = list(remarks)

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
        """All figures, findings and remarks as plain dictionaries, lists, numbers and strings."""
        sentences = {"findings": plain(self.findings), "remarks": plain(self.remarks)}
        return {**plain(self.measurements), **sentences}

    def tables(self) -> list[Table]:
        """The tables that are printed."""
        measured = self.measurements
        if isinstance(measured, CorrectedMeasurements):
            first = [_chains(measured), _corrected_coordinates(measured.coordinates)]
            if measured.modes:
                first.append(modes_table(measured.modes, measured.settings.num_chains))
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
        lines += [self._verdict(), *map(_bullet, self.findings)]
        if self.remarks:
            lines += ["", _REMARKS, *map(_bullet, self.remarks)]
        return "\n".join(["\n".join(lines), *("\n" + table_text(t) for t in self.tables())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [f"<h4>{html.escape(self._heading())}</h4>"]
        if not self.measurements.settings.is_corrected:
            parts.append(f"<p>{html.escape(_NOISE_FREE)}</p>")
        parts += [f"<p>{html.escape(self._verdict())}</p>", _html_list(self.findings)]
        if self.remarks:
            parts += [f"<p>{html.escape(_REMARKS)}</p>", _html_list(self.remarks)]
        parts += [table_html(table) for table in self.tables()]
        return f"<div>{''.join(parts)}</div>"


def _bullet(finding: Finding) -> str:
    text = f"[{finding.about}] {finding.sentence}"
    return textwrap.fill(text, WIDTH, initial_indent="* ", subsequent_indent="  ")


def _html_list(findings: Sequence[Finding]) -> str:
    items = "".join(
        f"<li><b>{html.escape(f.about)}</b>: {html.escape(f.sentence)}</li>" for f in findings
    )
    return f"<ul>{items}</ul>" if items else ""


def _transport_row(residuals: list[float]) -> list[str]:
    if not all(map(math.isfinite, residuals)):  # There was no transport.
        return ["transport residual", *("none" for _ in residuals), "none"]
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
    between = fixed(r_hat, 3) if len(chains) > 1 else "-"
    bulk = min(row.ess_bulk for row in coordinates)
    tail = min(row.ess_tail for row in coordinates)
    rows = [
        ["R-hat, worst (a chain: its halves)", *(fixed(c.r_hat, 3) for c in chains), between],
        ["bulk ESS, worst", *(count(c.ess_bulk) for c in chains), count(bulk)],
        ["tail ESS, worst", *(count(c.ess_tail) for c in chains), count(tail)],
        ["acceptance", *(f"{x:.2f}" for x in accept_prob), span(accept_prob, ".2f")],
        ["divergent draws", *map(str, divergences), str(sum(divergences))],
        _transport_row(residuals),
        ["gradient evaluations", *(f"{x:,}" for x in gradients), f"{sum(gradients):,}"],
        ["of them in warm-up", *(f"{x:,}" for x in warmup), f"{sum(warmup):,}"],
        ["gradients a draw", *map(str, per_draw), span(per_draw, "d")],
        ["trajectories a draw x steps", *trajectories, common(trajectories)],
    ]
    if any(jumps):
        rows.append(["jumps a draw", *map(str, jumps), span(jumps, "d")])
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
            fixed(row.r_hat, 3),
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
    has_jumps = stein.jumps is not None and stein.jumps.share > 0
    label = "log evidence" + (
        "" if is_normalized else ", up to the constants that the density lacks"
    )
    value = (
        f"{fixed(evidence.log_evidence, 3)} +- {fixed(evidence.standard_error, 3)}"
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
            f"{fixed(stein.worst_virial, 2)} for {stein.worst_virial_name} (1 is exact"
            + (" for a continuous density" if has_jumps else "")
            + f"; z = {fixed(stein.worst_virial_z, 1)})",
        ],
    ]
    if mixing is not None:
        rows.append(
            [
                "a particle's next draw, correlation",
                f"{mixing.correlation:.2f} in {mixing.slowest} (+- {mixing.correlation_error:.2f})",
            ]
        )
    return Table("Against the posterior density", ["", ""], rows)


def _laplace(measured: Measurements) -> Table:
    rows = [[name, how] for name, how in measured.laplace_sites.items()] or [["none", ""]]
    return Table("Laplace sites", ["", ""], rows)
