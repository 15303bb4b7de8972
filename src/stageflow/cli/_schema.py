"""The `schema` command."""

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
        typer.Argument(
            metavar="TYPE",
            show_default=False,
            help="stage.wide, pipeline.wide, stage.wide.amend or pipeline.wide.amend. Defaults to all.",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write one file per type to DIR.", show_default=False),
    ] = None,
) -> None:
    """Print the JSON Schema (draft 2020-12) of the wide events and their amendments."""
    schemas = json_schemas()
    selected = schemas if event_type is None else {event_type: schemas[event_type]}
    if to is None:
        print(_text(schemas if event_type is None else selected[event_type]), end="")
        return
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name, content in selected.items():
            (to / f"{name}.json").write_text(_text(content), encoding="utf-8")
    except OSError as error:
        print_text(f"cannot write the schemas to {to}: {error}", err=True)
        raise typer.Exit(1) from None


def _text(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
