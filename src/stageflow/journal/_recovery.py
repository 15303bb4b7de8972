"""Crash recovery: completes the record of runs whose process died."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import msgspec
from msgspec import Struct

from .._files import is_locked, is_regular, replace_file, try_lock
from .._fingerprint import fingerprint
from .._state_file import decoder
from .._time import epoch_us, rfc3339
from .._wide import build_pipeline_wide, build_stage_wide
from ..events import Event
from ..schema import (
    MAX_CHILD_RUNS,
    Heartbeat,
    Milliseconds,
    PipelineWide,
    ProcessSample,
    RunOpen,
    StageInProgress,
    StageOutline,
    StageSummary,
    StageWide,
    Terminal,
    TerminalOrRetry,
    Timestamp,
    span_id,
)
from ._format import (
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
    is_timestamp,
    run_of,
)
from ._segments import (
    LOCK,
    Segment,
    find_lines,
    free_sequence,
    last_line_starts_with,
    list_writers,
    segment_name,
)

__all__ = [
    "KnownStage",
    "RunProgress",
    "UnfinishedRun",
    "crashed_runs",
    "open_runs",
    "recover",
    "update_progress",
    "writer_is_alive",
    "writer_is_closed",
]


_CRASHED = "process died before the run ended"


class RunProgress(Struct):
    """The progress of one run, as reported by heartbeats and by the start marks of its child runs.

    Attributes:
        running: The attempts that were running at the last heartbeat, by stage.
        attributes: The last known attributes of the run (key None) and of attempts (key: stage and number).
        process: The process sample of the last heartbeat.
        child_runs: The ids of the child runs, by the span id of the attempt that started them.
    """

    running: dict[str, StageInProgress] = {}
    attributes: dict[tuple[str, int] | None, dict[str, Any]] = {}
    process: ProcessSample | None = None
    child_runs: dict[str | None, list[str]] = {}

    def child_run_started(self, child: RunOpen) -> None:
        """Add a child run."""
        self.child_runs.setdefault(child.trace.parent_span_id, []).append(child.event_id)


def update_progress(runs: Mapping[str, RunProgress], heartbeat: Heartbeat) -> None:
    """Update the progress of the runs in a heartbeat."""
    if isinstance(heartbeat.runs, list):
        for run in heartbeat.runs:
            if (progress := runs.get(run.event_id)) is not None:
                progress.running = {stage.stage_name: stage for stage in run.stages}
                progress.process = heartbeat.process
    if isinstance(heartbeat.attributes, list):
        for known in heartbeat.attributes:
            if (progress := runs.get(known.event_id)) is not None:
                attempt = None if known.stage_name is None else (known.stage_name, known.attempt)
                progress.attributes[attempt] = known.attributes


class KnownStage(Struct):
    """The known state of one stage of an unfinished run.

    Attributes:
        outline: The outline of the stage, from the start mark of the run.
        sequence: Position of the stage in its pipeline, starting at 0.
        retried: Number of attempts that were retried.
        end: The terminal event of the stage, or None.
        last_ended_us: End of the last known attempt, in microseconds since the epoch.
    """

    outline: StageOutline
    sequence: int
    retried: int = 0
    end: _StageEnd | None = None
    last_ended_us: int = 0


class _StageEnd(Struct):
    """The fields of a `stage.wide` event that the completed record depends on."""

    stage_name: str
    status: TerminalOrRetry
    duration_ms: Milliseconds
    ended_at: Timestamp
    error: str | None


_decode_end = decoder(_StageEnd)


class UnfinishedRun:
    """A run whose start is known, but not its end.

    Attributes:
        opened: The start mark of the run.
        stages: The known state of each stage, by name, in pipeline order.
        progress: The progress that heartbeats report.
    """

    def __init__(
        self, opened: RunOpen, stage_events: Iterable[msgspec.Raw | bytes], progress: RunProgress
    ) -> None:
        self.opened = opened
        self.progress = progress
        outlines = cast("list[StageOutline]", opened.stages)
        self.stages = {
            outline.name: KnownStage(outline, sequence) for sequence, outline in enumerate(outlines)
        }
        for event in stage_events:
            # An event with this type but without its fields is a custom event, or is damaged.
            end = _decode_end(event)
            if end is not None and is_timestamp(end.ended_at):
                self._add_stage_event(end)

    def _add_stage_event(self, event: _StageEnd) -> None:
        stage = self.stages.get(event.stage_name)
        if stage is None:  # the start mark was too long to include the stages
            stage = self.stages[event.stage_name] = KnownStage(
                StageOutline(event.stage_name, None, [], False), len(self.stages)
            )
        stage.last_ended_us = epoch_us(event.ended_at)
        if event.status == "RETRY":
            stage.retried += 1
        else:
            stage.end = event

    def last_known_us(self) -> int:
        """Return the time of the last known event of the run, in microseconds since the epoch."""
        ends = (stage.last_ended_us for stage in self.stages.values())
        return max(epoch_us(self.opened.started_at), *ends, 0)

    def complete(self, why: str, ended_us: int) -> Iterator[tuple[str, Struct]]:
        """Yield the events that the run could not emit, as pairs of type and body, in order.

        Args:
            why: Human-readable reason why the run ended.
            ended_us: End of the run, in microseconds since the epoch. If it is earlier than the
                last known event, the time of that event is used.
        """
        opened = self.opened
        started_us = epoch_us(opened.started_at)
        ended_us = max(ended_us, self.last_known_us())
        if opened.emits_stages:
            for stage in self.stages.values():
                if stage.end is None:
                    yield "stage.wide", self._stage_end(stage, started_us, ended_us)
        if opened.emits_pipeline:
            yield "pipeline.wide", self._pipeline_end(why, started_us, ended_us)

    def _stage_end(self, stage: KnownStage, started_us: int, ended_us: int) -> StageWide:
        opened, outline = self.opened, stage.outline
        if (running := self._running(stage)) is not None:
            return self._running_stage_end(stage, running, started_us, ended_us)
        ready_us, reason = self._ready_time_and_reason(stage, started_us, ended_us)
        return build_stage_wide(
            opened,
            int(opened.trace.span_id, 16),
            outline.name,
            "CANCEL",
            ended_us,
            ended_us,
            ready_us,
            stage.sequence,
            # After a retry, the next attempt number is used: the last one belongs to the RETRY event.
            stage.retried + 1 if stage.retried else 0,
            stage.retried,
            outline.kind,
            outline.dependencies,
            reason=reason,
        )

    def _running(self, stage: KnownStage) -> StageInProgress | None:
        """Return the attempt of a stage that was running when the process died, if that is known."""
        running = self.progress.running.get(stage.outline.name)
        # An older heartbeat may report an attempt that has since been retried.
        if running is not None and running.attempt > stage.retried:
            return running
        following = stage.retried + 1
        if self._child_runs(stage, following):
            return StageInProgress(stage.outline.name, following, None)
        return None

    def _child_runs(self, stage: KnownStage, attempt: int) -> list[str]:
        """Return the ids of the runs that an attempt started."""
        span = span_id(int(self.opened.trace.span_id, 16), stage.sequence, attempt)
        return self.progress.child_runs.get(span, [])

    def _running_stage_end(
        self, stage: KnownStage, running: StageInProgress, started_us: int, ended_us: int
    ) -> StageWide:
        opened, outline = self.opened, stage.outline
        child_runs = self._child_runs(stage, running.attempt)
        listed = (
            child_runs
            if len(child_runs) <= MAX_CHILD_RUNS
            else [*child_runs[: MAX_CHILD_RUNS - 1], child_runs[-1]]
        )
        ready_us, _ = self._ready_time_and_reason(stage, started_us, ended_us)
        return build_stage_wide(
            opened,
            int(opened.trace.span_id, 16),
            outline.name,
            "CANCEL",
            self._started_us(stage, running, started_us, ended_us),
            ended_us,
            ready_us,
            stage.sequence,
            running.attempt,
            running.attempt,
            outline.kind,
            outline.dependencies,
            reason=f"process died during attempt {running.attempt}",
            attributes=self.progress.attributes.get((outline.name, running.attempt), {}),
            items=running.items,
            stream=running.stream,
            child_runs=listed,
            child_runs_total=len(child_runs),
        )

    def _started_us(self, stage: KnownStage, running: StageInProgress, started_us: int, ended_us: int) -> int:
        """Return when a running attempt started; if no heartbeat reports it, when its stage became ready."""
        ready_us, _ = self._ready_time_and_reason(stage, started_us, ended_us)
        if running.started_at is None or not is_timestamp(running.started_at):
            return ready_us
        return min(max(epoch_us(running.started_at), ready_us), ended_us)

    def _ready_time_and_reason(self, stage: KnownStage, started_us: int, ended_us: int) -> tuple[int, str]:
        """Return when a stage became ready, and the reason for its terminal event."""
        if stage.retried:
            return stage.last_ended_us, f"process died after attempt {stage.retried}"
        before = [self.stages[name] for name in stage.outline.dependencies if name in self.stages]
        waiting = [known.outline.name for known in before if known.end is None]
        if waiting:
            listed = ", ".join(map(repr, waiting))
            return ended_us, f"never started: process died while the stage waited for {listed}"
        ready_us = max((known.last_ended_us for known in before), default=started_us)
        return ready_us, "process died while the stage was ready or running"

    def _pipeline_end(self, why: str, started_us: int, ended_us: int) -> PipelineWide:
        summaries = []
        failed = None
        for stage in self.stages.values():
            end = stage.end
            status = cast("Terminal", end.status) if end else "CANCEL"
            duration_ms = end.duration_ms if end else 0.0
            if end is None and (running := self._running(stage)) is not None:
                duration_ms = (ended_us - self._started_us(stage, running, started_us, ended_us)) / 1000
            summaries.append(
                StageSummary(stage.outline.name, status, duration_ms, end.error if end else None)
            )
            if status == "FAIL" and not stage.outline.optional:
                failed = failed or stage.outline.name
        return build_pipeline_wide(
            self.opened,
            "crashed",
            started_us,
            ended_us,
            summaries,
            error=why,
            reason=why,
            first_failed_stage=failed,
            attributes=self.progress.attributes.get(None, {}),
            process=self.progress.process,
            # Without the host and the process id, which differ between crashes.
            error_fingerprint=fingerprint(self.opened.pipeline_name, "crashed", _CRASHED),
        )

    def partial_record(self, now_us: int) -> dict[str, Any]:
        """Return the record of a run in progress: the keys of a `pipeline.wide`, as far as they are known.

        `status` and `outcome` are "OPEN" and "open"; each stage that has not ended also has the status
        "OPEN". `stages_running` lists the attempts that are known to have been running: those at the last
        heartbeat, and those that have started a child run. Each has its start (null if no heartbeat contains
        it), its attributes, the ids of its child runs and, for a map or a stream, its items or chunks so far.
        """
        opened = self.opened
        record: dict[str, Any] = msgspec.to_builtins(
            self._pipeline_end("", epoch_us(opened.started_at), max(now_us, self.last_known_us()))
        )
        for summary in record["stage_summaries"]:
            if self.stages[summary["stage_name"]].end is None:
                summary["status"] = "OPEN"
        record.update(status="OPEN", outcome="open", error=None, reason=None, ended_at=None)
        record["error_fingerprint"] = None
        record["stages_running"] = [
            {
                "stage_name": name,
                "attempt": running.attempt,
                "started_at": running.started_at,
                "attributes": self.progress.attributes.get((name, running.attempt), {}),
                "items": msgspec.to_builtins(running.items),
                "stream": msgspec.to_builtins(running.stream),
                "child_runs": self._child_runs(stage, running.attempt),
            }
            for name, stage in self.stages.items()
            if stage.end is None and (running := self._running(stage)) is not None
        ]
        record["stages_cancelled"] = sum(
            summary["status"] == "CANCEL" for summary in record["stage_summaries"]
        )
        return record


def recover(directory: str, *, closed: set[str] | None = None) -> list[str]:
    """Complete the record of every run whose process died, and return the ids of those runs.

    If several processes try at the same time, only one performs the recovery. That process writes the last
    segment of the dead writer atomically.

    Args:
        directory: Directory of the journal.
        closed: Names of writers that are known to be closed; the function adds those that it finds.

    Raises:
        OSError: The directory cannot be read or written.
    """
    closed = set() if closed is None else closed
    if not any(_may_have_died(segments, closed) for segments in list_writers(directory).values()):
        return []
    crashed: list[str] = []
    errors: list[OSError] = []
    with try_lock(os.path.join(directory, LOCK)) as alone:
        if alone:
            for segments in list_writers(directory).values():
                try:
                    if _has_died(segments, closed):
                        crashed += _complete_writer(directory, segments)
                except OSError as error:  # only this writer is affected; complete the runs of the others
                    errors.append(error)
    if errors and not crashed:
        raise errors[0]
    return crashed


def writer_is_closed(segments: list[Segment]) -> bool:
    """Return whether a writer closed its record, or a reader completed it."""
    return last_line_starts_with(segments[-1], WRITER_CLOSED)


def writer_is_alive(segments: list[Segment]) -> bool:
    """Return whether the process of a writer holds the lock of its last segment."""
    return is_locked(segments[-1].path)


def _may_have_died(segments: list[Segment], closed: set[str]) -> bool:
    try:
        return _has_died(segments, closed)
    except PermissionError:
        return True


def _has_died(segments: list[Segment], closed: set[str]) -> bool:
    writer = segments[-1].writer
    if writer in closed:
        return False
    try:
        if writer_is_closed(segments):
            closed.add(writer)
            return False
        if writer_is_alive(segments):
            return False
    except FileNotFoundError:
        return False  # deleted in the meantime
    # The writer may have started another segment since the directory was listed.
    last = segments[-1]
    directory = os.path.dirname(last.path)
    free = free_sequence(directory, writer, last.sequence + 1)
    later = (segment_name(writer, sequence) for sequence in range(last.sequence + 1, free))
    return not any(is_regular(os.path.join(directory, name)) for name in later)


def open_runs(segments: Iterable[Segment]) -> dict[str, UnfinishedRun]:
    """Return the runs that started but did not end in the segments of a writer, by id.

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
    progress: dict[str, RunProgress] = {run_id: RunProgress() for run_id in found}
    for segment in segments[min(first[run_id] for run_id in found) :]:
        for text in find_lines(segment, RUN_OPEN, STAGE_WIDE, HEARTBEAT):
            if text.startswith(HEARTBEAT):
                if (heartbeat := decode_heartbeat(text)) is not None:
                    update_progress(progress, heartbeat)
            elif text.startswith(RUN_OPEN):
                if (run_id := run_of(text)) in stages:
                    stages[run_id].clear()  # earlier events belong to an earlier run with the same id
                    progress[run_id] = RunProgress()
                opened = decode_run_open(text)
                if opened is not None and (parent := progress.get(opened.parent_run_id or "")) is not None:
                    parent.child_run_started(opened)
            elif (known := stages.get(run_of(text))) is not None:
                event = decode(text)
                if event is not None and isinstance(event.data, msgspec.Raw):
                    known.append(event.data)
    return {
        run_id: UnfinishedRun(opened, stages[run_id], progress[run_id]) for run_id, opened in found.items()
    }


def crashed_runs(segments: list[Segment]) -> dict[str, list[tuple[str, msgspec.Struct]]]:
    """Return the events that the open runs of a dead writer could not emit, by run id.

    Raises:
        OSError: A segment cannot be read.
    """
    died_us = os.stat(segments[-1].path).st_mtime_ns // 1000
    found = {}
    for run_id, run in open_runs(segments).items():
        resource = run.opened.resource
        why = (
            f"{_CRASHED} (pid {resource.pid} on {resource.host},"
            f" last write to the journal at {rfc3339(max(died_us, run.last_known_us()))})"
        )
        found[run_id] = list(run.complete(why, died_us))
    return found


def _complete_writer(directory: str, segments: list[Segment]) -> list[str]:
    """Write the last segment of a dead writer: the ends of its open runs, and its closing mark."""
    last = segments[-1]
    crashed = crashed_runs(segments)
    lines = [Event(type, body).line() for events in crashed.values() for type, body in events]
    lines.append(encode_mark(WriterClosed(adopted_by=os.getpid(), crashed=len(crashed))))
    sequence = free_sequence(directory, last.writer, last.sequence + 1, hidden=False)
    name = segment_name(last.writer, sequence)
    replace_file(os.path.join(directory, name), b"".join(lines))
    return list(crashed)
