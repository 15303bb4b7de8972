"""Renders one run: timeline, stages, exceptions, custom events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
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
from ._escape import format_pairs, on_one_line, visible
from ._runs import draw_runs
from ._style import BAD, QUIET, STATUSES, Pairs, Paragraph, colored
from ._tables import milliseconds

__all__ = [
    "RAN",
    "RETRIED",
    "RUNNING",
    "WAITING",
    "Span",
    "StageHistory",
    "Timeline",
    "custom_fields",
    "draw_custom_events",
    "draw_exception",
    "draw_run",
    "draw_waterfall",
    "shown_child_runs",
    "stage_histories",
    "stream_note",
]


_LINKS = {"cause": "caused by", "context": "while handling", "group": "sub-exception"}


def draw_exception(exception: dict[str, Any]) -> Text:
    """Return the `exception` of an event as lines, with the innermost frame of each stack last.

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

_MAX_EVENTS = 20
"""Maximum number of custom events to show."""

_MAX_CHARACTERS = 300
"""Maximum number of characters of one custom event."""


def draw_custom_events(run: Record, events: Sequence[tuple[str, Record]]) -> RenderableType:
    """Return a table of the first custom events of a run, and the number of the remaining ones.

    Args:
        run: The data of the `pipeline.wide` event of the run.
        events: Type and data of each event.
    """
    began = datetime.fromisoformat(run["started_at"])
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, style=QUIET)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for type, data in events[:_MAX_EVENTS]:
        text = custom_fields(data)
        table.add_row(
            _offset(began, data.get("emitted_at")),
            Text(on_one_line(type)),
            Text(on_one_line(data.get("stage_name") or "")),
            Text(text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "…"),
        )
    if (more := len(events) - _MAX_EVENTS) > 0:
        table.add_row("", f"and {more:,} more")
    lines = Table.grid()
    lines.add_row(Text("custom events (ms since run start)", style=QUIET))
    lines.add_row(Padding(table, (0, 0, 0, 2)))
    return lines


def custom_fields(data: Record) -> str:
    """Return the fields of a custom event, without those that the library adds.

    Example:
        >>> custom_fields({"event_id": "r/a/1/0", "stage_name": "a", "hits": 3})
        'hits=3'
    """
    return format_pairs({key: value for key, value in data.items() if key not in CUSTOM_EVENT_KEYS})


def _offset(began: datetime, emitted_at: Any) -> str:
    try:
        offset = datetime.fromisoformat(emitted_at) - began
    except (TypeError, ValueError):  # not emitted by `ctx.emit_event`
        return ""
    return milliseconds(offset.total_seconds() * 1000)


WAITING = ("·", ".")
RETRIED = ("░", "%")
RAN = ("█", "#")
RUNNING = ("▓", "=")
"""Characters for spans: for Unicode terminals, and for ASCII terminals."""

_MIN_TIMELINE = 8


class Span(NamedTuple):
    """A time span, in milliseconds since the start of the run."""

    start: float
    end: float
    mark: tuple[str, str]
    style: str = ""


class Timeline:
    """Draws spans, each at least one cell wide; later spans cover earlier ones.

    Args:
        spans: The spans.
        total: Milliseconds that the full width represents.
    """

    def __init__(self, spans: Sequence[Span], total: float) -> None:
        self.spans = spans
        self.total = total

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        cells: list[tuple[str, str]] = [(" ", "")] * width
        scale = width / self.total if self.total > 0 else 0.0
        for span in self.spans:
            first = min(max(int(span.start * scale), 0), width - 1)
            last = min(max(round(span.end * scale), first + 1), width)
            cells[first:last] = [(span.mark[options.ascii_only], span.style)] * (last - first)
        for mark, style in cells:
            yield Segment(mark, console.get_style(style) if style else Style.null())

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_MIN_TIMELINE, options.max_width), options.max_width)


_HEADINGS = ("  stage", "status", "attempts", "queue ms", "ms")

_GAP = 3
"""Spaces between two columns of the table."""

_MIN_BAR = 12
"""Minimum width of the bars, even if stages have long names."""

_MIN_WIDTH_FOR_BARS = 64
"""Minimum terminal width at which bars are drawn."""


class StageHistory(NamedTuple):
    """All recorded events of one stage.

    Attributes:
        name: Name of the stage.
        end: Its terminal `stage.wide`, or its entry in the `stage_summaries` of the run; for a running stage,
            the entry and the known fields of the attempt, with status "RUNNING".
        retried: Its `stage.wide` events with status RETRY, in order.
    """

    name: str
    end: Record
    retried: list[Record]


def stage_histories(run: Record, stages: Iterable[Record]) -> list[StageHistory]:
    """Return the history of each stage of a run, in the order in which the stages became ready."""
    histories = {
        summary["stage_name"]: StageHistory(summary["stage_name"], summary, [])
        for summary in run["stage_summaries"]
    }
    for event in stages:
        name = event["stage_name"]
        known = histories.get(name) or StageHistory(name, event, [])
        if event["status"] == "RETRY":
            known.retried.append(event)
        else:
            known = known._replace(end=event)
        histories[name] = known
    for running in run.get("stages_running") or () if run["status"] == "OPEN" else ():
        history = histories.get(running["stage_name"])
        if history is not None and history.end["status"] == "OPEN":
            histories[history.name] = history._replace(end=_running_event(history.end, running, run))
    began = datetime.fromisoformat(run["started_at"])
    # Sorting is stable: stages that became ready at the same time keep the order of the pipeline.
    return sorted(histories.values(), key=lambda history: _ready(history, began))


def _running_event(summary: Record, running: Record, run: Record) -> Record:
    """Return the `stage.wide` that a running stage would have if its attempt ended now."""
    started_at = running["started_at"]
    if started_at is None:  # no heartbeat contains it; the summary has the time since the stage became ready
        started = datetime.fromisoformat(run["started_at"])
        started += timedelta(milliseconds=run["duration_ms"] - summary["duration_ms"])
        started_at = started.isoformat()
    return summary | {
        "status": "RUNNING",
        "attempt": running["attempt"],
        "attempts": running["attempt"],
        "started_at": started_at,
        "attributes": running.get("attributes"),
        "items": running.get("items"),
        "stream": running.get("stream"),
        "child_runs": running.get("child_runs"),
    }


ChildRuns = Mapping[str, tuple[Record, Iterable[Record]]]
"""The data of the `pipeline.wide` and of the `stage.wide` events of child runs, by run id."""

_NO_RUNS: ChildRuns = {}

_MAX_FIRST = 3
"""Number of child runs of a stage that a waterfall shows if there are many, in addition to the last one."""


def shown_child_runs(stage: Record) -> list[tuple[int, str]]:
    """Return the number and the id of those child runs of a stage that a waterfall shows, in order.

    Example:
        >>> shown_child_runs({"child_runs": ["a", "b", "c", "d", "e", "f"]})
        [(1, 'a'), (2, 'b'), (3, 'c'), (6, 'f')]
    """
    child_runs: list[str] = stage.get("child_runs") or []
    numbered = list(enumerate(child_runs, 1))
    if numbered:  # of more than 1,000 child runs, the event lists the first 999 and the last
        numbered[-1] = (max(len(child_runs), stage.get("child_runs_total") or 0), child_runs[-1])
    return numbered if len(numbered) <= _MAX_FIRST + 1 else [*numbered[:_MAX_FIRST], numbered[-1]]


class _Row(NamedTuple):
    """A row of a waterfall: its first column, the texts of the other ones, and its spans."""

    label: Text
    status: Text
    texts: tuple[str, str, str]
    spans: list[Span]


def _rows(
    stages: Iterable[StageHistory],
    nested: ChildRuns,
    began: datetime,
    critical: Sequence[str],
    indent: int = 0,
) -> Iterator[_Row]:
    """Yield a row for each stage of a run, followed by those of its child runs."""
    for stage in stages:
        end = stage.end
        tries = end.get("attempts")
        yield _Row(
            _label(stage.name, stage.name in critical, indent),
            colored(visible(end["status"])),
            (
                "" if tries is None else str(tries),
                milliseconds(end.get("queue_ms")) if tries != 0 or _was_ready(end) else "",
                milliseconds(end["duration_ms"]) if tries != 0 and end["status"] != "OPEN" else "",
            ),
            _spans(stage, began),
        )
        within = [name.partition("/")[2] for name in critical if name.startswith(f"{stage.name}/")]
        yield from _child_rows(end, nested, began, within, indent + 2)


def _child_rows(
    stage: Record, nested: ChildRuns, began: datetime, critical: Sequence[str], indent: int
) -> Iterator[_Row]:
    """Yield the rows of the child runs of a stage."""
    runs = [(number, *nested[run_id]) for number, run_id in shown_child_runs(stage) if run_id in nested]
    total = max((number for number, _ in shown_child_runs(stage)), default=0)
    in_sequence = all(
        _name_of(one) == _name_of(other) and one["ended_at"] and one["ended_at"] <= other["started_at"]
        for (_, one, _), (_, other, _) in pairwise(runs)
    )
    last = 0
    for number, run, stages in runs:
        if number > last + 1:
            yield _Row(_label(f"... {number - last - 1:,} more", False, indent), Text(""), ("", "", ""), [])
        last = number
        # The critical path of a stage continues into the last one of its child runs.
        path = critical if number == total else ()
        if total > 1:
            name = "iteration" if in_sequence else _name_of(run)
            yield _Row(
                _label(f"{name} {number}", False, indent),
                colored(visible(run.get("outcome") or run["status"])),
                ("", "", milliseconds(run["duration_ms"])),
                [],
            )
        yield from _rows(stage_histories(run, stages), nested, began, path, indent + 2 * (total > 1))


def _name_of(run: Record) -> str:
    return str(run.get("pipeline_name") or run["pipeline_metadata"]["topology"])


def _label(name: str, is_critical: bool, indent: int) -> Text:
    return Text.assemble(("* ", "bold") if is_critical else "  ", " " * indent, visible(name))


def draw_waterfall(
    run: Record,
    stages: Iterable[StageHistory],
    *,
    width: int,
    full_names: bool = False,
    nested: ChildRuns = _NO_RUNS,
) -> Table:
    """Return a table of stages with a bar for each, `width` columns wide.

    Below a stage, it shows the stages of its child runs in `nested`, indented.

    With `full_names`, the table is wider if long names require it; otherwise they are truncated, to leave
    space for the bars.

    A `*` marks the stages on the critical path, which determined the duration of the run.
    """
    began = datetime.fromisoformat(run["started_at"])
    bars = width >= _MIN_WIDTH_FOR_BARS
    rows: list[list[Any]] = []
    timelines = []
    for each in _rows(stages, nested, began, run.get("critical_path") or ()):
        rows.append([each.label, each.status, *each.texts])
        timelines.append(Timeline(each.spans, run["duration_ms"]))
    names = max((row[0].cell_len for row in rows), default=0)
    others = sum(
        _GAP + max([len(heading), *(cell_len(str(row[number])) for row in rows)])
        for number, heading in enumerate(_HEADINGS)
        if number
    )
    available = width - others - (_GAP + _MIN_BAR if bars else 0)
    if full_names:
        width += max(0, names - available)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET, width=width)
    table.add_column(
        _HEADINGS[0], no_wrap=True, overflow="ellipsis", max_width=None if full_names else max(8, available)
    )
    table.add_column(_HEADINGS[1], no_wrap=True)
    for heading in _HEADINGS[2:]:
        table.add_column(heading, justify="right", no_wrap=True)
    if bars:
        table.add_column(f"0 to {milliseconds(run['duration_ms'])} ms", ratio=1, no_wrap=True)
    for row, timeline in zip(rows, timelines, strict=True):
        table.add_row(*row, *([timeline] if bars else []))
    return table


def _spans(stage: StageHistory, began: datetime) -> list[Span]:
    end = stage.end
    spans = [_span(event, began, RETRIED) for event in stage.retried]
    if "started_at" not in end:  # not started yet, or only its summary is known
        return spans
    spans.insert(0, Span(_ready(stage, began), _started(end, began), WAITING, QUIET))
    if _ran(stage):
        spans.append(_span(end, began, RUNNING if end["status"] == "RUNNING" else RAN))
    elif not stage.retried and not _was_ready(end):
        return []
    return spans


def _was_ready(end: Record) -> bool:
    """Return whether a stage was ready when its run ended; in a crash, it may have been running."""
    return end["status"] == "CANCEL" and bool(end.get("queue_ms"))


def _ran(stage: StageHistory) -> bool:
    """Return whether the last event of a stage describes an attempt that is not drawn yet."""
    end = stage.end
    attempts = end.get("attempts", 1)
    if not attempts or end.get("attempt", attempts) > attempts:
        return False  # it was waiting for an attempt
    return not stage.retried or stage.retried[-1]["started_at"] != end["started_at"]


def _span(event: Record, began: datetime, mark: tuple[str, str]) -> Span:
    start = _started(event, began)
    return Span(start, start + event["duration_ms"], mark, str(colored(event["status"]).style))


def _ready(stage: StageHistory, began: datetime) -> float:
    first = stage.retried[0] if stage.retried else stage.end
    if "started_at" not in first:
        return float("inf") if first["status"] == "OPEN" else 0.0  # stages not known to be running come last
    return _started(first, began) - (first.get("queue_ms") or 0.0)


def _started(event: Record, began: datetime) -> float:
    return (datetime.fromisoformat(event["started_at"]) - began).total_seconds() * 1000


_MAX_LABEL = 20
"""Maximum width of labels in columns."""


def draw_run(
    run: Record,
    stages: Iterable[Record] = (),
    *,
    events: Iterable[tuple[str, Record]] = (),
    children: Iterable[Record] = (),
    nested: ChildRuns = _NO_RUNS,
    width: int | None = None,
) -> RenderableType:
    """Return a full view of one run: header, waterfall, stage details, exceptions, custom events, child runs.

    It requires only the keys that every producer of these events writes, and shows the others if present.
    A run in progress is drawn with what is known so far.

    Args:
        run: The data of its `pipeline.wide` event, or `RunRecord.run`.
        stages: The data of its `stage.wide` events.
        events: Type and data of its custom events.
        children: The data of the `pipeline.wide` event of each child run.
        nested: The data of the `pipeline.wide` event and of the `stage.wide` events of child runs, by run id.
            The waterfall shows them below the stages that started them.
        width: Width of the waterfall in columns; default the full width.

    Raises:
        InvalidArgumentError: `run` is not the data of a `pipeline.wide` event.

    Example:
        Console().print(draw_run(run, stages))
    """
    if "stage_summaries" not in run:
        raise invalid_argument("draw_run()", "run", run, "the data of a pipeline.wide event")
    histories = stage_histories(run, stages)
    # The notes of a mapped stage summarize its items.
    custom = [(type, data) for type, data in events if type != "stage.item"]
    # Of many child runs of a stage, the view omits those that the waterfall omits.
    omitted: set[str] = set()
    for stage in histories:
        shown = {run_id for _, run_id in shown_child_runs(stage.end)}
        if shown & nested.keys():
            omitted.update(run_id for run_id in stage.end["child_runs"] if run_id not in shown)
    others = [child for child in children if child.get("event_id") not in omitted]
    return _RunView(run, histories, custom, others, nested, width)


class _RunView:
    """The view of one run, which is laid out when the width is known."""

    def __init__(
        self,
        run: Record,
        stages: list[StageHistory],
        events: list[tuple[str, Record]],
        children: list[Record],
        nested: ChildRuns,
        width: int | None,
    ) -> None:
        self.run = run
        self.stages = stages
        self.events = events
        self.children = children
        self.nested = nested
        self.width = width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width if self.width is None else self.width
        yield from _header(self.run, options.ascii_only)
        yield ""
        yield draw_waterfall(
            self.run, self.stages, width=width, full_names=self.width is not None, nested=self.nested
        )
        yield _legend(self.run, options.ascii_only)
        yield from _notes(self.stages)
        yield from _exceptions(self.run, self.stages)
        if self.events:
            yield ""
            yield draw_custom_events(self.run, self.events)
        if self.children:
            yield ""
            yield Text("child runs", style=QUIET)
            yield Padding(
                draw_runs(self.children, width=None if self.width else options.max_width - 2), (0, 0, 0, 2)
            )


def _header(run: Record, ascii_only: bool) -> Iterator[RenderableType]:
    ids, metadata = run["correlation_ids"], run["pipeline_metadata"]
    yield Text.assemble(
        (visible(_name_of(run)), "bold"),
        "  ",
        colored(visible(run.get("outcome") or run["status"])),
        f"  {milliseconds(run['duration_ms'])} ms",
        " so far" if run["status"] == "OPEN" else "",
    )
    error, reason = run["error"], run.get("reason")
    root = run.get("root_run_id")
    resource = run.get("resource") or {}
    rows = (
        ("error", error),
        ("reason", reason if reason and reason not in (error or "") else None),
        ("fingerprint", run.get("error_fingerprint")),
        ("run", ids["pipeline_run_id"]),
        ("started", run["started_at"]),
        ("ids", format_pairs({key: value for key, value in ids.items() if key != "pipeline_run_id"})),
        ("labels", format_pairs(metadata)),
        ("process", format_pairs({key: resource.get(key) for key in ("pid", "host", "service_version")})),
        ("running", _running(run)),
        ("critical path", _critical_path(run, ascii_only)),
        ("parent", run.get("parent_run_id")),
        ("root", root if root not in (ids["pipeline_run_id"], run.get("parent_run_id")) else None),
        ("trace", (run.get("trace") or {}).get("trace_id")),
        ("attributes", format_pairs(run.get("attributes") or {})),
    )
    shown = [(label, visible(value)) for label, value in rows if value]
    yield Pairs(
        [(label, Text(value, style=BAD if label == "error" else "")) for label, value in shown],
        indent=2,
        max_label=_MAX_LABEL,
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
    star = "* on the critical path   " if run.get("critical_path") else ""
    legend = f"{star}{waiting} queued   {retried} retried   {ran} ran"
    if run["status"] == "OPEN" and run.get("stages_running"):
        legend += f"   {running} still running"
    return Text(legend, style=QUIET)


def _notes(stages: list[StageHistory]) -> Iterator[RenderableType]:
    """Yield reasons, errors and attributes of stages; stages with the same details share one entry."""
    details: dict[str, tuple[list[str], Text]] = {}
    for stage in stages:
        notes = _notes_of(stage)
        names, _ = details.setdefault(notes.plain, ([], notes))
        names.append(visible(stage.name))
    details.pop("", None)
    if details:
        yield ""
        rows = [(", ".join(names), notes) for names, notes in details.values()]
        yield Pairs(rows, indent=2, max_label=_MAX_LABEL)


def _notes_of(stage: StageHistory) -> Text:
    end = stage.end
    lines = [
        Text(
            f"attempt {event.get('attempt')}: {visible(event['error'] or event.get('reason') or '')}",
            style=STATUSES["RETRY"],
        )
        for event in stage.retried
    ]
    if end["error"]:
        lines.append(Text(visible(end["error"]), style=BAD))
    if end.get("reason"):
        lines.append(Text(visible(end["reason"])))
    if end.get("missing_inputs"):
        lines.append(Text(visible("missing inputs: " + ", ".join(end["missing_inputs"]))))
    if end.get("items"):
        lines += _item_notes(end["items"])
    if end.get("stream"):
        lines.append(stream_note(end))
    lines += _worker_notes(end)
    lines += _log_notes(end)
    if end.get("attributes"):
        lines.append(Text(format_pairs(end["attributes"])))
    return Text("\n").join(lines)


def stream_note(stage: Record) -> Text:
    """Return the chunks of a stage that streamed, their rate, and how long its readers made it wait.

    Example:
        >>> stream = {"chunks": 41, "first_chunk_ms": 200.0, "blocked_ms": 1500.0, "abandoned": False}
        >>> stream_note({"stream": stream, "duration_ms": 4200.0}).plain
        '41 chunks, first after 200.00 ms, 16.0 per s, waited 1,500.00 ms for a reader'
    """
    stream = stage["stream"]
    chunks, first = stream["chunks"], stream.get("first_chunk_ms")
    parts = [f"{chunks:,} chunk{'' if chunks == 1 else 's'}"]
    if first is not None:
        parts.append(f"first after {milliseconds(first)} ms")
        seconds = (stage["duration_ms"] - first - (stream.get("blocked_ms") or 0)) / 1000
        if chunks > 1 and seconds > 0:
            parts.append(f"{(chunks - 1) / seconds:,.1f} per s")
    if stream.get("blocked_ms"):
        parts.append(f"waited {milliseconds(stream['blocked_ms'])} ms for a reader")
    if stream.get("abandoned"):
        parts.append("the reader left")
    return Text(", ".join(parts))


_SLOW_START_MS = 100
"""A worker is shown if the stage has waited this long for it."""


def _worker_notes(stage: Record) -> Iterator[Text]:
    """Yield the worker of a stage that has failed, or that has waited for its worker.

    Example:
        >>> worker = {"host": "a1", "pid": 71, "kind": "process", "queue_ms": 185.0}
        >>> [note.plain for note in _worker_notes({"worker": worker, "status": "OK"})]
        ['ran in process worker 71 on a1, which started it after 185.00 ms']
    """
    worker = stage.get("worker")
    if not worker:
        return
    waited = worker.get("queue_ms")
    is_slow = waited is not None and waited >= _SLOW_START_MS
    if stage["status"] not in ("FAIL", "RETRY") and not is_slow:
        return
    text = f"ran in {worker['kind']} worker {worker.get('pid') or '?'} on {worker.get('host') or '?'}"
    yield Text(visible(text + (f", which started it after {milliseconds(waited)} ms" if is_slow else "")))


_MAX_LOG_LINES = 10
"""Maximum number of log lines of a stage to show."""

_MAX_LOG_CHARACTERS = 120
"""Maximum number of characters of one log line to show."""


def _log_notes(stage: Record) -> Iterator[Text]:
    """Yield the number of warnings and errors that a stage logged, and the last lines of a failed stage."""
    counts = [
        f"{count:,} {what}{'' if count == 1 else 's'}"
        for count, what in ((stage.get("log_warnings"), "warning"), (stage.get("log_errors"), "error"))
        if count
    ]
    if counts:
        yield Text(f"logged {', '.join(counts)}")
    logged = stage.get("log_tail") or []
    if len(logged) > _MAX_LOG_LINES:
        earlier = len(logged) - _MAX_LOG_LINES
        yield Text(f"  {earlier} earlier log line{'' if earlier == 1 else 's'} in log_tail", style=QUIET)
    for each in logged[-_MAX_LOG_LINES:]:
        line = on_one_line(each)
        shown = line if len(line) <= _MAX_LOG_CHARACTERS else line[:_MAX_LOG_CHARACTERS] + "…"
        yield Text(f"  {shown}", style=QUIET)


def _item_notes(items: Record) -> Iterator[Text]:
    """Yield the counts and durations of the items of a mapped stage, and its first failures."""
    total, ok, failed, skipped = (items[name] for name in ("total", "ok", "failed", "skipped"))
    counts = [f"{ok:,} of {total:,} items OK"]
    for number, what in (
        (failed, "failed"),
        (skipped, "skipped"),
        (items["retried"], "retried"),
        (total - ok - failed - skipped, "did not end"),
    ):
        if number > 0:
            counts.append(f"{number:,} {what}")
    yield Text(", ".join(counts))
    if items.get("max_ms") is not None:
        yield Text(
            visible(
                f"item p50 {milliseconds(items['p50_ms'])} ms, p95 {milliseconds(items['p95_ms'])} ms,"
                f" max {milliseconds(items['max_ms'])} ms (item {items['slowest']})"
            )
        )
    failures = items.get("failures") or ()
    for failure in failures:
        error = ": ".join(filter(None, (failure["type"], failure["message"])))
        yield Text(visible(f"item {failure['key']}: {error}"), style=BAD)
    if failed > len(failures):
        yield Text(
            f"and {failed - len(failures):,} more failed items; the `items` view has all of them", style=QUIET
        )


def _exceptions(run: Record, stages: list[StageHistory]) -> Iterator[RenderableType]:
    shown: list[Any] = []
    for where, record in (*((stage.name, stage.end) for stage in stages), ("the run", run)):
        exception = record.get("exception")
        # A run that failed because of a stage has the same exception as that stage.
        if exception and exception not in shown:
            shown.append(exception)
            yield ""
            yield Text.assemble(("exception in ", QUIET), visible(where))
            yield Paragraph(draw_exception(exception), "  ")
