"""One run told in full: who and why, when each stage ran, what it said, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from .exception import draw_exception
from .figures import milliseconds
from .foreign import pairs, visible
from .own_events import draw_own_events
from .palette import BAD, QUIET, STATUSES, coloured
from .runs import draw_runs
from .timeline import RAN, RETRIED, RUNNING, WAITING
from .waterfall import StageStory, draw_waterfall, stories_of
from .wrap import Pairs, Paragraph

__all__ = ["draw_run"]

Record = dict[str, Any]

_LABEL = 20
"""Columns that the names beside what they stand for may take."""


def draw_run(
    run: Record,
    stages: Iterable[Record] = (),
    *,
    events: Iterable[tuple[str, Record]] = (),
    children: Iterable[Record] = (),
    width: int | None = None,
) -> RenderableType:
    """Return the story of one run: header, waterfall, what its stages said, exceptions.

    It needs only the keys that every writer of these events knows, and shows the others where
    there are any. A run under way is drawn as far as it has come.

    Args:
        run: The data of its `pipeline.wide` event, or what `RunStory.run` has in its place.
        stages: The data of its `stage.wide` events.
        events: Its stages' own events, type and data.
        children: The data of the `pipeline.wide` of each run that was started inside it.
        width: Columns that the waterfall may take; default all there are.

    Raises:
        ValueError: `run` is not the data of a `pipeline.wide` event.

    Example:
        Console().print(draw_run(run, stages))
    """
    if "stage_summaries" not in run:
        raise ValueError(
            "draw_run() needs the data of a pipeline.wide event; a run that was cut off has none"
        )
    return _Told(run, stories_of(run, stages), list(events), list(children), width)


class _Told:
    """The story, laid out when the width is known."""

    def __init__(
        self,
        run: Record,
        stages: list[StageStory],
        events: list[tuple[str, Record]],
        children: list[Record],
        width: int | None,
    ) -> None:
        self.run = run
        self.stages = stages
        self.events = events
        self.children = children
        self.width = width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width if self.width is None else self.width
        yield from _header(self.run, options.ascii_only)
        yield ""
        yield draw_waterfall(self.run, self.stages, width=width, whole_names=self.width is not None)
        yield _legend(self.run, options.ascii_only)
        yield from _notes(self.stages)
        yield from _exceptions(self.run, self.stages)
        if self.events:
            yield ""
            yield draw_own_events(self.run, self.events)
        if self.children:
            yield ""
            yield Text("runs started inside it", style=QUIET)
            yield Padding(
                draw_runs(self.children, width=None if self.width else options.max_width - 2), (0, 0, 0, 2)
            )


def _header(run: Record, ascii_only: bool) -> Iterator[RenderableType]:
    ids, metadata = run["correlation_ids"], run["pipeline_metadata"]
    yield Text.assemble(
        (visible(run.get("pipeline_name") or metadata["topology"]), "bold"),
        "  ",
        coloured(visible(run.get("outcome") or run["status"])),
        f"  {milliseconds(run['duration_ms'])} ms",
        " so far" if run["status"] == "OPEN" else "",
    )
    error, reason = run["error"], run.get("reason")
    root = run.get("root_run_id")
    resource = run.get("resource") or {}
    rows = (
        ("error", error),
        ("reason", reason if reason and reason not in (error or "") else None),
        ("run", ids["pipeline_run_id"]),
        ("started", run["started_at"]),
        ("ids", pairs({key: value for key, value in ids.items() if key != "pipeline_run_id"})),
        ("labels", pairs(metadata)),
        ("process", pairs({key: resource.get(key) for key in ("pid", "host", "service_version")})),
        ("running", _running(run)),
        ("critical path", _critical_path(run, ascii_only)),
        ("parent", run.get("parent_run_id")),
        ("root", root if root not in (ids["pipeline_run_id"], run.get("parent_run_id")) else None),
        ("trace", (run.get("trace") or {}).get("trace_id")),
        ("attributes", pairs(run.get("attributes") or {})),
    )
    shown = [(label, visible(value)) for label, value in rows if value]
    yield Pairs(
        [(label, Text(value, style=BAD if label == "error" else "")) for label, value in shown],
        indent=2,
        widest=_LABEL,
    )


def _running(run: Record) -> str:
    """Return the attempts of an open run that were running at its last heartbeat."""
    attempts = run.get("stages_running") or ()
    return ", ".join(f"{each['stage_name']} (attempt {each['attempt']})" for each in attempts)


def _critical_path(run: Record, ascii_only: bool) -> str:
    path = run.get("critical_path")
    if not path:
        return ""
    arrow = " > " if ascii_only else " → "
    return f"{arrow.join(path)}  {milliseconds(run.get('critical_path_ms'))} ms"


def _legend(run: Record, ascii_only: bool) -> Text:
    waiting, retried, ran, running = (mark[ascii_only] for mark in (WAITING, RETRIED, RAN, RUNNING))
    star = "* the run waited for it   " if run.get("critical_path") else ""
    words = f"{star}{waiting} ready   {retried} retried   {ran} ran"
    if run["status"] == "OPEN" and run.get("stages_running"):
        words += f"   {running} running until now"
    return Text(words, style=QUIET)


def _notes(stages: list[StageStory]) -> Iterator[RenderableType]:
    """What stages said: reasons, errors, attributes. Who said the same stands together."""
    said: dict[str, tuple[list[str], Text]] = {}
    for stage in stages:
        notes = _notes_of(stage)
        names, _ = said.setdefault(notes.plain, ([], notes))
        names.append(visible(stage.name))
    said.pop("", None)
    if said:
        yield ""
        rows = [(", ".join(names), notes) for names, notes in said.values()]
        yield Pairs(rows, indent=2, widest=_LABEL)


def _notes_of(stage: StageStory) -> Text:
    end = stage.end
    lines = [
        Text(f"attempt {event.get('attempt')}: {visible(event['error'])}", style=STATUSES["RETRY"])
        for event in stage.retried
    ]
    if end["error"]:
        lines.append(Text(visible(end["error"]), style=BAD))
    if end.get("reason"):
        lines.append(Text(visible(end["reason"])))
    if end.get("missing_inputs"):
        lines.append(Text(visible("asked in vain for " + ", ".join(end["missing_inputs"]))))
    if end.get("attributes"):
        lines.append(Text(pairs(end["attributes"])))
    return Text("\n").join(lines)


def _exceptions(run: Record, stages: list[StageStory]) -> Iterator[RenderableType]:
    told: list[Any] = []
    for where, record in (*((stage.name, stage.end) for stage in stages), ("the run", run)):
        exception = record.get("exception")
        # A run that a stage failed carries the exception of that stage once more.
        if exception and exception not in told:
            told.append(exception)
            yield ""
            yield Text.assemble(("exception in ", QUIET), visible(where))
            yield Paragraph(draw_exception(exception), "  ")
