"""Queries the runs of a journal."""

from __future__ import annotations

import contextlib
import heapq
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import force_setattr

from .._files import absolute_path
from .._state_file import StateFile, decode_stored, decoder
from .._time import epoch_us, get_clock, rfc3339
from .._value import ValueType
from ..errors import JournalNotFoundError, RunNotFoundError, did_you_mean
from ..schema import CorrelationIds, PipelineWide, RunOpen
from ._check import JournalState, Progress, check
from ._format import (
    HEARTBEAT,
    PIPELINE_AMEND,
    PIPELINE_WIDE,
    RUN_CLOSED,
    RUN_OPEN,
    decode,
    decode_event,
    decode_heartbeat,
    decode_run_open,
    is_well_formed,
    is_whole_run,
    run_of,
)
from ._losses import lacks_end
from ._reader import JournalReader
from ._recovery import (
    RunProgress,
    UnfinishedRun,
    crashed_runs,
    open_runs,
    recover,
    update_progress,
    writer_is_closed,
    writer_lives,
)
from ._repair import Repaired, repair
from ._segments import Segment, Writers, find_lines, lines_with, list_writers, readable, why_not

__all__ = [
    "OTHER_IDS",
    "Gathered",
    "Headline",
    "Journal",
    "Names",
    "RunFilter",
    "RunStory",
    "amend",
    "as_json",
    "find_run",
    "gather",
    "headline",
    "no_run",
    "several_runs",
]


_STARTED_AT = b'"started_at":"'
_NEAR_THE_FRONT = 200


OTHER_IDS = ("request", "session", "user", "org")
"""The ids of a run in addition to its own: fields of `RunFilter`, and with `_id` fields of a record."""


class RunFilter(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """Which runs are wanted; what is None leaves the choice open.

    Attributes:
        status: A status ("OK", "FAIL", "OPEN") or an outcome ("failed", "crashed", ...), in any case.
        pipeline: Name of the pipeline.
        stage: Name of a stage; with a status behind a colon ("search:FAIL"), one that ended so.
        id: One of the five ids, or the beginning of a run's.
        id_prefix: The beginning of one of the five ids.
        request: `request_id`.
        session: `session_id`.
        user: `user_id`.
        org: `org_id`.
        slower_than: Seconds; runs that took longer.
        since: RFC 3339: runs that began then or later.
        until: RFC 3339: runs that began before.
        roots: If True, only root runs: those that were not started inside a stage of another run.

    Raises:
        ValueError: A time is invalid, `until` is not later than `since`, or a name or id is empty.
    """

    status: str | None = None
    pipeline: str | None = None
    stage: str | None = None
    id: str | None = None
    id_prefix: str | None = None
    request: str | None = None
    session: str | None = None
    user: str | None = None
    org: str | None = None
    slower_than: float | None = None
    since: str | None = None
    until: str | None = None
    roots: bool = False

    def __post_init__(self) -> None:
        for name in ("status", "pipeline", "stage", "id", "id_prefix", *OTHER_IDS):
            # An empty one is a variable that was not set: it must not stand for everybody.
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"RunFilter({name}={value!r}); give text, or leave it out")
        # Six digits, as events have them: then the order of the texts is that of the moments.
        for name in ("since", "until"):
            if (moment := getattr(self, name)) is not None:
                try:
                    force_setattr(self, name, rfc3339(epoch_us(moment)))
                except (TypeError, ValueError):
                    raise ValueError(
                        f"RunFilter({name}={moment!r}); give RFC 3339: '2026-11-23T16:00:00Z'"
                    ) from None
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise ValueError(
                f"RunFilter(since={self.since!r}, until={self.until!r}): until must be later than since"
            )

    def parts(self) -> list[bytes]:
        """Return what must stand in the line of a run that is wanted: most others need not be decoded."""
        stage = self.stage.partition(":")[0] if self.stage else None
        ids = (self.id, self.id_prefix, self.request, self.session, self.user, self.org)
        return [as_json(text) for text in (self.pipeline, *ids, stage) if text]

    def takes(self, run: Headline) -> bool:
        """Tell whether a run is wanted."""
        return (
            (self.status is None or self.status.lower() in (run.status.lower(), run.outcome))
            and (self.pipeline is None or self.pipeline == run.pipeline_name)
            and (self.slower_than is None or run.duration_ms > self.slower_than * 1000)
            and (self.since is None or run.started_at >= self.since)
            and (self.until is None or run.started_at < self.until)
            and (self.id is None or run.has_id(self.id))
            and (self.id_prefix is None or run.has_id_prefix(self.id_prefix))
            and all(
                (value := getattr(self, name)) is None or value == getattr(run.correlation_ids, f"{name}_id")
                for name in OTHER_IDS
            )
            and (self.stage is None or run.has_stage(self.stage))
            and (not self.roots or run.parent_run_id is None)
        )


class _Summary(Struct, frozen=True, gc=False):
    stage_name: str
    status: str


class Headline(Struct, frozen=True):
    """As much of a `pipeline.wide` as runs are chosen by."""

    status: str = ""
    outcome: str = ""
    started_at: str = ""
    duration_ms: float = 0.0
    event_id: str = ""
    pipeline_name: str = ""
    parent_run_id: str | None = None
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

    def has_id_prefix(self, prefix: str) -> bool:
        ids = self.correlation_ids
        return any(
            known is not None and known.startswith(prefix)
            for known in (self.event_id, ids.request_id, ids.session_id, ids.user_id, ids.org_id)
        )

    def has_stage(self, wanted: str) -> bool:
        name, _, status = wanted.partition(":")
        return any(
            summary.stage_name == name and status.upper() in ("", summary.status)
            for summary in self.stage_summaries
        )


_decode_headline = decoder(Headline)


def headline(text: bytes, floor: str) -> Headline | None:
    """Return the headline of a run; None for one that began before `floor`, and for a broken line."""
    if floor:
        # It stands near the front; most lines need not be decoded to see that they are too old.
        at = text.find(_STARTED_AT, 0, _NEAR_THE_FRONT) + len(_STARTED_AT)
        if len(_STARTED_AT) <= at and text[at : at + len(floor)] < floor.encode():
            return None
    line = decode(text)
    head = _decode_headline(line.data) if line is not None and isinstance(line.data, Raw) else None
    # A custom event that has this name but not the fields of a wide event is not a run.
    return head if head and head.event_id and head.started_at and head.status else None


def as_json(text: str) -> bytes:
    """Return text as it stands in a line."""
    return msgspec.json.encode(text)[1:-1]


class Names(Struct, frozen=True):
    """The names of pipelines and stages that occur in records.

    Attributes:
        pipelines: Names of pipelines, including the topologies of stages.
        stages: Names of stages.
    """

    pipelines: frozenset[str]
    stages: frozenset[str]

    def unknown(self, filter: RunFilter) -> str | None:
        """Return which pipeline or stage of a filter does not occur, with the closest name; None if all do.

        Example:
            >>> Names(frozenset({"chat"}), frozenset({"search"})).unknown(RunFilter(pipeline="chatt"))
            "no pipeline 'chatt'; did you mean 'chat'?"
        """
        stage = filter.stage.partition(":")[0] if filter.stage else None
        for kind, name, known in (
            ("pipeline", filter.pipeline, self.pipelines),
            ("stage", stage, self.stages),
        ):
            if name is not None and name not in known:
                return f"no {kind} {name!r}{did_you_mean(name, known)}"
        return None


class RunStory(Struct, frozen=True):
    """Everything that a journal has of one run.

    Attributes:
        run: The data of its `pipeline.wide`; of a run that is under way, the same keys as far as
            they are known, with status "OPEN" and outcome "open", and `stages_running`: the attempts
            that were running at the last heartbeat of its process, with their attributes so far.
        stages: The data of its `stage.wide` events, in order.
        events: Its stages' own events, type and data, in order.
        children: The data of the `pipeline.wide` of each run that was started inside it; for one that is in
            progress, what is known so far, as in `run`.
    """

    run: dict[str, Any]
    stages: list[dict[str, Any]]
    events: list[tuple[str, dict[str, Any]]]
    children: list[dict[str, Any]]


class Gathered:
    """What was found of one run."""

    def __init__(self) -> None:
        self.is_run = False
        self.opened: RunOpen | None = None
        self.closed: str | None = None
        self.whole: dict[str, Any] | None = None
        self.stages: list[dict[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.children: list[dict[str, Any]] = []
        self.opened_children: list[str] = []
        self.amendments: list[dict[str, Any]] = []
        self.progress = RunProgress()

    def take_crash(self, events: Iterable[tuple[str, Struct]]) -> None:
        """Take in the events that tell of its crash, as if they had been written."""
        for type, body in events:
            data = msgspec.to_builtins(body)
            if type == "pipeline.wide":
                self.whole = data
            else:
                self.stages.append(data)

    def apply_amendments(self) -> None:
        """Give each event the fields that came after it had gone out."""
        events = {event["event_id"]: event for event in self.stages if "event_id" in event}
        if self.whole is not None:
            events[self.whole["event_id"]] = self.whole
        for amendment in self.amendments:
            amend(events, amendment)

    def is_complete(self) -> bool:
        """Tell whether there is a terminal event for each stage that `pipeline.wide` counts."""
        ended = sum(stage.get("status") != "RETRY" for stage in self.stages)
        return self.whole is not None and ended >= self.whole.get("stages_total", 0)

    def children_without_end(self) -> set[str]:
        """Return the ids of the runs that were started inside it and have no `pipeline.wide`."""
        return set(self.opened_children) - {str(child["event_id"]) for child in self.children}

    def picture(self) -> dict[str, Any] | None:
        """Return what is known of a run without a `pipeline.wide`; None where its beginning is not."""
        if self.opened is None:
            return None
        run = UnfinishedRun(self.opened, map(msgspec.json.encode, self.stages), self.progress)
        if self.closed is None:
            return run.so_far(get_clock().wall_ns() // 1000)
        return run.so_far(run.last_known_us()) | {
            "status": "CLOSED",
            "outcome": "closed",
            "reason": self.closed,
        }


def gather(gathered: dict[str, Gathered], text: bytes, wanted: str) -> None:
    """Take in a line, if it belongs to a run whose id begins as `wanted`, or to one inside it."""
    if text.startswith(HEARTBEAT):
        if (heartbeat := decode_heartbeat(text)) is not None:
            update_progress({run_id: run.progress for run_id, run in gathered.items()}, heartbeat)
        return
    line = decode(text)
    if line is None:
        return
    body = line.data if isinstance(line.data, Raw) else line.journal
    data = decode_stored(body) if isinstance(body, Raw) else None
    if not isinstance(data, dict) or not isinstance(body, Raw) or not is_well_formed(line.type, body):
        return
    run_id = run_of(text)
    if text.startswith(RUN_OPEN) and str(data.get("parent_run_id") or "").startswith(wanted):
        gathered.setdefault(str(data["parent_run_id"]), Gathered()).opened_children.append(str(run_id))
    if line.type == "pipeline.wide" and str(data.get("parent_run_id") or "").startswith(wanted):
        gathered.setdefault(str(data["parent_run_id"]), Gathered()).children.append(data)
    if not run_id or not run_id.startswith(wanted):
        return
    run = gathered.setdefault(run_id, Gathered())
    if text.startswith(RUN_OPEN):
        if (opened := decode_run_open(text)) is not None:
            # What came before was an earlier run of the same id.
            gathered[run_id] = run = Gathered()
            run.is_run = True
            run.opened = opened
    elif text.startswith(RUN_CLOSED):
        run.closed = str(data.get("reason"))
    elif line.journal is not UNSET:
        pass
    elif line.type == "pipeline.wide":
        run.whole, run.is_run = data, True
    elif line.type == "stage.wide":
        run.stages.append(data)
        run.is_run = True
    elif line.type in ("stage.wide.amend", "pipeline.wide.amend"):
        run.amendments.append(data)
    else:
        run.events.append((line.type, data))


def amend(events: Mapping[str, dict[str, Any]], amendment: Mapping[str, Any]) -> None:
    """Put the fields of an amendment into the event that it belongs to, if that is there."""
    event = events.get(str(amendment.get("event_id")))
    if event is not None:
        event["attributes"] = {**(event.get("attributes") or {}), **(amendment.get("attributes") or {})}
        event["redacted"] = (event.get("redacted") or 0) + (amendment.get("redacted") or 0)
        event["truncated"] = [*(event.get("truncated") or []), *(amendment.get("truncated") or [])]


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
                    if (run := headline(text, "")) is not None:
                        pipelines.add(run.pipeline_name)
                        stages.update(summary.stage_name for summary in run.stage_summaries)
        for data in self._in_progress(writers.values()):
            run = msgspec.convert(data, Headline)
            pipelines.add(run.pipeline_name)
            stages.update(summary.stage_name for summary in run.stage_summaries)
        return Names(frozenset(pipelines), frozenset(stages))

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
            run_id: Its `pipeline_run_id`; a request, session, user or org id that belongs to one root run;
                a prefix of one of these that no other run shares; or "last" for the newest run.

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
        if not found:
            known = find_run(self.runs, run_id, f"journal {self.path!r}")
            if known in (None, run_id):  # a run whose id is damaged in one of its lines has only a headline
                raise self._not_one(run_id, [])
            return self.run(known)
        if len(found) > 1:
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
        found = [str(run["event_id"]) for run in runs(filter, limit=_SEVERAL + 1)]
        if len(found) == 1:
            return found[0]
        if found:
            raise several_runs(where, wanted, found)
    return None


def no_run(where: str, wanted: str) -> RunNotFoundError:
    """Return the error about an id that no run has."""
    return RunNotFoundError(f"{where} has no run {wanted!r}", hint="`stageflow runs` lists the runs")


def several_runs(where: str, wanted: str, found: Sequence[str]) -> RunNotFoundError:
    """Return the error about an id or a prefix that several runs share."""
    many = f"more than {_SEVERAL}" if len(found) > _SEVERAL else len(found)
    listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return RunNotFoundError(
        f"{where} has {many} runs that match {wanted!r}: {listed}",
        hint="use a longer prefix, or the id of one run",
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
