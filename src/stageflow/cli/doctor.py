"""`stageflow doctor`: checks and repairs a journal and its archive."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ..errors import ArchiveDamagedError, MissingExtraError, StageflowError
from ..render.archive_state import draw_archive_state, draw_repaired_archive
from ..render.journal_state import draw_journal_state, draw_repaired
from ..store.address import has_archive
from .choice import json_option
from .journal_option import JournalOption, find_journal, hint_with_journal
from .store_option import show_progress
from .terminal import open_terminal, print_json, print_page

__all__ = ["doctor"]


def doctor(
    journal: JournalOption = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Complete the runs of dead processes, move damaged data to broken/, delete temporary files.",
        ),
    ] = False,
    as_json: Annotated[bool, json_option("The state as one JSON object, with what a repair did.")] = False,
) -> None:
    """Check every line and state file of a journal, and every file of its archive.

    The exit code is 1 if something needs attention. Without `--repair` the command changes nothing. With it,
    the command deletes no data: it keeps damaged lines and files of the journal in `broken/`, and damaged
    files of the archive in its directory `_stageflow/`.

    - `stageflow doctor`

    - `stageflow doctor --repair`

    - `stageflow doctor --json | jq .problems`
    """
    from ..alerts.silence import SILENCES_FILE
    from ..alerts.state import STATE_FILE
    from ..store.address import ADDRESS_FILE

    kept_by_others = (ADDRESS_FILE, STATE_FILE, SILENCES_FILE)
    looked_into = find_journal(journal)
    mended = mended_archive = None
    with show_progress("reading") as progress:
        if repair:
            mended = looked_into.repair(progress, state_files=kept_by_others)
        state = looked_into.check(progress, state_files=kept_by_others)
    archive, problems, not_repaired = None, list(state.problems), None
    if _has_archive(looked_into.path):
        with show_progress("archive") as progress:
            try:
                from ..store import check_archive, repair_archive

                if repair:
                    try:
                        mended_archive = repair_archive(looked_into.path)
                    except (ArchiveDamagedError, OSError) as error:
                        not_repaired = str(error)
                archive = check_archive(looked_into.path, progress=progress)
                problems += archive.problems
            except MissingExtraError as error:
                problems.append(f"the archive was not checked: {error.message}; {error.hint}")
            except OSError as error:
                problems.append(f"the archive cannot be checked: {error}")
        if not_repaired is not None and not problems:
            problems.append(f"the archive could not be repaired: {not_repaired}")
    problems = [hint_with_journal(problem) for problem in problems]
    report = {**msgspec.to_builtins(state), "problems": problems}
    if as_json:
        repaired = {"repaired": mended, "archive": archive, "repaired_archive": mended_archive}
        print_json(msgspec.json.encode({**report, **repaired}))
    else:
        terminal = open_terminal()
        archive_changed = mended_archive is not None and any(msgspec.structs.astuple(mended_archive))
        if mended is not None and (any(msgspec.structs.astuple(mended)) or not archive_changed):
            done = msgspec.to_builtins(mended)
            for moved in done["moved"]:
                moved["remedy"] = hint_with_journal(moved["remedy"])
            print_page(terminal, draw_repaired(done), "")
        if archive_changed:
            print_page(terminal, draw_repaired_archive(msgspec.to_builtins(mended_archive)), "")
        archive_line = None if archive is None else draw_archive_state(msgspec.to_builtins(archive))
        print_page(terminal, draw_journal_state(report, archive_line))
    if problems:
        raise typer.Exit(1)


def _has_archive(journal: str) -> bool:
    try:
        return has_archive(journal)
    except StageflowError:  # the check of the journal reports a damaged `archive.json`
        return False
