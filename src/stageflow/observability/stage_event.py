"""Builds `stage.wide`: the record of one attempt, from its result and its run."""

from __future__ import annotations

from ..clock import get_clock
from ..schema import SCHEMA_VERSION, StageWide
from ..stages import StageResult
from .exceptions import exception_info
from .plain import plain, safe_text
from .resource import resource
from .run_record import RunRecord, event_run_id
from .timestamps import rfc3339

__all__ = ["stage_event_id", "stage_wide"]


def stage_event_id(stage_name: str, result: StageResult, record: RunRecord) -> str:
    """Return `RUN/STAGE/ATTEMPT`."""
    return f"{event_run_id(record)}/{stage_name}/{result.attempts}"


def stage_wide(stage_name: str, result: StageResult, record: RunRecord, event_id: str) -> StageWide:
    """Return the event for `result`, a terminal one or one with status RETRY."""
    correlation_ids, metadata = record.identity
    # Whole microseconds first: then `ended_at = started_at + duration_ms` to the last digit.
    ended = result.ended_ns // 1000
    started = result.started_ns // 1000
    if not ended:  # a result made by hand, without times
        ended = started = get_clock().wall_ns() // 1000
    ready = result.ready_ns // 1000 or started
    error = result.error
    exception = result.exception
    kind = result.kind
    return StageWide(
        stage_name=stage_name,
        status=result.status.value,
        duration_ms=(ended - started) / 1000,
        started_at=rfc3339(started),
        ended_at=rfc3339(ended),
        error=None if error is None else safe_text(error),
        data_keys=[safe_text(key) if type(key) is str else plain(repr(key)) for key in result.data],
        artifacts_count=len(result.artifacts),
        events_count=result.events_count,
        correlation_ids=correlation_ids,
        pipeline_metadata=metadata,
        schema_version=SCHEMA_VERSION,
        event_id=event_id,
        kind=None if kind is None else kind.value,
        attempt=result.attempts,
        attempts=result.attempts,
        reason=None if result.reason is None else safe_text(result.reason),
        error_type=None if exception is None else type(exception).__qualname__,
        exception=None if exception is None else exception_info(exception),
        dependencies=list(result.dependencies),
        missing_inputs=[safe_text(name) for name in result.missing_inputs],
        queue_ms=(started - ready) / 1000,
        total_ms=(ended - ready) / 1000,
        retry_after_ms=None if result.retry_after is None else result.retry_after * 1000,
        abandoned=result.abandoned,
        attributes=plain(result.attributes) if result.attributes else {},
        resource=resource(),
        trace=record.trace.of_attempt(result.sequence, result.attempts),
        sample_rate=1,
    )
