"""The `stageflow` command with all its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ._alerts import alerts
from ._errors import Command, Commands
from ._explain import explain
from ._export import export
from ._init import init
from ._maintenance import compact, doctor
from ._mcp import mcp
from ._query import query
from ._runs import runs, show
from ._schema import schema
from ._statistics import compare, errors, sampling, slowest, stats, totals, volume
from ._tail import tail
from ._ui import ui
from .demo._command import demo

__all__ = ["app"]


app = typer.Typer(
    name="stageflow",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # preserves the line breaks of docstrings
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"stageflow {__version__}")
        raise typer.Exit


@app.callback()
def stageflow(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Inspect, query and monitor the records of pipeline runs.

    Start with `stageflow demo`: it needs no network and no API key. `stageflow runs` and `stageflow show`
    then display its runs, as they do for any journal.
    """


for command in (
    demo,
    init,
    runs,
    show,
    ui,
    tail,
    stats,
    errors,
    slowest,
    compare,
    explain,
    query,
    compact,
    totals,
    volume,
    sampling,
    doctor,
    mcp,
    schema,
):
    app.command(cls=Command)(command)
app.add_typer(alerts)
app.add_typer(export)
