"""`Journal`: queries, checks and repairs a journal."""

from __future__ import annotations

import contextlib
import heapq
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from .._decodable import decodable
from .._files import absolute_path
from .._state_file import StateFile
from .._time import get_clock, rfc3339
from ..errors import JournalNotFoundError, RunNotFoundError, invalid_argument
from ..schema import PipelineWide
from ._check import JournalState, Progress, check
from ._format import (
    PIPELINE_AMEND,
    PIPELINE_WIDE,
    decode_event,
    is_complete_run,
)
from ._losses import open_runs_of_closed_writer
from ._reader import JournalReader
from ._recovery import (
    crashed_runs,
    open_runs,
    recover,
    writer_is_alive,
    writer_is_closed,
)
from ._repair import Repaired, repair
from ._run_filter import Names, RunFilter, RunHeader, decode_run_header, json_content
from ._run_record import CollectedRun, RunRecord, amend, collect_line
from ._segments import (
    Segment,
    Writers,
    find_lines,
    lines_containing,
    list_writers,
    readable,
    reason_not_journal,
)

__all__ = ["Journal", "find_run", "no_run", "several_runs"]


_MAX_CANDIDATES = 100
"""Maximum number of runs that are collected for an ambiguous id prefix."""


class Journal:
    """Queries the directory that a `JournalSink` writes to, also while it is being written.

    Each query first completes the records of runs whose process died.

    Args:
        path: Directory of the journal.

    Raises:
        JournalNotFoundError: The directory does not exist, or contains other files.

    Example:
        for run in Journal("journal").runs(RunFilter(status="FAIL")):
            print(run["started_at"], run["outcome"], run["error"])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = absolute_path(path)
        if (why := reason_not_journal(self.path)) is not None:
            raise JournalNotFoundError(self.path, why)

    def reader(self, name: str | None = None, *, at_end: bool = False) -> JournalReader:
        """Return a reader of all events; see `JournalReader`."""
        return JournalReader(self.path, name, at_end=at_end)

    def recover(self) -> list[str]:
        """Complete the record of every run whose process died, and return the ids of those runs.

        Raises:
            OSError: The directory cannot be written.
        """
        return recover(self.path)

    def check(
        self, progress: Progress | None = None, *, state_files: Iterable[StateFile] = ()
    ) -> JournalState:
        """Check every line and every state file, and return the state of the journal. Changes nothing.

        Args:
            progress: Called after each segment with the number of bytes checked and the total number of
                bytes.
            state_files: State files of other components in this directory that are checked too.

        Raises:
            OSError: The directory cannot be read.
        """
        return check(self.path, progress, state_files)

    def repair(self, progress: Progress | None = None, *, state_files: Iterable[StateFile] = ()) -> Repaired:
        """Complete the records of crashed runs, and remove damaged lines and files.

        Removed lines and files are kept in `broken/`. Other lines keep their offsets, so every cursor stays
        valid. A reader whose cursor was damaged reads everything again.

        Raises:
            OSError: The journal cannot be written, or another process is repairing it.
        """
        return repair(self.path, progress, state_files)

    # ------------------------------------------------------------ queries

    def runs(self, filter: RunFilter | None = None, *, limit: int | None = 20) -> list[dict[str, Any]]:
        """Return runs, newest first.

        Args:
            filter: Selects the runs; default all.
            limit: Maximum number of runs; default 20, None for all.

        Returns:
            The data of the `pipeline.wide` event of each run; for a run in progress, see `RunRecord.run`.

        Raises:
            InvalidArgumentError: `limit` is not a positive integer.
            OSError: The journal cannot be read.
        """
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise invalid_argument("runs()", "limit", limit, "a positive integer or None")
        self._complete_crashed()
        filter = filter or RunFilter()
        required = filter.required_bytes()
        found: dict[str, tuple[str, bytes | dict[str, Any]]] = {}
        cutoff = ""
        visited: dict[str, list[Segment]] = {}
        writers = list_writers(self.path)
        for segment in _newest_first(writers):
            written = _last_write(segment)
            # All lines of a run are written after the run started.
            if written < cutoff or (filter.since is not None and written < filter.since):
                break
            visited.setdefault(segment.writer, []).append(segment)
            for text in readable(find_lines(segment, PIPELINE_WIDE)):
                if not all(map(text.__contains__, required)):
                    continue
                head = decode_run_header(text, cutoff)
                if head is not None and filter.matches(head) and is_complete_run(text):
                    known = found.get(head.event_id)
                    # Of runs that share an id, the last one wins, as elsewhere.
                    if known is None or known[0] <= head.started_at:
                        found[head.event_id] = (head.started_at, text)
            if limit is not None and len(found) >= limit:
                found = dict(_newest(found, limit))
                cutoff = min(started_at for started_at, _ in found.values())
        # Use the order of writing, because modification times are wrong after a file was edited.
        for writer, segments in visited.items():
            first = min(segment.sequence for segment in segments)
            visited[writer] = [segment for segment in writers[writer] if segment.sequence >= first]
        for run in self._in_progress(visited.values()):
            if filter.matches(msgspec.convert(run, decodable(RunHeader))):
                found[run["event_id"]] = (run["started_at"], run)
        selected = {
            run_id: run if isinstance(run, dict) else decode_event(run) or {}
            for run_id, (_, run) in _newest(found, len(found) if limit is None else limit)
        }
        for segment in (segment for segments in visited.values() for segment in segments):
            for text in readable(find_lines(segment, PIPELINE_AMEND)):
                if (amendment := decode_event(text)) is not None:
                    amend(selected, amendment)
        return list(selected.values())

    def in_progress(self, filter: RunFilter | None = None) -> list[dict[str, Any]]:
        """Return the runs that have not ended, in no particular order; see `RunRecord.run` for their fields.

        If the journal is not writable, this includes runs whose process died.

        Raises:
            OSError: The journal cannot be read.
        """
        filter = filter or RunFilter()
        self._complete_crashed()
        found = self._in_progress(list_writers(self.path).values())
        return [run for run in found if filter.matches(msgspec.convert(run, decodable(RunHeader)))]

    def names(self) -> Names:
        """Return the names of all pipelines and stages of the runs in the journal; reads the whole journal.

        Raises:
            OSError: The journal cannot be read.
        """
        pipelines, stages = set[str](), set[str]()
        writers = list_writers(self.path)
        for segments in writers.values():
            for segment in segments:
                for text in readable(find_lines(segment, PIPELINE_WIDE)):
                    if (run := decode_run_header(text, "")) is not None:
                        pipelines.add(run.pipeline_name)
                        stages.update(summary.stage_name for summary in run.stage_summaries)
        for data in self._in_progress(writers.values()):
            run = msgspec.convert(data, decodable(RunHeader))
            pipelines.add(run.pipeline_name)
            stages.update(summary.stage_name for summary in run.stage_summaries)
        return Names(frozenset(pipelines), frozenset(stages))

    def _in_progress(self, writers: Iterable[list[Segment]]) -> Iterator[dict[str, Any]]:
        now_us = get_clock().wall_ns() // 1000
        for segments in writers:
            yield from readable(_in_progress_in(segments, now_us))

    def _complete_crashed(self) -> None:
        # Without write permission, query the journal without completing crashed runs.
        with contextlib.suppress(OSError):
            recover(self.path)

    def run(self, run_id: str) -> RunRecord:
        """Return the complete record of one run.

        Args:
            run_id: The `pipeline_run_id`; a request, session, user or org id that belongs to one root run; a
                unique prefix of one of these; or "last" for the newest root run.

        Raises:
            RunNotFoundError: No run, or more than one run, has this id or prefix.
            OSError: The journal cannot be read.
        """
        if run_id == "last":
            return self._last()
        self._complete_crashed()
        try:
            run_id.encode()
        except UnicodeEncodeError:
            raise self._not_found(run_id, []) from None
        if not run_id:
            raise self._not_found(run_id, [])
        started_at = _started_before(run_id)
        found = self._collect(run_id, started_at) if started_at else {}
        # The id may come from a clock that is ahead of this one.
        if run_id not in found or not found[run_id].is_complete():
            found = self._collect(run_id, "")
        if run_id in found:
            found = {run_id: found[run_id]}
        if not found:
            known_id = find_run(self.runs, run_id, f"journal {self.path!r}")
            if known_id in (None, run_id):  # the id of the run is damaged in one of its lines
                raise self._not_found(run_id, [])
            return self.run(known_id)
        if len(found) > 1:
            raise self._not_found(run_id, sorted(found))
        ((known, run),) = found.items()
        if run.pipeline_wide is None and run.opened is not None and run.closed is None:
            run.add_crash_events(self._crash_events(known))
            if run.pipeline_wide is None:
                run.closed = self._why_without_end(known)
        run.apply_amendments()
        partial_record = run.pipeline_wide or run.partial_record()
        if partial_record is None:
            raise RunNotFoundError(
                f"journal {self.path!r} contains events of run {known}, but neither its start nor its end",
                hint="they may have been deleted by retention",
            )
        return RunRecord(partial_record, run.stages, run.events, [*run.children, *self._open_children(run)])

    def _open_children(self, run: CollectedRun) -> list[dict[str, Any]]:
        if not (ids := run.children_without_end()):
            return []
        found = self._in_progress(list_writers(self.path).values())
        return sorted(
            (child for child in found if child["event_id"] in ids), key=lambda child: str(child["started_at"])
        )

    def _last(self) -> RunRecord:
        error = RunNotFoundError(f"journal {self.path!r} contains no runs yet")
        for run in self.runs(RunFilter(roots=True), limit=20) or self.runs(limit=20):
            try:
                return self.run(run["event_id"])
            except RunNotFoundError as not_found:  # the id is damaged in one of the run's lines
                error = not_found
        raise error

    def _collect(self, run_id: str, started_at: str) -> dict[str, CollectedRun]:
        """Return what the journal contains of the runs whose id starts with `run_id`.

        If `started_at` (the start of the run, from its id) is given, stop as soon as that run is complete.
        """
        collected: dict[str, CollectedRun] = {}
        exactly = (json_content(run_id) + b'"', json_content(run_id) + b"/")
        for segments in list_writers(self.path).values():
            for segment in segments:
                if _last_write(segment) < started_at:
                    continue  # last written before the run started
                for text in readable(lines_containing(segment, json_content(run_id))):
                    # Collect only a limited number of runs, because an ambiguous prefix is an error anyway.
                    if len(collected) <= _MAX_CANDIDATES or any(part in text for part in exactly):
                        collect_line(collected, text, run_id)
            # Amendments are written later, but by the same writer.
            if started_at and run_id in collected and collected[run_id].pipeline_wide:
                return collected
        return {known: run for known, run in collected.items() if run.is_run}

    def _crash_events(self, run_id: str) -> list[tuple[str, Struct]]:
        """Return the events that complete a crashed run in a journal that is not writable."""
        for segments in list_writers(self.path).values():
            for crashed in readable(_crashed_in(segments)):
                if run_id in crashed:
                    return crashed[run_id]
        return []

    def _why_without_end(self, run_id: str) -> str | None:
        """Return why a run of a closed writer has no end; None if the run may be open."""
        for segments in list_writers(self.path).values():
            for run, why in readable(open_runs_of_closed_writer(segments)):
                if run == run_id:
                    return why
        return None

    def _not_found(self, run_id: str, found: list[str]) -> RunNotFoundError:
        where = f"journal {self.path!r}"
        return several_runs(where, run_id, found) if found else no_run(where, run_id)


def find_run(runs: Callable[..., list[dict[str, Any]]], wanted: str, where: str) -> str | None:
    """Return the id of the run that has an id of any kind, or a prefix of it; None if there is no such run.

    Runs that were started inside another one inherit its ids, so root runs take precedence.

    Args:
        runs: `Journal.runs` or `EventStore.runs`.
        wanted: The id or the prefix.
        where: A description of the journal or archive for errors.

    Raises:
        RunNotFoundError: There are several.
    """
    for filter in (
        RunFilter(id=wanted, roots=True),
        RunFilter(id=wanted),
        RunFilter(id_prefix=wanted, roots=True),
        RunFilter(id_prefix=wanted),
    ):
        found = [str(run["event_id"]) for run in runs(filter, limit=_MAX_CANDIDATES + 1)]
        if len(found) == 1:
            return found[0]
        if found:
            raise several_runs(where, wanted, found)
    return None


def no_run(where: str, wanted: str) -> RunNotFoundError:
    """Return the error about an id that no run has."""
    return RunNotFoundError(f"{where} contains no run {wanted!r}", hint="`stageflow runs` lists the runs")


def several_runs(where: str, wanted: str, found: Sequence[str]) -> RunNotFoundError:
    """Return the error about an id or a prefix that several runs share."""
    many = f"more than {_MAX_CANDIDATES}" if len(found) > _MAX_CANDIDATES else len(found)
    listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return RunNotFoundError(
        f"{where} contains {many} runs that match {wanted!r}: {listed}",
        hint="use a longer prefix, or the id of one run",
    )


def _newest_first(writers: Writers) -> list[Segment]:
    segments = [segment for segments in writers.values() for segment in segments]
    return sorted(segments, key=lambda segment: (_last_write(segment), segment.sequence), reverse=True)


def _in_progress_in(segments: list[Segment], now_us: int) -> Iterator[dict[str, Any]]:
    if writer_is_alive(segments):
        for run in open_runs(segments).values():
            yield run.partial_record(now_us)
        return
    # The process died, and the journal is not writable, so the runs could not be completed.
    for crashed in _crashed_in(segments):
        for events in crashed.values():
            yield from (msgspec.to_builtins(body) for _, body in events if isinstance(body, PipelineWide))


def _crashed_in(segments: list[Segment]) -> Iterator[dict[str, list[tuple[str, Struct]]]]:
    if not writer_is_closed(segments) and not writer_is_alive(segments):
        yield crashed_runs(segments)


def _started_before(run_id: str) -> str:
    """Return a time shortly before a run started, from its id, or "" if the id is not a UUIDv7.

    A UUIDv7 (RFC 9562) starts with milliseconds since the epoch. Three seconds are subtracted, because file
    systems have coarse clocks.
    """
    try:
        known = uuid.UUID(run_id)
    except ValueError:
        return ""
    return rfc3339(max(0, (known.int >> 80) - 3000) * 1000) if known.version == 7 else ""


def _newest(
    found: dict[str, tuple[str, bytes | dict[str, Any]]], limit: int
) -> list[tuple[str, tuple[str, bytes | dict[str, Any]]]]:
    return heapq.nlargest(limit, found.items(), key=lambda item: item[1][0])


def _last_write(segment: Segment) -> str:
    """Return a time after which nothing was written to a segment, or the current time if it was deleted.

    A second is added to the modification time, because file systems have coarse clocks.
    """
    try:
        return rfc3339(os.stat(segment.path).st_mtime_ns // 1000 + 1_000_000)
    except FileNotFoundError:
        return rfc3339(get_clock().wall_ns() // 1000)
