"""Builds `stage.wide`: the record of one attempt, from its result and its run."""

from __future__ import annotations

from typing import Any

from ..clock import get_clock
from ..context import PipelineContext
from ..schema import SCHEMA_VERSION, StageWide
from ..stages import StageResult
from ..timestamps import rfc3339_pair
from .exceptions import exception_info
from .resource import resource
from .run_record import RunRecord
from .shape import shaper

__all__ = ["stage_event_id", "stage_wide"]

# Nobody changes an event: what leaves it as a dict is a copy.
_NO_NAMES: list[str] = []
_NO_FIELDS: dict[str, Any] = {}
_UNSHAPED = shaper()


def stage_event_id(stage_name: str, result: StageResult, record: RunRecord) -> str:
    """Return `RUN/STAGE/ATTEMPT`."""
    return f"{record.run_id}/{stage_name}/{result.attempt}"


def stage_wide(
    stage_name: str, result: StageResult, context: PipelineContext, record: RunRecord, event_id: str
) -> StageWide:
    """Return the event for `result`, a terminal one or one with status RETRY."""
    correlation_ids, metadata = record.identity(context)
    # Whole microseconds first: then `ended_at = started_at + duration_ms` to the last digit.
    ended = result.ended_ns // 1000
    started = result.started_ns // 1000
    if not ended:  # a result made by hand, without times
        ended = started = get_clock().wall_ns() // 1000
    ready = result.ready_ns // 1000 or started
    started_at, ended_at = rfc3339_pair(started, ended)
    error = result.error
    reason = result.reason
    exception = result.exception
    kind = result.kind
    retry_after = result.retry_after
    attributes, data, missing = result.attributes, result.data, result.missing_inputs
    # Most events say nothing of the application's own: those need no shaping, and share what is empty.
    if not (attributes or data or missing) and error is None and reason is None and exception is None:
        shaping, truncated = _UNSHAPED, _NO_NAMES
    else:
        shaping = shaper()
        truncated = shaping.truncated
    # By position, in the order of the fields: by keyword costs eight times as much, and this is
    # the hot path. `_value_` is what `value` returns, without the descriptor.
    return StageWide(
        stage_name,
        result.status._value_,
        (ended - started) / 1000,  # duration_ms
        started_at,
        ended_at,
        None if error is None else shaping.text(error, "error"),
        shaping.names(data, "data_keys") if data else _NO_NAMES,
        len(result.artifacts),
        result.events_count,
        correlation_ids,
        metadata,
        SCHEMA_VERSION,
        event_id,
        resource(),
        None if kind is None else kind._value_,
        result.attempt,
        result.attempts,
        None if reason is None else shaping.text(reason, "reason"),
        None if exception is None else type(exception).__qualname__,
        None if exception is None else exception_info(exception, shaping),
        list(result.dependencies),
        shaping.names(missing, "missing_inputs") if missing else _NO_NAMES,
        (started - ready) / 1000,  # queue_ms
        (ended - ready) / 1000,  # total_ms
        None if retry_after is None else retry_after * 1000,
        result.abandoned,
        result.outcome_by,
        shaping.attributes(attributes) if attributes else _NO_FIELDS,
        shaping.redacted,
        truncated,
        record.trace.of_attempt(result.sequence, result.attempt),
        1,  # sample_rate
    )
