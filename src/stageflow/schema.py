"""The shapes of the two wide events, typed and versioned, and of the marks that a journal keeps beside them.

The published JSON Schemas come out of them.
"""

from __future__ import annotations

from inspect import cleandoc
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

__all__ = [
    "SCHEMA_VERSION",
    "CorrelationIds",
    "ExceptionInfo",
    "Outcome",
    "PipelineMetadata",
    "PipelineWide",
    "ProcessSample",
    "Relation",
    "Resource",
    "RunClosed",
    "RunIdentity",
    "RunOpen",
    "StageOutline",
    "StageSummary",
    "StageWide",
    "Terminal",
    "TerminalOrRetry",
    "Trace",
    "WideAmend",
    "event_id",
    "json_schemas",
    "span_id",
]

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away; a new key does not raise it."""

Timestamp = Annotated[
    str,
    Meta(
        pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z$",
        description="RFC 3339, UTC, ending in Z",
        extra_json_schema={"format": "date-time"},
    ),
]
Milliseconds = Annotated[float, Meta(ge=0, description="milliseconds, with their fraction")]
Count = Annotated[int, Meta(ge=0)]
TerminalOrRetry = Literal["OK", "SKIP", "CANCEL", "FAIL", "RETRY"]
Terminal = Literal["OK", "SKIP", "CANCEL", "FAIL"]
Relation = Literal["cause", "context", "group"]
Outcome = Literal["ok", "degraded", "stopped", "failed", "timeout", "cancelled", "crashed"]
"""How a run ended. `crashed` is found in a journal alone: the process of the run died."""

# `gc=False`: these hold only plain values and each other, so they can be in no reference cycle,
# and a journal that makes millions of them gives the collector nothing to walk.


class CorrelationIds(Struct, frozen=True, gc=False):
    """The five ids by which events of one request are found."""

    pipeline_run_id: str | None = None
    request_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    org_id: str | None = None


class PipelineMetadata(Struct, frozen=True, gc=False):
    """What ran, and how."""

    service: str
    topology: str
    execution_mode: str


class ExceptionInfo(Struct, frozen=True, gc=False):
    """One exception: its type, its message, the innermost frames of its stack, and its chain.

    `relation` says how a link of the chain came about: `cause` (`raise ... from`), `context`
    (raised while the other was handled) or `group` (a member of an `ExceptionGroup`).
    """

    type: str
    message: str
    stack: list[str]
    chain: list[ExceptionInfo]
    relation: Relation | None = None


class Resource(Struct, frozen=True, gc=False):
    """The process that ran it. What is neither configured nor said by the platform is null."""

    service_version: str | None
    host: str
    pid: int
    runtime: str
    environment: str | None = None
    commit: str | None = None


class ProcessSample(Struct, frozen=True, gc=False):
    """How the process was when it was last sampled, within the 10 s before.

    `memory_peak_bytes` is the most that it ever had in memory, `cpu_percent` its share of one
    processor since the sample before, `loop_lag_ms` for how long what was ready had to wait for
    its event loop; null before it was measured.
    """

    uptime_s: float
    memory_peak_bytes: Count
    cpu_percent: float
    loop_lag_ms: float | None


class Trace(Struct, frozen=True, gc=False):
    """W3C Trace Context: where this event stands in a distributed trace."""

    trace_id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    span_id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    parent_span_id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")] | None


class StageSummary(Struct, frozen=True, gc=False):
    """One line of `stage_summaries`."""

    stage_name: str
    status: Terminal
    duration_ms: Milliseconds
    error: str | None


class StageWide(Struct, frozen=True, gc=False):
    """`stage.wide`: the full record of one attempt that was retried, or of a stage's end."""

    stage_name: str
    status: TerminalOrRetry
    duration_ms: Milliseconds
    started_at: Timestamp
    ended_at: Timestamp
    error: str | None
    data_keys: list[str]
    artifacts_count: Count
    events_count: Count
    correlation_ids: CorrelationIds
    pipeline_metadata: PipelineMetadata
    # Additive from here on. Who does not know a field leaves it out: a run that was cut off, say.
    schema_version: int
    event_id: str
    resource: Resource
    kind: str | None = None
    attempt: Count = 0
    attempts: Count = 0
    reason: str | None = None
    error_type: str | None = None
    exception: ExceptionInfo | None = None
    dependencies: list[str] = []
    missing_inputs: list[str] = []
    queue_ms: Milliseconds = 0.0
    total_ms: Milliseconds = 0.0
    retry_after_ms: Milliseconds | None = None
    abandoned: bool = False
    outcome_by: str | None = None
    attributes: dict[str, Any] = {}
    redacted: Count = 0
    truncated: list[str] = []
    trace: Trace | None = None
    sample_rate: Annotated[float, Meta(ge=1)] = 1


class PipelineWide(Struct, frozen=True, gc=False, kw_only=True):
    """`pipeline.wide`: the full record of one run."""

    status: Literal["OK", "FAIL"]
    duration_ms: Milliseconds
    started_at: Timestamp
    ended_at: Timestamp
    stages_total: Count
    stages_completed: Count
    stages_failed: Count
    stages_skipped: Count
    stages_cancelled: Count
    error: str | None
    stage_summaries: list[StageSummary]
    correlation_ids: CorrelationIds
    pipeline_metadata: PipelineMetadata
    # Additive from here on, as above.
    schema_version: int = SCHEMA_VERSION
    event_id: str
    pipeline_name: str
    outcome: Outcome
    reason: str | None = None
    error_type: str | None = None
    exception: ExceptionInfo | None = None
    first_failed_stage: str | None = None
    critical_path: list[str] = []
    critical_path_ms: Milliseconds = 0.0
    stages_abandoned: Count = 0
    parent_run_id: str | None = None
    root_run_id: str | None = None
    attributes: dict[str, Any] = {}
    redacted: Count = 0
    truncated: list[str] = []
    resource: Resource
    process: ProcessSample | None = None
    trace: Trace | None = None
    sample_rate: Annotated[float, Meta(ge=1)] = 1


class WideAmend(Struct, frozen=True, gc=False, kw_only=True):
    """`stage.wide.amend` and `pipeline.wide.amend`: fields that came after the event had gone out.

    They belong to the event with the same `event_id`: each replaces the attribute of its name.
    """

    event_id: str
    amended_at: Timestamp
    attributes: dict[str, Any]
    redacted: Count
    truncated: list[str]
    stage_name: str | None
    correlation_ids: CorrelationIds
    pipeline_metadata: PipelineMetadata
    schema_version: int


class StageOutline(Struct, frozen=True, gc=False, array_like=True):
    """What is known of a stage before it runs; an array in JSON, for there is one for every stage."""

    name: str
    kind: str | None
    dependencies: list[str]
    optional: bool


class RunIdentity(Struct, frozen=True, gc=False, kw_only=True):
    """What all events of one run share."""

    event_id: str
    pipeline_name: str
    correlation_ids: CorrelationIds
    pipeline_metadata: PipelineMetadata
    parent_run_id: str | None
    root_run_id: str | None
    resource: Resource
    trace: Trace


class RunOpen(RunIdentity, frozen=True, gc=False, kw_only=True):
    """The mark of a run's start: with it, a journal can complete the record of a run whose process died.

    `stages` may be JSON that is already encoded: it is the same for every run of a graph.
    """

    started_at: Timestamp
    emits_stages: bool
    emits_pipeline: bool
    stages: list[StageOutline] | msgspec.Raw


class RunClosed(Struct, frozen=True, gc=False):
    """The mark of a run's end, for a run that leaves no `pipeline.wide` where it began."""

    event_id: str
    reason: str


def event_id(run_id: str, stage: str, attempt: int) -> str:
    """Return the `event_id` of a `stage.wide`. That of a `pipeline.wide` is the id of its run.

    Example:
        >>> event_id("01a2", "search", 2)
        '01a2/search/2'
    """
    return f"{run_id}/{stage}/{attempt}"


def span_id(base: int, sequence: int = 0, attempt: int = -1) -> str:
    """Return the W3C span id of an attempt, or, without one, of its run: 16 hex digits, never all zero.

    Args:
        base: 64 random bits of the run.
        sequence: Place of the stage in its pipeline, counted from 0.
        attempt: Number of the attempt.
    """
    return "%016x" % ((base + (sequence << 16) + attempt + 1) & 0xFFFF_FFFF_FFFF_FFFF or 1)


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema (draft 2020-12) of each wide event and of their amendments, by event type.

    Example:
        >>> sorted(json_schemas())
        ['pipeline.wide', 'pipeline.wide.amend', 'stage.wide', 'stage.wide.amend']
    """
    schemas = {}
    for event_type, shape in (
        ("stage.wide", StageWide),
        ("pipeline.wide", PipelineWide),
        ("stage.wide.amend", WideAmend),
        ("pipeline.wide.amend", WideAmend),
    ):
        schema = msgspec.json.schema(shape)
        # Who makes an event may leave out what has a default. It is in the event all the same.
        made = schema["$defs"][shape.__name__]
        made["required"] = list(made["properties"])
        for field in made["properties"].values():
            field.pop("default", None)
        schemas[event_type] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": event_type,
            **_unindented(schema),
        }
    return schemas


def _unindented(part: Any) -> Any:
    """Return a schema with its descriptions as every version of Python has docstrings."""
    if isinstance(part, dict):
        return {
            key: cleandoc(value) if key == "description" and isinstance(value, str) else _unindented(value)
            for key, value in part.items()
        }
    return [_unindented(item) for item in part] if isinstance(part, list) else part
