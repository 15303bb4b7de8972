"""Clocks and timestamps."""

from __future__ import annotations

import functools
import time
from datetime import datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "epoch_us", "get_clock", "rfc3339", "set_clock"]


def rfc3339(epoch_us: int) -> str:
    """Return microseconds since the Unix epoch as an RFC 3339 timestamp.

    Example:
        >>> rfc3339(1_672_567_200_500_000)
        '2023-01-01T10:00:00.500000Z'
    """
    second, fraction = divmod(epoch_us, 1_000_000)
    return "%s.%06dZ" % (_second(second), fraction)  # noqa: UP031 - half the time of an f-string


def epoch_us(timestamp: str) -> int:
    """Return an RFC 3339 timestamp as microseconds since the Unix epoch.

    Example:
        >>> epoch_us("2023-01-01T10:00:00.500000Z")
        1672567200500000
    """
    parsed = datetime.fromisoformat(timestamp)
    # With integers: a float of this size cannot represent every microsecond.
    return int(parsed.replace(microsecond=0).timestamp()) * 1_000_000 + parsed.microsecond


@functools.lru_cache(maxsize=256)
def _second(epoch_s: int) -> str:
    # Cached, because many events share the same second and this is the hot path.
    # `strftime` does not pad the years before 1000.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch_s)).rjust(19, "0")


class Clock(Protocol):
    """A source of wall time and monotonic time, both as integers in nanoseconds."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch; the clock may be set back or forward."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary point in time; the clock never goes back."""
        ...


class SystemClock:
    """The clock of the operating system."""

    wall_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.monotonic_ns)


_clock: Clock = SystemClock()


def get_clock() -> Clock:
    """Return the clock for runs that start from now on."""
    return _clock


def set_clock(clock: Clock) -> Clock:
    """Set the clock for runs that start from now on, and return the previous one."""
    global _clock
    previous, _clock = _clock, clock
    return previous
