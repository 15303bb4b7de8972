"""The value of a stage that streams, collected from its chunks."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from ..stages import StageOutput, StageStatus

__all__ = ["MAX_COLLECTED", "Collected", "size_of"]

MAX_COLLECTED = 16 << 20
"""Maximum size of the chunks that are collected, or that wait for a reader; see `size_of`."""

_OTHER_SIZE = 16
_JOIN_EVERY = 4096
"""Number of strings that are joined, so that many short ones do not take much memory."""


def size_of(chunk: Any) -> int:
    """Return the size of a chunk: its characters or bytes, at least 1; 16 for any other value."""
    return len(chunk) or 1 if type(chunk) in (str, bytes) else _OTHER_SIZE


class Collected:
    """The chunks of one attempt: all text, all bytes, or anything else.

    Attributes:
        bytes: Their size in bytes, as UTF-8 for text; None if one of them is neither text nor bytes.
    """

    __slots__ = ("_chunks", "_is_truncated", "_joined", "_kind", "_lengths", "_size", "bytes")

    def __init__(self) -> None:
        self.bytes: int | None = 0
        self._kind: type | None = None
        self._chunks: list[Any] = []
        # The chunks before those: joined strings, and the lengths of their parts if another type follows.
        self._joined: list[str] = []
        self._lengths = array("Q")
        self._size = 0
        self._is_truncated = False

    def add(self, chunk: Any) -> None:
        """Add a chunk. Those beyond the maximum size are counted, but not kept."""
        kind = type(chunk)
        if kind is str:
            size = len(chunk)
            if self.bytes is not None:
                self.bytes += size if chunk.isascii() else len(chunk.encode("utf-8", "replace"))
        elif kind is bytes:
            size = len(chunk)
            if self.bytes is not None:
                self.bytes += size
        else:
            kind, size, self.bytes = object, _OTHER_SIZE, None
        if kind is not self._kind:
            self._kind = kind if self._kind is None else object
        if self._is_truncated:
            return
        self._size += size or 1
        if self._size > MAX_COLLECTED:
            self._is_truncated = True
            return
        self._chunks.append(chunk)
        if len(self._chunks) >= _JOIN_EVERY and self._kind is str:
            self._joined.append("".join(self._chunks))
            self._lengths.extend(map(len, self._chunks))
            self._chunks.clear()

    def output(self) -> StageOutput:
        """Return the output of an attempt that sent these chunks and returned nothing."""
        value: Any
        if self._kind is str:
            key, value = "text", "".join([*self._joined, *self._chunks])
        elif self._kind is bytes:
            key, value = "bytes", b"".join(self._chunks)
        else:
            key, value = "chunks", [*self._parts(), *self._chunks]
        data = {key: value, "truncated": True} if self._is_truncated else {key: value}
        return StageOutput(StageStatus.OK, data, returned=value)

    def _parts(self) -> Iterator[str]:
        """Yield the joined strings one by one."""
        text, start = "".join(self._joined), 0
        for length in self._lengths:
            yield text[start : start + length]
            start += length
