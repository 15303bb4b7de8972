"""`stageflow compact`: what is closed of a journal goes into its archive."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ..render.figures import count
from .choice import span_option
from .journal_option import JournalOption, find_journal
from .store_option import ArchiveOption, as_sampler, show_progress
from .terminal import print_json, print_text

__all__ = ["compact"]


def compact(
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    keep: Annotated[
        Any,
        span_option(
            "--keep",
            "m",
            says="How long a closed file stays in the journal, at least; default 10m.",
            from_zero=True,
        ),
    ] = "10m",
    max_age: Annotated[
        Any, span_option("--max-age", "d", says="Drop days of events that are older: 90d.")
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default=False, help="Drop the oldest days beyond these bytes."),
    ] = None,
    counts_max_age: Annotated[
        Any, span_option("--counts-max-age", "d", says="Drop exact counts that are older: 730d.")
    ] = None,
    sampler: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Sample what comes in, as this TOML says."),
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Copy the archive to the address of --archive first, and use that.")
    ] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Give up the archived events, and start a new archive at --archive."),
    ] = False,
    every: Annotated[
        Any, span_option("--every", "s", says="Go on, again each 30s, 5m, ... until Ctrl-C.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was done as one JSON object a time.")] = False,
) -> None:
    """Take what is closed of a journal into its archive, a Delta Lake table that stands beside it.

    The journal stores the address with the first commit: specify it once. Any number of processes may run
    this command, or be killed: each event is in the archive once. If events are archived at another address,
    it reports how many would not be visible, and does nothing without `--move` or `--forget`.

    - `stageflow compact`

    - `stageflow compact --archive s3://bucket/events --max-age 90d --every 1m`

    - `stageflow compact --archive /mnt/large/events --move`
    """
    from ..store import Compactor
    from ..store.address import read_address, same_address

    path = find_journal(journal).path
    _change_archive(path, archive, move=move, forget=forget)
    compactor = Compactor(
        path,
        archive,
        keep_seconds=keep,
        max_age=max_age,
        max_bytes=max_bytes,
        counts_max_age=counts_max_age,
        sampler=None if sampler is None else as_sampler(str(sampler)),
    )
    while True:
        with show_progress("archiving") as progress:
            done = compactor.compact(progress)
        if as_json:
            print_json(msgspec.json.encode(done))
        elif done.busy:
            print_text("Another process is compacting this journal.", err=True)
        elif every is None or done.segments:
            told = f"{done.rows:,} events of {done.segments:,} file{'s' * (done.segments != 1)} archived"
            if done.kept_rows < done.rows:
                told += f", {done.kept_rows:,} of them kept"
            if done.merged_files:
                told += f", {count(done.merged_files)} small files merged"
            if done.dropped_rows:
                told += f", {count(done.dropped_rows)} old events dropped"
            print_text(told)
            if not same_address(compactor.archive.address, read_address(path)):
                print_text(
                    "There is nothing to archive yet: the journal stores the address"
                    f" {compactor.archive.address} with the first commit.",
                    err=True,
                )
        if every is None:
            return
        threading.Event().wait(every)


def _change_archive(journal: str, archive: str | None, *, move: bool, forget: bool) -> None:
    from ..store import forget_archive, move_archive

    if move and forget:
        raise typer.BadParameter("give --move or --forget, not both")
    if move and archive is None:
        raise typer.BadParameter("--move needs the new address: --archive ADDRESS")
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
