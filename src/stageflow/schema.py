"""The types of the wide events, and of the lifecycle marks in a journal; versioned.

The published JSON Schemas are generated from these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from inspect import cleandoc
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

__all__ = [
    "CUSTOM_EVENT_KEYS",
    "SCHEMA_VERSION",
    "AttributesSoFar",
    "CorrelationIds",
    "ExceptionInfo",
    "FailedItem",
    "Heartbeat",
    "Items",
    "Outcome",
    "PipelineMetadata",
    "PipelineWide",
    "ProcessSample",
    "Relation",
    "Resource",
    "Role",
    "RunClosed",
    "RunIdentity",
    "RunInProgress",
    "RunOpen",
    "StageInProgress",
    "StageOutline",
    "StageSummary",
    "StageWide",
    "Terminal",
    "TerminalOrRetry",
    "Trace",
    "WideAmend",
    "event_id",
    "fields_with",
    "json_schemas",
    "prefix_of",
    "roles",
    "span_id",
    "span_id_of_attempt",
]

SCHEMA_VERSION = 1
"""Incremented when a key changes its meaning or is removed, but not when a key is added."""

Timestamp = Annotated[
    str,
    Meta(
        pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z$",
        description="RFC 3339, UTC, ending in Z",
        extra_json_schema={"format": "date-time"},
    ),
]
Milliseconds = Annotated[float, Meta(ge=0, description="milliseconds, with a fractional part")]
Count = Annotated[int, Meta(ge=0)]
TerminalOrRetry = Literal["OK", "SKIP", "CANCEL", "FAIL", "RETRY"]
Terminal = Literal["OK", "SKIP", "CANCEL", "FAIL"]
Relation = Literal["cause", "context", "group"]
Outcome = Literal["ok", "degraded", "stopped", "failed", "timeout", "cancelled", "crashed"]
"""The outcome of a run. Only a journal contains `crashed`: the process of the run died."""


class Role(StrEnum):
    """The role of a field of an event, from which readers derive how to treat the field."""

    IDENTITY = "identity"
    """Identifies one run or one attempt."""
    LABEL = "label"
    """An input of the run: user, data, deployment, version."""
    TIME = "time"
    """A point in time of the run."""
    OUTCOME = "outcome"
    """The result of the run."""
    DURATION = "duration"
    """A duration of the run."""
    WORK = "work"
    """A property of the execution: attempts, keys, events."""
    PROCESS = "process"
    """A measurement of the process."""
    RECORD = "record"
    """Metadata of the event: its schema version, dropped fields, the number of events that it represents."""


def _role(*roles: Role) -> Meta:
    return Meta(extra={"roles": roles})


_IDENTITY, _LABEL, _OUTCOME = _role(Role.IDENTITY), _role(Role.LABEL), _role(Role.OUTCOME)
_DURATION, _WORK, _PROCESS = _role(Role.DURATION), _role(Role.WORK), _role(Role.PROCESS)
_TIME, _RECORD = _role(Role.TIME), _role(Role.RECORD)

# `gc=False`: these types contain only plain values and each other, so they cannot be part of a reference
# cycle. The garbage collector then does not visit them; a journal may create millions.


class CorrelationIds(Struct, frozen=True, gc=False):
    """The ids that correlate the events of one run, request or user."""

    pipeline_run_id: Annotated[str | None, _IDENTITY] = None
    request_id: Annotated[str | None, _LABEL] = None
    session_id: Annotated[str | None, _LABEL] = None
    user_id: Annotated[str | None, _LABEL] = None
    org_id: Annotated[str | None, _LABEL] = None


class PipelineMetadata(Struct, frozen=True, gc=False):
    """The labels of a run: service, topology and execution mode."""

    service: Annotated[str, _LABEL]
    topology: Annotated[str, _LABEL]
    execution_mode: Annotated[str, _LABEL]


class ExceptionInfo(Struct, frozen=True, gc=False):
    """An exception: its type, its message, the innermost frames of its stack, its chain and its notes.

    The `relation` of an exception in the chain is `cause` (`raise ... from`), `context` (the exception that
    was being handled) or `group` (a leaf of an `ExceptionGroup`, including nested groups). `notes` contains
    the notes added by `add_note`.
    """

    type: str
    message: str
    stack: list[str]
    chain: list[ExceptionInfo]
    relation: Relation | None = None
    notes: list[str] = []


class Resource(Struct, frozen=True, gc=False):
    """The process of the run. A value that is neither configured nor provided by the platform is null."""

    service_version: Annotated[str | None, _LABEL]
    host: Annotated[str, _LABEL]
    pid: Annotated[int, _LABEL]
    runtime: Annotated[str, _LABEL]
    environment: Annotated[str | None, _LABEL] = None
    commit: Annotated[str | None, _LABEL] = None


class ProcessSample(Struct, frozen=True, gc=False):
    """The latest measurements of the process, at most 10 s old.

    `memory_peak_bytes` is the peak memory usage since the start of the process, `cpu_percent` the usage of
    one processor since the previous sample, and `loop_lag_ms` the delay of ready callbacks on the event loop;
    null before it was measured.
    """

    uptime_s: Annotated[float, _PROCESS]
    memory_peak_bytes: Annotated[Count, _PROCESS]
    cpu_percent: Annotated[float, _PROCESS]
    loop_lag_ms: Annotated[float | None, _PROCESS]


class Trace(Struct, frozen=True, gc=False):
    """The W3C trace context of an event: its position in a distributed trace."""

    trace_id: Annotated[Annotated[str, Meta(pattern="^[0-9a-f]{32}$")], _IDENTITY]
    span_id: Annotated[Annotated[str, Meta(pattern="^[0-9a-f]{16}$")], _IDENTITY]
    parent_span_id: Annotated[Annotated[str, Meta(pattern="^[0-9a-f]{16}$")] | None, _IDENTITY]


class FailedItem(Struct, frozen=True, gc=False):
    """An item of a mapped stage that failed: its key, and the type and message of its error."""

    key: str
    type: str | None
    message: str


class Items(Struct, frozen=True, gc=False):
    """The items of a mapped stage. An item that `ok`, `failed` and `skipped` do not count did not end.

    `total` is the number of items; if the stage ended early, the size of the input if it is known, otherwise
    the number of items read so far. `retried` is the number of items with more than one attempt. Durations
    are those of the items that ended, including their retries; percentiles are rounded down by less than
    1 %. `slowest` is the key of the item with `max_ms`. `failures` contains the first few failed items, and
    `failure_types` at most 10 error types, from all failed items.
    """

    total: Annotated[Count, _LABEL] = 0
    ok: Annotated[Count, _OUTCOME] = 0
    failed: Annotated[Count, _OUTCOME] = 0
    skipped: Annotated[Count, _OUTCOME] = 0
    retried: Annotated[Count, _WORK] = 0
    p50_ms: Annotated[Milliseconds | None, _DURATION] = None
    p95_ms: Annotated[Milliseconds | None, _DURATION] = None
    max_ms: Annotated[Milliseconds | None, _DURATION] = None
    slowest: Annotated[str | None, _IDENTITY] = None
    failures: Annotated[list[FailedItem], _OUTCOME] = []
    failure_types: Annotated[list[str], _OUTCOME] = []


class Stream(Struct, frozen=True, gc=False):
    """The stream of a stage: the chunks that its last attempt sent, and how long its readers made it wait."""

    chunks: Annotated[Count, _WORK]
    """Number of chunks."""
    bytes: Annotated[Count | None, _WORK] = None
    """Size of the chunks in bytes, as UTF-8 for text; null if a chunk is neither text nor bytes."""
    first_chunk_ms: Annotated[Milliseconds | None, _WORK] = None
    """From the start of the attempt to its first chunk; null without chunks."""
    blocked_ms: Annotated[Milliseconds, _WORK] = 0.0
    """Total time for which the attempt waited because the buffer of a reader was full."""
    abandoned: Annotated[bool, _OUTCOME] = False
    """True if the reader outside the run left before the stream ended."""


class Worker(Struct, frozen=True, gc=False):
    """The worker of an executor that ran the stage; for a mapped stage, the one of its last batch."""

    host: Annotated[str | None, _LABEL]
    """Host name of the machine; null if it is unknown."""
    pid: Annotated[Count | None, _LABEL]
    """Process id; null if it is unknown."""
    kind: Annotated[str, _LABEL]
    """The kind of executor: "process" or "ray"."""
    queue_ms: Annotated[Milliseconds | None, _DURATION]
    """Time from the call until the worker started to run it, including the start of the worker; null if it is
    unknown."""


class StageSummary(Struct, frozen=True, gc=False):
    """An item of `stage_summaries`."""

    stage_name: str
    status: Terminal
    duration_ms: Milliseconds
    error: str | None


MAX_CHILD_RUNS = 1_000
"""Maximum number of child runs that a `stage.wide` lists.

If there are more, it lists only the first 999 and the last.
"""


class StageWide(Struct, frozen=True, gc=False):
    """`stage.wide`: the complete record of an attempt that was retried, or of the last attempt of a stage."""

    # The order of the fields is a contract: events are built by position (`_wide.build_stage_wide`).

    stage_name: Annotated[str, _LABEL]
    status: Annotated[TerminalOrRetry, _OUTCOME]
    duration_ms: Annotated[Milliseconds, _DURATION]
    started_at: Annotated[Timestamp, _TIME]
    ended_at: Annotated[Timestamp, _role(Role.TIME, Role.DURATION)]
    error: Annotated[str | None, _OUTCOME]
    data_keys: Annotated[list[str], _WORK]
    artifacts_count: Annotated[Count, _WORK]
    events_count: Annotated[Count, _WORK]
    correlation_ids: CorrelationIds
    pipeline_metadata: PipelineMetadata
    # Additive from here on. Producers that do not know a value, such as crash recovery, use the default.
    schema_version: Annotated[int, _RECORD]
    event_id: Annotated[str, _IDENTITY]
    resource: Resource
    kind: Annotated[str | None, _LABEL] = None
    attempt: Annotated[Count, _WORK] = 0
    attempts: Annotated[Count, _WORK] = 0
    reason: Annotated[str | None, _OUTCOME] = None
    error_type: Annotated[str | None, _OUTCOME] = None
    exception: Annotated[ExceptionInfo | None, _OUTCOME] = None
    dependencies: Annotated[list[str], _LABEL] = []
    missing_inputs: Annotated[list[str], _WORK] = []
    queue_ms: Annotated[Milliseconds, _DURATION] = 0.0
    total_ms: Annotated[Milliseconds, _DURATION] = 0.0
    retry_after_ms: Annotated[Milliseconds | None, _OUTCOME] = None
    abandoned: Annotated[bool, _OUTCOME] = False
    outcome_by: Annotated[str | None, _OUTCOME] = None
    attributes: Annotated[dict[str, Any], _LABEL] = {}
    redacted: Annotated[Count, _RECORD] = 0
    truncated: Annotated[list[str], _RECORD] = []
    trace: Trace | None = None
    sample_rate: Annotated[Annotated[float, Meta(ge=1)], _RECORD] = 1
    loop_blocked_ms: Annotated[Milliseconds | None, _DURATION] = None
    items: Annotated[Items | None, Meta(extra={"prefix": "items_"})] = None
    child_runs: Annotated[list[str], _IDENTITY] = []
    child_runs_total: Annotated[Count, _WORK] = 0
    stream: Annotated[Stream | None, Meta(extra={"prefix": "stream_"})] = None
    worker: Annotated[Worker | None, Meta(extra={"prefix": "worker_"})] = None
    log_tail: Annotated[list[str], _OUTCOME] = []
    log_warnings: Annotated[Count, _WORK] = 0
    log_errors: Annotated[Count, _WORK] = 0
    error_fingerprint: Annotated[str | None, _OUTCOME] = None


class PipelineWide(Struct, frozen=True, gc=False):
    """`pipeline.wide`: the complete record of one run."""

    # The order of the fields is a contract: events are built by position (`_wide.build_pipeline_wide`), a
    # journal recognizes a failed run by the first bytes of its line, and `started_at` must be near the start.

    status: Annotated[Literal["OK", "FAIL"], _OUTCOME]
    duration_ms: Annotated[Milliseconds, _DURATION]
    started_at: Annotated[Timestamp, _TIME]
    ended_at: Annotated[Timestamp, _role(Role.TIME, Role.DURATION)]
    stages_total: Annotated[Count, _LABEL]
    stages_completed: Annotated[Count, _OUTCOME]
    stages_failed: Annotated[Count, _OUTCOME]
    stages_skipped: Annotated[Count, _OUTCOME]
    stages_cancelled: Annotated[Count, _OUTCOME]
    error: Annotated[str | None, _OUTCOME]
    stage_summaries: Annotated[list[StageSummary], _OUTCOME]
    correlation_ids: CorrelationIds
    pipeline_metadata: PipelineMetadata
    # Additive from here on, as above.
    schema_version: Annotated[int, _RECORD]
    event_id: Annotated[str, _IDENTITY]
    pipeline_name: Annotated[str, _LABEL]
    outcome: Annotated[Outcome, _OUTCOME]
    reason: Annotated[str | None, _OUTCOME]
    error_type: Annotated[str | None, _OUTCOME]
    exception: Annotated[ExceptionInfo | None, _OUTCOME]
    first_failed_stage: Annotated[str | None, _OUTCOME]
    critical_path: Annotated[list[str], _DURATION]
    critical_path_ms: Annotated[Milliseconds, _DURATION]
    stages_abandoned: Annotated[Count, _OUTCOME]
    parent_run_id: Annotated[str | None, _IDENTITY]
    root_run_id: Annotated[str | None, _IDENTITY]
    attributes: Annotated[dict[str, Any], _LABEL]
    redacted: Annotated[Count, _RECORD]
    truncated: Annotated[list[str], _RECORD]
    resource: Resource
    process: ProcessSample | None
    trace: Trace | None
    sample_rate: Annotated[Annotated[float, Meta(ge=1)], _RECORD]
    error_fingerprint: Annotated[str | None, _OUTCOME]


class WideAmend(Struct, frozen=True, gc=False, kw_only=True):
    """`stage.wide.amend` and `pipeline.wide.amend`: attributes that were set after the event was emitted.

    They belong to the event with the same `event_id`. Each replaces the attribute of the same name.
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
    """The description of a stage before it runs; an array in JSON, because a run has one for every stage."""

    name: str
    kind: str | None
    dependencies: list[str]
    optional: bool


class RunIdentity(Struct, frozen=True, gc=False):
    """The fields that all events of one run share."""

    event_id: str
    pipeline_name: str
    correlation_ids: CorrelationIds
    pipeline_metadata: PipelineMetadata
    parent_run_id: str | None
    root_run_id: str | None
    resource: Resource
    trace: Trace


class RunOpen(RunIdentity, frozen=True, gc=False):
    """The mark of the start of a run. A journal uses it to complete the record of a run whose process died.

    `stages` may be encoded JSON, because it is the same for every run of a graph.
    """

    started_at: Timestamp
    emits_stages: bool
    emits_pipeline: bool
    stages: list[StageOutline] | msgspec.Raw


class RunClosed(Struct, frozen=True, gc=False):
    """The mark of the end of a run that emits no `pipeline.wide` to the sink of its `RunOpen`."""

    event_id: str
    reason: str


class StageInProgress(Struct, frozen=True, gc=False, array_like=True):
    """A running attempt in a heartbeat.

    `started_at` is null for an attempt that has not waited for anything yet: only its thread knows its start.
    `items` are the items of a mapped stage so far, without durations, and `stream` the chunks that the
    attempt has sent so far.
    """

    stage_name: str
    attempt: Count
    started_at: Timestamp | None
    items: Items | None = None
    stream: Stream | None = None


class RunInProgress(Struct, frozen=True, gc=False, array_like=True):
    """A run in a heartbeat, with the attempts that are running."""

    event_id: str
    started_at: Timestamp
    stages: list[StageInProgress]


class AttributesSoFar(Struct, frozen=True, gc=False, array_like=True):
    """The attributes that a run (`stage_name` is null) or one of its running attempts has so far."""

    event_id: str
    stage_name: str | None
    attempt: Count
    attributes: dict[str, Any]


class Heartbeat(Struct, frozen=True, gc=False):
    """The mark that a process with runs in progress writes once per second.

    If the process dies, a journal uses it to determine the running stages and the attributes of a run.
    `omitted_runs` and `omitted_attributes` count the items that did not fit into this line; the next line
    starts with them, unless they are too large for any line.
    """

    at: Timestamp
    process: ProcessSample
    runs: list[RunInProgress] | msgspec.Raw
    attributes: list[AttributesSoFar] | msgspec.Raw
    omitted_runs: Count
    omitted_attributes: Count


def roles(event: type[Struct]) -> dict[str, frozenset[Role]]:
    """Return the roles of each field of an event type, including the fields of nested objects.

    The names of the fields of `items` have the prefix `items_`, as the columns of the store do.

    Example:
        >>> sorted(roles(StageWide)["ended_at"])
        [<Role.DURATION: 'duration'>, <Role.TIME: 'time'>]
    """
    found: dict[str, frozenset[Role]] = {}
    info = msgspec.inspect.type_info(event)
    assert isinstance(info, msgspec.inspect.StructType)
    for field in info.fields:
        kind = field.type
        if isinstance(kind, msgspec.inspect.Metadata):
            if kind.extra is not None and "roles" in kind.extra:
                found[field.name] = frozenset(kind.extra["roles"])
                continue
            kind = kind.type
        members = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
        for member in members:
            if isinstance(member, msgspec.inspect.StructType):
                prefix = prefix_of(field)
                found |= {prefix + name: assigned for name, assigned in roles(member.cls).items()}
    return found


def prefix_of(field: msgspec.inspect.Field) -> str:
    """Return the prefix that distinguishes the fields of a nested object from other fields."""
    kind = field.type
    extra = kind.extra if isinstance(kind, msgspec.inspect.Metadata) else None
    prefix: str = (extra or {}).get("prefix", "")
    return prefix


def fields_with(*wanted: Role) -> frozenset[str]:
    """Return the names of the wide event fields that have any of these roles.

    Example:
        >>> sorted(fields_with(Role.PROCESS))
        ['cpu_percent', 'loop_lag_ms', 'memory_peak_bytes', 'uptime_s']
    """
    known: Mapping[str, frozenset[Role]] = {**roles(PipelineWide), **roles(StageWide)}
    return frozenset(name for name, assigned in known.items() if not assigned.isdisjoint(wanted))


CUSTOM_EVENT_KEYS = (
    "event_id",
    "stage_name",
    "attempt",
    "emitted_at",
    "correlation_ids",
    "pipeline_metadata",
)
"""The keys that the library adds to the data of a custom event."""


def event_id(run_id: str, stage: str, attempt: int) -> str:
    """Return the `event_id` of a `stage.wide` event. For `pipeline.wide`, it is the id of the run.

    Example:
        >>> event_id("01a2", "search", 2)
        '01a2/search/2'
    """
    return f"{run_id}/{stage}/{attempt}"


def span_id(base: int, sequence: int = 0, attempt: int = -1) -> str:
    """Return the W3C span id of an attempt, or of the run: 16 hex digits, never all zeros.

    Args:
        base: 64 random bits of the run.
        sequence: Position of the stage in its pipeline, starting at 0.
        attempt: Number of the attempt; -1 for the run. 0 (`when=` is evaluated) has the id of attempt 1.
    """
    return "%016x" % ((base + (sequence << 16) + (attempt or 1) + 1) & 0xFFFF_FFFF_FFFF_FFFF or 1)


def span_id_of_attempt(known: str, known_attempt: int, attempt: int) -> str:
    """Return the span id of an attempt, given that of another attempt of the same stage and run.

    Example:
        >>> span_id_of_attempt(span_id(7, 3, 2), 2, 1) == span_id(7, 3, 1)
        True
    """
    return "%016x" % ((int(known, 16) + (attempt or 1) - (known_attempt or 1)) & 0xFFFF_FFFF_FFFF_FFFF or 1)


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema (draft 2020-12) of each wide event and of their amendments, by event type.

    Example:
        >>> sorted(json_schemas())
        ['pipeline.wide', 'pipeline.wide.amend', 'stage.wide', 'stage.wide.amend']
    """
    schemas = {}
    for event_type, event in (
        ("stage.wide", StageWide),
        ("pipeline.wide", PipelineWide),
        ("stage.wide.amend", WideAmend),
        ("pipeline.wide.amend", WideAmend),
    ):
        schema = msgspec.json.schema(event)
        # Every field is in the encoded event. Defaults only apply to the constructor.
        definition = schema["$defs"][event.__name__]
        definition["required"] = list(definition["properties"])
        for field in definition["properties"].values():
            field.pop("default", None)
        schemas[event_type] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": event_type,
            **_normalized(schema),
        }
    return schemas


def _normalized(part: Any) -> Any:
    """Return a schema that does not depend on the versions of Python and msgspec.

    Since Python 3.13, the compiler removes the indentation of descriptions. Before 0.22, msgspec puts null
    first in a union.
    """
    if isinstance(part, dict):
        return {
            key: cleandoc(value) if key == "description" and isinstance(value, str) else _normalized(value)
            for key, value in part.items()
        }
    if not isinstance(part, list):
        return part
    return sorted(map(_normalized, part), key=lambda item: item == {"type": "null"})
