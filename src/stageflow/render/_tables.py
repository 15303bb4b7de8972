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
    "cut",
    "draw_columns",
    "fit",
    "lines_of",
    "milliseconds",
    "percentile",
    "share",
    "size",
    "width_of",
]


def count(number: float | None) -> str:
    """Return a count with its thousands apart, or nothing for none.

    Example:
        >>> count(12345), count(0)
        ('12,345', '')
    """
    return f"{number:,.0f}" if number else ""


def milliseconds(number: float | None) -> str:
    """Return milliseconds with two decimals, or nothing where none were measured.

    Example:
        >>> milliseconds(1234.5678), milliseconds(None)
        ('1,234.57', '')
    """
    return "" if number is None else f"{number:,.2f}"


def share(part: float, whole: float) -> str:
    """Return a share in percent.

    Example:
        >>> share(1, 3)
        '33.3 %'
    """
    return f"{100 * part / whole:.1f} %" if whole else ""


def percentile(weighted: Iterable[tuple[float, float]], rank: float) -> float | None:
    """Return the smallest value that `rank` percent of all weight lies at or below.

    Args:
        weighted: Pairs of a value and its weight.
        rank: 0 to 100.

    Returns:
        None where there are no values.

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
    """Return a number of bytes.

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
"""Blanks between two columns."""

_SHORTEST = 6
"""Characters to which a column may be cut."""

_READABLE = 14
"""Characters below which a column is cut only when nothing can be left out any more."""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        heading: What stands above it.
        cells: From top to bottom.
        right: True for numbers, whose ends line up.
    """

    heading: str
    cells: list[Text]
    right: bool = False

    def width(self) -> int:
        """Return how many cells of a terminal it takes."""
        return max([cell_len(self.heading), *(cell.cell_len for cell in self.cells)])


def width_of(columns: Mapping[str, Column]) -> int:
    """Return how wide these columns are beside each other."""
    return sum(column.width() + GAP for column in columns.values()) - GAP


def cut(columns: Mapping[str, Column], name: str, width: int, shortest: int = _SHORTEST) -> None:
    """Cut the cells of one column, as far as it takes to get all of them into a width, and no shorter."""
    over = width_of(columns) - width
    if over > 0:
        column = columns[name]
        for cell in column.cells:
            cell.truncate(max(shortest, column.width() - over), overflow="ellipsis")


def fit(
    columns: Mapping[str, Column], width: int, spare: Iterable[str], flexible: Iterable[str]
) -> dict[str, Column]:
    """Return what of these columns fits a width; see `draw_columns`."""
    fitting = dict(columns)
    for name in (name for name in flexible if name in fitting):
        cut(fitting, name, width, _READABLE)
    for name in spare:
        if width_of(fitting) <= width:
            break
        fitting.pop(name, None)
    for name in (name for name in flexible if name in fitting):
        cut(fitting, name, width)
    return fitting


def lines_of(columns: Mapping[str, Column]) -> list[Text]:
    """Return the headings, and then each row, as lines of text."""
    rows = zip(*(column.cells for column in columns.values()), strict=True)
    heading = [Text(column.heading, style=QUIET) for column in columns.values()]
    widths = [column.width() for column in columns.values()]
    rights = [column.right for column in columns.values()]
    lines = []
    for row in (heading, *rows):
        line = Text(no_wrap=True, overflow="ignore")
        for cell, width, right in zip(row, widths, rights, strict=True):
            blanks = " " * (width - cell.cell_len)
            line.append(blanks if right else "").append_text(cell)
            line.append(("" if right else blanks) + " " * GAP)
        line.rstrip()
        lines.append(line)
    return lines


def draw_columns(
    columns: dict[str, Column], *, width: int | None, spare: Iterable[str] = (), flexible: Iterable[str] = ()
) -> RenderableType:
    """Return a table that fits a width.

    Args:
        columns: By name, from left to right.
        width: Cells that there are; None for any number: then nothing is cut.
        spare: Names of the columns that are left out where there is no room, the least missed first.
        flexible: Names of the columns that are cut before that, as long as they can still be read, and
            after it.
    """
    columns = fit(columns, width, spare, flexible) if width is not None else columns
    lines = lines_of(columns)
    if width is not None:
        for line in lines:
            line.truncate(width, overflow="ellipsis")
    return Group(*lines)
