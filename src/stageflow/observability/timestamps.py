"""Timestamps of events: RFC 3339, UTC, six digits of a second, ending in Z."""

from __future__ import annotations

import functools
import time

__all__ = ["rfc3339"]


def rfc3339(epoch_us: int) -> str:
    """Return microseconds since the Unix epoch as text.

    Example:
        >>> rfc3339(1_672_567_200_500_000)
        '2023-01-01T10:00:00.500000Z'
    """
    second, fraction = divmod(epoch_us, 1_000_000)
    return "%s.%06dZ" % (_second(second), fraction)  # noqa: UP031 - half the time of an f-string


@functools.lru_cache(maxsize=256)
def _second(epoch_s: int) -> str:
    # Most events of a second share it: formatting it once takes the cost off the hot path.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch_s))
