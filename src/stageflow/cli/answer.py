"""How a command gives its answer: as a table that fits the terminal, as lines of JSON, or as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.console import RenderableType

from .terminal import open_terminal, print_json, print_page, room

__all__ = ["CsvOption", "JsonOption", "give"]

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, nothing cut.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="CSV with a line of names, nothing cut.")]


def give(
    rows: Sequence[Mapping[str, Any]],
    draw: Callable[[int | None], RenderableType],
    *,
    as_json: bool,
    as_csv: bool,
    nothing: str,
) -> None:
    """Print an answer.

    Args:
        rows: The answer as plain values.
        draw: Returns it as a picture of so many columns.
        as_json: True for JSON instead.
        as_csv: True for CSV instead.
        nothing: What is said on standard error where there is no row.

    Raises:
        typer.BadParameter: Both JSON and CSV were asked for.
    """
    if as_json and as_csv:
        raise typer.BadParameter("give --json or --csv, not both")
    if as_json:
        print_json(*map(msgspec.json.encode, rows))
    elif as_csv:
        flat = [_flat(row) for row in rows]
        writer = csv.writer(sys.stdout, lineterminator="\n")
        if flat:
            writer.writerow(flat[0])
        writer.writerows(row.values() for row in flat)
    elif rows:
        terminal = open_terminal()
        print_page(terminal, draw(room(terminal)))
    if not rows:
        typer.echo(nothing, err=True)


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
