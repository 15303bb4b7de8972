"""`stageflow schema`: the published JSON Schemas of the two wide events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..schema import json_schemas
from ._output import print_text

__all__ = ["schema"]


def schema(
    event_type: Annotated[
        Literal["stage.wide", "pipeline.wide", "stage.wide.amend", "pipeline.wide.amend"] | None,
        typer.Argument(help="One event type; default all, as one object by type.", show_default=False),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write a file for each type to DIR instead of printing.", show_default=False
        ),
    ] = None,
) -> None:
    """Print the JSON Schema (draft 2020-12) of the wide events, and of their amendments."""
    schemas = json_schemas()
    chosen = schemas if event_type is None else {event_type: schemas[event_type]}
    if to is None:
        print(_text(schemas if event_type is None else chosen[event_type]), end="")
        return
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name, shape in chosen.items():
            (to / f"{name}.json").write_text(_text(shape), encoding="utf-8")
    except OSError as error:
        print_text(f"The schemas cannot be written to {to}: {error}.", err=True)
        raise typer.Exit(1) from None


def _text(shape: object) -> str:
    return json.dumps(shape, indent=2) + "\n"
