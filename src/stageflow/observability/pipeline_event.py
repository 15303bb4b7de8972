"""Builds `pipeline.wide`: the record of a whole run, from its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import cast

from ..clock import get_clock
from ..context import PipelineContext, PipelineResults
from ..context.results import Outcome
from ..schema import PipelineWide, StageSummary, Terminal
from ..stages import StageResult, StageStatus
from ..timestamps import rfc3339
from .critical_path import critical_path
from .exceptions import exception_info
from .process import sample
from .resource import resource
from .run_record import RunRecord
from .shape import shaper

__all__ = ["pipeline_wide"]


def pipeline_wide(
    results: Mapping[str, StageResult], context: PipelineContext, record: RunRecord
) -> PipelineWide:
    """Return the event for the results of a run, or for a dict of stage results made by hand."""
    whole = results if isinstance(results, PipelineResults) else _whole(results, context, record)
    correlation_ids, metadata = record.identity(context)
    counts = Counter(result.status for result in whole.values())
    started = whole.started_ns // 1000
    ended = whole.ended_ns // 1000
    path, path_ms = critical_path(whole)
    record.process = record.process or sample()
    exception = whole.exception
    shaping = shaper()
    attributes = shaping.attributes(record.attributes) if record.attributes else {}
    return PipelineWide(
        status="OK" if whole.ok else "FAIL",
        duration_ms=(ended - started) / 1000,
        started_at=rfc3339(started),
        ended_at=rfc3339(ended),
        stages_total=len(whole),
        stages_completed=counts[StageStatus.OK],
        stages_failed=counts[StageStatus.FAIL],
        stages_skipped=counts[StageStatus.SKIP],
        stages_cancelled=counts[StageStatus.CANCEL],
        error=None if whole.error is None else shaping.text(whole.error, "error"),
        stage_summaries=[
            StageSummary(
                name,
                cast("Terminal", result.status.value),
                result.duration_ms,
                None if result.error is None else shaping.text(result.error, "stage_summaries"),
            )
            for name, result in whole.items()
        ],
        correlation_ids=correlation_ids,
        pipeline_metadata=metadata,
        event_id=record.run_id,
        pipeline_name=whole.pipeline_name,
        outcome=whole.outcome,
        reason=None if whole.reason is None else shaping.text(whole.reason, "reason"),
        error_type=None if exception is None else type(exception).__qualname__,
        exception=None if exception is None else exception_info(exception, shaping),
        first_failed_stage=whole.first_failed_stage,
        critical_path=path,
        critical_path_ms=path_ms,
        stages_abandoned=len(whole.abandoned),
        parent_run_id=record.parent_run_id,
        root_run_id=record.root_run_id,
        attributes=attributes,
        redacted=shaping.redacted,
        truncated=shaping.truncated,
        resource=resource(),
        process=record.process,
        trace=record.trace.of_run(),
    )


def _whole(
    results: Mapping[str, StageResult], context: PipelineContext, record: RunRecord
) -> PipelineResults:
    """Return the results of a run of which only the stages are known."""
    failed = [result for result in results.values() if result.status is StageStatus.FAIL]
    grave = min(
        (result for result in failed if not result.optional),
        key=lambda result: result.ended_ns,
        default=None,
    )
    cancelled = any(result.status is StageStatus.CANCEL for result in results.values())
    outcome: Outcome
    if grave is not None:
        outcome = "failed"
    elif cancelled:
        outcome = "stopped"
    else:
        outcome = "degraded" if failed else "ok"
    timed = [result for result in results.values() if result.ended_ns]
    now = get_clock().wall_ns()
    return PipelineResults(
        results,
        pipeline_name=record.pipeline_name,
        context=context,
        outcome=outcome,
        error=None if grave is None else f"stage {grave.name!r} failed: {grave.error}",
        exception=None if grave is None else grave.exception,
        first_failed_stage=None if grave is None else grave.name,
        started_ns=min((result.started_ns for result in timed), default=now),
        ended_ns=max((result.ended_ns for result in timed), default=now),
    )
