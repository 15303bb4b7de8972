"""Counts the items of a mapped stage."""

from __future__ import annotations

import math
from collections import Counter

from msgspec import Struct
from msgspec.structs import replace

from .schema import FailedItem, Items
from .stages import StageOutput

__all__ = ["ItemAttempt", "ItemTally"]

_MAX_FAILURES = 5
"""Maximum number of failures in an event."""

_MAX_TYPES = 10
"""Maximum number of types of errors in an event."""

_BITS = 8
"""Durations are rounded down to this number of significant bits: by less than 1 %."""


class ItemAttempt(Struct, frozen=True):
    """An attempt of an item that has ended.

    Attributes:
        index: Position of the item, starting at 0.
        key: The text that identifies the item in events.
        number: Number of the attempt, starting at 1.
        output: Its outcome.
        duration_ms: Its duration in milliseconds.
    """

    index: int
    key: str
    number: int
    output: StageOutput
    duration_ms: float


class ItemTally:
    """The items of a mapped stage so far: their number, durations and failures.

    Its size does not depend on the number of items.

    Attributes:
        total: Number of items, or the number received so far.
        ok: Number of items that succeeded.
        failed: Number of items that failed.
        skipped: Number of skipped items.
        retried: Number of items with more than one attempt.
        max_us: The longest duration in microseconds; -1 before the first item ends.
        slowest: Key of the item with that duration.
    """

    __slots__ = (
        "_durations",
        "_failures",
        "_types",
        "failed",
        "max_us",
        "ok",
        "retried",
        "skipped",
        "slowest",
        "total",
    )

    def __init__(self) -> None:
        self.total = self.ok = self.failed = self.skipped = self.retried = 0
        self.max_us = -1
        self.slowest: str | None = None
        self._durations: Counter[int] = Counter()
        self._failures: list[FailedItem] = []
        self._types: dict[str, None] = {}

    def add_duration(self, us: int) -> None:
        """Add the duration of an item in microseconds."""
        shift = us.bit_length() - _BITS
        self._durations[us >> shift << shift if shift > 0 else us] += 1

    def add_failure(self, key: str, type: str | None, message: str) -> None:
        """Add a failed item."""
        self.failed += 1
        if len(self._failures) < _MAX_FAILURES:
            self._failures.append(FailedItem(key, type, message))
        if type is not None and len(self._types) < _MAX_TYPES:
            self._types[type] = None

    def so_far(self) -> Items:
        """Return the counts and failures; may be called from another thread."""
        return Items(
            self.total,
            self.ok,
            self.failed,
            self.skipped,
            self.retried,
            failures=list(self._failures),
            failure_types=sorted(self._types),
        )

    def summary(self) -> Items:
        """Return the counts, durations and failures."""
        counted = sorted(self._durations.items())
        ended = self._durations.total()
        return replace(
            self.so_far(),
            p50_ms=_percentile(counted, ended, 0.5),
            p95_ms=_percentile(counted, ended, 0.95),
            max_ms=None if self.max_us < 0 else self.max_us / 1000,
            slowest=self.slowest,
        )


def _percentile(counted: list[tuple[int, int]], ended: int, share: float) -> float | None:
    """Return a percentile in milliseconds (nearest rank), or None if no item has ended."""
    rank = max(1, math.ceil(share * ended))
    for us, count in counted:
        rank -= count
        if rank <= 0:
            return us / 1000
    return None
