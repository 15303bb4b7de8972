"""Writes recorded incidents: journals whose events happened when a test says they did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from stageflow import JournalSink, PipelineContext, StageResult, StageStatus
from stageflow.events import Event, MemoryEventSink
from stageflow.observability import WideEventEmitter
from stageflow.observability._run_context import start_run
from stageflow.results import PipelineResults

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def after(minutes: float = 0, *, seconds: float = 0) -> datetime:
    """A moment, counted from noon."""
    return NOON + timedelta(minutes=minutes, seconds=seconds)


class Past:
    """A journal that is written after the fact.

    Args:
        path: Directory of the journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sink = JournalSink(path, fsync="never")

    def run(
        self,
        at: datetime,
        *,
        failed: bool = False,
        ms: float = 20.0,
        pipeline: str = "checkout",
        outcome: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        error: str = "TimeoutError: the bank does not answer",
        fingerprint: str | None = "",
        stage: str = "pay",
    ) -> str:
        """Write one run with one stage that ended at a moment; return its id.

        Args:
            at: The moment.
            failed: Whether the stage failed.
            ms: Duration in milliseconds.
            pipeline: Name of the pipeline.
            outcome: Outcome of the run, which then failed itself; default that of its stage.
            attributes: Attributes of the stage.
            error: The error.
            fingerprint: The fingerprint of the error, as another version writes it; default that of this one.
            stage: Name of the stage.
        """
        ended = int(at.timestamp() * 1e6) * 1000
        began = ended - int(ms * 1e6)
        context, _ = start_run(PipelineContext(topology=pipeline), pipeline, began, 0)
        result = StageResult(
            stage,
            StageStatus.FAIL if failed else StageStatus.OK,
            {},
            error if failed else None,
            attempt=1,
            attempts=1,
            ready_ns=began,
            started_ns=began,
            ended_ns=ended,
            attributes=dict(attributes or {}),
        )
        sink = MemoryEventSink()
        emitter = WideEventEmitter(sink)
        emitter.emit_stage_wide(stage, result, context)
        results = PipelineResults(
            [(stage, result)],
            pipeline_name=pipeline,
            context=context,
            outcome=outcome or ("failed" if failed else "ok"),
            error=f"stage {stage!r} failed: {error}" if failed else error if outcome else None,
            first_failed_stage=stage if failed else None,
            started_ns=began,
            ended_ns=ended,
        )
        emitter.emit_pipeline_wide(results, context)
        for _, data in sink.events:
            if data is not None and data["error_fingerprint"] is not None and fingerprint != "":
                data["error_fingerprint"] = fingerprint
        self.events((type, data or {}) for type, data in sink.events)
        return str(context.pipeline_run_id)

    def minutes(
        self, begin: float, end: float, *, failed: float = 0.0, ms: float = 20.0, each: int = 12, **more: Any
    ) -> list[str]:
        """Write so many runs in each minute, evenly; return the ids of those that failed."""
        found = []
        number = 0
        for minute in range(int(begin), int(end)):
            for place in range(each):
                number += 1
                # Evenly: of every ten as many fail as the share says.
                fails = int(number * failed) > int((number - 1) * failed)
                at = after(minute, seconds=(place + 0.5) * 60 / each)
                run = self.run(at, failed=fails, ms=ms, **more)
                if fails:
                    found.append(run)
        return found

    def health(self, at: datetime, dropped: int, *, pid: int = 7, began: datetime = NOON) -> None:
        """Write a `stageflow.health` event of a process that has dropped so many events so far."""
        stamp = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        sinks = [{"sink": "HttpSink", "dropped": {"sink_error": dropped}, "rejected": {}}]
        data = {
            "event_id": f"health-{pid}-{stamp}",
            "emitted_at": stamp,
            "resource": {"host": "web-1", "pid": pid},
            "process": {"uptime_s": (at - began).total_seconds()},
            "sinks": sinks,
        }
        self._sink.deliver(Event("stageflow.health", data))

    def events(self, lines: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Write events as they are."""
        for type, data in lines:
            self._sink.deliver(Event(type, data))

    def close(self) -> None:
        """Close the journal's file."""
        self._sink.close()
