"""Renders one run: timeline, stages, exceptions, custom events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..errors import invalid_argument
from ..schema import CUSTOM_EVENT_KEYS
from ._escape import on_one_line, pairs, visible
from ._runs import draw_runs
from ._style import BAD, QUIET, STATUSES, Pairs, Paragraph, coloured
from ._tables import milliseconds

__all__ = [
    "RAN",
    "RETRIED",
    "RUNNING",
    "WAITING",
    "Span",
    "StageStory",
    "Timeline",
    "draw_exception",
    "draw_own_events",
    "draw_run",
    "draw_waterfall",
    "said_by",
    "stories_of",
]


_LINKS = {"cause": "caused by", "context": "while handling", "group": "sub-exception"}


def draw_exception(exception: dict[str, Any]) -> Text:
    """Return the `exception` of an event as lines, innermost frame of each stack last.

    Example:
        Console().print(draw_exception(event["exception"]))
    """
    lines = _lines(exception)
    for link in exception["chain"]:
        words = _LINKS.get(link["relation"] or "", "with")
        lines += _lines(link, f"{words} ")
    return Text("\n", overflow="fold").join(lines)


def _lines(exception: dict[str, Any], words: str = "") -> list[Text]:
    return [Text.assemble((words, QUIET), _head(exception)), *_exception_notes(exception), *_stack(exception)]


def _head(exception: dict[str, Any]) -> Text:
    message = exception["message"]
    return Text.assemble((visible(exception["type"]), BAD), f": {visible(message)}" if message else "")


def _stack(exception: dict[str, Any]) -> list[Text]:
    return [Text(f"  {visible(frame)}", style=QUIET) for frame in exception["stack"]]


def _exception_notes(exception: dict[str, Any]) -> list[Text]:
    # Records of earlier versions have no notes.
    return [Text(f"  note: {visible(note)}") for note in exception.get("notes", ())]


Record = dict[str, Any]

_MOST = 20
"""So many are drawn: of more, nobody reads the picture."""

_LONGEST = 300
"""Characters of one event."""


def draw_own_events(run: Record, events: Sequence[tuple[str, Record]]) -> RenderableType:
    """Return a table of the first of these events, and how many more there are.

    Args:
        run: The data of the run's `pipeline.wide`.
        events: Type and data of each.
    """
    began = datetime.fromisoformat(run["started_at"])
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, style=QUIET)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for type, data in events[:_MOST]:
        text = said_by(data)
        table.add_row(
            _after(began, data.get("emitted_at")),
            Text(on_one_line(type)),
            Text(on_one_line(data.get("stage_name") or "")),
            Text(text if len(text) <= _LONGEST else text[:_LONGEST] + "…"),
        )
    if (more := len(events) - _MOST) > 0:
        table.add_row("", f"and {more:,} more")
    lines = Table.grid()
    lines.add_row(Text("events of its own, after ms", style=QUIET))
    lines.add_row(Padding(table, (0, 0, 0, 2)))
    return lines


def said_by(data: Record) -> str:
    """Return what an event has beside what the library says of each.

    Example:
        >>> said_by({"event_id": "r/a/1/0", "stage_name": "a", "hits": 3})
        'hits=3'
    """
    return pairs({key: value for key, value in data.items() if key not in CUSTOM_EVENT_KEYS})


def _after(began: datetime, emitted_at: Any) -> str:
    try:
        after = datetime.fromisoformat(emitted_at) - began
    except (TypeError, ValueError):  # emitted past the library
        return ""
    return milliseconds(after.total_seconds() * 1000)


WAITING = ("·", ".")
RETRIED = ("░", "%")
RAN = ("█", "#")
RUNNING = ("▓", "=")
"""The marks of a span: for terminals of today, and for those that take ASCII alone."""

_NARROWEST = 8


class Span(NamedTuple):
    """A stretch of time, in milliseconds since the start of the run."""

    start: float
    end: float
    mark: tuple[str, str]
    style: str = ""


class Timeline:
    """Draws spans, each at least one cell wide; a later one stands over an earlier one.

    Args:
        spans: What to draw.
        whole: Milliseconds that the full width stands for.
    """

    def __init__(self, spans: Sequence[Span], whole: float) -> None:
        self.spans = spans
        self.whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        cells: list[tuple[str, str]] = [(" ", "")] * width
        scale = width / self.whole if self.whole > 0 else 0.0
        for span in self.spans:
            first = min(max(int(span.start * scale), 0), width - 1)
            last = min(max(round(span.end * scale), first + 1), width)
            cells[first:last] = [(span.mark[options.ascii_only], span.style)] * (last - first)
        for mark, style in cells:
            yield Segment(mark, console.get_style(style) if style else Style.null())

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_NARROWEST, options.max_width), options.max_width)


_HEADINGS = ("  stage", "status", "tries", "queue ms", "ms")

_GAP = 3
"""Columns between two columns of the table."""

_NARROWEST_BAR = 12
"""Columns that bars get, even if stages have long names."""

_BAR_FROM = 64
"""Columns from which on there is room for the bars."""


class StageStory(NamedTuple):
    """Everything a record has of one stage.

    Attributes:
        name: Name of the stage.
        end: Its terminal `stage.wide`, or its line in the run's `stage_summaries`; for one that is running,
            also what is known of the attempt, with status "RUNNING".
        retried: Its `stage.wide` with status RETRY, in order.
    """

    name: str
    end: Record
    retried: list[Record]


def stories_of(run: Record, stages: Iterable[Record]) -> list[StageStory]:
    """Return a story for each stage of a run, in the order in which they became ready."""
    stories = {
        summary["stage_name"]: StageStory(summary["stage_name"], summary, [])
        for summary in run["stage_summaries"]
    }
    for event in stages:
        name = event["stage_name"]
        known = stories.get(name) or StageStory(name, event, [])
        if event["status"] == "RETRY":
            known.retried.append(event)
        else:
            known = known._replace(end=event)
        stories[name] = known
    for running in run.get("stages_running") or () if run["status"] == "OPEN" else ():
        story = stories.get(running["stage_name"])
        if story is not None and story.end["status"] == "OPEN":
            stories[story.name] = story._replace(end=_running_bar(story.end, running, run))
    began = datetime.fromisoformat(run["started_at"])
    # Sorting is stable: what became ready at the same moment keeps the order of the pipeline.
    return sorted(stories.values(), key=lambda story: _ready(story, began))


def _running_bar(summary: Record, running: Record, run: Record) -> Record:
    """Return a stage that is running as its `stage.wide` would be if the attempt ended now."""
    started_at = running["started_at"]
    if started_at is None:  # no heartbeat states it: the summary has the time since the stage was ready
        started = datetime.fromisoformat(run["started_at"])
        started += timedelta(milliseconds=run["duration_ms"] - summary["duration_ms"])
        started_at = started.isoformat()
    return summary | {
        "status": "RUNNING",
        "attempt": running["attempt"],
        "attempts": running["attempt"],
        "started_at": started_at,
        "attributes": running.get("attributes"),
    }


def draw_waterfall(
    run: Record, stages: Iterable[StageStory], *, width: int, whole_names: bool = False
) -> Table:
    """Return a table of stages with a bar each, across `width` columns.

    With `whole_names`, the table is wider where long names need it; otherwise they are cut, so that there is
    room for the bars.

    A `*` marks the critical path: the stages that the run had to wait for.
    """
    began = datetime.fromisoformat(run["started_at"])
    critical = set(run.get("critical_path") or ())
    bars = width >= _BAR_FROM
    rows: list[list[Any]] = []
    timelines = []
    for stage in stages:
        end = stage.end
        tries = end.get("attempts")
        row: list[Any] = [
            Text.assemble(("* ", "bold") if stage.name in critical else "  ", visible(stage.name)),
            coloured(visible(end["status"])),
            "" if tries is None else str(tries),
            milliseconds(end.get("queue_ms")) if tries != 0 or _waited_in_vain(end) else "",
            milliseconds(end["duration_ms"]) if tries != 0 and end["status"] != "OPEN" else "",
        ]
        rows.append(row)
        timelines.append(Timeline(_spans(stage, began), run["duration_ms"]))
    names = max((row[0].cell_len for row in rows), default=0)
    others = sum(
        _GAP + max([len(heading), *(cell_len(str(row[number])) for row in rows)])
        for number, heading in enumerate(_HEADINGS)
        if number
    )
    room = width - others - (_GAP + _NARROWEST_BAR if bars else 0)
    if whole_names:
        width += max(0, names - room)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET, width=width)
    table.add_column(
        _HEADINGS[0], no_wrap=True, overflow="ellipsis", max_width=None if whole_names else max(8, room)
    )
    table.add_column(_HEADINGS[1], no_wrap=True)
    for heading in _HEADINGS[2:]:
        table.add_column(heading, justify="right", no_wrap=True)
    if bars:
        table.add_column(f"0 to {milliseconds(run['duration_ms'])} ms", ratio=1, no_wrap=True)
    for row, timeline in zip(rows, timelines, strict=True):
        table.add_row(*row, *([timeline] if bars else []))
    return table


def _spans(stage: StageStory, began: datetime) -> list[Span]:
    end = stage.end
    spans = [_span(event, began, RETRIED) for event in stage.retried]
    if "started_at" not in end:  # not started yet, or known by its summary alone
        return spans
    spans.insert(0, Span(_ready(stage, began), _started(end, began), WAITING, QUIET))
    if _ran(stage):
        spans.append(_span(end, began, RUNNING if end["status"] == "RUNNING" else RAN))
    elif not stage.retried and not _waited_in_vain(end):
        return []
    return spans


def _waited_in_vain(end: Record) -> bool:
    """Tell whether a stage was ready when its run ended: in a crash it may have been running."""
    return end["status"] == "CANCEL" and bool(end.get("queue_ms"))


def _ran(stage: StageStory) -> bool:
    """Tell whether the times of a stage's end are those of an attempt that is not yet drawn."""
    end = stage.end
    attempts = end.get("attempts", 1)
    if not attempts or end.get("attempt", attempts) > attempts:
        return False  # it waited, for its first attempt or for another
    return not stage.retried or stage.retried[-1]["started_at"] != end["started_at"]


def _span(event: Record, began: datetime, mark: tuple[str, str]) -> Span:
    start = _started(event, began)
    return Span(start, start + event["duration_ms"], mark, str(coloured(event["status"]).style))


def _ready(stage: StageStory, began: datetime) -> float:
    first = stage.retried[0] if stage.retried else stage.end
    if "started_at" not in first:
        return float("inf") if first["status"] == "OPEN" else 0.0  # those that are not known to run come last
    return _started(first, began) - (first.get("queue_ms") or 0.0)


def _started(event: Record, began: datetime) -> float:
    return (datetime.fromisoformat(event["started_at"]) - began).total_seconds() * 1000


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
        run: The data of its `pipeline.wide` event, or what `RunRecord.run` has in its place.
        stages: The data of its `stage.wide` events.
        events: Its stages' own events, type and data.
        children: The data of the `pipeline.wide` of each run that was started inside it.
        width: Columns that the waterfall may take; default all there are.

    Raises:
        InvalidArgumentError: `run` is not the data of a `pipeline.wide` event.

    Example:
        Console().print(draw_run(run, stages))
    """
    if "stage_summaries" not in run:
        raise invalid_argument("draw_run()", "run", run, "the data of a pipeline.wide event")
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
