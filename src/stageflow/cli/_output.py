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
    "give",
    "is_interactive",
    "open_terminal",
    "print_json",
    "print_page",
    "print_text",
    "room",
]


_ANY_WIDTH = 10_000
"""In a pipe nothing is cut or folded: whoever reads it may look for any part of it."""

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]"
)
"""Characters that may occur in lines of JSON, and that terminals interpret or hide."""


class _Visible:
    """A renderable whose control characters are escaped, in case that a part of it was not."""

    def __init__(self, picture: ConsoleRenderable) -> None:
        self._picture = picture

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._picture, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._picture)


class _SpellOutControls(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(picture) for picture in renderables]


class _Terminal(UncroppedConsole):
    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - rich calls it where the error is caught, and would exit with 1


def open_terminal(*, stderr: bool = False) -> Console:
    """Return a console on standard output (or error).

    With `NO_COLOR`, as in a pipe, it writes plain text: rich alone would still write bold and dim.
    """
    plain = bool(os.environ.get("NO_COLOR"))
    terminal = _Terminal(
        stderr=stderr, color_system=None if plain else "auto", highlight=False, markup=False, emoji=False
    )
    terminal.push_render_hook(_SpellOutControls())
    return terminal


def print_text(text: str, *, err: bool = False) -> None:
    """Print a sentence on standard output (or error), with its control characters spelled out.

    On a terminal it is wrapped at spaces; elsewhere it is not wrapped.
    """
    text = visible(text)
    terminal = open_terminal(stderr=err)
    if is_interactive(terminal):
        text = "\n".join(line.plain for line in wrap(Text(text), terminal.width))
    typer.echo(text, err=err)


def is_interactive(terminal: Console) -> bool:
    """Return whether a console writes to a terminal, also if `FORCE_COLOR` requests colours for a pipe."""
    try:
        return terminal.file.isatty()
    except ValueError:  # the file is closed
        return False


def room(terminal: Console) -> int | None:
    """Return how many columns there are; None in a pipe, where there is room for everything."""
    return terminal.width if is_interactive(terminal) else None


def print_page(terminal: Console, *pictures: RenderableType) -> None:
    """Print pictures to fit the terminal; in a pipe as wide as they are, and no blanks at line ends."""
    if is_interactive(terminal):
        # Not cropped: a path that is longer than a row continues on the next one.
        terminal.print(*pictures, sep="\n", crop=False)
        return
    width, terminal.width = terminal.width, _ANY_WIDTH
    with terminal.capture() as printed:
        terminal.print(*pictures, sep="\n")
    terminal.width = width
    for line in printed.get().splitlines():
        print(line.rstrip())


def print_json(*lines: bytes) -> None:
    """Print lines of JSON, in UTF-8 whatever the terminal has, and flush them."""
    for line in lines:
        text = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode())
        sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.flush()


JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, nothing cut.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="CSV with a line of names, nothing cut.")]
NoFormulasOption = Annotated[
    bool,
    typer.Option(
        "--no-formulas", help="CSV for spreadsheets: put ' before each cell that would be a formula."
    ),
]

_FORMULA = re.compile(r"[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20]")
"""The beginning of a cell that a spreadsheet evaluates, also after spaces and in full-width characters."""


def give(
    rows: Sequence[Mapping[str, Any]],
    draw: Callable[[int | None], RenderableType],
    *,
    as_json: bool,
    as_csv: bool,
    no_formulas: bool,
    nothing: str,
) -> None:
    """Print an answer.

    Args:
        rows: The answer as plain values.
        draw: Returns it as a picture of so many columns.
        as_json: True for JSON instead.
        as_csv: True for CSV instead.
        no_formulas: True for CSV in which no text is a formula.
        nothing: What is said on standard error where there is no row.

    Raises:
        typer.BadParameter: Both JSON and CSV were asked for.
    """
    if as_json and (as_csv or no_formulas):
        raise typer.BadParameter("give --json or --csv, not both")
    if as_json:
        print_json(*map(msgspec.json.encode, rows))
    elif as_csv or no_formulas:
        flat = [_flat(row) for row in rows]
        writer = csv.writer(sys.stdout, lineterminator="\n")
        for row in [*flat[:1], *(row.values() for row in flat)]:
            writer.writerow([_cell(value, no_formulas) for value in row])
    elif rows:
        terminal = open_terminal()
        print_page(terminal, draw(room(terminal)))
    if not rows:
        print_text(nothing, err=True)


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


def _flat(row: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        elif isinstance(value, datetime):
            flat[above + name] = msgspec.to_builtins(value)
        elif isinstance(value, list | tuple):
            flat[above + name] = msgspec.json.encode(value).decode()
        else:
            flat[above + name] = value
    return flat
