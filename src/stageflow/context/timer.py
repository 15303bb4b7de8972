"""Measures a block of code, and adds what it took to the record."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

from ..clock import get_clock

__all__ = ["Timer"]


class Timer:
    """Adds 1 to `NAME_count` and the milliseconds to `NAME_ms` when its block ends, however it does.

    It may be entered again while it is open: in its own block, by other tasks and by other threads.
    Each block counts for itself, with all of its time.

    Attributes:
        ms: Milliseconds that the block that ended last took; 0 before one has ended.
    """

    __slots__ = ("_add", "_began", "_name", "ms")

    def __init__(self, name: str, add: Callable[[Mapping[str, float]], None]) -> None:
        self._name = name
        self._add = add
        self._began: dict[object, list[int]] = {}
        self.ms = 0.0

    def __enter__(self) -> Timer:
        self._began.setdefault(_whoever_asks(), []).append(get_clock().monotonic_ns())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = get_clock().monotonic_ns()
        who = _whoever_asks()
        if who not in self._began:  # an exit stack, say, that another task closes
            who = next(iter(self._began), None)
        if who is None:
            return
        began = self._began[who].pop()
        if not self._began[who]:
            del self._began[who]
        self.ms = (ended - began) // 1000 / 1000
        self._add({f"{self._name}_count": 1, f"{self._name}_ms": self.ms})


def _whoever_asks() -> object:
    """Return the task at hand, or the thread where there is none."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:  # no loop runs here
        return threading.get_ident()
