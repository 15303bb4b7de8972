"""Formats numbers and tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from ._style import QUIET

__all__ = [
    "GAP",
    "Column",
    "count",
    "draw_columns",
    "fit",
    "lines_of",
    "milliseconds",
    "percentile",
    "share",
    "size",
    "truncate_column",
    "width_of",
]


def count(number: float | None) -> str:
    """Return a count with thousands separators, or an empty string for 0 and None.

    Example:
        >>> count(12345), count(0)
        ('12,345', '')
    """
    return f"{number:,.0f}" if number else ""


def milliseconds(number: float | None) -> str:
    """Return milliseconds with two decimals, or an empty string for None.

    Example:
        >>> milliseconds(1234.5678), milliseconds(None)
        ('1,234.57', '')
    """
    return "" if number is None else f"{number:,.2f}"


def share(part: float, total: float) -> str:
    """Return a share in percent.

    Example:
        >>> share(1, 3)
        '33.3 %'
    """
    return f"{100 * part / total:.1f} %" if total else ""


def percentile(weighted: Iterable[tuple[float, float]], rank: float) -> float | None:
    """Return a weighted percentile: the smallest value at or below which `rank` percent of the weight lies.

    Args:
        weighted: Pairs of a value and its weight.
        rank: 0 to 100.

    Returns:
        None if there are no values.

    Example:
        >>> percentile([(5.0, 1), (1.0, 1), (3.0, 8)], 50)
        3.0
    """
    ordered = sorted(weighted)
    needed = sum(weight for _, weight in ordered) * rank / 100
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        if reached >= needed:
            return value
    return ordered[-1][0] if ordered else None


def size(number: float) -> str:
    """Return a number of bytes with a decimal unit.

    Example:
        >>> size(999), size(64 << 20)
        ('999 B', '67.1 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


GAP = 2
"""Spaces between two columns."""

_MIN_WIDTH = 6
"""Minimum width of a truncated column."""

_READABLE = 14
"""Width to which columns are truncated before other columns are omitted."""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        heading: Heading of the column.
        cells: Cells from top to bottom.
        right: True to align the cells to the right, for numbers; default False.
    """

    heading: str
    cells: list[Text]
    right: bool = False

    def width(self) -> int:
        """Return the width of the column in terminal cells."""
        return max([cell_len(self.heading), *(cell.cell_len for cell in self.cells)])


def width_of(columns: Mapping[str, Column]) -> int:
    """Return the width of a table of these columns."""
    return sum(column.width() + GAP for column in columns.values()) - GAP


def truncate_column(columns: Mapping[str, Column], name: str, width: int, minimum: int = _MIN_WIDTH) -> None:
    """Truncate the cells of one column just enough for the table to fit a width, down to `minimum`."""
    over = width_of(columns) - width
    if over > 0:
        column = columns[name]
        for cell in column.cells:
            cell.truncate(max(minimum, column.width() - over), overflow="ellipsis")


def fit(
    columns: Mapping[str, Column], width: int, spare: Iterable[str], flexible: Iterable[str]
) -> dict[str, Column]:
    """Return the columns that fit a width, truncated if necessary; see `draw_columns`."""
    fitting = dict(columns)
    for name in (name for name in flexible if name in fitting):
        truncate_column(fitting, name, width, _READABLE)
    for name in spare:
        if width_of(fitting) <= width:
            break
        fitting.pop(name, None)
    for name in (name for name in flexible if name in fitting):
        truncate_column(fitting, name, width)
    return fitting


def lines_of(columns: Mapping[str, Column]) -> list[Text]:
    """Return the headings and the rows as lines of text."""
    rows = zip(*(column.cells for column in columns.values()), strict=True)
    heading = [Text(column.heading, style=QUIET) for column in columns.values()]
    widths = [column.width() for column in columns.values()]
    rights = [column.right for column in columns.values()]
    lines = []
    for row in (heading, *rows):
        line = Text(no_wrap=True, overflow="ignore")
        for cell, width, right in zip(row, widths, rights, strict=True):
            padding = " " * (width - cell.cell_len)
            line.append(padding if right else "").append_text(cell)
            line.append(("" if right else padding) + " " * GAP)
        line.rstrip()
        lines.append(line)
    return lines


def draw_columns(
    columns: dict[str, Column], *, width: int | None, spare: Iterable[str] = (), flexible: Iterable[str] = ()
) -> RenderableType:
    """Return a table that fits a width.

    Args:
        columns: Columns by name, from left to right.
        width: Width of the terminal in columns; None for no limit: nothing is truncated.
        spare: Names of the columns that are omitted if the table does not fit, least important first.
        flexible: Names of the columns that are truncated: to a readable width before columns are omitted, and
            further if the table still does not fit.
    """
    columns = fit(columns, width, spare, flexible) if width is not None else columns
    lines = lines_of(columns)
    if width is not None:
        for line in lines:
            line.truncate(width, overflow="ellipsis")
    return Group(*lines)
