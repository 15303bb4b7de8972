"""How a command gives its answer: as a table that fits the terminal, as lines of JSON, or as CSV."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.console import RenderableType

from ..render.foreign import visible
from .terminal import open_terminal, print_json, print_page, print_text, room

__all__ = ["CsvOption", "JsonOption", "NoFormulasOption", "give"]

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
