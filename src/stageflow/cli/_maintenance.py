"""The commands `compact` and `doctor`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from .._installation import other_distributions
from ..errors import ArchiveDamagedError, MissingExtraError, StageflowError
from ..render import count, draw_archive_state, draw_journal_state, draw_repaired, draw_repaired_archive
from ..store import has_archive
from ._options import (
    ArchiveOption,
    JournalOption,
    find_journal,
    hint_with_journal,
    json_option,
    read_sampler_option,
    show_progress,
    span_option,
)
from ._output import open_terminal, print_json, print_page, print_text

__all__ = ["compact", "doctor"]


def compact(
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    keep: Annotated[
        Any,
        span_option(
            "--keep",
            "m",
            description="Minimum time that an archived segment stays in the journal after the last write"
            " to it.",
            from_zero=True,
            show_default=True,
        ),
    ] = "10m",
    max_age: Annotated[
        Any, span_option("--max-age", "d", description="Drop events older than this, in whole days: 90d.")
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            show_default=False,
            help="Drop the oldest days until the archive has at most N bytes.",
        ),
    ] = None,
    counts_max_age: Annotated[
        Any, span_option("--counts-max-age", "d", description="Drop exact counts older than this: 730d.")
    ] = None,
    sampler: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Archive only the runs that this TOML file selects. Defaults to STAGEFLOW_SAMPLER, or the"
            " setting `sampler` in pyproject.toml.",
        ),
    ] = None,
    move: Annotated[
        bool,
        typer.Option(
            "--move", help="Copy the archive to the address of --archive, and use the copy from then on."
        ),
    ] = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget", help="Start a new archive at --archive; the archived events are no longer visible."
        ),
    ] = False,
    every: Annotated[
        Any, span_option("--every", "s", description="Repeat at this interval (30s, 5m) until Ctrl-C.")
    ] = None,
    as_json: Annotated[bool, json_option("Print one JSON object per pass.")] = False,
) -> None:
    """Move closed segments of a journal into its archive, a Delta Lake table.

    The journal stores the address of the archive on the first commit, so you need to specify it only once.
    Several processes can run this command, and any of them can be killed: each event is archived exactly
    once. If there are archived events at another address, the command reports how many would become
    invisible, and does nothing without `--move` or `--forget`.

    - `stageflow compact`

    - `stageflow compact --archive s3://bucket/events --max-age 90d --every 1m`

    - `stageflow compact --archive /mnt/large/events --move`
    """
    from ..store import Compactor, read_address, same_address

    path = find_journal(journal).path
    _change_archive(path, archive, move=move, forget=forget)
    compactor = Compactor(
        path,
        archive,
        keep_seconds=keep,
        max_age=max_age,
        max_bytes=max_bytes,
        counts_max_age=counts_max_age,
        sampler=read_sampler_option(sampler),
    )
    while True:
        with show_progress("archiving") as progress:
            done = compactor.compact(progress)
        if as_json:
            print_json(msgspec.json.encode(done))
        elif done.busy:
            print_text("Another process is compacting this journal.", err=True)
        elif every is None or done.segments:
            summary = f"{done.rows:,} events of {done.segments:,} file{'s' * (done.segments != 1)} archived"
            if done.kept_rows < done.rows:
                summary += f", {done.kept_rows:,} of them kept"
            if done.merged_files:
                summary += f", {count(done.merged_files)} small files merged"
            if done.dropped_rows:
                summary += f", {count(done.dropped_rows)} old events dropped"
            print_text(summary)
            if not same_address(compactor.archive.address, read_address(path)):
                print_text(
                    "There is nothing to archive yet: the journal stores the address"
                    f" {compactor.archive.address} on the first commit.",
                    err=True,
                )
        if every is None:
            return
        threading.Event().wait(every)


def _change_archive(journal: str, archive: str | None, *, move: bool, forget: bool) -> None:
    from ..store import forget_archive, move_archive

    if move and forget:
        raise typer.BadParameter("use --move or --forget, not both")
    if move and archive is None:
        raise typer.BadParameter("--move requires the new address: --archive ADDRESS")
    if move and archive is not None:
        moved = move_archive(journal, archive)
        if moved.source == moved.address:
            return
        print_text(
            f"{moved.rows:,} events moved from {moved.source} to {moved.address}. The journal no longer uses"
            f" the files in {moved.source}: delete them when no other process reads them.",
            err=True,
        )
    if forget:
        gone = forget_archive(journal, archive)
        events = "The events" if gone.events is None else f"{gone.events:,} events of {gone.runs or 0:,} runs"
        print_text(
            f"{events} in {gone.address} are no longer visible: the journal starts a new archive."
            " No file was deleted.",
            err=True,
        )


def doctor(
    journal: JournalOption = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Complete the runs of dead processes, move damaged data to broken/, and delete"
            " temporary files.",
        ),
    ] = False,
    as_json: Annotated[
        bool, json_option("Print the state as one JSON object, including the changes that --repair made.")
    ] = False,
) -> None:
    """Check every line and state file of a journal, and every file of its archive.

    The exit code is 1 if something needs attention. Without `--repair` the command changes nothing. With it,
    the command deletes no data: it keeps damaged lines and files of the journal in `broken/`, and damaged
    files of the archive in its `_stageflow/` directory.

    - `stageflow doctor`

    - `stageflow doctor --repair`

    - `stageflow doctor --json | jq .problems`
    """
    from ..alerts import SILENCES_FILE, STATE_FILE
    from ..export import state_files as export_state_files
    from ..store import ADDRESS_FILE

    checked = find_journal(journal)
    state_files = (ADDRESS_FILE, STATE_FILE, SILENCES_FILE, *export_state_files(checked.path))
    repaired = repaired_archive = None
    with show_progress("reading") as progress:
        if repair:
            repaired = checked.repair(progress, state_files=state_files)
        state = checked.check(progress, state_files=state_files)
    archive, problems, not_repaired = None, [*other_distributions(), *state.problems], None
    if _has_archive(checked.path):
        with show_progress("archive") as progress:
            try:
                from ..store import check_archive, repair_archive

                if repair:
                    try:
                        repaired_archive = repair_archive(checked.path)
                    except (ArchiveDamagedError, OSError) as error:
                        not_repaired = str(error)
                archive = check_archive(checked.path, progress=progress)
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
        changes = {"repaired": repaired, "archive": archive, "repaired_archive": repaired_archive}
        print_json(msgspec.json.encode({**report, **changes}))
    else:
        terminal = open_terminal()
        archive_changed = repaired_archive is not None and any(msgspec.structs.astuple(repaired_archive))
        if repaired is not None and (any(msgspec.structs.astuple(repaired)) or not archive_changed):
            done = msgspec.to_builtins(repaired)
            for moved in done["moved"]:
                moved["remedy"] = hint_with_journal(moved["remedy"])
            print_page(terminal, draw_repaired(done), "")
        if archive_changed:
            print_page(terminal, draw_repaired_archive(msgspec.to_builtins(repaired_archive)), "")
        archive_line = None if archive is None else draw_archive_state(msgspec.to_builtins(archive))
        print_page(terminal, draw_journal_state(report, archive_line))
    if problems:
        raise typer.Exit(1)


def _has_archive(journal: str) -> bool:
    try:
        return has_archive(journal)
    except StageflowError:  # the check of the journal reports a damaged `archive.json`
        return False
