"""`stageflow demo`: asks the reference desk hundreds of questions at once, and shows their record."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ...events import EventSink, FanoutEventSink, stats
from ...journal import JournalReader, JournalSink
from ...observability import WideEventEmitter
from ...pipeline import Limits
from ..terminal import open_terminal, print_text
from .acknowledge import Acknowledgements
from .clients import ask_all
from .desk import Desk
from .law import check
from .pipeline import reference_desk
from .questions import Question, questions
from .record import Event, Record, read_record, run_id_of
from .report import show_answer, show_check, show_journal, show_run, show_summary

__all__ = ["demo"]


def demo(
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="How many questions to ask.")] = 300,
    question: Annotated[
        str | None,
        typer.Option(
            "--ask", metavar="QUESTION", help="Ask only this question, and show its run.", show_default=False
        ),
    ] = None,
    journal: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory that the events are written to.")
    ] = Path(".stageflow/demo"),
    ack_fd: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="FD",
            help="For tests that kill: write the id of each event to this file descriptor, once the"
            " journal has the event.",
            hidden=True,
        ),
    ] = None,
) -> None:
    """Answer questions about Python from its own language reference, and show the record of it.

    Each question is one run of a pipeline of ten stages. Some runs fail, run out of time or are
    cancelled, as runs do. Everything shown at the end is read back from the journal.
    """
    terminal = open_terminal()
    try:
        desk = Desk(journal)
    except ModuleNotFoundError as error:
        print_text(f"This Python came without its language reference: {error}.")
        raise typer.Exit(1) from None
    except (OSError, sqlite3.OperationalError) as error:
        print_text(f"The journal cannot be written to {journal}: {error}.")
        raise typer.Exit(1) from None
    asked = questions(runs) if question is None else [Question(question)]
    sink = JournalSink(journal)
    reader, batch = JournalReader(journal, at_end=True), token_hex(4)
    _introduce(terminal, desk, asked)
    began = time.monotonic()
    try:
        with closing(desk.index):
            _run(desk, asked, batch, sink if ack_fd is None else _acknowledged(sink, ack_fd))
    except KeyboardInterrupt:
        print_text(f"Interrupted. The journal in {journal} says how far each run had come.")
        raise typer.Exit(130) from None
    took = time.monotonic() - began
    record = read_record(reader, batch)
    if question is None:
        terminal.print(f"{len(asked):,} runs took {took:.1f} s and left {len(record):,} events.")
        told = _show_all(terminal, record)
    else:
        told = _show_one(terminal, record)
    found = check(record, runs=len(asked), stages=len(reference_desk().stages))
    counted = stats().of("JournalSink")
    lost = sum(counted.rejected.values()) + sum(counted.dropped.values()) + counted.pending
    show_check(terminal, found, lost)
    show_journal(terminal, journal, run_id_of(told) if told else None)
    if found.wrong or lost:
        raise typer.Exit(1)


def _introduce(terminal: Console, desk: Desk, asked: Sequence[Question]) -> None:
    what = "one question" if len(asked) == 1 else f"{len(asked):,} questions at once"
    terminal.print(
        f"Asking {what} about Python. Its own language reference answers:"
        f" {len(desk.passages):,} passages, found by {desk.index_name}."
    )


def _acknowledged(journal: EventSink, descriptor: int) -> EventSink:
    return FanoutEventSink(journal, Acknowledgements(descriptor))


def _run(desk: Desk, asked: Sequence[Question], batch: str, sink: EventSink) -> None:
    graph = reference_desk().build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
        limits=Limits(writers=8),
    )
    terminal = open_terminal(stderr=True)
    columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        bar = progress.add_task("answering", total=len(asked))
        asyncio.run(ask_all(graph, desk, asked, batch, lambda: progress.advance(bar)))


def _show_all(terminal: Console, record: Record) -> Event | None:
    """Show everything there is, and one failed run in full. Return that one, or the last."""
    if record.answers:
        show_answer(terminal, record.answers[0])
    show_summary(terminal, record)
    failed = [run for run in record.runs if run["outcome"] == "failed"]
    if not failed:
        return record.runs[-1] if record.runs else None
    # The one with the most to tell: an exception, and stages that had begun.
    telling = max(
        failed,
        key=lambda run: (
            run["exception"] is not None,
            sum(stage["attempts"] > 0 for stage in record.stages_of(run)),
        ),
    )
    show_run(terminal, "One failed run, in full", record, telling)
    return telling


def _show_one(terminal: Console, record: Record) -> Event | None:
    for answer in record.answers:
        show_answer(terminal, answer)
    for run in record.runs:
        show_run(terminal, "Its run, in full", record, run)
    return record.runs[0] if record.runs else None
