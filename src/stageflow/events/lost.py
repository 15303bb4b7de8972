"""How a sink of ours says that it lost an event, and under which reason to count it."""

from __future__ import annotations

__all__ = ["EventLost"]


class EventLost(Exception):
    """An event that a sink took on and could not keep.

    Attributes:
        reason: Under which it is counted, in `SinkStats.dropped`.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
