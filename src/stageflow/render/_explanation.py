"""Renders an explanation: differences between the selected rows and the rest, with the share of each side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ._escape import on_one_line
from ._style import BAD, QUIET
from ._tables import share

if TYPE_CHECKING:
    from ..store import Difference, ExcludedFields, Explanation

__all__ = ["draw_explanation"]


_INDENT = 4
_MIN_BAR = 6
_MAX_BAR = 40
_DEFAULT_WIDTH = 120
_STATISTICS_WIDTH = len("   exclusive  q < 1e-99")
_WORDS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^ '"])+|['"]""")
_MAX_NAMES = 6
"""Maximum number of names to list; the others are counted."""


def draw_explanation(explanation: Explanation, *, width: int | None) -> RenderableType:
    """Return the differences, largest first, then likely effects and a query for further investigation.

    Args:
        explanation: The result of `explain`.
        width: Width of the terminal in columns. None for no limit: 120 columns, and nothing is truncated.

    Example:
        Console().print(draw_explanation(explain(connection), width=80))
    """
    columns = width or _DEFAULT_WIDTH
    lines: list[RenderableType] = [*_head(explanation), ""]
    lines.append(Text(f"{explanation.verdict}", style="bold"))
    numbers = {str(difference): n for n, difference in enumerate(explanation.differences, 1)}
    if (both := explanation.together) is not None:
        combined = " and ".join(str(numbers.get(text, "")) for text in both.descriptions)
        lines += ["", Text(f"only in combination: {combined}", style="bold")]
        lines.append(Text(" " * _INDENT + " and ".join(map(on_one_line, both.descriptions))))
        shares = f"{share(both.selection.share, 1)} of the selected, {share(both.rest.share, 1)} of the rest"
        lines.append(Text(" " * _INDENT + shares))
    lines += _section(explanation.differences, numbers, columns)
    if explanation.consequences:
        lines += ["", Text("likely effects, not causes", style="bold")]
        numbers = {str(difference): n for n, difference in enumerate(explanation.consequences, 1)}
        lines += _section(explanation.consequences, numbers, columns)
    if explanation.fields:
        lines += ["", _compared(explanation), *map(_excluded, explanation.excluded)]
    if first := (explanation.differences or explanation.consequences):
        sql = explanation.together.sql if explanation.together is not None else first[0].sql
        # In a pipe, the query stays on one line, so that programs can find all of it.
        lines += ["", *_next(sql, first[0], columns if width is not None else None)]
    return Group(*lines)


def _head(explanation: Explanation) -> list[Text]:
    kind = explanation.over
    selection, rest = explanation.selection, explanation.rest
    others = "the others" if explanation.against is None else on_one_line(explanation.against)
    lines = [
        Text.assemble(("selected  ", QUIET), on_one_line(explanation.where)),
        Text.assemble(("against   ", QUIET), others),
    ]
    sizes = (
        (selection, explanation.selection_compared),
        (rest, explanation.rest_compared),
    )
    for line, (side, analyzed) in zip(lines, sizes, strict=True):
        line.append(f"  {_row_count(side.rows, kind)}")
        if round(side.count) != side.rows:
            line.append(f" that represent {side.count:,.0f}")
        if analyzed < side.rows and explanation.fields:
            line.append(f", a sample of {analyzed:,} analyzed")
    return lines


def _row_count(rows: int, kind: str) -> str:
    return f"{rows:,} {kind[:-1] if rows == 1 else kind}"


def _section(differences: Sequence[Difference], numbers: dict[str, int], width: int) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for difference in differences:
        if difference.along_with is None:
            lines += ["", *_lines(difference, numbers[str(difference)], width)]
    if redundant := [difference for difference in differences if difference.along_with is not None]:
        lines += ["", Text("not significant after controlling for a difference above", style=QUIET)]
        lines.append(_redundant(redundant, numbers))
    return lines


def _lines(difference: Difference, number: int, width: int) -> list[RenderableType]:
    head = Text(f"{number:>2}  ")
    head.append(on_one_line(difference), style="bold")
    lines: list[RenderableType] = [head]
    statistics = Text(f"{_lift(difference):>12}  q {_q(difference.q_value)}", style=QUIET)
    sides = ((difference.selection.share, BAD), (difference.rest.share, ""))
    shares = [Text(share(part, 1), style=style) for part, style in sides]
    available = width - _INDENT - sum(len(label) for label in ("selected ", "  rest "))
    available -= _STATISTICS_WIDTH + 2 * (len("100.0 %") + 1)
    bar = min(_MAX_BAR, available // 2) if available // 2 >= _MIN_BAR else 0
    table = Table.grid()
    for _ in range(8 if bar else 6):
        table.add_column(no_wrap=True)
    cells: list[RenderableType] = [" " * _INDENT]
    for label, (part, style), text in zip(("selected ", "  rest "), sides, shares, strict=True):
        cells += [
            Text(label, style=QUIET),
            *([_Bar(part, bar, style)] if bar else []),
            Text(f"{text.plain:>8}", style=style),
        ]
    table.add_row(*cells, statistics)
    lines.append(table)
    if difference.synonyms:
        same = Text(" " * _INDENT + "the same rows: ", style=QUIET)
        named = [on_one_line(synonym) for synonym in difference.synonyms]
        more = len(named) - _MAX_NAMES
        same.append(", ".join(named[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else ""))
        lines.append(same)
    return lines


def _redundant(differences: Sequence[Difference], numbers: dict[str, int]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    table.add_row("", "", "", "", *(Text(label, style=QUIET) for label in ("selected", "rest")))
    for difference in differences:
        by = numbers.get(difference.along_with or "")
        table.add_row(
            f"{numbers[str(difference)]:>2}",
            on_one_line(difference),
            Text(f"with {by}" if by else "", style=QUIET),
            Text(_lift(difference), style=QUIET),
            share(difference.selection.share, 1),
            share(difference.rest.share, 1),
        )
    return table


def _lift(difference: Difference) -> str:
    if difference.lift is None:
        return "exclusive"
    return f"{difference.lift:,.0f}x" if difference.lift >= 10 else f"{difference.lift:.1f}x"


def _q(value: float) -> str:
    return "< 1e-99" if value < 1e-99 else f"{value:.0e}" if value < 0.001 else f"{value:.3f}"


def _compared(explanation: Explanation) -> Text:
    return Text(
        f"{explanation.fields:,} fields, corrected for {explanation.comparisons:,} comparisons; "
        f"differences have q <= {explanation.alpha:g}",
        style=QUIET,
    )


def _excluded(excluded: ExcludedFields) -> Text:
    more = len(excluded.fields) - _MAX_NAMES
    named = ", ".join(on_one_line(name) for name in excluded.fields[:_MAX_NAMES]) + (
        f" and {more} more" if more > 0 else ""
    )
    return Text(f"excluded: {named} ({excluded.reason})", style=QUIET)


def _next(sql: str, first: Difference, width: int | None) -> list[Text]:
    parts = [on_one_line(sql)] if width is None else _wrapped(on_one_line(sql), width - 10)
    lines = [
        Text.assemble(("next" if not n else "", QUIET), " " * (10 if n else 6), part)
        for n, part in enumerate(parts)
    ]
    if first.run_ids:
        lines.append(Text.assemble(("example   ", QUIET), f"stageflow show {on_one_line(first.run_ids[0])}"))
    return lines


def _wrapped(sql: str, width: int) -> list[str]:
    """Wrap a query at spaces outside quotes, so that it can be copied."""
    lines = [""]
    for word in _WORDS.findall(sql):
        line = f"{lines[-1]} {word}".strip()
        if cell_len(line) <= width or not lines[-1]:
            lines[-1] = line
        else:
            lines.append(word)
    return lines


class _Bar:
    """A bar for a share, with a resolution of an eighth of a column."""

    _EIGHTHS = " ▏▎▍▌▋▊▉█"

    def __init__(self, part: float, width: int, style: str) -> None:
        self.part = min(max(part, 0.0), 1.0)
        self.width = width
        self.style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        eighths = round(self.part * self.width * 8)
        if self.part:
            eighths = max(1, eighths)  # a small share is still visible
        if options.ascii_only:
            bar = "#" * -(-eighths // 8)
        else:
            full, rest = divmod(eighths, 8)
            bar = self._EIGHTHS[8] * full + (self._EIGHTHS[rest] if rest else "")
        bar += " " * (self.width - cell_len(bar))
        yield Text(bar, style=self.style, end="")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.width, self.width)
