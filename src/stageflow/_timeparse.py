"""Parses times and time spans that people enter: `2h`, `yesterday`, `14:30`, `2026-11-23T10:00`."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from ._time import rfc3339

__all__ = ["TIME_FORMATS", "is_duration", "parse_duration", "parse_time"]

TIME_FORMATS = (
    "2h (two hours ago), 1h30m, 90s, 7d, 2 hours ago, now, today, yesterday, 14:30, 2026-11-23,"
    " 2026-11-23T10:00, ...T10:00Z"
)
"""The formats that `parse_time` accepts, for error messages and help texts."""

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MAX_SECONDS = 36500 * 86400
"""Length of the longest time span: dates and timeouts calculated from it must not overflow."""

_PART = re.compile(
    r"(\d+(?:\.\d+)?) *(ms|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|weeks?)(?![a-z]) *",
    re.ASCII,
)
_SPAN = re.compile(rf"(?:{_PART.pattern})+(?:ago)?", re.ASCII)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?", re.ASCII)
_DAY = {"today": 0, "yesterday": 1}


def parse_time(text: str, now: datetime, zone: tzinfo | None = None) -> str:
    """Return a time in the format of events: RFC 3339, UTC, with microseconds.

    A time of day without a date is the most recent one: in the morning, "14:30" means yesterday.

    Args:
        text: The time, in one of the formats that `TIME_FORMATS` lists.
        now: The current time, timezone-aware.
        zone: The time zone of a text that contains none; default the zone of this machine.

    Raises:
        ValueError: The text has none of the formats.

    Example:
        >>> noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
        >>> parse_time("1h30m", noon), parse_time("2 hours ago", noon)
        ('2026-11-23T10:30:00.000000Z', '2026-11-23T10:00:00.000000Z')
        >>> parse_time("yesterday", noon, UTC), parse_time("14:30", noon, UTC)
        ('2026-11-22T00:00:00.000000Z', '2026-11-22T14:30:00.000000Z')
        >>> parse_time("2026-11-23T10:00+02:00", noon)
        '2026-11-23T08:00:00.000000Z'
    """
    try:
        found = _parse(text.strip().lower(), now, zone).astimezone(UTC)
        return rfc3339((found - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
    except (ValueError, OverflowError):
        raise ValueError(f"cannot parse time {text!r}; expected e.g. {TIME_FORMATS}") from None


def parse_duration(text: str) -> float:
    """Return a time span in seconds. A number without a unit is an error.

    Raises:
        ValueError: The text is not a time span.

    Example:
        >>> parse_duration("1h30m"), parse_duration("500ms")
        (5400.0, 0.5)
    """
    span = text.strip().lower()
    if not _SPAN.fullmatch(span) or span.endswith("ago"):
        raise ValueError(f"cannot parse time span {text!r}; expected e.g. 500ms, 30s, 10m, 1h30m, 7d")
    seconds = sum(
        float(number) * _SECONDS["ms" if unit == "ms" else unit[0]] for number, unit in _PART.findall(span)
    )
    if seconds > _MAX_SECONDS:
        raise ValueError(f"time span {text!r} is too long; the longest is 36500d")
    return seconds


def is_duration(text: str) -> bool:
    """Return whether a text is a time span that is not zero.

    Example:
        >>> is_duration("1d"), is_duration("version=1.4")
        (True, False)
    """
    try:
        return parse_duration(text) > 0
    except ValueError:
        return False


def _parse(text: str, now: datetime, zone: tzinfo | None) -> datetime:
    if text == "now":
        return now
    if _SPAN.fullmatch(text):
        return now - timedelta(seconds=parse_duration(text.removesuffix("ago")))
    today = now.astimezone(zone).date()
    if _CLOCK.fullmatch(text):
        found = _at(today, text, zone)
        return found if found <= now else _at(today - timedelta(days=1), text, zone)
    day, _, clock = text.partition(" ")
    if day in _DAY:
        return _at(today - timedelta(days=_DAY[day]), clock.strip() or "00:00", zone)
    if "-" not in text:
        raise ValueError(text)  # "20261123" may be a number of something
    found = datetime.fromisoformat(text.upper())
    return found if found.tzinfo else _in_zone(found, zone)


def _at(day: date, clock: str, zone: tzinfo | None) -> datetime:
    return _in_zone(datetime.combine(day, time.fromisoformat(clock.zfill(5))), zone)


def _in_zone(naive: datetime, zone: tzinfo | None) -> datetime:
    # Without a zone, `astimezone` uses the zone of the machine, with daylight saving time as on that day.
    return naive.replace(tzinfo=zone) if zone else naive.astimezone()
