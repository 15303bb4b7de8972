"""The line format of a journal: encoding, decoding and validation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from .._state_file import decode_stored, decoder, is_json
from .._time import epoch_us
from ..schema import (
    CorrelationIds,
    ExceptionInfo,
    Heartbeat,
    PipelineMetadata,
    PipelineWide,
    RunClosed,
    RunOpen,
    StageSummary,
    StageWide,
    WideAmend,
)

__all__ = [
    "FAILED_RUN",
    "HEARTBEAT",
    "PIPELINE_AMEND",
    "PIPELINE_WIDE",
    "PRUNED",
    "REQUIRED",
    "RUN_CLOSED",
    "RUN_OPEN",
    "SAMPLE_DECISION",
    "STAGE_WIDE",
    "WRITER_CLOSED",
    "Line",
    "Offset",
    "PrunedHeader",
    "SampleDecision",
    "WriterClosed",
    "decode",
    "decode_event",
    "decode_heartbeat",
    "decode_pruned_header",
    "decode_run_open",
    "decode_sample_decision",
    "decode_writer_closed",
    "encode_mark",
    "is_complete_run",
    "is_event",
    "is_timestamp",
    "is_well_formed",
    "line_start",
    "outcome_of",
    "run_of",
]


def line_start(event_type: str, **first: str) -> bytes:
    """Return the prefix of every line whose event starts with the given field values.

    Args:
        event_type: Type of the event.
        first: Values of the first fields of the event, in schema order.

    Raises:
        ValueError: These are not the first fields of the event, in schema order.

    Example:
        >>> line_start("pipeline.wide", status="FAIL")
        b'{"type":"pipeline.wide","data":{"status":"FAIL"'
    """
    start = f'{{"type":"{event_type}","data":'
    if first:
        fields = {"stage.wide": StageWide, "pipeline.wide": PipelineWide}[event_type].__struct_fields__
        if tuple(first) != fields[: len(first)]:
            raise ValueError(
                f"the first fields of {event_type} are {fields[: len(first)]}, got {tuple(first)}"
            )
        start += "{" + ",".join(f'"{name}":"{value}"' for name, value in first.items())
    return start.encode()


STAGE_WIDE = line_start("stage.wide")
PIPELINE_WIDE = line_start("pipeline.wide")
PIPELINE_AMEND = line_start("pipeline.wide.amend")
FAILED_RUN = line_start("pipeline.wide", status="FAIL")
RUN_OPEN = b'{"type":"run.open","journal":'
RUN_CLOSED = b'{"type":"run.closed","journal":'
HEARTBEAT = b'{"type":"heartbeat","journal":'
WRITER_CLOSED = b'{"type":"writer.closed","journal":'
SAMPLE_DECISION = b'{"type":"sample.decision","journal":'
"""The prefix of such a line. Readers find these lines with a byte search instead of decoding every line."""

PRUNED = "journal.kept"
"""The type of the first line of a pruned segment."""

Offset = Annotated[int, Meta(ge=0, le=(1 << 62))]
"""An offset in a segment, in bytes; `pread` does not accept values outside these bounds."""


class WriterClosed(Struct, frozen=True):
    """The last line of a writer: none of its runs is open.

    Attributes:
        adopted_by: Pid of the process that completed the records of a dead writer. None if the writer closed
            its own record.
        crashed: Number of runs that process recorded as crashed.
    """

    adopted_by: int | None = None
    crashed: Annotated[int, Meta(ge=0)] = 0


class SampleDecision(Struct, frozen=True):
    """The mark that records whether the archive and the exporters keep a run.

    Attributes:
        event_id: Id of the run.
        root_run_id: Id of its root run; for a root run the same id.
        kept: Whether its events are kept.
        rate: The number of runs that it represents if it is kept.
        reason: Why, such as "failed" or "one in 100".
        decided_at: RFC 3339 time of the decision.
    """

    event_id: str
    root_run_id: str
    kept: bool
    rate: float
    reason: str
    decided_at: str


class PrunedHeader(Struct, frozen=True):
    """The first line of a pruned segment, in which retention kept only the records of failed runs.

    Attributes:
        size: Original size of the segment, in bytes.
        offsets: Original offset of each of the lines that follow.
    """

    size: Offset
    offsets: list[Offset]


class Line(Struct, frozen=True):
    """A decoded line: an event has `data`, a mark has `journal`."""

    type: str
    data: Raw | UnsetType = UNSET
    journal: Raw | UnsetType = UNSET


class _Mark(Struct, frozen=True):
    type: str
    journal: Struct


_TYPES: dict[type[Struct], str] = {
    RunOpen: "run.open",
    RunClosed: "run.closed",
    Heartbeat: "heartbeat",
    WriterClosed: "writer.closed",
    SampleDecision: "sample.decision",
    PrunedHeader: PRUNED,
}

_encode_lines = msgspec.json.Encoder().encode_lines


def encode_mark(mark: Struct) -> bytes:
    """Return the line of a mark, with its newline."""
    # A list: msgspec 0.22.0 leaks the iterator that it creates for any other iterable (see pyproject.toml).
    return _encode_lines([_Mark(_TYPES[type(mark)], mark)])


_decode_line = decoder(Line)
_decode_run_open = decoder(RunOpen)
_decode_heartbeat = decoder(Heartbeat)
_decode_pruned_header = decoder(PrunedHeader)
_decode_sample_decision = decoder(SampleDecision)
_decode_writer_closed = decoder(WriterClosed)


def decode(text: bytes) -> Line | None:
    """Return the decoded line, or None if it is damaged or was not written by a journal.

    If the result is not None, the whole line can be decoded, including the parts that `Raw` skips.
    """
    line = _decode_line(text)
    if line is None or (line.data is UNSET and line.journal is UNSET) or not is_json(text):
        return None
    return line


def _body_of_mark(text: bytes) -> Raw | None:
    line = decode(text)
    return line.journal if line is not None and isinstance(line.journal, Raw) else None


def decode_run_open(text: bytes) -> RunOpen | None:
    """Decode the start mark of a run; return None if the run cannot be completed from it."""
    body = _body_of_mark(text)
    opened = _decode_run_open(body) if body is not None else None
    if opened is None or not isinstance(opened.stages, list) or not is_timestamp(opened.started_at):
        return None
    return opened


def decode_heartbeat(text: bytes) -> Heartbeat | None:
    """Decode a heartbeat; return None if it is damaged."""
    body = _body_of_mark(text)
    return _decode_heartbeat(body) if body is not None else None


def decode_pruned_header(text: bytes) -> PrunedHeader | None:
    """Decode the first line of a pruned segment; return None if it is damaged."""
    body = _body_of_mark(text)
    kept = _decode_pruned_header(body) if body is not None else None
    if kept is None or any(later <= at for at, later in pairwise([-1, *kept.offsets, kept.size])):
        return None
    return kept


def decode_sample_decision(text: bytes) -> SampleDecision | None:
    """Decode a sampling decision; return None if it is damaged."""
    body = _body_of_mark(text)
    return _decode_sample_decision(body) if body is not None else None


def decode_writer_closed(text: bytes) -> WriterClosed | None:
    """Decode the last line of a writer; return None if it is damaged."""
    body = _body_of_mark(text)
    return _decode_writer_closed(body) if body is not None else None


def is_timestamp(text: str) -> bool:
    """Return whether text is a valid timestamp.

    "2026-02-31T00:00:00Z" matches the pattern of the schema, but is invalid.
    """
    try:
        epoch_us(text)
    except (ValueError, OverflowError):
        return False
    return True


class _Kind(Struct):
    data: Raw | UnsetType = UNSET


_decode_kind = decoder(_Kind)


def is_event(text: bytes) -> bool:
    """Return whether a line contains an event; a mark has no `data`.

    Example:
        >>> is_event(b'{"type": "run.closed", "journal": {"event_id": "r1"}}')
        False
    """
    line = _decode_kind(text)
    return line is not None and isinstance(line.data, Raw)


class _Ended(Struct):
    status: Any = None
    outcome: Any = None


class _Run(Struct):
    data: _Ended | None = None


_decode_run = decoder(_Run)


def outcome_of(text: bytes) -> object:
    """Return the outcome of a line with a `pipeline.wide` event; `failed` if it has only the status FAIL.

    Example:
        >>> outcome_of(b'{"type": "pipeline.wide", "data": {"status": "FAIL", "outcome": "timeout"}}')
        'timeout'
    """
    run = _decode_run(text)
    ended = (run.data if run is not None else None) or _Ended()
    return ended.outcome or ("failed" if ended.status == "FAIL" else None)


class _Body(Struct):
    """The fields of an event or a mark that identify its run; custom events may contain any other fields."""

    event_id: Any = None
    correlation_ids: Any = None


class _Head(Struct):
    """The fields of a line that identify its run."""

    data: _Body | None = None
    journal: _Body | None = None


_decode_head = decoder(_Head)


def run_of(text: bytes) -> str:
    """Return the id of the run that a line belongs to, or "" if the line is damaged or belongs to no run.

    Example:
        >>> run_of(b'{"type": "run.closed", "journal": {"event_id": "r1", "reason": "moved"}}')
        'r1'
    """
    head = _decode_head(text)
    if head is None:
        return ""
    body = head.journal or head.data or _Body()
    ids = body.correlation_ids
    run_id = (ids.get("pipeline_run_id") if isinstance(ids, dict) else None) or body.event_id
    return run_id if isinstance(run_id, str) else ""


REQUIRED = {
    "stage.wide": ("stage_name", "status", "duration_ms", "started_at", "ended_at", "correlation_ids"),
    "pipeline.wide": (
        "status",
        "duration_ms",
        "started_at",
        "ended_at",
        "stage_summaries",
        "correlation_ids",
        "pipeline_metadata",
        "event_id",
    ),
    "stage.wide.amend": ("event_id",),
    "pipeline.wide.amend": ("event_id",),
}
"""The fields that readers of each event type require. Other fields are optional."""

_REQUIRED_INSIDE = {
    CorrelationIds: ("pipeline_run_id",),
    PipelineMetadata: ("topology",),
    StageSummary: ("stage_name", "status", "duration_ms", "error"),
}
"""The required fields of nested objects."""

_TIMES = ("started_at", "ended_at")


def is_well_formed(type: str, content: Raw | bytes) -> bool:
    """Return whether an event has the fields of its type, and each has the right JSON type.

    Unknown statuses are accepted, because a later version may have written them. Events of other types are
    accepted with any content.

    Args:
        type: Type of the event.
        content: Its data, as JSON.
    """
    if type not in REQUIRED:
        return True
    event = _decoder(type)(content)
    return event is not None and all(
        is_timestamp(time) for name in _TIMES if isinstance(time := getattr(event, name, None), str)
    )


def decode_event(text: bytes) -> dict[str, Any] | None:
    """Decode the data of a line with a wide event; return None if it is damaged."""
    line = decode(text)
    if line is None or not isinstance(line.data, Raw) or not is_well_formed(line.type, line.data):
        return None
    data: dict[str, Any] = decode_stored(line.data, dict[str, Any])
    return data


def is_complete_run(text: bytes) -> bool:
    """Return whether a line contains a `pipeline.wide` event with all fields that readers require."""
    line = decode(text)
    return line is not None and isinstance(line.data, Raw) and is_well_formed(line.type, line.data)


@functools.cache
def _decoder(type: str) -> Callable[[bytes | Raw], Any]:
    shapes: dict[str, Any] = {"stage.wide": StageWide, "pipeline.wide": PipelineWide}
    return decoder(_relaxed(shapes.get(type, WideAmend), REQUIRED[type]))


def _relaxed(shape: type[Struct], required: tuple[str, ...]) -> type[Struct]:
    """Return a type like this one that accepts any string where the schema lists allowed values."""
    fields: list[Any] = []
    for name, annotation in get_type_hints(shape, include_extras=True).items():
        relaxed = _without_literals(annotation)
        # A missing field is null in a row of the archive.
        fields.append((name, relaxed) if name in required else (name, relaxed | None, None))
    return msgspec.defstruct(f"Any{shape.__name__}", fields, kw_only=True, gc=False)


def _without_literals(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        # ExceptionInfo is recursive, and nothing depends on its literals.
        inside = _REQUIRED_INSIDE.get(annotation, ())
        return annotation if annotation is ExceptionInfo else _relaxed(annotation, inside)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str | None if None in inner else str
    if origin is UnionType or str(origin) == "typing.Union":
        parts = [_without_literals(each) for each in inner if each is not NoneType]
        united = functools.reduce(lambda a, b: a | b, parts)
        return united | None if NoneType in inner else united
    if origin is list:
        return GenericAlias(list, (_without_literals(inner[0]),))
    return annotation
