"""Output of commands: tables, JSON and CSV."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

from ..render import UncroppedConsole, visible, wrap

__all__ = [
    "CsvOption",
    "JsonOption",
    "NoFormulasOption",
    "is_interactive",
    "open_terminal",
    "print_json",
    "print_page",
    "print_rows",
    "print_text",
    "width_of",
]


_UNLIMITED = 10_000
"""Width in a pipe: nothing is truncated or wrapped, so that programs can search for any part of it."""

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]"
)
"""Characters that JSON allows unescaped, but that terminals interpret or hide."""


class _Visible:
    """A renderable with its control characters escaped, in case a part of it is not yet escaped."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._renderable)


class _EscapeControls(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(renderable) for renderable in renderables]


class _Terminal(UncroppedConsole):
    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - rich calls this in its `except` clause, and would exit with 1


def open_terminal(*, stderr: bool = False) -> Console:
    """Return a console on standard output (or error).

    With `NO_COLOR`, and in a pipe, it writes plain text: rich would still write bold and dim.
    """
    plain = bool(os.environ.get("NO_COLOR"))
    terminal = _Terminal(
        stderr=stderr, color_system=None if plain else "auto", highlight=False, markup=False, emoji=False
    )
    terminal.push_render_hook(_EscapeControls())
    return terminal


def print_text(text: str, *, err: bool = False) -> None:
    """Print text on standard output (or error), with control characters escaped.

    It is wrapped at spaces on a terminal, and not wrapped anywhere else.
    """
    text = visible(text)
    terminal = open_terminal(stderr=err)
    if is_interactive(terminal):
        text = "\n".join(line.plain for line in wrap(Text(text), terminal.width))
    typer.echo(text, err=err)


def is_interactive(terminal: Console) -> bool:
    """Return whether a console writes to a terminal, even if `FORCE_COLOR` requests colors for a pipe."""
    try:
        return terminal.file.isatty()
    except ValueError:  # the file is closed
        return False


def width_of(terminal: Console) -> int | None:
    """Return the width of a terminal in columns; None for a pipe, which has no limit."""
    return terminal.width if is_interactive(terminal) else None


def print_page(terminal: Console, *renderables: RenderableType) -> None:
    """Print renderables at the width of the terminal; in a pipe, at full width without trailing spaces."""
    if is_interactive(terminal):
        # Do not crop: a path that is longer than a row continues on the next row.
        terminal.print(*renderables, sep="\n", crop=False)
        return
    width, terminal.width = terminal.width, _UNLIMITED
    with terminal.capture() as printed:
        terminal.print(*renderables, sep="\n")
    terminal.width = width
    for line in printed.get().splitlines():
        print(line.rstrip())


def print_json(*lines: bytes) -> None:
    """Print lines of JSON in UTF-8, regardless of the encoding of the terminal, and flush them."""
    for line in lines:
        text = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode())
        sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.flush()


JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line, without truncating values.")
]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV with a header, without truncating values.")]
NoFormulasOption = Annotated[
    bool,
    typer.Option(
        "--no-formulas",
        help="Print CSV that is safe to open in a spreadsheet: cells that look like formulas are prefixed "
        "with an apostrophe.",
    ),
]

_FORMULA = re.compile(r"[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20]")
"""The start of a cell that a spreadsheet evaluates, even after spaces and in full-width characters."""


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    draw: Callable[[int | None], RenderableType],
    *,
    as_json: bool,
    as_csv: bool,
    no_formulas: bool,
    empty: str | Callable[[], str],
) -> None:
    """Print rows as a table, as JSON or as CSV.

    Args:
        rows: The rows as plain values.
        draw: Returns a table of the given width; None for a pipe, which has no limit.
        as_json: True for JSON.
        as_csv: True for CSV.
        no_formulas: True for CSV in which no text is a formula.
        empty: Text for standard error if there are no rows, or a function that returns it.

    Raises:
        typer.BadParameter: Both JSON and CSV are requested.
    """
    if as_json and (as_csv or no_formulas):
        raise typer.BadParameter("use --json or --csv, not both")
    if as_json:
        print_json(*map(msgspec.json.encode, rows))
    elif as_csv or no_formulas:
        flat = [_flat(row) for row in rows]
        writer = csv.writer(sys.stdout, lineterminator="\n")
        for row in [*flat[:1], *(row.values() for row in flat)]:
            writer.writerow([_cell(value, no_formulas) for value in row])
    elif rows:
        terminal = open_terminal()
        print_page(terminal, draw(width_of(terminal)))
    if not rows:
        print_text(empty if isinstance(empty, str) else empty(), err=True)


def _cell(value: Any, no_formulas: bool) -> Any:
    """Return a value without control characters; on request in a form that spreadsheets treat as text."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    if no_formulas and _FORMULA.match(text) and not _is_number(text):
        return f"'{text}"
    return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, datetime):
            flat[prefix + name] = msgspec.to_builtins(value)
        elif isinstance(value, list | tuple):
            flat[prefix + name] = msgspec.json.encode(value).decode()
        else:
            flat[prefix + name] = value
    return flat
