"""One event on its way to a sink: its type, and a body that becomes a dict only when one is wanted."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["Event"]

_encoder = msgspec.json.Encoder()
_encode, _encode_lines = _encoder.encode, _encoder.encode_lines


class Event(Struct, frozen=True, gc=False, rename={"body": "data"}):
    """An event. Its body is immutable or its own copy, and holds only what JSON can carry."""

    type: str
    body: Struct | dict[str, Any] | None

    def data(self) -> dict[str, Any] | None:
        """Return the body as a dict that belongs to whoever asks, down to its last level."""
        data: dict[str, Any] | None = msgspec.to_builtins(self.body)
        return data

    def json(self) -> bytes:
        """Return the body as JSON, without the detour over a dict."""
        return _encode(self.body)

    def line(self) -> bytes:
        """Return `{"type": ..., "data": {...}}` and a newline, as UTF-8."""
        # A list: msgspec 0.22.0 leaks the iterator that it creates for any other iterable (see
        # pyproject.toml).
        return _encode_lines([self])
