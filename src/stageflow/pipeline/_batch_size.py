"""The number of items of a map that one call of an executor processes."""

from __future__ import annotations

__all__ = ["BatchSize"]

_BATCH_NS = 20_000_000
"""Target duration of a batch: longer than the transfer of a call, short enough to balance the workers."""

_MAX_ITEMS = 1024
_GROWTH = 4


class BatchSize:
    """Determines the size of the next batch from the durations of the items so far."""

    __slots__ = ("_count", "_single", "_size", "_total_ns")

    def __init__(self) -> None:
        self._size = 1
        self._count = 0
        self._total_ns = 0
        self._single = 0

    def add(self, duration_ns: int) -> None:
        """Add the duration of an item."""
        self._count += 1
        self._total_ns += duration_ns

    def send_one_by_one(self, items: int) -> None:
        """Limit the next `items` batches to one item each."""
        self._single = items

    def next(self, left: int, workers: int) -> int:
        """Return the size of the next batch.

        Args:
            left: Number of remaining items; 0 if it is unknown.
            workers: Maximum number of batches in progress.
        """
        if self._single:
            self._single -= 1
            return 1
        if self._count:
            size = int(_BATCH_NS * self._count / max(self._total_ns, 1))
            self._size = max(1, min(size, self._size * _GROWTH, _MAX_ITEMS))
            # Halve the weight of the durations so far.
            self._count, self._total_ns = self._count // 2, self._total_ns // 2
        return max(1, min(self._size, -(-left // workers))) if left else self._size
