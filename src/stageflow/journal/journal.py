"""Looks into a journal: its runs, newest first, and the story of one of them."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from ..clock import get_clock
from ..errors import JournalNotFoundError, RunNotFoundError
from ..schema import CorrelationIds, RunOpen
from ..timestamps import rfc3339
from .layout import Segment, list_writers
from .line import PIPELINE_WIDE, RUN_CLOSED, RUN_OPEN
from .reader import JournalReader
from .recovery import open_runs, recover, writer_lives
from .segment import decode, find_lines, lines_with
from .unfinished import UnfinishedRun

__all__ = ["Journal", "RunFilter", "RunStory"]

_STARTED_AT = b'"started_at":"'
_NEAR_THE_FRONT = 200


class RunFilter(Struct, frozen=True, kw_only=True):
    """Which runs are wanted; what is None leaves the choice open.

    Attributes:
        status: A status ("OK", "FAIL", "OPEN") or an outcome ("failed", "crashed", ...), in any case.
        pipeline: Name of the pipeline.
        stage: Name of a stage; with a status behind a colon ("search:FAIL"), one that ended so.
        id: One of the five ids, or the beginning of a run's.
        since: RFC 3339 in UTC: runs that began then or later.
        until: RFC 3339 in UTC: runs that began before.
    """

    status: str | None = None
    pipeline: str | None = None
    stage: str | None = None
    id: str | None = None
    since: str | None = None
    until: str | None = None

    def takes(self, run: _Headline) -> bool:
        """Tell whether a run is wanted."""
        return (
            (self.status is None or self.status.lower() in (run.status.lower(), run.outcome))
            and (self.pipeline is None or self.pipeline == run.pipeline_name)
            and (self.since is None or run.started_at >= self.since)
            and (self.until is None or run.started_at < self.until)
            and (self.id is None or run.has_id(self.id))
            and (self.stage is None or run.has_stage(self.stage))
        )


class _Summary(Struct, frozen=True, gc=False):
    stage_name: str
    status: str


class _Headline(Struct, frozen=True):
    """As much of a `pipeline.wide` as runs are chosen by."""

    status: str = ""
    outcome: str = ""
    started_at: str = ""
    event_id: str = ""
    pipeline_name: str = ""
    correlation_ids: CorrelationIds = CorrelationIds()
    stage_summaries: list[_Summary] = []

    def has_id(self, wanted: str) -> bool:
        ids = self.correlation_ids
        return self.event_id.startswith(wanted) or wanted in (
            ids.request_id,
            ids.session_id,
            ids.user_id,
            ids.org_id,
        )

    def has_stage(self, wanted: str) -> bool:
        name, _, status = wanted.partition(":")
        return any(
            summary.stage_name == name and status.upper() in ("", summary.status)
            for summary in self.stage_summaries
        )


class RunStory(Struct, frozen=True):
    """Everything that a journal has of one run.

    Attributes:
        run: The data of its `pipeline.wide`; of a run that is under way, the same keys as far as
            they are known, with status "OPEN" and outcome "open".
        stages: The data of its `stage.wide` events, in order.
        events: Its stages' own events, type and data, in order.
        children: The data of the `pipeline.wide` of each run that was started inside it.
    """

    run: dict[str, Any]
    stages: list[dict[str, Any]]
    events: list[tuple[str, dict[str, Any]]]
    children: list[dict[str, Any]]


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
        self.path = os.fspath(path)
        if not os.path.isdir(self.path):
            raise JournalNotFoundError(self.path)

    def reader(self, name: str | None = None, *, at_end: bool = False) -> JournalReader:
        """Return a reader of all events; see `JournalReader`."""
        return JournalReader(self.path, name, at_end=at_end)

    def recover(self) -> list[str]:
        """Complete the record of every run whose process died, and return the ids of those runs.

        Raises:
            OSError: The directory cannot be written.
        """
        return recover(self.path)

    # ------------------------------------------------------------ many runs

    def runs(self, where: RunFilter | None = None, *, limit: int | None = 20) -> list[dict[str, Any]]:
        """Return runs, those that began last first.

        Args:
            where: Which; default all.
            limit: How many at most; None for all.

        Returns:
            The data of a `pipeline.wide` for each; for one under way what `RunStory.run` says.

        Raises:
            OSError: The journal cannot be read.
        """
        self._complete_crashed()
        where = where or RunFilter()
        found: dict[str, tuple[str, bytes | dict[str, Any]]] = {}
        floor = ""
        visited: dict[str, list[Segment]] = {}
        for segment in self._newest_first():
            written = _written_at(segment)
            # Whatever a segment has of a run was written after that run began.
            if written < floor or (where.since is not None and written < where.since):
                break
            visited.setdefault(segment.writer, []).insert(0, segment)
            for text in find_lines(segment, PIPELINE_WIDE):
                if (head := _headline(text, floor)) is not None and where.takes(head):
                    found[head.event_id] = (head.started_at, text)
            if limit is not None and len(found) >= limit:
                found = dict(_newest(found, limit))
                floor = min(began for began, _ in found.values())
        for run in self._under_way(visited.values()):
            if where.takes(msgspec.convert(run, _Headline)):
                found[run["event_id"]] = (run["started_at"], run)
        return [
            run if isinstance(run, dict) else _data(run)
            for _, (_, run) in _newest(found, len(found) if limit is None else limit)
        ]

    def _newest_first(self) -> list[Segment]:
        segments = [segment for segments in list_writers(self.path).values() for segment in segments]
        return sorted(segments, key=lambda segment: (_written_at(segment), segment.sequence), reverse=True)

    def _under_way(self, writers: Iterable[list[Segment]]) -> Iterator[dict[str, Any]]:
        now_us = get_clock().wall_ns() // 1000
        for segments in writers:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                if writer_lives(segments):
                    for run in open_runs(segments).values():
                        yield run.so_far(now_us)

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
            newest = self.runs(limit=1)
            if not newest:
                raise RunNotFoundError(f"journal {self.path!r} has no run yet")
            run_id = newest[0]["event_id"]
        else:
            self._complete_crashed()
        gathered: dict[str, _Gathered] = {}
        for segments in list_writers(self.path).values():
            for segment in segments:
                for text in lines_with(segment, _as_json(run_id)):
                    _gather(gathered, text, run_id)
        found = {known: run for known, run in gathered.items() if run.is_run}
        if run_id in found:
            found = {run_id: found[run_id]}
        if len(found) != 1:
            raise self._not_one(run_id, sorted(found))
        ((known, run),) = found.items()
        picture = run.whole or run.picture()
        if picture is None:
            raise RunNotFoundError(
                f"journal {self.path!r} has events of run {known}, and neither its beginning nor its end",
                hint="the rest may have been deleted to make room",
            )
        return RunStory(picture, run.stages, run.events, run.children)

    def _not_one(self, run_id: str, found: list[str]) -> RunNotFoundError:
        if not found:
            return RunNotFoundError(
                f"journal {self.path!r} has no run {run_id!r}",
                hint="`stageflow runs` lists what there is; it takes other ids by `--id`",
            )
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        return RunNotFoundError(
            f"journal {self.path!r} has {len(found)} runs that begin with {run_id!r}: {some}",
            hint="give more of the id",
        )


class _Gathered:
    """What was found of one run."""

    def __init__(self) -> None:
        self.is_run = False
        self.opened: RunOpen | None = None
        self.closed: str | None = None
        self.whole: dict[str, Any] | None = None
        self.stages: list[dict[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.children: list[dict[str, Any]] = []

    def picture(self) -> dict[str, Any] | None:
        """Return what is known of a run without a `pipeline.wide`; None where its beginning is not."""
        if self.opened is None:
            return None
        run = UnfinishedRun(self.opened, map(msgspec.json.encode, self.stages))
        if self.closed is None:
            return run.so_far(get_clock().wall_ns() // 1000)
        return run.so_far(run.last_known_us()) | {
            "status": "CLOSED",
            "outcome": "closed",
            "reason": self.closed,
        }


def _gather(gathered: dict[str, _Gathered], text: bytes, wanted: str) -> None:
    line = decode(text)
    if line is None:
        return
    body = line.data if isinstance(line.data, Raw) else line.journal
    data = msgspec.json.decode(body) if isinstance(body, Raw) else None
    if not isinstance(data, dict):
        return
    run_id = (data.get("correlation_ids") or {}).get("pipeline_run_id") or data.get("event_id")
    if line.type == "pipeline.wide" and str(data.get("parent_run_id") or "").startswith(wanted):
        gathered.setdefault(data["parent_run_id"], _Gathered()).children.append(data)
    if not isinstance(run_id, str) or not run_id.startswith(wanted):
        return
    run = gathered.setdefault(run_id, _Gathered())
    if text.startswith(RUN_OPEN):
        # What came before was an earlier run of the same id.
        gathered[run_id] = run = _Gathered()
        run.is_run = True
        run.opened = msgspec.convert(data, RunOpen)
    elif text.startswith(RUN_CLOSED):
        run.closed = data.get("reason")
    elif line.journal is not UNSET:
        pass
    elif line.type == "pipeline.wide":
        run.whole, run.is_run = data, True
    elif line.type == "stage.wide":
        run.stages.append(data)
        run.is_run = True
    else:
        run.events.append((line.type, data))


def _headline(text: bytes, floor: str) -> _Headline | None:
    """Return the headline of a run; None for one that began before `floor`, and for a broken line."""
    if floor:
        # It stands near the front; most lines need not be decoded to see that they are too old.
        at = text.find(_STARTED_AT, 0, _NEAR_THE_FRONT) + len(_STARTED_AT)
        if len(_STARTED_AT) <= at and text[at : at + len(floor)] < floor.encode():
            return None
    line = decode(text)
    try:
        return msgspec.json.decode(line.data, type=_Headline) if line and isinstance(line.data, Raw) else None
    except msgspec.DecodeError:
        return None


def _data(text: bytes) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.json.decode(text)["data"]
    return data


def _newest(
    found: dict[str, tuple[str, bytes | dict[str, Any]]], limit: int
) -> list[tuple[str, tuple[str, bytes | dict[str, Any]]]]:
    return heapq.nlargest(limit, found.items(), key=lambda item: item[1][0])


def _written_at(segment: Segment) -> str:
    """Return when a segment was last written to; now, for one that is gone."""
    try:
        return rfc3339(os.stat(segment.path).st_mtime_ns // 1000)
    except FileNotFoundError:
        return rfc3339(get_clock().wall_ns() // 1000)


def _as_json(text: str) -> bytes:
    return msgspec.json.encode(text)[1:-1]
