"""`stageflow show`: the story of one run."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ..render import draw_run
from .choice import json_option
from .journal_option import JournalOption
from .store_option import ArchiveOption, VerifyOption, open_records
from .terminal import is_interactive, open_terminal, print_json, print_page

__all__ = ["show"]


def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            show_default=False,
            help="Id of the run, or a beginning of it that no other has; default `last`.",
        ),
    ] = "last",
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[
        bool,
        json_option("One JSON object: run, stages, events (type and data), children."),
    ] = False,
) -> None:
    """Tell all about one run: when each stage waited and ran, what it said, what went wrong.

    Of a run under way it shows what is known so far. Times are in UTC.

    - `stageflow show`

    - `stageflow show 01a20a3d-5320-7a04`

    - `stageflow show last --json | jq .stages`
    """
    if not run:
        raise typer.BadParameter("an empty id names no run", param_hint="RUN")
    with open_records(journal, archive, verify=verify) as records:
        story = records.run(run)
    if as_json:
        told = {
            "run": story.run,
            "stages": story.stages,
            "events": [{"type": type, "data": data} for type, data in story.events],
            "children": story.children,
        }
        print_json(msgspec.json.encode(told))
        return
    terminal = open_terminal()
    width = None if is_interactive(terminal) else terminal.width
    picture = draw_run(story.run, story.stages, events=story.events, children=story.children, width=width)
    print_page(terminal, picture)
