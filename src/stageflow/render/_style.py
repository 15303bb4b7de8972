"""Colors, wrapping and progress for a terminal."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

__all__ = [
    "BAD",
    "OUTCOMES",
    "QUIET",
    "STATUSES",
    "Pairs",
    "Paragraph",
    "UncroppedConsole",
    "colored",
    "track",
    "wrap",
]


QUIET = "dim"
BAD = "red"

OUTCOMES = {
    "ok": "green",
    "degraded": "yellow",
    "stopped": "cyan",
    "failed": BAD,
    "timeout": BAD,
    "cancelled": "magenta",
    "crashed": f"bold {BAD}",
    "closed": QUIET,
    "open": "blue",
}
"""The outcomes of runs, in the order in which a table lists them."""

STATUSES = {"OK": "green", "SKIP": QUIET, "RETRY": "yellow", "FAIL": BAD, "CANCEL": "magenta", "OPEN": "blue"}
"""The statuses of stages and runs."""

_RUNNING = {"RUNNING": "blue"}
"""Color of running stages; in the record, their status is OPEN until they end."""


def colored(word: str) -> Text:
    """Return an outcome or a status in its color.

    Example:
        >>> colored("failed").style
        'red'
    """
    return Text(word, style=OUTCOMES.get(word) or STATUSES.get(word) or _RUNNING.get(word) or "")


_GAP = 2
"""Spaces between a label and its value."""


def wrap(text: Text, width: int) -> list[Text]:
    """Return the lines of a text, wrapped at spaces. Continuation lines are indented like their first line.

    The indentation is smaller if a word would not fit otherwise. A word longer than `width` is
    printed on a separate line, which the terminal continues on the next row. Rich could only break or crop
    such a word, and a path with a line feed in it cannot be copied.

    Example:
        >>> [line.plain for line in wrap(Text("cannot read /a/long/path here"), 14)]
        ['cannot read', '/a/long/path', 'here']
    """
    lines = []
    for paragraph in text.split("\n", allow_blank=True):
        words = paragraph.plain.split(" ")
        indent = next((number for number, word in enumerate(words) if word), 0)
        start = end = at = indent  # the line is `start` to `end`; the next word starts at `at`
        for word in words[indent:]:
            if start < end and word and indent + cell_len(paragraph.plain[start : at + len(word)]) > width:
                lines.append(_fitted(Text(" " * indent).append_text(paragraph[start:end]), width))
                start = at
            if word:
                end = at + len(word)
            at += len(word) + 1
        lines.append(_fitted(Text(" " * indent).append_text(paragraph[start:end]), width))
    return lines


def _fitted(line: Text, width: int) -> Text:
    """Return a line with as much of its indentation as fits: a path can need the full width."""
    line.rstrip()
    indent = len(line.plain) - len(line.plain.lstrip(" "))
    return line[min(indent, max(0, line.cell_len - width)) :]


class UncroppedConsole(Console):
    """A console that is used with `crop=False`: lines longer than the terminal are printed in full.

    On any other console, `Paragraph` and `Pairs` break words that are longer than a row, because rich would
    omit the rest of the line.
    """


class Paragraph:
    """A text wrapped to the width of the terminal.

    Args:
        text: The text.
        first: Prefix of the first line, such as "- "; further lines are indented by its width.
    """

    def __init__(self, text: Text, first: str = "") -> None:
        self.text = text
        self.first = first

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        indent = cell_len(self.first)
        for number, line in enumerate(wrap(self.text, options.max_width - indent)):
            before = self.first if number == 0 else " " * indent
            yield from _segments(console, options, Text(before, style=self.text.style).append_text(line))


class Pairs:
    """Labels and values in two columns; a value that does not fit in its column starts on a new line.

    Args:
        rows: Labels and their values.
        indent: Number of spaces before each line.
        max_label: Maximum width of labels in columns.
    """

    def __init__(self, rows: Sequence[tuple[str, Text]], *, indent: int = 0, max_label: int = 40) -> None:
        self.rows = rows
        self.indent = indent
        self.max_label = max_label

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        column = min(self.max_label, max((cell_len(label) for label, _ in self.rows), default=0))
        for label, value in self.rows:
            heading = Text(" " * self.indent).append(label, style=QUIET)
            before = self.indent + column + _GAP
            lines = wrap(value, options.max_width - before)
            if any(before + line.cell_len > options.max_width for line in lines):
                before = self.indent + _GAP
                lines = wrap(value, options.max_width - before)
            if heading.cell_len + _GAP <= before:
                heading.append(" " * (before - heading.cell_len)).append_text(lines.pop(0))
            yield from _segments(console, options, heading)
            for line in lines:
                yield from _segments(console, options, Text(" " * before).append_text(line))


def _segments(console: Console, options: ConsoleOptions, line: Text) -> RenderResult:
    line = _fitted(line, options.max_width)
    if isinstance(console, UncroppedConsole):
        # Rich would break a line that is longer than the terminal, and insert a line feed into a path.
        yield from line.render(console)
        yield Segment.line()
    else:
        line.overflow = "fold"
        yield line


Results = TypeVar("Results")


async def track(
    runs: AsyncIterable[Results],
    total: int | None = None,
    *,
    description: str = "runs",
    console: Console | None = None,
) -> AsyncIterator[Results]:
    """Yield the results of `runs`, with a progress bar on standard error if it is a terminal.

    Args:
        runs: The result of `run_many()`.
        total: Expected number of runs; default None, which shows the number of completed runs only.
        description: Text before the bar; default "runs".
        console: The console; default standard error.

    Example:
        async with graph.run_many(contexts) as runs:
            async for results in track(runs, total=100):
                ...
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = console or Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        async for results in runs:
            bar.advance(task)
            yield results
