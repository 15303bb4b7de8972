"""What is different about some runs: each difference with its share on both sides."""

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
    from ..store import Difference, Explanation, LeftOut

__all__ = ["draw_explanation"]


_INDENT = 4
_NARROWEST_BAR = 6
_WIDEST_BAR = 40
_WIDTH_IN_A_PIPE = 120
_FIGURES = len("  only there  q < 1e-99")
_WORDS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^ '"])+|['"]""")
_NAMES = 6
"""Fields of one reason that are named; of the others it is said how many they are."""


def draw_explanation(explanation: Explanation, *, width: int | None) -> RenderableType:
    """Return the differences, what explains most first, then what came with them and what to do next.

    Args:
        explanation: What `explain` returned.
        width: How many columns there are. None for any number: 120 are used, and nothing is cut.

    Example:
        Console().print(draw_explanation(explain(connection), width=80))
    """
    columns = width or _WIDTH_IN_A_PIPE
    lines: list[RenderableType] = [*_head(explanation), ""]
    lines.append(Text(f"{explanation.verdict}", style="bold"))
    places = {str(one): n for n, one in enumerate(explanation.differences, 1)}
    if (both := explanation.together) is not None:
        numbers = " and ".join(str(places.get(one, "")) for one in both.descriptions)
        lines += ["", Text(f"it takes {numbers} together:", style="bold")]
        lines.append(Text(" " * _INDENT + " and ".join(map(on_one_line, both.descriptions))))
        told = f"{share(both.selection.share, 1)} of the selected, {share(both.rest.share, 1)} of the rest"
        lines.append(Text(" " * _INDENT + told))
    lines += _listed(explanation.differences, places, columns)
    if explanation.consequences:
        lines += ["", Text("what came with it (the course of the runs, rather no cause)", style="bold")]
        places = {str(one): n for n, one in enumerate(explanation.consequences, 1)}
        lines += _listed(explanation.consequences, places, columns)
    if explanation.fields:
        lines += ["", _compared(explanation), *map(_left_out, explanation.left_out)]
    if first := (explanation.differences or explanation.consequences):
        sql = explanation.together.sql if explanation.together is not None else first[0].sql
        # In a pipe it stays on one line: whoever looks for it there wants all of it.
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
        (selection, explanation.selection_looked_at),
        (rest, explanation.rest_looked_at),
    )
    for line, (side, looked_at) in zip(lines, sizes, strict=True):
        line.append(f"  {_many(side.rows, kind)}")
        if round(side.count) != side.rows:
            line.append(f" that stand for {side.count:,.0f}")
        if looked_at < side.rows and explanation.fields:
            line.append(f", a sample of {looked_at:,} looked at")
    return lines


def _many(rows: int, kind: str) -> str:
    return f"{rows:,} {kind[:-1] if rows == 1 else kind}"


def _listed(differences: Sequence[Difference], places: dict[str, int], width: int) -> list[RenderableType]:
    lines: list[RenderableType] = []
    alone = [one for one in differences if one.along_with is None]
    for one in alone:
        lines += ["", *_lines(one, places[str(one)], width)]
    if along := [one for one in differences if one.along_with is not None]:
        lines += ["", Text("these go along with one above: apart from it they do not show", style=QUIET)]
        lines.append(_along(along, places))
    return lines


def _lines(one: Difference, place: int, width: int) -> list[RenderableType]:
    head = Text(f"{place:>2}  ")
    head.append(on_one_line(one), style="bold")
    lines: list[RenderableType] = [head]
    figures = Text(f"{_lift(one):>12}  q {_q(one.q_value)}", style=QUIET)
    both = ((one.selection.share, BAD), (one.rest.share, ""))
    shares = [Text(share(part, 1), style=style) for part, style in both]
    room = width - _INDENT - sum(len(words) for words in ("selected ", "  rest "))
    room -= _FIGURES + 2 * (len("100.0 %") + 1)
    bar = min(_WIDEST_BAR, room // 2) if room // 2 >= _NARROWEST_BAR else 0
    table = Table.grid()
    for _ in range(8 if bar else 6):
        table.add_column(no_wrap=True)
    cells: list[RenderableType] = [" " * _INDENT]
    for words, (part, style), shown in zip(("selected ", "  rest "), both, shares, strict=True):
        cells += [
            Text(words, style=QUIET),
            *([_Bar(part, bar, style)] if bar else []),
            Text(f"{shown.plain:>8}", style=style),
        ]
    table.add_row(*cells, figures)
    lines.append(table)
    if one.synonyms:
        same = Text(" " * _INDENT + "the same rows: ", style=QUIET)
        named = [on_one_line(synonym) for synonym in one.synonyms]
        more = len(named) - _NAMES
        same.append(", ".join(named[:_NAMES]) + (f" and {more} more" if more > 0 else ""))
        lines.append(same)
    return lines


def _along(along: Sequence[Difference], places: dict[str, int]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    table.add_row("", "", "", "", *(Text(words, style=QUIET) for words in ("selected", "rest")))
    for one in along:
        by = places.get(one.along_with or "")
        table.add_row(
            f"{places[str(one)]:>2}",
            on_one_line(one),
            Text(f"with {by}" if by else "", style=QUIET),
            Text(_lift(one), style=QUIET),
            share(one.selection.share, 1),
            share(one.rest.share, 1),
        )
    return table


def _lift(one: Difference) -> str:
    if one.lift is None:
        return "only there"
    return f"{one.lift:,.0f}x" if one.lift >= 10 else f"{one.lift:.1f}x"


def _q(value: float) -> str:
    return "< 1e-99" if value < 1e-99 else f"{value:.0e}" if value < 0.001 else f"{value:.3f}"


def _compared(explanation: Explanation) -> Text:
    return Text(
        f"{explanation.fields:,} fields in {explanation.comparisons:,} comparisons, all corrected for; "
        f"what is told has q <= {explanation.alpha:g}",
        style=QUIET,
    )


def _left_out(of: LeftOut) -> Text:
    more = len(of.fields) - _NAMES
    named = ", ".join(on_one_line(name) for name in of.fields[:_NAMES]) + (
        f" and {more} more" if more > 0 else ""
    )
    return Text(f"left out: {named} ({of.why})", style=QUIET)


def _next(sql: str, first: Difference, width: int | None) -> list[Text]:
    parts = [on_one_line(sql)] if width is None else _folded(on_one_line(sql), width - 10)
    lines = [
        Text.assemble(("next" if not n else "", QUIET), " " * (10 if n else 6), part)
        for n, part in enumerate(parts)
    ]
    if first.run_ids:
        lines.append(Text.assemble(("one run   ", QUIET), f"stageflow show {on_one_line(first.run_ids[0])}"))
    return lines


def _folded(sql: str, width: int) -> list[str]:
    """Fold a query at blanks, but at none inside quotes: it can be copied as it stands."""
    folded = [""]
    for word in _WORDS.findall(sql):
        line = f"{folded[-1]} {word}".strip()
        if cell_len(line) <= width or not folded[-1]:
            folded[-1] = line
        else:
            folded.append(word)
    return folded


class _Bar:
    """A share of a fixed number of columns, drawn to an eighth of one."""

    _EIGHTHS = " ▏▎▍▌▋▊▉█"

    def __init__(self, part: float, width: int, style: str) -> None:
        self.part = min(max(part, 0.0), 1.0)
        self.width = width
        self.style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        eighths = round(self.part * self.width * 8)
        if self.part:
            eighths = max(1, eighths)  # little is not nothing
        if options.ascii_only:
            bar = "#" * -(-eighths // 8)
        else:
            full, rest = divmod(eighths, 8)
            bar = self._EIGHTHS[8] * full + (self._EIGHTHS[rest] if rest else "")
        bar += " " * (self.width - cell_len(bar))
        yield Text(bar, style=self.style, end="")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.width, self.width)
