"""Builds the two wide events from plain values: for runs of this process, and for runs whose process died.

Callers pass sanitized values: redacted, bounded in size, and representable as JSON.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ._time import rfc3339
from .schema import (
    SCHEMA_VERSION,
    ExceptionInfo,
    Items,
    Outcome,
    PipelineWide,
    ProcessSample,
    RunIdentity,
    StageSummary,
    StageWide,
    Stream,
    TerminalOrRetry,
    Trace,
    Worker,
    event_id,
    span_id,
)

__all__ = ["GOOD_OUTCOMES", "build_pipeline_wide", "build_stage_wide"]

GOOD_OUTCOMES = frozenset({"ok", "degraded", "stopped"})
"""The outcomes of runs with status OK."""

# Events are immutable, and a dict built from one is a copy, so events can share empty containers.
_NO_NAMES: list[str] = []
_NO_FIELDS: dict[str, Any] = {}


@functools.lru_cache(maxsize=256)
def _timestamp_format(second: int) -> str:
    """Return the format string for timestamps within a second; its argument is the microseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%%06dZ", time.gmtime(second))


def build_stage_wide(
    run: RunIdentity,
    span_base: int,
    stage_name: str,
    status: TerminalOrRetry,
    started_us: int,
    ended_us: int,
    ready_us: int,
    sequence: int,
    attempt: int,
    attempts: int,
    kind: str | None,
    dependencies: Sequence[str],
    error: str | None = None,
    reason: str | None = None,
    error_type: str | None = None,
    exception: ExceptionInfo | None = None,
    data_keys: list[str] = _NO_NAMES,
    artifacts_count: int = 0,
    events_count: int = 0,
    missing_inputs: list[str] = _NO_NAMES,
    retry_after_ms: float | None = None,
    abandoned: bool = False,
    outcome_by: str | None = None,
    attributes: dict[str, Any] = _NO_FIELDS,
    redacted: int = 0,
    truncated: list[str] = _NO_NAMES,
    loop_blocked_ms: float | None = None,
    items: Items | None = None,
    child_runs: list[str] = _NO_NAMES,
    child_runs_total: int = 0,
    stream: Stream | None = None,
    worker: Worker | None = None,
    log_tail: list[str] = _NO_NAMES,
    log_warnings: int = 0,
    log_errors: int = 0,
    error_fingerprint: str | None = None,
) -> StageWide:
    """Return a `stage.wide` event.

    Times are integers, microseconds since the Unix epoch: `ended_at` is exactly `started_at + duration_ms`.
    """
    second, fraction = divmod(started_us, 1_000_000)
    timestamp = _timestamp_format(second)
    later = fraction + ended_us - started_us
    trace = run.trace
    # Positional arguments, in field order: keywords take ten times as long, and this is the hot path.
    # `test_each_field_of_a_stage_event_gets_its_own_value` detects swapped fields.
    return StageWide(
        stage_name,
        status,
        (ended_us - started_us) / 1000,  # duration_ms
        timestamp % fraction,  # started_at
        timestamp % later if later < 1_000_000 else rfc3339(ended_us),  # ended_at
        error,
        data_keys,
        artifacts_count,
        events_count,
        run.correlation_ids,
        run.pipeline_metadata,
        SCHEMA_VERSION,
        event_id(run.event_id, stage_name, attempt),
        run.resource,
        kind,
        attempt,
        attempts,
        reason,
        error_type,
        exception,
        list(dependencies),
        missing_inputs,
        (started_us - ready_us) / 1000,  # queue_ms
        (ended_us - ready_us) / 1000,  # total_ms
        retry_after_ms,
        abandoned,
        outcome_by,
        attributes,
        redacted,
        truncated,
        Trace(trace.trace_id, span_id(span_base, sequence, attempt), trace.span_id),
        1,  # sample_rate
        loop_blocked_ms,
        items,
        child_runs,
        child_runs_total,
        stream,
        worker,
        log_tail,
        log_warnings,
        log_errors,
        error_fingerprint,
    )


def build_pipeline_wide(
    run: RunIdentity,
    outcome: Outcome,
    started_us: int,
    ended_us: int,
    summaries: list[StageSummary],
    *,
    error: str | None = None,
    reason: str | None = None,
    error_type: str | None = None,
    exception: ExceptionInfo | None = None,
    first_failed_stage: str | None = None,
    critical_path: list[str] = _NO_NAMES,
    critical_path_ms: float = 0.0,
    stages_abandoned: int = 0,
    attributes: Mapping[str, Any] = _NO_FIELDS,
    redacted: int = 0,
    truncated: list[str] = _NO_NAMES,
    process: ProcessSample | None = None,
    error_fingerprint: str | None = None,
) -> PipelineWide:
    """Return a `pipeline.wide` event. Times are microseconds since the Unix epoch."""
    statuses = [summary.status for summary in summaries]
    # Positional arguments, as above.
    return PipelineWide(
        "OK" if outcome in GOOD_OUTCOMES else "FAIL",
        (ended_us - started_us) / 1000,  # duration_ms
        rfc3339(started_us),
        rfc3339(ended_us),
        len(statuses),
        statuses.count("OK"),
        statuses.count("FAIL"),
        statuses.count("SKIP"),
        statuses.count("CANCEL"),
        error,
        summaries,
        run.correlation_ids,
        run.pipeline_metadata,
        SCHEMA_VERSION,
        run.event_id,
        run.pipeline_name,
        outcome,
        reason,
        error_type,
        exception,
        first_failed_stage,
        critical_path,
        critical_path_ms,
        stages_abandoned,
        run.parent_run_id,
        run.root_run_id,
        dict(attributes),
        redacted,
        truncated,
        run.resource,
        process,
        run.trace,
        1,  # sample_rate
        error_fingerprint,
    )
