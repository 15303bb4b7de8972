"""The command `stageflow demo`, and its report."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment
from rich.text import Text

from ...context import PipelineContext
from ...events import EventSink, FanoutEventSink, stats
from ...journal import JournalReader, JournalSink
from ...observability import WideEventEmitter
from ...pipeline import Limits, StageGraph
from ...render import draw_run, draw_summary, visible
from .._output import open_terminal, print_text
from ._check import Check, Event, Record, check, read_record, run_id_of
from ._corpus import Question, questions
from ._pipeline import Desk, reference_desk

__all__ = [
    "Acknowledgements",
    "ask",
    "ask_all",
    "demo",
    "show_answer",
    "show_check",
    "show_journal",
    "show_run",
    "show_summary",
]


class Acknowledgements(EventSink):
    """Writes the `event_id` of each event to a file descriptor, one per line.

    After the journal in a `FanoutEventSink`, it receives an event when the journal has written it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        if data is not None:
            os.write(self.descriptor, f"{data['event_id']}\n".encode())


async def ask_all(
    graph: StageGraph,
    desk: Desk,
    asked: Sequence[Question],
    batch: str,
    received: Callable[[str], None],
    answered: Callable[[], None],
) -> None:
    """Ask all questions concurrently, and wait until all runs have ended.

    The desk indexes its words at the same time, so that runs find the database of its tally locked and retry.

    Args:
        graph: The graph of the pipeline.
        desk: The resources that its runs share.
        asked: The questions.
        batch: Prefix of the `request_id` of each run.
        received: Called with each line of an answer as soon as it is sent.
        answered: Called when a run has ended.
    """
    async with asyncio.TaskGroup() as clients:
        clients.create_task(asyncio.to_thread(desk.tally.learn, desk.passages))
        for number, question in enumerate(asked):
            client = clients.create_task(ask(graph, desk, question, f"{batch}-{number}", received))
            client.add_done_callback(lambda _: answered())


async def ask(
    graph: StageGraph, desk: Desk, question: Question, request_id: str, received: Callable[[str], None]
) -> None:
    """Ask one question, and read its answer; the journal contains the result."""
    user = question.user
    context = PipelineContext(
        request_id=request_id,
        session_id=f"s-{user}-{len(question.text) % 3}",
        user_id=f"u-{user}",
        org_id=f"o-{user % 5}",
        service="stageflow-demo",
        execution_mode="expert" if question.text.startswith("fts:") else "plain",
        data={"question": question.text},
        resources={"desk": desk},
    )

    async def read() -> None:
        async with graph.stream(context, stages="answer", deadline=question.deadline) as run:
            async for chunk in run:
                received(chunk.value)

    run = asyncio.ensure_future(read())
    # Not `asyncio.timeout`: this client disconnects, which cancels the run from outside.
    _, waiting = await asyncio.wait({run}, timeout=question.patience)
    if waiting:
        run.cancel()
        await asyncio.wait({run})
    if not run.cancelled():
        run.result()  # raises only on a bug in the engine


def show_answer(terminal: Console, answer: Event) -> None:
    """Show a question and its answer."""
    _title(terminal, "A question and its answer")
    _inset(terminal, Text(visible(answer["question"]), style="bold"))
    terminal.print()
    _inset(terminal, Text(visible(answer["answer"])))
    show_sources(terminal, answer)


def show_sources(terminal: Console, answer: Event) -> None:
    """Show the sources of an answer."""
    if answer["sources"]:
        terminal.print()
        _inset(terminal, Text("from " + ", ".join(answer["sources"]), style="dim"))


def show_summary(terminal: Console, record: Record) -> None:
    """Show the outcomes of all runs."""
    _title(terminal, "All runs, read from the journal")
    _inset(terminal, draw_summary(record.runs, record.stages))


def show_run(terminal: Console, title: str, record: Record, run: Event) -> None:
    """Show one run in full."""
    _title(terminal, title)
    _inset(terminal, draw_run(run, record.stages_of(run)))


def show_check(terminal: Console, check: Check, lost: int) -> None:
    """Show whether the record in the journal is complete."""
    _title(terminal, "Record guarantees")
    complete = not check.problems and not lost
    lines = [
        f"pipeline.wide        {check.pipelines:>7,} of {check.runs:>7,}  one per run",
        f"terminal stage.wide  {check.terminals:>7,} of {check.expected:>7,}  one per stage and run",
        f"RETRY stage.wide     {check.retries:>7,}             one per retried attempt",
        f"desk.answered        {check.answers:>7,}             one per answer",
        f"lost                 {lost:>7,}             as counted by the sinks",
    ]
    _inset(terminal, Text("\n".join(lines)))
    _inset(
        terminal,
        Text(
            "The record is complete." if complete else "The record is incomplete:",
            style="green" if complete else "red",
        ),
    )
    for problem in check.problems:
        _inset(terminal, Text(f"- {visible(problem)}"))


def show_journal(terminal: Console, journal: Path, run_id: str | None) -> None:
    """Show the path of the journal, and commands to query it.

    Args:
        terminal: The console to print to.
        journal: The journal directory.
        run_id: The run to show in an example; None for the last one.
    """
    _title(terminal, "The journal")
    print_text(f"  {journal} contains one event per line, as JSON. To query it:")
    terminal.print()
    stageflow, where = _stageflow(), shlex.quote(str(journal))
    commands = [
        f"{stageflow} runs --journal {where} --status FAIL",
        f"{stageflow} show {run_id or 'last'} --journal {where}",
        f"{stageflow} tail --journal {where} --status RETRY",
        f"{stageflow} explain --journal {where}",
        f"{stageflow} doctor --journal {where}",
        f'grep -ho \'"outcome":"[a-z]*"\' {where}/*.ndjson | sort | uniq -c',
    ]
    if shutil.which("jq"):
        failed = 'select(.data.stage_name and .data.status == "FAIL").data | [.stage_name, .error]'
        commands.append(f"jq -c '{failed}' {where}/*.ndjson")
    for command in commands:
        # Commands are not wrapped, so that they can be copied.
        terminal.print(Text(f"  {command}"), soft_wrap=True)
    terminal.print()
    print_text("  To see it in the browser:")
    terminal.print()
    terminal.print(Text(f"  {stageflow} ui --open --journal {where}"), soft_wrap=True)


def _stageflow() -> str:
    """Return the command that runs this program, which is not always on the path."""
    if shutil.which("stageflow"):
        return "stageflow"
    script = Path(sys.executable).with_name("stageflow")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m stageflow"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


def _title(terminal: Console, title: str) -> None:
    terminal.print()
    terminal.rule(Text(title, style="bold"), align="left", style="dim")
    terminal.print()


class _Inset:
    """A renderable indented by two spaces. Unlike `Padding` of rich, it does not crop a long path."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        narrow = options.update_width(max(1, options.max_width - 2))
        for line in Segment.split_lines(console.render(self._renderable, narrow)):
            yield Segment("  ")
            yield from line
            yield Segment.line()


def _inset(terminal: Console, renderable: RenderableType) -> None:
    terminal.print(_Inset(renderable), crop=False)


def demo(
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Number of questions to ask.")] = 300,
    question: Annotated[
        str | None,
        typer.Option(
            "--ask", metavar="QUESTION", help="Ask only this question, and show its run.", show_default=False
        ),
    ] = None,
    journal: Annotated[Path, typer.Option(metavar="DIR", help="Directory to write the events to.")] = Path(
        ".stageflow/demo"
    ),
    ack_fd: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="FD",
            help="For tests that kill the process: write the id of each event to this file descriptor when"
            " the journal has written the event.",
            hidden=True,
        ),
    ] = None,
) -> None:
    """Answer questions about Python from the Python language reference, and show the record of the runs.

    Each question is one run of a pipeline of ten stages. Some runs fail, time out or are cancelled.
    Everything that is shown at the end is read from the journal.
    """
    terminal = open_terminal()
    try:
        desk = Desk(journal)
    except ModuleNotFoundError as error:
        print_text(f"This Python installation does not include the language reference: {error}.")
        raise typer.Exit(1) from None
    except (OSError, sqlite3.OperationalError) as error:
        print_text(f"Cannot write the journal to {journal}: {error}.")
        raise typer.Exit(1) from None
    asked = questions(runs) if question is None else [Question(question)]
    sink = JournalSink(journal)
    reader, batch = JournalReader(journal, at_end=True), token_hex(4)
    _introduce(terminal, desk, asked)
    began = time.monotonic()
    try:
        with closing(desk.index):
            received = _ignore if question is None else _LiveAnswer(terminal, question).show_line
            _run(desk, asked, batch, sink if ack_fd is None else _acknowledged(sink, ack_fd), received)
    except KeyboardInterrupt:
        print_text(f"Interrupted. The journal in {journal} contains the progress of each run.")
        raise typer.Exit(130) from None
    took = time.monotonic() - began
    record = read_record(reader, batch)
    if question is None:
        terminal.print(f"{len(asked):,} runs took {took:.1f} s and recorded {len(record):,} events.")
        shown = _show_all(terminal, record)
    else:
        shown = _show_one(terminal, record)
    found = check(record, runs=len(asked), stages=len(reference_desk().stages))
    counted = stats().of("JournalSink")
    lost = sum(counted.rejected.values()) + sum(counted.dropped.values()) + counted.pending
    show_check(terminal, found, lost)
    show_journal(terminal, journal, run_id_of(shown) if shown else None)
    if found.problems or lost:
        raise typer.Exit(1)


def _introduce(terminal: Console, desk: Desk, asked: Sequence[Question]) -> None:
    number = "one question" if len(asked) == 1 else f"{len(asked):,} questions concurrently"
    terminal.print(
        f"Asking {number} about Python. The answers come from the {len(desk.passages):,} passages of the"
        f" Python language reference, searched with {desk.index_name}."
    )


def _acknowledged(journal: EventSink, descriptor: int) -> EventSink:
    return FanoutEventSink(journal, Acknowledgements(descriptor))


class _LiveAnswer:
    """Shows the answer to a question line by line, while the run sends it."""

    def __init__(self, terminal: Console, question: str) -> None:
        self._terminal = terminal
        self._question = question
        self._started = False

    def show_line(self, line: str) -> None:
        """Show a line; the question precedes the first one."""
        if not self._started:
            self._started = True
            _title(self._terminal, "A question and its answer, as the run streams it")
            _inset(self._terminal, Text(visible(self._question), style="bold"))
            self._terminal.print()
        _inset(self._terminal, Text(visible(line)))


def _ignore(line: str) -> None:
    """Ignore a line of an answer: the answers to many questions are read from the journal."""


def _run(
    desk: Desk, asked: Sequence[Question], batch: str, sink: EventSink, received: Callable[[str], None]
) -> None:
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
        asyncio.run(ask_all(graph, desk, asked, batch, received, lambda: progress.advance(bar)))


def _show_all(terminal: Console, record: Record) -> Event | None:
    """Show all runs, and one failed run in full. Return that run, or the last one if none failed."""
    if record.answers:
        show_answer(terminal, record.answers[0])
    show_summary(terminal, record)
    failed = [run for run in record.runs if run["outcome"] == "failed"]
    if not failed:
        return record.runs[-1] if record.runs else None
    # Prefer a run with an exception, and with many stages that had started.
    example = max(
        failed,
        key=lambda run: (
            run["exception"] is not None,
            sum(stage["attempts"] > 0 for stage in record.stages_of(run)),
        ),
    )
    show_run(terminal, "One failed run, in full", record, example)
    return example


def _show_one(terminal: Console, record: Record) -> Event | None:
    for answer in record.answers:
        show_sources(terminal, answer)
    for run in record.runs:
        show_run(terminal, "The run, in full", record, run)
    return record.runs[0] if record.runs else None
