"""Finds and records losses: missing segments of a writer, and runs of a closed writer without an end."""

from __future__ import annotations

import os
from collections.abc import Iterator

from msgspec import Struct

from .._files import is_regular, replace_file
from ..schema import RunClosed
from ._format import (
    FAILED_RUN,
    PIPELINE_WIDE,
    WRITER_CLOSED,
    PrunedHeader,
    WriterClosed,
    decode_writer_closed,
    encode_mark,
)
from ._recovery import open_runs, writer_is_closed
from ._segments import BROKEN, Segment, Writers, find_lines, free_sequence, read_lines, segment_name

__all__ = [
    "MissingSegments",
    "close_runs_without_end",
    "closed_by",
    "mark_missing",
    "missing_segments",
    "open_runs_of_closed_writer",
    "runs_without_end",
]


_NO_END = "the line with the end of the run is damaged or missing"
_DIED = "process died before the run ended"


class MissingSegments(Struct, frozen=True):
    """Consecutive missing segments of a writer that neither retention nor archiving removed.

    Attributes:
        writer: Name of the writer.
        first: Sequence number of the first missing segment.
        last: Sequence number of the last missing segment.
    """

    writer: str
    first: int
    last: int

    def __str__(self) -> str:
        many = self.last - self.first + 1
        numbers = f"number {self.first}" if many == 1 else f"numbers {self.first} to {self.last}"
        return f"{many:,} {'segment' if many == 1 else 'segments'} of writer {self.writer} ({numbers})"


def missing_segments(directory: str, writers: Writers, *, deleted: bool) -> list[MissingSegments]:
    """Return the unexplained gaps in the segment sequence of each writer.

    Retention removes the oldest segments of a writer first, and prunes the others to the records of failed
    runs. It therefore explains a gap only if no run before the gap could have been removed first.

    Args:
        directory: Directory of the journal.
        writers: All segments of the journal.
        deleted: True if retention or archiving may have removed segments.
    """
    found = []
    for writer, segments in writers.items():
        before: Segment | None = None
        for segment in segments:
            first, last = (before.sequence + 1 if before else 1), segment.sequence - 1
            while first <= last and _is_elsewhere(directory, segment_name(writer, first)):
                first += 1
            while first <= last and _is_elsewhere(directory, segment_name(writer, last)):
                last -= 1
            retained = deleted and (before is None or not _has_removable_run(before))
            if first <= last and not retained and not _marks_missing(segment):
                found.append(MissingSegments(writer, first, last))
            before = segment
    return found


def _is_elsewhere(directory: str, name: str) -> bool:
    """Return whether a writer skipped this name because it was taken, for example by a symbolic link."""
    if any(os.path.lexists(os.path.join(directory, taken)) for taken in (name, f".{name}")):
        return True
    # A repair may have moved it. Copies of damaged lines have similar names, but are regular files.
    moved = os.path.join(directory, BROKEN, f"{name}-1")
    return os.path.lexists(moved) and not is_regular(moved)


def _has_removable_run(segment: Segment) -> bool:
    if segment.pruned:
        return False
    try:
        return any(not text.startswith(FAILED_RUN) for text in find_lines(segment, PIPELINE_WIDE))
    except OSError:  # reported in `JournalState.damaged`
        return False


def _marks_missing(segment: Segment) -> bool:
    try:
        return segment.pruned and not any(True for _ in read_lines(segment))
    except OSError:
        return False


def mark_missing(directory: str, missing: MissingSegments) -> None:
    """Record missing segments by writing a pruned segment without lines in place of the last one.

    A reader that has not reached it yet counts it as missed.

    Raises:
        OSError: The segment could not be written.
    """
    path = os.path.join(directory, segment_name(missing.writer, missing.last, pruned=True))
    replace_file(path, encode_mark(PrunedHeader(1, [])))


# ------------------------------------------------------------ runs


def open_runs_of_closed_writer(segments: list[Segment]) -> Iterator[tuple[str, str]]:
    """Yield the id of each run of a closed writer that has a start but no end, and the reason.

    Raises:
        OSError: A segment cannot be read.
    """
    if not writer_is_closed(segments):
        return
    died = closed_by(segments[-1]).adopted_by is not None
    for run_id, run in open_runs(segments).items():
        # If a run emits no `pipeline.wide`, no process writes an end when it completes the writer's record.
        yield run_id, _DIED if died and not run.opened.emits_pipeline else _NO_END


def runs_without_end(segments: list[Segment]) -> Iterator[tuple[str, str]]:
    """Yield the id of each run of a closed writer whose end is damaged or missing, and the reason.

    Raises:
        OSError: A segment cannot be read.
    """
    return ((run_id, why) for run_id, why in open_runs_of_closed_writer(segments) if why == _NO_END)


def close_runs_without_end(directory: str, segments: list[Segment]) -> Iterator[str]:
    """Append a segment to a closed writer that closes its runs without an end.

    Yields:
        The ids of those runs.

    Raises:
        OSError: The segment could not be written.
    """
    runs = dict(runs_without_end(segments))
    if runs:
        last = segments[-1]
        lines = [encode_mark(RunClosed(run_id, why)) for run_id, why in runs.items()]
        lines.append(encode_mark(closed_by(last)))
        sequence = free_sequence(directory, last.writer, last.sequence + 1, hidden=False)
        name = segment_name(last.writer, sequence)
        replace_file(os.path.join(directory, name), b"".join(lines))
    yield from runs


def closed_by(segment: Segment) -> WriterClosed:
    """Return the closing mark of a closed writer.

    Raises:
        OSError: The segment cannot be read.
    """
    closed = [decode_writer_closed(text) for text in find_lines(segment, WRITER_CLOSED)]
    return next((each for each in reversed(closed) if each is not None), WriterClosed())
