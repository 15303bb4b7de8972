"""Shares, durations and times as short texts."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal

__all__ = ["duration", "onset_text", "percent"]


def percent(share: float) -> str:
    """Return a share as a percentage; one below 1 is never rounded to 100%.

    Example:
        >>> percent(0.523), percent(0.0042), percent(0.9999), percent(0)
        ('52%', '0.42%', '>99%', '0%')
    """
    if 0 < share < 0.0001:
        return "<0.01%"
    if share < 0.0995:
        return f"{100 * share:.2g}%"
    return ">99%" if 0.995 < share < 1 else f"{100 * share:.0f}%"


def duration(ms: float | None) -> str:
    """Return a duration in milliseconds with its unit; an empty text for None.

    The web UI rounds in the same way (`web/src/duration.ts`).

    Example:
        >>> duration(4123), duration(12.34), duration(0.5), duration(125_000), duration(3_780_000)
        ('4.12 s', '12 ms', '0.5 ms', '2 min 05 s', '1 h 03 min')
    """
    if ms is None or not math.isfinite(ms):
        return ""
    size, sign = abs(ms), "-" if ms < 0 else ""
    if size == 0:
        return "0 ms"
    if size < 0.001:
        return "< 0.001 ms"
    if size < 999.5:
        return f"{sign}{_significant(size, 2 if size < 100 else 3)} ms"
    if size < 59_995:
        return f"{sign}{_significant(size / 1000, 3)} s"
    minutes = int(size // 60_000)
    if minutes < 60:
        return f"{sign}{minutes} min {int(size % 60_000 // 1000):02} s"
    hours = minutes // 60
    if hours < 48:
        return f"{sign}{hours} h {minutes % 60:02} min"
    return f"{sign}{hours // 24} d {hours % 24} h"


def _significant(value: float, digits: int) -> str:
    number = Decimal(repr(value))
    last = Decimal(1).scaleb(number.adjusted() - digits + 1)
    text = f"{number.quantize(last, ROUND_HALF_UP):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def onset_text(onset: str, within: tuple[str, str] | None) -> str:
    """Return when something started, to the second, with the range of this time.

    Example:
        >>> onset_text("2026-11-27T19:31:04Z", ("2026-11-27T19:25:40.5Z", "2026-11-27T19:35:00Z"))
        'since 2026-11-27T19:31:04Z (between 2026-11-27T19:25:40Z and 2026-11-27T19:35:00Z)'
    """
    since, *limits = (f"{time[:19]}Z" for time in (onset, *(within or ())))
    if not limits or limits[0] == limits[1]:
        return f"since {since}"
    return f"since {since} (between {limits[0]} and {limits[1]})"
