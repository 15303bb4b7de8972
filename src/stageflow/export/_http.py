"""`HttpExporter`: POSTs batches as NDJSON, compressed and signed."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from .._http import HttpClient, HttpError, HttpResponse, check_http, url_problem, without_secrets
from .._state_file import decoder
from .._webhook import WebhookSecrets, check_signing
from ..errors import invalid_argument
from ._batch import Batch, ExportEvent
from ._exporter import Exporter, NotSent, Rejected, Sent, check_name
from ._name import name_of_url

__all__ = ["HttpExporter", "headers_of_environment", "line_of", "ndjson", "raise_for_status"]


_FEATURE = "an HTTP exporter"
_EXTRA = "export"

_REJECTED = {400, 422}
_TOO_LARGE = {413}
_UNAVAILABLE = {502, 503, 504}
"""Statuses of an unavailable server or its proxy. An event can cause any other status of 500 or more."""

_encode = msgspec.json.encode


class _Refused(Struct):
    index: int
    reason: str = "rejected by the target"


class _Answer(Struct):
    """The body of a response that reports rejected events."""

    rejected: list[_Refused] = []
    duplicates: int = 0


_decode_answer = decoder(_Answer)


class HttpExporter(Exporter):
    """POSTs each batch as NDJSON: one JSON object per line, with `type`, `event_id`, `revision` and `data`.

    Any status of 2xx accepts the batch. A JSON object in the response can reject individual events by their
    line: `{"rejected": [{"index": 3, "reason": "unknown field"}]}`. 400 and 422 reject the batch; it is sent
    again in halves until the events that the target does not accept are found. After 413, the batch is also
    sent in halves. After any other status, and if there is no response, the batch is sent again later.

    Args:
        url: The URL. A user and password in it are sent as basic authentication.
        name: Name of the exporter; default one that is derived from the URL.
        secret_env: Environment variable with the secret that signs batches according to Standard Webhooks;
            default None, for no signature. The signature covers the uncompressed body.
        headers_env: Environment variable with additional headers, as `name=value,name=value`, with values in
            percent-encoding; default None.
        compress: Whether to compress batches with gzip; default True.
        timeout: Maximum duration of a request and its response, in seconds; default 30.

    Raises:
        InvalidArgumentError: The URL, the name or the timeout is invalid.
        MissingExtraError: The packages of the `export` extra are not installed.

    Example:
        HttpExporter("https://collector.example/events", secret_env="EXPORT_SECRET")
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        secret_env: str | None = None,
        headers_env: str | None = None,
        compress: bool = True,
        timeout: float = 30.0,
    ) -> None:
        if problem := url_problem(url):
            raise invalid_argument(
                "HttpExporter", "url", without_secrets(url), problem.removeprefix("expected ")
            )
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not timeout > 0:
            raise invalid_argument("HttpExporter", "timeout", timeout, "a positive number of seconds")
        check_http(_FEATURE, _EXTRA)
        if secret_env is not None:
            check_signing(_FEATURE, _EXTRA)
        self.name = name_of_url(url) if name is None else check_name(name)
        self._url = url
        self._secrets = WebhookSecrets(secret_env) if secret_env is not None else None
        self._headers_env = headers_env
        self._compress = compress
        self._timeout = timeout
        self._client: HttpClient | None = None

    @property
    def target(self) -> str:
        return without_secrets(self._url)

    async def send(self, batch: Batch) -> Sent:
        content = ndjson(batch)
        headers = {
            "content-type": "application/x-ndjson",
            "user-agent": "stageflow-export",
            "webhook-id": batch.id,
        }
        headers |= headers_of_environment(self._headers_env)
        if self._secrets is not None:
            if (problem := self._secrets.problem) is not None:
                raise NotSent(problem)
            headers |= self._secrets.headers(batch.id, content.decode(), _FEATURE, _EXTRA)
        body = content
        if self._compress:
            headers["content-encoding"] = "gzip"
            body = gzip.compress(content, compresslevel=1, mtime=0)
        if self._client is None:
            self._client = HttpClient(_FEATURE, _EXTRA)
        try:
            response = await self._client.post(self._url, body, headers, seconds=self._timeout)
        except HttpError as error:
            raise NotSent(error.reason) from None
        raise_for_status(response)
        # Many targets respond with plain text or an empty body.
        answer = _decode_answer(response.body) or _Answer()
        refused = tuple(Rejected(each.index, each.reason) for each in answer.rejected)
        return Sent(refused, answer.duplicates)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


def ndjson(batch: Batch) -> bytes:
    """Return the lines of a batch."""
    return b"".join(map(line_of, batch.events))


def line_of(event: ExportEvent) -> bytes:
    """Return the line of an event: a JSON object with `type`, `event_id`, `revision` and `data`."""
    return b'{"type":%b,"event_id":%b,"revision":%d,"data":%b}\n' % (
        _encode(event.type),
        _encode(event.id),
        event.revision,
        event.json,
    )


def raise_for_status(response: HttpResponse) -> None:
    """Raise an error for a status other than 2xx.

    Raises:
        NotSent: See `HttpExporter` for what each status means.
    """
    status = response.status
    if 200 <= status < 300:
        return
    reason = f"HTTP status {status}"
    if status in _TOO_LARGE:
        raise NotSent(reason, problem="too_large")
    if status in _REJECTED:
        raise NotSent(f"{reason}{_detail(response.body)}", problem="rejected")
    if response.status >= 500 and response.status not in _UNAVAILABLE and response.retry_after is None:
        raise NotSent(reason, problem="failed")
    raise NotSent(reason, retry_after=response.retry_after)


def _detail(body: bytes) -> str:
    """Return the first line of a response as the reason for a rejection, or an empty string."""
    lines = body[:300].decode(errors="replace").strip().splitlines()
    text = "".join(char for char in lines[0] if char.isprintable()) if lines else ""
    return f": {text}" if text else ""


def headers_of_environment(variable: str | None) -> Mapping[str, str]:
    """Return the headers in an environment variable, in the format of OpenTelemetry.

    Args:
        variable: Name of the variable, or None for no headers.

    Raises:
        NotSent: The variable is not set, or has an invalid format.
    """
    if variable is None:
        return {}
    from urllib.parse import unquote

    if (text := os.environ.get(variable)) is None:
        raise NotSent(f"the environment variable {variable} is not set")
    headers = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise NotSent(f"the environment variable {variable} must contain name=value,name=value")
        headers[name.strip().lower()] = unquote(value.strip())
    return headers
