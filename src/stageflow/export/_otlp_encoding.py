"""Encodes spans and log records as OTLP: as JSON with msgspec, or as protobuf with opentelemetry-proto."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from .._state_file import decoder
from ..errors import MissingExtraError
from ._spans import Attribute, LogRecord, Resource, Span

__all__ = ["Encoding", "JsonEncoding", "PartialSuccess", "ProtobufEncoding"]


SCOPE = "stageflow"
_MAX_INT = (1 << 63) - 1

Record = TypeVar("Record", Span, LogRecord)


class PartialSuccess(Struct, frozen=True):
    """The number of spans or log records that a receiver rejected, and why. It does not identify them."""

    rejected: int = 0
    message: str = ""


class Encoding(abc.ABC):
    """Encodes requests, and decodes responses."""

    content_type: str

    @abc.abstractmethod
    def spans(self, spans: Sequence[Span]) -> bytes:
        """Return the body of a request to `/v1/traces`."""

    @abc.abstractmethod
    def logs(self, logs: Sequence[LogRecord]) -> bytes:
        """Return the body of a request to `/v1/logs`."""

    @abc.abstractmethod
    def partial_success(self, body: bytes) -> PartialSuccess:
        """Return the partial success in a response; a body in another format contains none."""


def by_resource(records: Iterable[Record]) -> Mapping[Resource, list[Record]]:
    """Return the records of each process, in their order."""
    found: dict[Resource, list[Record]] = {}
    for record in records:
        found.setdefault(record.resource, []).append(record)
    return found


# ------------------------------------------------------------ JSON


class _JsonPartial(Struct, rename="camel"):
    rejected_spans: int | str = 0
    rejected_log_records: int | str = 0
    error_message: str = ""


class _JsonResponse(Struct, rename="camel"):
    partial_success: _JsonPartial | None = None


_decode_response = decoder(_JsonResponse)


class JsonEncoding(Encoding):
    """OTLP as JSON: ids in hex, 64-bit integers as strings."""

    content_type = "application/json"

    def spans(self, spans: Sequence[Span]) -> bytes:
        return msgspec.json.encode(
            {
                "resourceSpans": [
                    {
                        "resource": {"attributes": _json_attributes(resource)},
                        "scopeSpans": [{"scope": {"name": SCOPE}, "spans": [*map(_json_span, found)]}],
                    }
                    for resource, found in by_resource(spans).items()
                ]
            }
        )

    def logs(self, logs: Sequence[LogRecord]) -> bytes:
        return msgspec.json.encode(
            {
                "resourceLogs": [
                    {
                        "resource": {"attributes": _json_attributes(resource)},
                        "scopeLogs": [{"scope": {"name": SCOPE}, "logRecords": [*map(_json_log, found)]}],
                    }
                    for resource, found in by_resource(logs).items()
                ]
            }
        )

    def partial_success(self, body: bytes) -> PartialSuccess:
        found = _decode_response(body)
        partial = found.partial_success if found is not None else None
        if partial is None:
            return PartialSuccess()
        try:
            rejected = int(partial.rejected_spans) + int(partial.rejected_log_records)
        except ValueError:
            rejected = 0
        return PartialSuccess(rejected, partial.error_message)


def _json_span(span: Span) -> dict[str, Any]:
    found = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": 1,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _json_attributes(span.attributes),
        "status": {"code": span.status, "message": span.message},
        "links": [{"traceId": trace_id, "spanId": span_id} for trace_id, span_id in span.links],
    }
    if span.parent_span_id is not None:
        found["parentSpanId"] = span.parent_span_id
    if span.trace_state:
        found["traceState"] = span.trace_state
    return found


def _json_log(log: LogRecord) -> dict[str, Any]:
    found = {
        "timeUnixNano": str(log.time_ns),
        "observedTimeUnixNano": str(log.time_ns),
        "severityNumber": log.severity,
        "eventName": log.name,
        "attributes": _json_attributes(log.attributes),
    }
    if log.trace_id is not None:
        found["traceId"] = log.trace_id
    if log.span_id is not None:
        found["spanId"] = log.span_id
    return found


def _json_attributes(attributes: Iterable[Attribute]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _json_value(value)} for key, value in attributes]


def _json_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int) and -_MAX_INT <= value <= _MAX_INT:
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value):
        return {"arrayValue": {"values": [_json_value(item) for item in value]}}
    return {"stringValue": _text(value)}


def _text(value: Any) -> str:
    """Return a string unchanged, and any other value as JSON, because few receivers display nested values."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# ------------------------------------------------------------ protobuf


class ProtobufEncoding(Encoding):
    """OTLP as protobuf.

    Raises:
        MissingExtraError: opentelemetry-proto is not installed.
    """

    content_type = "application/x-protobuf"

    def __init__(self) -> None:
        try:
            from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_service
            from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service
        except ModuleNotFoundError as error:
            raise MissingExtraError("OTLP as protobuf", "otlp") from error
        self._traces: Any = trace_service
        self._logs: Any = logs_service

    def spans(self, spans: Sequence[Span]) -> bytes:
        request = self._traces.ExportTraceServiceRequest()
        for resource, found in by_resource(spans).items():
            group = request.resource_spans.add()
            self._add(group.resource.attributes, resource)
            scope = group.scope_spans.add()
            scope.scope.name = SCOPE
            for each in found:
                span = scope.spans.add(
                    trace_id=bytes.fromhex(each.trace_id),
                    span_id=bytes.fromhex(each.span_id),
                    parent_span_id=bytes.fromhex(each.parent_span_id or ""),
                    trace_state=each.trace_state,
                    name=each.name,
                    kind=1,
                    start_time_unix_nano=each.start_ns,
                    end_time_unix_nano=each.end_ns,
                )
                span.status.code = each.status
                span.status.message = each.message
                self._add(span.attributes, each.attributes)
                for trace_id, span_id in each.links:
                    span.links.add(trace_id=bytes.fromhex(trace_id), span_id=bytes.fromhex(span_id))
        encoded: bytes = request.SerializeToString()
        return encoded

    def logs(self, logs: Sequence[LogRecord]) -> bytes:
        request = self._logs.ExportLogsServiceRequest()
        for resource, found in by_resource(logs).items():
            group = request.resource_logs.add()
            self._add(group.resource.attributes, resource)
            scope = group.scope_logs.add()
            scope.scope.name = SCOPE
            for each in found:
                log = scope.log_records.add(
                    time_unix_nano=each.time_ns,
                    observed_time_unix_nano=each.time_ns,
                    severity_number=each.severity,
                    event_name=each.name,
                    trace_id=bytes.fromhex(each.trace_id or ""),
                    span_id=bytes.fromhex(each.span_id or ""),
                )
                self._add(log.attributes, each.attributes)
        encoded: bytes = request.SerializeToString()
        return encoded

    def partial_success(self, body: bytes) -> PartialSuccess:
        # Both responses have the same fields.
        response = self._traces.ExportTraceServiceResponse()
        try:
            response.ParseFromString(body)
        except Exception:  # protobuf's DecodeError; protobuf has no type information
            return PartialSuccess()
        partial = response.partial_success
        return PartialSuccess(int(partial.rejected_spans), str(partial.error_message))

    def _add(self, target: Any, attributes: Iterable[Attribute]) -> None:
        for key, value in attributes:
            self._set(target.add(key=key).value, value)

    def _set(self, target: Any, value: Any) -> None:
        if isinstance(value, bool):
            target.bool_value = value
        elif isinstance(value, int) and -_MAX_INT <= value <= _MAX_INT:
            target.int_value = value
        elif isinstance(value, float):
            target.double_value = value
        elif isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value):
            target.array_value.SetInParent()
            for item in value:
                self._set(target.array_value.values.add(), item)
        else:
            target.string_value = _text(value)
