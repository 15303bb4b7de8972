"""Converts events to OpenTelemetry: a run or an attempt is a span, any other event a log record."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from .._decodable import decodable
from .._genai import former_attribute
from .._state_file import decoder
from .._time import epoch_us, get_clock
from ..errors import StageflowError
from ..journal import Journal, is_timestamp
from ..schema import PipelineWide, StageWide, prefix_of, span_id_of_attempt
from ._batch import ExportEvent

__all__ = ["Attribute", "LogRecord", "Resource", "Span", "SpanBuilder"]


T = TypeVar("T")

Attribute = tuple[str, Any]

Resource = tuple[Attribute, ...]
"""The attributes of the process that recorded an event."""

OK, ERROR = 1, 2
"""The codes of the status of a span; 0 is unset."""

_INFO = 9
"""Severity of a log record."""

_MAX_STAGES = 20_000
"""Number of stages and runs whose span ids are kept for links and amendments."""

_MAX_READ = 200
"""Number of runs that are read from the journal, because their first events were exported earlier."""


class Span(Struct, frozen=True, gc=False):
    """A span. Ids are in hex, times in nanoseconds since the Unix epoch; links are trace ids and span ids."""

    resource: Resource
    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    start_ns: int
    end_ns: int
    attributes: Sequence[Attribute]
    status: int
    message: str
    links: Sequence[tuple[str, str]]
    trace_state: str = ""


class LogRecord(Struct, frozen=True, gc=False):
    """A log record with an event name. Ids are in hex, times in nanoseconds since the Unix epoch."""

    resource: Resource
    time_ns: int
    name: str
    attributes: Sequence[Attribute]
    trace_id: str | None
    span_id: str | None
    severity: int = _INFO


class _KnownSpan(Struct, frozen=True, gc=False):
    """The span of a run, or of the last attempt of a stage."""

    trace_id: str
    span_id: str
    attempt: int


class _Trace(Struct, gc=False):
    trace_id: str
    span_id: str
    parent_span_id: str | None = None


class _Wide(Struct, gc=False):
    started_at: str
    ended_at: str
    event_id: str
    status: str
    pipeline_name: str | None = None
    stage_name: str | None = None
    error: str | None = None
    error_type: str | None = None
    exception: dict[str, Any] | None = None
    dependencies: list[str] = []
    attempt: int = 0
    attributes: dict[str, Any] = {}
    trace: _Trace | None = None
    sample_rate: float | None = None


_decode_object = decoder(dict[str, Any])

_NOT_ATTRIBUTES = {
    *("started_at", "ended_at", "correlation_ids", "pipeline_metadata", "resource", "trace", "attributes"),
    *("exception", "error_type", "error", "process", "stage_summaries", "schema_version"),
}
"""Fields that are represented elsewhere in the span, its resource or other spans of the trace."""


def _prefixes(event: type[Struct]) -> dict[str, str]:
    info = msgspec.inspect.type_info(event)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.name: prefix for field in info.fields if (prefix := prefix_of(field))}


_PREFIXES = {**_prefixes(StageWide), **_prefixes(PipelineWide)}
"""Prefixes of the names of nested fields, such as those of `items`."""

_RESOURCE = {
    "service_version": "service.version",
    "host": "host.name",
    "pid": "process.pid",
    "runtime": "process.runtime.description",
    "environment": "deployment.environment.name",
    "commit": "vcs.ref.head.revision",
}

_IDS = {
    "pipeline_run_id": "stageflow.run_id",
    "request_id": "stageflow.request_id",
    "session_id": "session.id",
    "user_id": "user.id",
    "org_id": "stageflow.org_id",
}

_CALLS_WITH_SPANS = "gen_ai.client.count"
"""An attribute that a span processor sets: the calls of the attempt have their own spans."""

_OPENINFERENCE = {
    "chat": "LLM",
    "text_completion": "LLM",
    "generate_content": "LLM",
    "embeddings": "EMBEDDING",
    "retrieval": "RETRIEVER",
    "execute_tool": "TOOL",
    "invoke_agent": "AGENT",
}


class SpanBuilder:
    """Converts events, in the order of the journal.

    A dependency of a stage becomes a link to the span of the last attempt of that stage. Its id is known if
    this object converted that span among the last 20,000, or if it can be read from the journal, for
    the runs that were in progress when an earlier process stopped exporting. So a span that is sent again
    has the same content.

    Args:
        openinference: Whether to add `openinference.span.kind`.
        former_genai: Whether to use the attribute names for generative AI before version 1.37.
    """

    def __init__(self, *, openinference: bool = False, former_genai: bool = False) -> None:
        self._openinference = openinference
        self._former_genai = former_genai
        self._spans: OrderedDict[tuple[str | None, str | None], _KnownSpan] = OrderedDict()
        self._journal: Journal | None = None
        self._read: set[str] = set()

    def read_missing_from(self, journal: str) -> None:
        """Read the spans of runs whose first events this object did not convert from a journal."""
        self._journal = Journal(journal)

    def convert(self, events: Sequence[ExportEvent]) -> Sequence[Span | LogRecord]:
        """Return the spans and log records of a batch of events. Never raises because of their content."""
        decoded = [_decode_object(event.json) or {} for event in events]
        # Spans first: an event that a stage emits precedes the event of its attempt.
        spans = [self._span_or_none(event, data) for event, data in zip(events, decoded, strict=True)]
        return [
            self._log(event, data) if span is None else span
            for event, data, span in zip(events, decoded, spans, strict=True)
        ]

    def _span_or_none(self, event: ExportEvent, data: Mapping[str, Any]) -> Span | None:
        if event.type not in ("stage.wide", "pipeline.wide"):
            return None
        wide = _converted(data, _Wide)
        if wide is None or not is_timestamp(wide.started_at) or not is_timestamp(wide.ended_at):
            return None
        return self._span(event, wide, data)

    def _span(self, event: ExportEvent, wide: _Wide, data: Mapping[str, Any]) -> Span:
        trace = wide.trace or _derived_trace(event)
        name = wide.stage_name or wide.pipeline_name or event.type
        links = []
        if wide.stage_name is not None:
            known = [self._known(event.run_id, each) for each in wide.dependencies]
            links = [(each.trace_id, each.span_id) for each in known if each is not None]
        span = _KnownSpan(trace.trace_id, trace.span_id, wide.attempt)
        self._remember((event.run_id, wide.stage_name), span)
        attributes = [*_fields(data), *_ids(data)]
        if wide.error_type is not None:
            attributes.append(("error.type", wide.error_type))
        if wide.sample_rate is not None and wide.sample_rate > 1:
            attributes.append(("SampleRate", round(wide.sample_rate)))  # the weight that Honeycomb reads
        if wide.exception is not None:
            attributes += _exception(wide.exception)
        custom = dict(self._custom(wide.attributes, is_sum=wide.stage_name is None))
        attributes += custom.items()
        if self._openinference:
            attributes.append(("openinference.span.kind", _kind(data, custom)))
        failed = wide.status in ("FAIL", "RETRY")
        return Span(
            resource=_resource(data),
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            parent_span_id=trace.parent_span_id,
            name=name,
            start_ns=epoch_us(wide.started_at) * 1000,
            end_ns=epoch_us(wide.ended_at) * 1000,
            attributes=_unique(attributes),
            status=ERROR if failed else OK if wide.status == "OK" else 0,
            message=(wide.error or "") if failed else "",
            links=links,
            trace_state=_trace_state(wide.sample_rate or 1.0),
        )

    def _log(self, event: ExportEvent, data: Mapping[str, Any]) -> LogRecord:
        stage = data.get("stage_name")
        attributes: list[Attribute] = [("stageflow.event_id", event.id), *_ids(data)]
        name = event.type
        if event.revision:
            name = "stageflow.amendment"
            amended = data.get("attributes")
            is_run = not isinstance(stage, str)
            attributes += self._custom(amended, is_sum=is_run) if isinstance(amended, dict) else ()
            attributes.append(("stageflow.revision", event.revision))
        if isinstance(stage, str):
            attributes.append(("stageflow.stage_name", stage))
        own = (
            {"event_id", "stage_name", "emitted_at", "amended_at", "attributes"}
            if event.revision
            else {*("event_id", "stage_name", "emitted_at")}
        )
        attributes += [
            (key, value)
            for key, value in data.items()
            if key not in own and key not in ("correlation_ids", "pipeline_metadata", "schema_version")
        ]
        trace_id, span_id = self._ids_of_span(event, stage if isinstance(stage, str) else None, data)
        times = (data.get("amended_at"), data.get("emitted_at"), data.get("ended_at"))
        at = next((time for time in times if isinstance(time, str) and is_timestamp(time)), None)
        return LogRecord(
            resource=_resource(data),
            time_ns=epoch_us(at) * 1000 if at is not None else get_clock().wall_ns(),
            name=name,
            attributes=_unique(attributes),
            trace_id=trace_id,
            span_id=span_id,
        )

    def _custom(self, attributes: Mapping[str, Any], *, is_sum: bool = False) -> Iterable[Attribute]:
        """Return the attributes that the application set.

        Backends add up the usage of models in all spans. The usage in the span of a run is that of its
        stages, and the usage that a span processor recorded is also in the spans of the calls: such
        attributes get a prefix.

        Args:
            attributes: The attributes.
            is_sum: Whether they are those of a run.
        """
        is_sum = is_sum or _CALLS_WITH_SPANS in attributes
        for name, value in attributes.items():
            if is_sum and name.startswith("gen_ai."):
                yield f"stageflow.{name}", value
            elif self._former_genai:
                yield former_attribute(name, value)
            else:
                yield name, value

    def _ids_of_span(
        self, event: ExportEvent, stage: str | None, data: Mapping[str, Any]
    ) -> tuple[str | None, str | None]:
        """Return the trace id and the span id of the run or the attempt that an event belongs to."""
        if event.revision:
            known, attempt = self._known(event.run_id, stage), event.id.rpartition("/")[2]
        else:
            known, attempt = self._spans.get((event.run_id, stage)), str(data.get("attempt"))
        if known is None:
            return None, None
        if stage is None or not attempt.isdecimal():
            return known.trace_id, known.span_id
        return known.trace_id, span_id_of_attempt(known.span_id, known.attempt, int(attempt))

    def _known(self, run_id: str | None, stage: str | None) -> _KnownSpan | None:
        """Return the span of a run, or of the last attempt of a stage, if it is known."""
        if (run_id, stage) not in self._spans and run_id is not None:
            self._read_run(run_id)
        return self._spans.get((run_id, stage))

    def _read_run(self, run_id: str) -> None:
        """Read the spans of a run from the journal, unless it was read before."""
        if self._journal is None or run_id in self._read or len(self._read) >= _MAX_READ:
            return
        self._read.add(run_id)
        try:
            record = self._journal.run(run_id)
        except (StageflowError, OSError):  # deleted by retention
            return
        for event in (*record.stages, record.run):
            wide = _converted(event, _Wide)
            if wide is not None and wide.trace is not None:
                key = (run_id, wide.stage_name)
                known = self._spans.get(key)
                if known is None or known.attempt < wide.attempt:
                    span = _KnownSpan(wide.trace.trace_id, wide.trace.span_id, wide.attempt)
                    self._remember(key, span)

    def _remember(self, stage: tuple[str | None, str | None], span: _KnownSpan) -> None:
        self._spans[stage] = span
        self._spans.move_to_end(stage)
        if len(self._spans) > _MAX_STAGES:
            self._spans.popitem(last=False)


def _trace_state(rate: float) -> str:
    """Return the `tracestate` with the sampling threshold of OpenTelemetry; empty if nothing was sampled out.

    Example:
        >>> _trace_state(4.0)
        'ot=th:c'
    """
    if not rate > 1:
        return ""
    threshold = min(round((1 - 1 / rate) * 2**56), 2**56 - 1)
    return f"ot=th:{f'{threshold:014x}'.rstrip('0') or '0'}"


def _derived_trace(event: ExportEvent) -> _Trace:
    """Return ids for a wide event without a trace context; they are the same in every attempt."""
    run = hashlib.sha256((event.run_id or event.id).encode()).hexdigest()
    is_run = event.type == "pipeline.wide"
    span = run[32:48] if is_run else hashlib.sha256(event.id.encode()).hexdigest()[:16]
    return _Trace(run[:32], span, None if is_run else run[32:48])


def _fields(data: Mapping[str, Any]) -> list[Attribute]:
    """Return the fields of a wide event, named as the columns of the store with the prefix `stageflow.`."""
    found: list[Attribute] = []
    for key, value in data.items():
        if key in _NOT_ATTRIBUTES or value in (None, [], {}, ""):
            continue
        if isinstance(value, dict) and (prefix := _PREFIXES.get(key)) is not None:
            found += [
                (f"stageflow.{prefix}{name}", part)
                for name, part in value.items()
                if part not in (None, [], {})
            ]
        else:
            found.append((f"stageflow.{key}", value))
    return found


def _ids(data: Mapping[str, Any]) -> list[Attribute]:
    ids = _mapping(data.get("correlation_ids"))
    return [(name, value) for key, name in _IDS.items() if (value := ids.get(key)) is not None]


def _resource(data: Mapping[str, Any]) -> Resource:
    service = _mapping(data.get("pipeline_metadata")).get("service")
    process = _mapping(data.get("resource"))
    return (
        ("service.name", service if isinstance(service, str) else "unknown_service"),
        *(
            (name, value)
            for key, name in _RESOURCE.items()
            if isinstance(value := process.get(key), (str, int))
        ),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _converted(data: Mapping[str, Any], kind: type[T]) -> T | None:
    try:
        return msgspec.convert(data, decodable(kind))
    except msgspec.ValidationError:
        return None


def _exception(exception: Mapping[str, Any]) -> list[Attribute]:
    found: list[Attribute] = [
        (f"exception.{key}", exception[key]) for key in ("type", "message") if exception.get(key) is not None
    ]
    if isinstance(stack := exception.get("stack"), list) and stack:
        found.append(("exception.stacktrace", "\n".join(map(str, stack))))
    return found


def _kind(data: Mapping[str, Any], attributes: Mapping[str, Any]) -> str:
    operation = attributes.get("gen_ai.operation.name")
    if isinstance(operation, str) and operation in _OPENINFERENCE:
        return _OPENINFERENCE[operation]
    return {"agent": "AGENT", "guard": "GUARDRAIL"}.get(str(data.get("kind")), "CHAIN")


def _unique(attributes: Sequence[Attribute]) -> list[Attribute]:
    """Return the attributes that have a value. Names are unique, so the last value of each name is used."""
    return [(key, value) for key, value in dict(attributes).items() if value is not None]
