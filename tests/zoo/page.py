"""Builds the table of ``docs/hard-targets.md`` from the recorded rows of both samplers."""

from __future__ import annotations

import math
from pathlib import Path

from tests.zoo.driver import Row, recorded
from tests.zoo.targets import TARGETS

PAGE = Path(__file__).parents[2] / "docs" / "hard-targets.md"
BEGIN, END = "<!-- made by tests/zoo -->", "<!-- end of what tests/zoo made -->"


VERDICTS = {"SILENT": "wrong, not flagged", "flagged": "wrong, flagged"}


def cells(row: Row | None) -> list[str]:
    """The verdict, the errors, and the problems that were reported."""
    if row is None:
        return ["not run", "", "", ""]
    if row.error:
        return ["refused", "", "", "an error"]
    said = ", ".join(row.findings) or "nothing"
    if math.isnan(row.mean_error):  # improper: there is no truth to be wrong about
        return [row.verdict, "", "", said]
    low, high = row.sd_ratios
    verdict = VERDICTS.get(row.verdict, row.verdict)
    return [verdict, f"{row.mean_error:.2f}", f"{low:.2f} to {high:.2f}", said]


def table() -> str:
    """The Markdown table, with one row per target."""
    rwpo, nuts = recorded("rwpo"), recorded("nuts")
    lines = [
        "| Target | RWPO | mean, sd | sd ratios | reported |"
        " NUTS | mean, sd | sd ratios | reported |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in TARGETS:
        row = [name, *cells(rwpo.get(name)), *cells(nuts.get(name))]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def write() -> None:
    """Write the table between the markers of the page."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")
