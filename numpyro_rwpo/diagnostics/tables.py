"""Titled tables as aligned text and as HTML."""

import html
from collections.abc import Sequence
from typing import NamedTuple

# Characters in a line of printed text. Rows of the widest table, the one of a comparison, are about
# as long with short names, so that sentences and tables end at the same margin.
WIDTH = 88


class Table(NamedTuple):
    """A table of strings with a title.

    Attributes:
        title: what is printed above the table.
        header: one cell for each column; a table whose header cells are all empty prints none.
        rows: one list of cells for each row, as long as the header.
    """

    title: str
    header: list[str]
    rows: list[list[str]]


def table_text(table: Table) -> str:
    """A table as aligned text: names to the left, numbers to the right."""
    columns = list(zip(table.header, *table.rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    has_header = any(table.header)
    align = str.rjust if has_header else str.ljust
    lines = [table.title]
    for row in [table.header, *table.rows] if has_header else table.rows:
        cells = [row[0].ljust(widths[0])]
        cells += [align(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def table_html(table: Table) -> str:
    """A table as HTML."""

    def cells(tag: str, row: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(x)}</{tag}>" for x in row) + "</tr>"

    body = "".join(cells("td", row) for row in table.rows)
    head = cells("th", table.header) if any(table.header) else ""
    title = html.escape(table.title)
    return f"<table><caption>{title}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"


def formatted(value: float, form: str) -> str:
    """A number by a format specification, in scientific notation where it would be very long."""
    text = format(value, form)
    # Counts of gradient evaluations have up to about 15 characters; of a longer number only the
    # order of magnitude is of interest.
    if len(text) <= 15:
        return text
    return format(value, "+.2e" if form.startswith("+") else ".2e")


def fixed(value: float, digits: int) -> str:
    """A number with ``digits`` decimals, in scientific notation where it would be very long."""
    return formatted(value, f".{digits}f")


def signed(value: float, digits: int) -> str:
    """The same with its sign."""
    return formatted(value, f"+.{digits}f")


def count(value: float) -> str:
    """A whole number with its thousands set apart."""
    return formatted(value, ",.0f")


def number(value: float, digits: int = 3) -> str:
    """A number with ``digits`` significant digits, large ones without an exponent."""
    return count(value) if abs(value) >= 10**digits else f"{value:.{digits}g}"


def span(values: Sequence[float], form: str) -> str:
    """The smallest and the largest of formatted values, or the one that all have in common."""
    low, high = formatted(min(values), form), formatted(max(values), form)
    return low if low == high else f"{low} to {high}"


def common(values: Sequence[str]) -> str:
    """The value that all have in common, or ``"mixed"``."""
    return values[0] if len(set(values)) == 1 else "mixed"
