"""`NatsExporter`: publishes events to a stream of NATS JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from .._http import without_secrets
from ..errors import MissingExtraError, describe, invalid_argument
from ._batch import Batch, ExportEvent
from ._exporter import Exporter, NotSent, Rejected, Sent, check_name
from ._http import line_of
from ._name import name_of_url

__all__ = ["NatsExporter"]


_STREAM = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SUBJECT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_TOKEN = re.compile(r"[^A-Za-z0-9_.-]+")

_DUPLICATE_WINDOW_SECONDS = 3600.0
_CONNECT_SECONDS = 5


class NatsExporter(Exporter):
    """Publishes each event to the subject `stageflow.TYPE`, such as `stageflow.stage.wide`.

    The message id is derived from the `event_id` and the revision, so the stream drops an event that is sent
    again within its duplicate window. A stream that does not exist is created, with a window of one hour.

    Args:
        url: URL of the server, with the name of the stream: "nats://nats.example:4222/EVENTS". The default
            stream is "STAGEFLOW". A user and password, or a token, in the URL authenticate the connection.
        name: Name of the exporter; default one that is derived from the URL.
        subject: First part of the subjects; default "stageflow".
        credentials_file: Path of a file with NATS credentials; default None.
        timeout: Maximum time for the acknowledgements of a batch, in seconds; default 30.

    Raises:
        InvalidArgumentError: An argument is invalid.
        MissingExtraError: The packages of the `nats` extra are not installed.

    Example:
        NatsExporter("nats://nats.example:4222/EVENTS")
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        subject: str = "stageflow",
        credentials_file: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        parts = urlsplit(url)
        stream = parts.path.strip("/") or "STAGEFLOW"
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise invalid_argument(
                "NatsExporter", "url", without_secrets(url), "a URL such as nats://host:4222/STREAM"
            )
        if not _STREAM.fullmatch(stream):
            raise invalid_argument("NatsExporter", "stream", stream, "letters, digits, '_' and '-'")
        if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
            raise invalid_argument(
                "NatsExporter", "subject", subject, "tokens of letters, digits, '_' and '-'"
            )
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not timeout > 0:
            raise invalid_argument("NatsExporter", "timeout", timeout, "a positive number of seconds")
        self._nats = _nats()
        self.name = name_of_url(url) if name is None else check_name(name)
        self._url = url
        self._server = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
        self._stream = stream
        self._subject = subject
        self._credentials_file = credentials_file
        self._timeout = timeout
        self._connection: Any = None
        self._jetstream: Any = None

    @property
    def target(self) -> str:
        return without_secrets(self._url)

    async def send(self, batch: Batch) -> Sent:
        try:
            async with asyncio.timeout(self._timeout):
                jetstream = await self._connected()
                limit = self._connection.max_payload
                lines = [line_of(event).rstrip() for event in batch.events]
                rejected, acknowledgements = [], []
                for index, (event, line) in enumerate(zip(batch.events, lines, strict=True)):
                    if len(line) > limit:
                        reason = f"{len(line):,} bytes exceed the maximum payload of {limit:,}"
                        rejected.append(Rejected(index, reason))
                        continue
                    headers = {"Nats-Msg-Id": message_id(event)}
                    subject = f"{self._subject}.{_token(event.type)}"
                    # Publishing in order on one connection preserves the order of the batch in the stream.
                    acknowledgements.append(
                        await jetstream.publish_async(
                            subject, line, stream=self._stream, headers=headers, wait_stall=self._timeout
                        )
                    )
                acknowledged = await asyncio.gather(*acknowledgements)
        except TimeoutError:
            await self.close()
            raise NotSent(f"no acknowledgement within {self._timeout:g} s") from None
        except Exception as error:  # nats-py raises exceptions of many classes
            await self.close()
            raise NotSent(describe(error)) from None
        except BaseException:
            await self.close()
            raise
        return Sent(tuple(rejected), sum(1 for each in acknowledged if each.duplicate))

    async def _connected(self) -> Any:
        if self._connection is not None and not self._connection.is_connected:
            await self.close()
        if self._connection is None:
            # The runner retries, with a backoff that the status shows.
            self._connection = await self._nats.connect(
                self._server,
                allow_reconnect=False,
                connect_timeout=_CONNECT_SECONDS,
                error_cb=_ignore,
                name="stageflow-export",
                user_credentials=self._credentials_file,
            )
            self._jetstream = self._connection.jetstream()
            await self._create_stream()
        return self._jetstream

    async def _create_stream(self) -> None:
        not_found = self._nats.js.errors.NotFoundError
        try:
            await self._jetstream.stream_info(self._stream)
        except not_found:
            await self._jetstream.add_stream(
                name=self._stream,
                subjects=[f"{self._subject}.>"],
                duplicate_window=_DUPLICATE_WINDOW_SECONDS,
            )

    async def close(self) -> None:
        connection, self._connection, self._jetstream = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):  # the connection may already be closed
                await connection.close()


def message_id(event: ExportEvent) -> str:
    """Return the message id for deduplication. A hash, because a header cannot contain every `event_id`."""
    return hashlib.sha256(f"{event.id}\n{event.revision}".encode()).hexdigest()[:32]


def _token(event_type: str) -> str:
    return ".".join(filter(None, _TOKEN.sub("_", event_type).split("."))) or "_"


async def _ignore(error: Exception) -> None:
    """Ignore errors that `send` reports; otherwise nats-py would also log them."""


def _nats() -> Any:
    try:
        import nats
        import nats.js.errors
    except ModuleNotFoundError as error:
        raise MissingExtraError("a NATS exporter", "nats") from error
    return nats
