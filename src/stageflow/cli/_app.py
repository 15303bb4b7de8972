"""The command line: one module per group of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ._alerts import alerts
from ._errors import Commands
from ._explain import explain
from ._maintenance import compact, doctor
from ._query import query
from ._runs import runs, show
from ._schema import schema
from ._statistics import compare, errors, sampling, slowest, stats, totals, volume
from ._tail import tail
from .demo._command import demo

__all__ = ["app"]


app = typer.Typer(
    name="stageflow",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # which takes the line breaks of a docstring for what they are
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"stageflow {__version__}")
        raise typer.Exit


@app.callback()
def stageflow(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Pipelines of stages inside a backend, and one complete record of every run.

    Start with `stageflow demo`: it needs no network and no key. Then `stageflow runs` and `stageflow show`
    look into what it left, as they do into any journal.
    """


app.command()(demo)
app.command()(runs)
app.command()(show)
app.command()(tail)
app.command()(stats)
app.command()(errors)
app.command()(slowest)
app.command()(compare)
app.command()(explain)
app.command()(query)
app.command()(compact)
app.command()(totals)
app.command()(volume)
app.command()(sampling)
app.command()(doctor)
app.command()(schema)
app.add_typer(alerts)
