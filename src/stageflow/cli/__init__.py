"""The command line: the `stageflow` command."""

from __future__ import annotations

import io
import sys

from ..errors import MissingExtraError

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments of the process name."""
    try:
        from ._app import app
    except ImportError as error:
        missing = error.__cause__ if isinstance(error, MissingExtraError) else error
        if not isinstance(missing, ModuleNotFoundError) or (missing.name or "").startswith("stageflow"):
            raise
        sys.exit('the command line needs typer and rich: pip install "stageflow[cli]"')
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal cannot show is shown as "?", rather than as a traceback.
            stream.reconfigure(errors="replace")
    app(prog_name="stageflow")
