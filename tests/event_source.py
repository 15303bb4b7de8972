"""A client of server-sent events, which parses a stream as the WHATWG specification describes it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class ReceivedEvent:
    name: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventParser:
    """Parses chunks of bytes; keeps the comments and the last id, as `EventSource` does.

    A test that needs speed feeds it complete lines that end with a line feed; any other input is valid too.
    """

    def __init__(self) -> None:
        self.comments: list[str] = []
        self.last_id = ""
        self.retry: int | None = None
        self._rest = b""
        self._data: list[str] = []
        self._name = ""

    def feed(self, received: bytes) -> Iterator[ReceivedEvent]:
        self._rest += received
        while (line := self._line()) is not None:
            if (event := self._field(line)) is not None:
                yield event

    def _line(self) -> str | None:
        ends = [at for at in (self._rest.find(b"\n"), self._rest.find(b"\r")) if at >= 0]
        if not ends:
            return None
        end = min(ends)
        if self._rest[end : end + 1] == b"\r":
            if end + 1 == len(self._rest):
                return None  # the next byte may be a line feed
            following = end + (2 if self._rest[end + 1 : end + 2] == b"\n" else 1)
        else:
            following = end + 1
        line, self._rest = self._rest[:end], self._rest[following:]
        return line.decode("utf-8")

    def _field(self, line: str) -> ReceivedEvent | None:
        if not line:
            data, name = self._data, self._name
            self._data, self._name = [], ""
            return ReceivedEvent(name or "message", "\n".join(data), self.last_id) if data else None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not field:
            self.comments.append(value)
        elif field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self.last_id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)
        return None


async def events_in(received: AsyncIterable[bytes], parser: EventParser) -> AsyncIterator[ReceivedEvent]:
    """Yield the events of a response."""
    async for part in received:
        for event in parser.feed(part):
            yield event
