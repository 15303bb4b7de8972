"""The one clock of the library, which tests replace: wall time once a run, monotonic for the rest.

Timers are the event loop's own (`loop.call_later`); a virtual clock brings a loop that follows it.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock", "get_clock", "set_clock"]


class Clock(Protocol):
    """Two readings, both in whole nanoseconds."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch; it may step."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed moment; it never goes back."""
        ...


class SystemClock:
    """The clock of the machine."""

    wall_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.monotonic_ns)


_clock: Clock = SystemClock()


def get_clock() -> Clock:
    """Return the clock that runs started from now on will read."""
    return _clock


def set_clock(clock: Clock) -> Clock:
    """Make `clock` the one that runs read, and return the one it replaces."""
    global _clock
    previous, _clock = _clock, clock
    return previous
