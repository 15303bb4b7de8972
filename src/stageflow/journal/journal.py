"""Looks into a journal: its runs, newest first, and the story of one of them."""

from __future__ import annotations

import contextlib
import heapq
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from ..clock import get_clock
from ..errors import JournalNotFoundError, RunNotFoundError
from ..schema import PipelineWide
from ..timestamps import rfc3339
from .check import JournalState, Progress, check
from .disk import absolute_path
from .layout import Segment, Writers, list_writers, why_not
from .line import PIPELINE_AMEND, PIPELINE_WIDE
from .losses import lacks_end
from .readable import readable
from .reader import JournalReader
from .recovery import crashed_runs, open_runs, recover, writer_is_closed, writer_lives
from .repair import Repaired, repair
from .run_filter import Headline, RunFilter, as_json, headline
from .segment import find_lines, lines_with
from .stored import StateFile
from .story import Gathered, RunStory, amend, gather
from .wide import decode_event, is_whole_run

__all__ = ["Journal"]

_SEVERAL = 100


class Journal:
    """Looks into the directory that a `JournalSink` writes, while it does or afterwards.

    Each look completes first the records of runs whose process died.

    Raises:
        JournalNotFoundError: There is no such directory.

    Example:
        for run in Journal("journal").runs(RunFilter(status="FAIL")):
            print(run["started_at"], run["outcome"], run["error"])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = absolute_path(path)
        if (why := why_not(self.path)) is not None:
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
            progress: Called now and then with the bytes that were looked at, and all there are.
            state_files: State files of other components in this directory, whose content to check as well.

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

    # ------------------------------------------------------------ many runs

    def runs(self, filter: RunFilter | None = None, *, limit: int | None = 20) -> list[dict[str, Any]]:
        """Return runs, those that began last first.

        Args:
            filter: The runs to return; default all.
            limit: How many at most; None for all.

        Returns:
            The data of a `pipeline.wide` for each; for one under way what `RunStory.run` says.

        Raises:
            ValueError: `limit` is no whole number, 1 or more.
            OSError: The journal cannot be read.
        """
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"runs(limit={limit!r}); give a whole number, 1 or more, or None for all")
        self._complete_crashed()
        filter = filter or RunFilter()
        must_have = filter.parts()
        found: dict[str, tuple[str, bytes | dict[str, Any]]] = {}
        floor = ""
        visited: dict[str, list[Segment]] = {}
        writers = list_writers(self.path)
        for segment in _newest_first(writers):
            written = _written_at(segment)
            # Whatever a segment has of a run was written after that run began.
            if written < floor or (filter.since is not None and written < filter.since):
                break
            visited.setdefault(segment.writer, []).append(segment)
            for text in readable(find_lines(segment, PIPELINE_WIDE)):
                if not all(map(text.__contains__, must_have)):
                    continue
                head = headline(text, floor)
                if head is not None and filter.takes(head) and is_whole_run(text):
                    known = found.get(head.event_id)
                    # Of runs that share an id, the last: as everywhere else.
                    if known is None or known[0] <= head.started_at:
                        found[head.event_id] = (head.started_at, text)
            if limit is not None and len(found) >= limit:
                found = dict(_newest(found, limit))
                floor = min(began for began, _ in found.values())
        # In the order of writing: the modification time of a file is meaningless once it has been edited.
        for writer, segments in visited.items():
            first = min(segment.sequence for segment in segments)
            visited[writer] = [segment for segment in writers[writer] if segment.sequence >= first]
        for run in self._in_progress(visited.values()):
            if filter.takes(msgspec.convert(run, Headline)):
                found[run["event_id"]] = (run["started_at"], run)
        chosen = {
            run_id: run if isinstance(run, dict) else decode_event(run) or {}
            for run_id, (_, run) in _newest(found, len(found) if limit is None else limit)
        }
        for segment in (segment for segments in visited.values() for segment in segments):
            for text in readable(find_lines(segment, PIPELINE_AMEND)):
                if (amendment := decode_event(text)) is not None:
                    amend(chosen, amendment)
        return list(chosen.values())

    def in_progress(self, filter: RunFilter | None = None) -> list[dict[str, Any]]:
        """Return the runs that have not ended, in no order; see `RunStory.run` for what is known of each.

        Also those whose process died, where nobody can write down what became of them.

        Raises:
            OSError: The journal cannot be read.
        """
        filter = filter or RunFilter()
        self._complete_crashed()
        found = self._in_progress(list_writers(self.path).values())
        return [run for run in found if filter.takes(msgspec.convert(run, Headline))]

    def _in_progress(self, writers: Iterable[list[Segment]]) -> Iterator[dict[str, Any]]:
        now_us = get_clock().wall_ns() // 1000
        for segments in writers:
            yield from readable(_in_progress_in(segments, now_us))

    def _complete_crashed(self) -> None:
        # Who may read a journal but not write it sees it as it stands.
        with contextlib.suppress(OSError):
            recover(self.path)

    # ------------------------------------------------------------ one run

    def run(self, run_id: str) -> RunStory:
        """Return the story of one run.

        Args:
            run_id: Its `pipeline_run_id`, or a beginning of it that no other run shares; "last" for the
                run that began last.

        Raises:
            RunNotFoundError: There is no such run, or there are several.
            OSError: The journal cannot be read.
        """
        if run_id == "last":
            return self._last()
        self._complete_crashed()
        try:
            run_id.encode()
        except UnicodeEncodeError:
            raise self._not_one(run_id, []) from None
        if not run_id:
            raise self._not_one(run_id, [])
        began = _moment_of(run_id)
        found = self._gather(run_id, began) if began else {}
        # Its id may be that of a clock that went ahead of ours.
        if run_id not in found or not found[run_id].is_complete():
            found = self._gather(run_id, "")
        if run_id in found:
            found = {run_id: found[run_id]}
        if len(found) != 1:
            raise self._not_one(run_id, sorted(found))
        ((known, run),) = found.items()
        if run.whole is None and run.opened is not None and run.closed is None:
            run.take_crash(self._crash_of(known))
            if run.whole is None:
                run.closed = self._why_without_end(known)
        run.apply_amendments()
        picture = run.whole or run.picture()
        if picture is None:
            raise RunNotFoundError(
                f"journal {self.path!r} has events of run {known}, and neither its beginning nor its end",
                hint="the rest may have been deleted to make room",
            )
        return RunStory(picture, run.stages, run.events, [*run.children, *self._open_children(run)])

    def _open_children(self, run: Gathered) -> list[dict[str, Any]]:
        if not (ids := run.children_without_end()):
            return []
        found = self._in_progress(list_writers(self.path).values())
        return sorted(
            (child for child in found if child["event_id"] in ids), key=lambda child: str(child["started_at"])
        )

    def _last(self) -> RunStory:
        error = RunNotFoundError(f"journal {self.path!r} contains no runs yet")
        for run in self.runs(limit=20):
            try:
                return self.run(run["event_id"])
            except RunNotFoundError as not_found:  # its id is damaged in one of its lines
                error = not_found
        raise error

    def _gather(self, run_id: str, began: str) -> dict[str, Gathered]:
        """Return what there is of the runs whose id begins so.

        With the moment at which the one run began: only as much as it takes to have that one whole.
        """
        gathered: dict[str, Gathered] = {}
        exactly = (as_json(run_id) + b'"', as_json(run_id) + b"/")
        for segments in list_writers(self.path).values():
            for segment in segments:
                if _written_at(segment) < began:
                    continue  # it was finished before the run began
                for text in readable(lines_with(segment, as_json(run_id))):
                    # No need to know all runs that begin so, to say that there are several.
                    if len(gathered) <= _SEVERAL or any(part in text for part in exactly):
                        gather(gathered, text, run_id)
            # What amends it comes later, and from the same writer.
            if began and run_id in gathered and gathered[run_id].whole:
                return gathered
        return {known: run for known, run in gathered.items() if run.is_run}

    def _crash_of(self, run_id: str) -> list[tuple[str, Struct]]:
        """Return the end of a run that died with its process, where nobody could write it down."""
        for segments in list_writers(self.path).values():
            for crashed in readable(_crashed_in(segments)):
                if run_id in crashed:
                    return crashed[run_id]
        return []

    def _why_without_end(self, run_id: str) -> str | None:
        """Return why a run of a writer that has ended has no end; None if the run may be open."""
        for segments in list_writers(self.path).values():
            for run, why in readable(lacks_end(segments)):
                if run == run_id:
                    return why
        return None

    def _not_one(self, run_id: str, found: list[str]) -> RunNotFoundError:
        if not found:
            return RunNotFoundError(
                f"journal {self.path!r} has no run {run_id!r}",
                hint="`stageflow runs` lists what there is; it takes other ids by `--id`",
            )
        many = f"more than {_SEVERAL}" if len(found) > _SEVERAL else len(found)
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        return RunNotFoundError(
            f"journal {self.path!r} has {many} runs that begin with {run_id!r}: {some}",
            hint="give more of the id",
        )


def _newest_first(writers: Writers) -> list[Segment]:
    segments = [segment for segments in writers.values() for segment in segments]
    return sorted(segments, key=lambda segment: (_written_at(segment), segment.sequence), reverse=True)


def _in_progress_in(segments: list[Segment], now_us: int) -> Iterator[dict[str, Any]]:
    if writer_lives(segments):
        for run in open_runs(segments).values():
            yield run.so_far(now_us)
        return
    # It died, and nobody could write down what became of its runs.
    for crashed in _crashed_in(segments):
        for events in crashed.values():
            yield from (msgspec.to_builtins(body) for _, body in events if isinstance(body, PipelineWide))


def _crashed_in(segments: list[Segment]) -> Iterator[dict[str, list[tuple[str, Struct]]]]:
    if not writer_is_closed(segments) and not writer_lives(segments):
        yield crashed_runs(segments)


def _moment_of(run_id: str) -> str:
    """Return a moment shortly before a run began, from its id; empty where that does not tell it.

    A UUIDv7 (RFC 9562) begins with milliseconds since the epoch. Three seconds before: the times
    of files are coarser than that of a clock.
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


def _written_at(segment: Segment) -> str:
    """Return a moment after which nothing was written to a segment; now, for one that is gone.

    A second later than the file says: the clock of file systems is coarser than that of events.
    """
    try:
        return rfc3339(os.stat(segment.path).st_mtime_ns // 1000 + 1_000_000)
    except FileNotFoundError:
        return rfc3339(get_clock().wall_ns() // 1000)
