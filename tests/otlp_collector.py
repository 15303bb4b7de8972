"""An OpenTelemetry collector on this machine, and the spans and log records of OTLP requests."""

from __future__ import annotations

import base64
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import rotel
from export_receiver import ExportReceiver, Request
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACES, LOGS = "/v1/traces", "/v1/logs"


class Collector:
    """A collector that forwards to a receiver; as a context manager, its own URL.

    Args:
        folder: Folder for its log.
        receiver: The receiver.
    """

    def __init__(self, folder: Path, receiver: ExportReceiver) -> None:
        self._folder = folder
        self._target = f"http://127.0.0.1:{receiver.port}"

    def __enter__(self) -> str:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        http, grpc = (f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
        for each in sockets:
            each.close()
        agent = Path(rotel.__file__).parent / "rotel-agent"
        command = [str(agent), "start", "--pid-file", str(self._folder / "pid"), "--batch-timeout", "50ms"]
        command += ["--otlp-http-endpoint", http, "--otlp-grpc-endpoint", grpc, "--exporter", "otlp"]
        command += ["--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", self._target]
        with (self._folder / "collector.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        return f"http://{http}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = self._process.poll()
        self._process.kill()
        self._process.wait()
        # For example, its wheel for Python 3.13 needs an interpreter with a shared library.
        log = (self._folder / "collector.log").read_text(errors="replace")
        assert ended is None, f"the collector ended with code {ended}: {log}"


def protobuf_messages(requests: list[Request]) -> dict[str, list[dict[str, Any]]]:
    """Return the spans and log records of protobuf requests in the form of OTLP's JSON, by path."""
    found: dict[str, list[dict[str, Any]]] = {TRACES: [], LOGS: []}
    for request in requests:
        message = ExportTraceServiceRequest() if request.path == TRACES else ExportLogsServiceRequest()
        message.ParseFromString(request.content)
        found[request.path] += flat(with_hex_ids(MessageToDict(message)))
    return found


def with_hex_ids(value: Any) -> Any:
    """Return a message whose ids are in hex, as OTLP requires, instead of base64."""
    if isinstance(value, list):
        return [with_hex_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64decode(item).hex()
        if key in ("traceId", "spanId", "parentSpanId")
        else with_hex_ids(item)
        for key, item in value.items()
    }


def flat(message: dict[str, Any]) -> list[dict[str, Any]]:
    groups = message.get("resourceSpans") or message.get("resourceLogs") or []
    return [
        {"resource": plain(group["resource"]["attributes"]), **each, "attributes": plain(each["attributes"])}
        for group in groups
        for scope in group.get("scopeSpans") or group.get("scopeLogs")
        for each in scope.get("spans") or scope.get("logRecords")
    ]


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: plain_value(each["value"]) for each in attributes}


def plain_value(value: dict[str, Any]) -> Any:
    ((kind, found),) = value.items()
    if kind == "intValue":
        return int(found)
    return [plain_value(item) for item in found.get("values", [])] if kind == "arrayValue" else found
