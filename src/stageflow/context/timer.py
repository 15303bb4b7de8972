"""Measures a block of code, and adds what it took to the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from ..clock import get_clock

__all__ = ["Timer"]


class Timer:
    """Adds 1 to `NAME_count` and the milliseconds to `NAME_ms` when its block ends, however it does.

    Attributes:
        ms: Milliseconds that the last block took; 0 before one has ended.
    """

    __slots__ = ("_add", "_began", "_name", "ms")

    def __init__(self, name: str, add: Callable[[Mapping[str, float]], None]) -> None:
        self._name = name
        self._add = add
        self._began = 0
        self.ms = 0.0

    def __enter__(self) -> Timer:
        self._began = get_clock().monotonic_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ms = (get_clock().monotonic_ns() - self._began) // 1000 / 1000
        self._add({f"{self._name}_count": 1, f"{self._name}_ms": self.ms})
