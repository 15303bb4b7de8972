"""`stageflow doctor`: the state of a journal, looked at line by line, and its repair."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ..render.journal_state import draw_journal_state, draw_repaired
from .choice import json_option
from .journal_option import JournalOption, find_journal
from .store_option import show_progress
from .terminal import open_terminal, print_json, print_page

__all__ = ["doctor"]


def doctor(
    journal: JournalOption = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Complete the runs of dead processes, move what is damaged to broken/, remove left-overs.",
        ),
    ] = False,
    as_json: Annotated[bool, json_option("The state as one JSON object, with what a repair did.")] = False,
) -> None:
    """Look at every line and state file of a journal: who writes, who reads, what is torn or damaged.

    It ends with exit code 1 where something should be seen to. Nothing is changed without `--repair`,
    and nothing is thrown away with it: what is taken out or moved away is kept in `broken/`.

    - `stageflow doctor`

    - `stageflow doctor --repair`

    - `stageflow doctor --json | jq .problems`
    """
    from ..alerts.silence import SILENCES_FILE
    from ..alerts.state import STATE_FILE
    from ..store.address import ADDRESS_FILE

    kept_by_others = (ADDRESS_FILE, STATE_FILE, SILENCES_FILE)
    looked_into = find_journal(journal)
    mended = None
    with show_progress("reading") as progress:
        if repair:
            mended = looked_into.repair(progress, state_files=kept_by_others)
        state = looked_into.check(progress, state_files=kept_by_others)
    if as_json:
        print_json(msgspec.json.encode({**msgspec.to_builtins(state), "repaired": mended}))
    else:
        terminal = open_terminal()
        if mended is not None:
            print_page(terminal, draw_repaired(msgspec.to_builtins(mended)), "")
        print_page(terminal, draw_journal_state(msgspec.to_builtins(state)))
    if state.problems:
        raise typer.Exit(1)
