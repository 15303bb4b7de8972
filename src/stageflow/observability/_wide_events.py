"""Builds wide events from the results of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from .._fingerprint import fingerprint, fingerprint_of
from .._interrupts import INTERRUPTS
from .._items import ItemAttempt
from .._time import get_clock, rfc3339
from .._wide import build_pipeline_wide, build_stage_wide
from ..context import PipelineContext
from ..errors import as_text, name_of_error
from ..results import PipelineResults
from ..schema import (
    FailedItem,
    Items,
    Outcome,
    PipelineWide,
    RunIdentity,
    StageSummary,
    StageWide,
    TerminalOrRetry,
    event_id,
)
from ..stages import StageResult, StageStatus
from ._exceptions import exception_info
from ._resource import sample
from ._run_context import RunContext
from .sanitize._sanitizer import Sanitizer, new_sanitizer

__all__ = ["critical_path", "item_event", "pipeline_wide", "sanitized_items", "stage_wide"]


_MAX_KEY_CHARS = 256
"""Maximum length of the key of an item in an event."""

_MAX_MESSAGE_CHARS = 1000
"""Maximum length of the message of a failed item in `stage.wide`."""

_MAX_LINE_CHARS = 500
"""Maximum length of a line of `log_tail`."""


def critical_path(results: Mapping[str, StageResult]) -> tuple[list[str], float]:
    """Return the chain of stages that determined the duration of a run, first to last, and its duration.

    A stage is ready when its last dependency has ended, or has sent a chunk that it reads. The chain is
    therefore found backwards, from the stage that ended last to the dependency that it waited for, and so on.
    Each stage counts from when it was ready until the next one was, so that stages that overlap because one
    reads the stream of the other are not counted twice.

    A stage that is a pipeline is followed by the critical path of its child run, as `STAGE/STAGE OF CHILD`;
    a loop by that of its last iteration. The sum does not include them.
    """
    at: StageResult | None = None
    for result in results.values():
        if result.attempts and (at is None or result.ended_ns > at.ended_ns):
            at = result
    names: list[str] = []
    total_us = 0
    next_ready = 0
    while at is not None:
        ready = at.ready_ns or at.started_ns
        # A skipped stage links the chain, but is not a part of it.
        if at.attempts:
            names += reversed(_with_child(at))
            ended = at.ended_ns if at.stream is None or not next_ready else min(at.ended_ns, next_ready)
            total_us += ended // 1000 - ready // 1000
            next_ready = ready
        before: StageResult | None = None
        released = 0
        for name in at.dependencies:
            result = results.get(name) or _NONE
            if result.ended_ns and (at_ns := _released_ns(result, ready)) > released:
                before, released = result, at_ns
        at = before
    names.reverse()
    return names, total_us / 1000


def _released_ns(result: StageResult, ready: int) -> int:
    """Return when a stage released a dependent that was ready at `ready`: at its end, or its first chunk."""
    if result.stream is None or result.ended_ns <= ready:
        return result.ended_ns
    first = result.stream.first_chunk_ms
    return ready if first is None else min(ready, result.started_ns + int(first * 1e6))


def _with_child(stage: StageResult) -> list[str]:
    """Return the name of a stage, followed by the critical path of its last child run."""
    last = next((run.results for run in reversed(stage.child_runs) if run.results is not None), None)
    if last is None:
        return [stage.name]
    return [stage.name, *(f"{stage.name}/{name}" for name in critical_path(last)[0])]


_NONE = StageResult("", StageStatus.CANCEL)
"""Substitute for a missing result: manually emitted results may be incomplete."""


def stage_wide(stage_name: str, result: StageResult, context: PipelineContext, run: RunContext) -> StageWide:
    """Build the event for a result, which is terminal or has the status RETRY."""
    started, ended, ready = result.started_ns // 1000, result.ended_ns // 1000, result.ready_ns // 1000
    if not ended:  # a manually created result without times
        ended = started = get_clock().wall_ns() // 1000
    error, reason, exception, kind = result.error, result.reason, result.exception, result.kind
    attributes, data, missing = result.attributes, result.data, result.missing_inputs
    identity = run.identity(context)
    # `_value_` avoids the descriptor of `value`: this is the hot path.
    status: TerminalOrRetry = result.status._value_
    label = None if kind is None else kind._value_
    error_text = reason_text = error_type = info = error_fingerprint = None
    data_keys: list[str] = []
    missing_names: list[str] = []
    attribute_values: dict[str, Any] = {}
    items = result.items
    child_runs: list[str] = []
    logs = result.logs
    log_tail: list[str] = []
    log_warnings = log_errors = 0
    if logs is not None:
        log_warnings, log_errors = logs.warnings, logs.errors
    redacted = 0
    truncated: list[str] = []
    # Most events contain no application data, so there is nothing to sanitize.
    if (
        attributes
        or data
        or missing
        or error is not None
        or reason is not None
        or exception is not None
        or items is not None
        or (logs is not None and logs.tail)
    ):
        sanitizer = new_sanitizer()
        with INTERRUPTS:
            if error is not None:
                error_text = sanitizer.text(error, "error")
            if reason is not None:
                reason_text = sanitizer.text(reason, "reason")
            if exception is not None:
                error_type, info = name_of_error(exception), exception_info(exception, sanitizer)
            if error_text is not None or exception is not None:
                error_fingerprint = fingerprint_of(stage_name, error_text or "", exception)
            data_keys = sanitizer.names(data, "data_keys") if data else []
            missing_names = sanitizer.names(missing, "missing_inputs") if missing else []
            attribute_values = sanitizer.attributes(attributes) if attributes else {}
            if items is not None:
                items = sanitized_items(items, sanitizer)
            if logs is not None:
                log_tail = [
                    sanitizer.text(line, "log_tail", _MAX_LINE_CHARS, is_unique=True) for line in logs.tail
                ]
        redacted, truncated = sanitizer.redacted, sanitizer.truncated
    if result.child_runs:
        child_runs = [run.run_id for run in result.child_runs]
        if result.child_runs_total > len(child_runs):
            truncated = [*truncated, "child_runs"]
    return build_stage_wide(
        identity,
        run.span_base,
        stage_name,
        status,
        started,
        ended,
        ready or started,
        result.sequence,
        result.attempt,
        result.attempts,
        label,
        result.dependencies,
        error_text,
        reason_text,
        error_type,
        info,
        data_keys,
        len(result.artifacts),
        result.events_count,
        missing_names,
        None if result.retry_after is None else result.retry_after * 1000,
        result.abandoned,
        result.outcome_by,
        attribute_values,
        redacted,
        truncated,
        result.loop_blocked_ms,
        items,
        child_runs,
        result.child_runs_total,
        result.stream,
        result.worker,
        log_tail,
        log_warnings,
        log_errors,
        error_fingerprint,
    )


def sanitized_items(items: Items, sanitizer: Sanitizer) -> Items:
    """Return a copy whose keys and messages are sanitized."""
    return replace(
        items,
        slowest=None if items.slowest is None else sanitizer.text(items.slowest, "items", _MAX_KEY_CHARS),
        failures=[
            FailedItem(
                sanitizer.text(failure.key, "items", _MAX_KEY_CHARS),
                failure.type,
                sanitizer.text(failure.message, "items", _MAX_MESSAGE_CHARS),
            )
            for failure in items.failures
        ],
    )


def item_event(
    run: RunIdentity, stage_name: str, attempt: int, item: ItemAttempt, emitted_ns: int
) -> dict[str, Any]:
    """Build the data of `stage.item`, the event of an attempt of an item of a mapped stage."""
    sanitizer = new_sanitizer()
    output, exception = item.output, item.output.exception
    with INTERRUPTS:
        data: dict[str, Any] = {
            "event_id": f"{event_id(run.event_id, stage_name, attempt)}/{item.index}/{item.number}",
            "stage_name": stage_name,
            "attempt": attempt,
            "emitted_at": rfc3339(emitted_ns // 1000),
            "correlation_ids": run.correlation_ids,
            "pipeline_metadata": run.pipeline_metadata,
            "item": sanitizer.text(item.key, "item", _MAX_KEY_CHARS),
            "item_attempt": item.number,
            "status": output.status.value,
            "duration_ms": item.duration_ms,
            "error": None if output.error is None else sanitizer.text(output.error, "error"),
            "error_type": None if exception is None else name_of_error(exception),
            "reason": None if output.reason is None else sanitizer.text(output.reason, "reason"),
            "exception": None if exception is None else exception_info(exception, sanitizer),
        }
    return data | {"redacted": sanitizer.redacted, "truncated": sanitizer.truncated}


def pipeline_wide(
    results: Mapping[str, StageResult], context: PipelineContext, run: RunContext
) -> PipelineWide:
    """Build the event for the results of a run, or for a manually created dict of stage results."""
    run_results = results if isinstance(results, PipelineResults) else _from_stages(results, context, run)
    path, path_ms = critical_path(run_results)
    run.process = run.process or sample()
    exception = run_results.exception
    sanitizer = new_sanitizer()
    attributes = sanitizer.attributes(run.attributes) if run.attributes else {}
    error = None if run_results.error is None else sanitizer.text(run_results.error, "error")
    # The results of a run are terminal, never RETRY, which the type of `status` allows.
    summaries = [
        StageSummary(
            name,
            result.status._value_,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            (result.ended_ns // 1000 - result.started_ns // 1000) / 1000,
            None if result.error is None else sanitizer.text(result.error, "stage_summaries"),
        )
        for name, result in run_results.items()
    ]
    reason = None if run_results.reason is None else sanitizer.text(run_results.reason, "reason")
    return build_pipeline_wide(
        run.identity(context),
        run_results.outcome,
        run_results.started_ns // 1000,
        run_results.ended_ns // 1000,
        summaries,
        error=error,
        reason=reason,
        error_type=None if exception is None else name_of_error(exception),
        exception=None if exception is None else exception_info(exception, sanitizer),
        first_failed_stage=run_results.first_failed_stage,
        critical_path=path,
        critical_path_ms=path_ms,
        stages_abandoned=len(run_results.abandoned),
        attributes=attributes,
        redacted=sanitizer.redacted,
        truncated=sanitizer.truncated,
        process=run.process,
        error_fingerprint=_fingerprint_of_run(run_results, summaries, error, reason),
    )


def _fingerprint_of_run(
    run: PipelineResults, summaries: Iterable[StageSummary], error: str | None, reason: str | None
) -> str | None:
    """Return the fingerprint of a failed run: that of its first failed stage, unless the run itself failed.

    Args:
        run: The results.
        summaries: The summaries of its stages, whose errors are sanitized.
        error: The sanitized error of the run.
        reason: The sanitized reason for its end.
    """
    failed = run.first_failed_stage
    if run.outcome == "failed" and failed is not None and failed in run:
        text = next(summary.error for summary in summaries if summary.stage_name == failed)
        exception = run[failed].exception
        return None if text is None and exception is None else fingerprint_of(failed, text or "", exception)
    if error is None:
        return None
    kind = run.outcome if run.exception is None else name_of_error(run.exception)
    return fingerprint(run.pipeline_name, kind, reason or error)


def _from_stages(
    results: Mapping[str, StageResult], context: PipelineContext, run: RunContext
) -> PipelineResults:
    """Return the results of a run, derived from the results of its stages."""
    failed = [result for result in results.values() if result.status is StageStatus.FAIL]
    first_failed = min(
        (result for result in failed if not result.optional),
        key=lambda result: result.ended_ns,
        default=None,
    )
    cancelled = any(result.status is StageStatus.CANCEL for result in results.values())
    outcome: Outcome
    if first_failed is not None:
        outcome = "failed"
    elif cancelled:
        outcome = "stopped"
    else:
        outcome = "degraded" if failed else "ok"
    error = None
    if first_failed is not None:
        error = f"stage {first_failed.name!r} failed: {as_text(first_failed.error)}"
    timed = [result for result in results.values() if result.ended_ns]
    now = get_clock().wall_ns()
    return PipelineResults(
        results,
        pipeline_name=run.pipeline_name,
        context=context,
        outcome=outcome,
        error=error,
        exception=None if first_failed is None else first_failed.exception,
        first_failed_stage=None if first_failed is None else first_failed.name,
        started_ns=min((result.started_ns for result in timed), default=now),
        ended_ns=max((result.ended_ns for result in timed), default=now),
    )
