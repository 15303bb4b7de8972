"""The `ui` command."""

from __future__ import annotations

import webbrowser
from typing import Annotated
from urllib.parse import urlsplit

import typer

from ._options import ArchiveOption, JournalOption, find_journal
from ._output import print_text

__all__ = ["ui"]


def ui(
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free port.")] = 8765,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on. By default, only this machine can connect."
        ),
    ] = "127.0.0.1",
    allow_actions: Annotated[
        bool, typer.Option("--allow-actions", help="Allow users to silence alerts.")
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the UI in the default browser.")] = False,
) -> None:
    """Serve a web UI that shows runs, errors and stages, and explains failed and slow runs.

    The URL contains a token; keep it private. The UI shows new runs as they are written. It is read-only
    unless you pass `--allow-actions`.

    - `stageflow ui --open`

    - `stageflow ui --journal .stageflow/demo --port 9000`
    """
    from ..ui import serve, tunnel_command

    path = None if journal is None and archive is not None else find_journal(journal).path

    def started(url: str) -> None:
        print_text(f"The web UI is at {url}")
        print_text(
            f"From another machine: {tunnel_command(urlsplit(url).port or 80)}, then open the same URL there"
        )
        print_text("Press Ctrl-C to stop.")
        if open_browser:
            webbrowser.open(url)

    serve(path, archive, host=host, port=port, allow_actions=allow_actions, started=started)
