"""`OtlpExporter`: sends runs and attempts as spans, and other events as log records, over OTLP/HTTP."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from .._http import HttpClient, HttpError, check_http, url_problem, without_secrets
from ..errors import InvalidArgumentError, invalid_argument
from ._batch import Batch
from ._exporter import Exporter, NotSent, Sent, check_name
from ._http import headers_of_environment, raise_for_status
from ._name import name_of_url
from ._otlp_encoding import Encoding, JsonEncoding, ProtobufEncoding
from ._spans import LogRecord, Span, SpanBuilder

__all__ = ["OtlpExporter"]


_FEATURE = "an OTLP exporter"
_EXTRA = "export"

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"

_GENAI = ("1.37", "1.36")

_ENCODINGS: Mapping[str, type[Encoding]] = {"protobuf": ProtobufEncoding, "json": JsonEncoding}


class OtlpExporter(Exporter):
    """Sends events to an OpenTelemetry collector, or to a backend that accepts OTLP over HTTP.

    A run and each attempt of a stage are spans with the ids of their `trace`. A dependency between stages is
    a span link. Custom events and later amendments are log records with an event name.

    A span cannot be changed, so it is sent 2 seconds after its end, with the amendments of this time. Later
    amendments are log records. To change the time, set `settle_seconds` of the exporter.

    If a receiver rejects part of a batch, it does not identify the rejected events, so they are counted but
    not written to a dead-letter file.

    Args:
        url: Base URL, with or without the prefix "otlp+": "https://collector.example:4318". Spans are sent to
            `/v1/traces` below it, log records to `/v1/logs`. Default: `OTEL_EXPORTER_OTLP_ENDPOINT`.
        name: Name of the exporter; default one that is derived from the URL.
        headers_env: Environment variable with additional headers; default `OTEL_EXPORTER_OTLP_HEADERS`, if it
            is set.
        encoding: "protobuf", which requires the `otlp` extra, or "json". Default: that of
            `OTEL_EXPORTER_OTLP_PROTOCOL`, otherwise "protobuf".
        logs: Whether to send log records; default True. Some backends accept only spans. With False, custom
            events and amendments are not sent, but count as sent.
        openinference: Whether to add `openinference.span.kind` to spans; default False.
        genai: Version of the semantic conventions for generative AI: "1.37" (default) for the names of 1.37
            and later, or "1.36" for backends that expect `gen_ai.system` instead of `gen_ai.provider.name`.
        compress: Whether to compress requests with gzip; default True.
        timeout: Maximum duration of a request and its response, in seconds; default 30.

    Raises:
        InvalidArgumentError: An argument or variable is invalid, or there is no URL.
        MissingExtraError: The packages of the `export` extra, or `otlp` for protobuf, are not installed.

    Example:
        OtlpExporter("https://collector.example:4318", headers_env="COLLECTOR_HEADERS")
    """

    settle_seconds = 2.0

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str | None = None,
        headers_env: str | None = None,
        encoding: str | None = None,
        logs: bool = True,
        openinference: bool = False,
        genai: str = "1.37",
        compress: bool = True,
        timeout: float = 30.0,
    ) -> None:
        base = (url or "").removeprefix("otlp:").removeprefix("otlp+") or os.environ.get(_ENDPOINT, "")
        if not base:
            raise InvalidArgumentError(
                f"OtlpExporter requires a URL, or the environment variable {_ENDPOINT}"
            )
        if problem := url_problem(base):
            expected = problem.removeprefix("expected ")
            raise invalid_argument("OtlpExporter", "url", without_secrets(base), expected)
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not timeout > 0:
            raise invalid_argument("OtlpExporter", "timeout", timeout, "a positive number of seconds")
        if encoding is None:
            encoding = os.environ.get(_PROTOCOL, "http/protobuf").removeprefix("http/")
        if encoding not in _ENCODINGS:
            raise invalid_argument("OtlpExporter", "encoding", encoding, '"protobuf" or "json"')
        if genai not in _GENAI:
            raise invalid_argument("OtlpExporter", "genai", genai, '"1.37" or "1.36"')
        check_http(_FEATURE, _EXTRA)
        self.name = name_of_url(f"otlp+{base}") if name is None else check_name(name)
        self._base = base
        self._headers_env = headers_env or (_HEADERS if _HEADERS in os.environ else None)
        self._encoding = _ENCODINGS[encoding]()
        self._send_logs = logs
        self._builder = SpanBuilder(openinference=openinference, former_genai=genai == "1.36")
        self._compress = compress
        self._timeout = timeout
        self._client: HttpClient | None = None
        # The last batch whose spans were accepted, so that only its log records are sent again.
        self._accepted: tuple[str, Sent] | None = None

    @property
    def target(self) -> str:
        return f"otlp+{without_secrets(self._base)}"

    def open(self, journal: str) -> None:
        self._builder.read_missing_from(journal)

    async def send(self, batch: Batch) -> Sent:
        records = self._builder.convert(batch.events)
        spans = [record for record in records if isinstance(record, Span)]
        logs = [record for record in records if isinstance(record, LogRecord)]
        sent = Sent()
        if self._accepted is not None and self._accepted[0] == batch.id:
            sent = self._accepted[1]
        elif spans:
            sent = await self._post("/v1/traces", self._encoding.spans(spans))
            self._accepted = (batch.id, sent)
        if logs and self._send_logs:
            more = await self._post("/v1/logs", self._encoding.logs(logs))
            unnamed = sent.rejected_unnamed + more.rejected_unnamed
            sent = Sent(rejected_unnamed=unnamed, message=more.message or sent.message)
        return sent

    async def _post(self, path: str, body: bytes) -> Sent:
        headers = {
            "content-type": self._encoding.content_type,
            "user-agent": "stageflow-export",
            **headers_of_environment(self._headers_env),
        }
        if self._compress:
            headers["content-encoding"] = "gzip"
            body = gzip.compress(body, compresslevel=1, mtime=0)
        if self._client is None:
            self._client = HttpClient(_FEATURE, _EXTRA)
        try:
            response = await self._client.post(self._url(path), body, headers, seconds=self._timeout)
        except HttpError as error:
            raise NotSent(error.reason) from None
        raise_for_status(response)
        partial = self._encoding.partial_success(response.body)
        return Sent(rejected_unnamed=max(0, partial.rejected), message=partial.message)

    def _url(self, path: str) -> str:
        parts = urlsplit(self._base)
        return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + path, parts.query, ""))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None
