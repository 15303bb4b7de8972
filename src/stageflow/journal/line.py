"""The lines of a segment: events, and the journal's own marks beside them.

{"type": "stage.wide", "data": {...}}       an event
{"type": "run.open", "journal": {...}}      a mark: a key of its own, so that no event can be taken for one
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from ..schema import RunClosed, RunOpen

__all__ = [
    "PIPELINE_AMEND",
    "PIPELINE_WIDE",
    "RUN_CLOSED",
    "RUN_OPEN",
    "STAGE_WIDE",
    "WRITER_CLOSED",
    "Kept",
    "Line",
    "WriterClosed",
    "decode_line",
    "encode_mark",
    "run_of",
]

STAGE_WIDE = b'{"type":"stage.wide","data":'
PIPELINE_WIDE = b'{"type":"pipeline.wide","data":'
PIPELINE_AMEND = b'{"type":"pipeline.wide.amend","data":'
RUN_OPEN = b'{"type":"run.open","journal":'
RUN_CLOSED = b'{"type":"run.closed","journal":'
WRITER_CLOSED = b'{"type":"writer.closed","journal":'
"""How such lines begin: to find them costs a search for bytes, not the reading of every line."""


class WriterClosed(Struct, frozen=True):
    """The last line of a writer: nothing of it is open any more.

    Attributes:
        adopted_by: Pid of the process that completed the records of a writer that died, or None
            for one that ended by itself.
        crashed: How many runs that process found cut off.
    """

    adopted_by: int | None = None
    crashed: int = 0


class Kept(Struct, frozen=True):
    """The first line of a segment of which only the records of failed runs are left.

    Attributes:
        size: Bytes that the segment had.
        offsets: Where each of the lines that follow began in it.
    """

    size: int
    offsets: list[int]


class Line(Struct, frozen=True):
    """A line as it is read: an event has `data`, a mark has `journal`."""

    type: str
    data: Raw | msgspec.UnsetType = msgspec.UNSET
    journal: Raw | msgspec.UnsetType = msgspec.UNSET


class _Mark(Struct, frozen=True):
    type: str
    journal: Struct


_TYPES: dict[type[Struct], str] = {
    RunOpen: "run.open",
    RunClosed: "run.closed",
    WriterClosed: "writer.closed",
    Kept: "journal.kept",
}

_encode_lines = msgspec.json.Encoder().encode_lines

decode_line: Callable[[bytes | memoryview | Any], Line] = msgspec.json.Decoder(Line).decode
"""Read one line. Raises `msgspec.DecodeError` where it is no JSON, or no line of ours."""


def encode_mark(mark: Struct) -> bytes:
    """Return the line of a mark, with its newline."""
    # A list: msgspec 0.22.0 leaks the iterator that it makes of any other iterable (see pyproject.toml).
    return _encode_lines([_Mark(_TYPES[type(mark)], mark)])


class _Body(Struct):
    """As much of an event or a mark as names its run: an event of somebody else's may hold anything."""

    event_id: Any = None
    correlation_ids: Any = None


class _Head(Struct):
    """As much of a line as says whose it is."""

    data: _Body | None = None
    journal: _Body | None = None


_decode_head = msgspec.json.Decoder(_Head).decode


def run_of(text: bytes) -> str:
    """Return the id of the run that a line belongs to; empty where it is broken or belongs to none.

    Example:
        >>> run_of(b'{"type": "run.closed", "journal": {"event_id": "r1", "reason": "moved"}}')
        'r1'
    """
    try:
        head = _decode_head(text)
    except msgspec.DecodeError:
        return ""
    body = head.journal or head.data or _Body()
    ids = body.correlation_ids
    run_id = (ids.get("pipeline_run_id") if isinstance(ids, dict) else None) or body.event_id
    return run_id if isinstance(run_id, str) else ""
