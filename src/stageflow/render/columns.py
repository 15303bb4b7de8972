"""Columns of text, lined up: what a list of runs and every other table for a terminal is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from .palette import QUIET

__all__ = ["GAP", "Column", "cut", "draw_columns", "fit", "lines_of", "width_of"]

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
