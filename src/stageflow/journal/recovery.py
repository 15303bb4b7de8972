"""Completes what a writer that died left open, once, however many look for it."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from ..events import Event
from ..schema import RunOpen
from ..timestamps import rfc3339
from .disk import is_locked, is_regular, only_one, replace_file
from .layout import LOCK, Segment, free_sequence, list_writers, segment_name
from .line import (
    HEARTBEAT,
    PIPELINE_WIDE,
    RUN_CLOSED,
    RUN_OPEN,
    STAGE_WIDE,
    WRITER_CLOSED,
    WriterClosed,
    decode,
    decode_heartbeat,
    decode_run_open,
    encode_mark,
    run_of,
)
from .segment import ends_with, find_lines
from .unfinished import Progress, UnfinishedRun, update_progress

__all__ = ["crashed_runs", "open_runs", "recover", "writer_is_closed", "writer_lives"]


def recover(directory: str, *, closed: set[str] | None = None) -> list[str]:
    """Complete the record of every run whose process died, and return the ids of those runs.

    Args:
        directory: Of the journal.
        closed: Writers that are known to have ended; what is found is added.

    Of several who try at the same time one does it. What it writes becomes the last segment of
    the writer that died, and appears at once or not at all.

    Raises:
        OSError: The directory cannot be read or written.
    """
    closed = set() if closed is None else closed
    if not any(_may_have_died(segments, closed) for segments in list_writers(directory).values()):
        return []
    crashed: list[str] = []
    errors: list[OSError] = []
    with only_one(os.path.join(directory, LOCK)) as alone:
        if alone:
            for segments in list_writers(directory).values():
                try:
                    if _died(segments, closed):
                        crashed += _adopt(directory, segments)
                except OSError as error:  # of this writer: those of others are completed all the same
                    errors.append(error)
    if errors and not crashed:
        raise errors[0]
    return crashed


def writer_is_closed(segments: list[Segment]) -> bool:
    """Tell whether a writer ended by itself, or was completed."""
    return ends_with(segments[-1], WRITER_CLOSED)


def writer_lives(segments: list[Segment]) -> bool:
    """Tell whether the process of a writer holds its lock."""
    return is_locked(segments[-1].path)


def _may_have_died(segments: list[Segment], closed: set[str]) -> bool:
    try:
        return _died(segments, closed)
    except PermissionError:
        return True


def _died(segments: list[Segment], closed: set[str]) -> bool:
    writer = segments[-1].writer
    if writer in closed:
        return False
    try:
        if writer_is_closed(segments):
            closed.add(writer)
            return False
        if writer_lives(segments):
            return False
    except FileNotFoundError:
        return False  # deleted meanwhile
    # It may have gone on in another segment since the directory was listed.
    last = segments[-1]
    directory = os.path.dirname(last.path)
    free = free_sequence(directory, writer, last.sequence + 1)
    later = (segment_name(writer, sequence) for sequence in range(last.sequence + 1, free))
    return not any(is_regular(os.path.join(directory, name)) for name in later)


def open_runs(segments: Iterable[Segment]) -> dict[str, UnfinishedRun]:
    """Return the runs that began in the segments of a writer and did not end there, by id.

    Raises:
        OSError: A segment cannot be read.
    """
    segments = list(segments)
    found: dict[str, RunOpen] = {}
    first: dict[str, int] = {}
    for number, segment in enumerate(segments):
        for text in find_lines(segment, RUN_OPEN, RUN_CLOSED, PIPELINE_WIDE):
            if not text.startswith(RUN_OPEN):
                found.pop(run_of(text), None)
            elif (opened := decode_run_open(text)) is not None:
                found[opened.event_id] = opened
                first[opened.event_id] = number
    if not found:
        return {}
    stages: dict[str, list[msgspec.Raw]] = {run_id: [] for run_id in found}
    progress: dict[str, Progress] = {run_id: Progress() for run_id in found}
    for segment in segments[min(first[run_id] for run_id in found) :]:
        for text in find_lines(segment, RUN_OPEN, STAGE_WIDE, HEARTBEAT):
            if text.startswith(HEARTBEAT):
                if (heartbeat := decode_heartbeat(text)) is not None:
                    update_progress(progress, heartbeat)
            elif text.startswith(RUN_OPEN):
                if (run_id := run_of(text)) in stages:
                    stages[run_id].clear()  # what came before was an earlier run of the same id
                    progress[run_id] = Progress()
            elif (known := stages.get(run_of(text))) is not None:
                event = decode(text)
                if event is not None and isinstance(event.data, msgspec.Raw):
                    known.append(event.data)
    return {
        run_id: UnfinishedRun(opened, stages[run_id], progress[run_id]) for run_id, opened in found.items()
    }


def crashed_runs(segments: list[Segment]) -> dict[str, list[tuple[str, msgspec.Struct]]]:
    """Return the events that the open runs of a dead writer did not live to emit, by the id of the run.

    Raises:
        OSError: A segment cannot be read.
    """
    died_us = os.stat(segments[-1].path).st_mtime_ns // 1000
    found = {}
    for run_id, run in open_runs(segments).items():
        resource = run.opened.resource
        why = (
            f"process died before the run ended (pid {resource.pid} on {resource.host},"
            f" last write to the journal at {rfc3339(max(died_us, run.last_known_us()))})"
        )
        found[run_id] = list(run.complete(why, died_us))
    return found


def _adopt(directory: str, segments: list[Segment]) -> list[str]:
    """Write the last segment of a writer that died: the ends of its open runs, and its own."""
    last = segments[-1]
    crashed = crashed_runs(segments)
    lines = [Event(type, body).line() for events in crashed.values() for type, body in events]
    lines.append(encode_mark(WriterClosed(adopted_by=os.getpid(), crashed=len(crashed))))
    sequence = free_sequence(directory, last.writer, last.sequence + 1, hidden=False)
    name = segment_name(last.writer, sequence)
    replace_file(os.path.join(directory, name), b"".join(lines))
    return list(crashed)
