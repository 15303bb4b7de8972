"""The command line: the `stageflow` command."""

from __future__ import annotations

import io
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments of the process name."""
    try:
        from ._app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "stageflow":
            raise
        sys.exit('the command line needs typer and rich: pip install "stageflow[cli]"')
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal cannot show is shown as "?", rather than as a traceback.
            stream.reconfigure(errors="replace")
    app(prog_name="stageflow")
