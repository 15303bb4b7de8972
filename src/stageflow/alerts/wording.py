"""How moments, spans of time, counts and shares are written in a message."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta

from ..timestamps import rfc3339

__all__ = ["exactly", "how_many", "in_shell", "percent", "rfc3339_of", "second_of", "span"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OBEYED = re.compile(r"[\"$`\\!]")
"""What a shell obeys also between double quotes."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def rfc3339_of(moment: datetime) -> str:
    """Return a moment as events have it."""
    return rfc3339((moment - _EPOCH) // timedelta(microseconds=1))


def exactly(moment: datetime) -> str:
    """Return a moment as events have it, without a fraction where there is none.

    Example:
        >>> exactly(datetime(2026, 11, 24, 10, 30, tzinfo=UTC))
        '2026-11-24T10:30:00Z'
    """
    return rfc3339_of(moment).replace(".000000Z", "Z")


def second_of(moment: datetime) -> str:
    """Return a moment to its second, as the options of the command line take it.

    Example:
        >>> second_of(datetime(2026, 11, 24, 10, 30, tzinfo=UTC))
        '2026-11-24T10:30:00Z'
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span(seconds: float) -> str:
    """Return a span of time in the largest unit that leaves no fraction.

    Example:
        >>> span(600), span(21600), span(90), span(0.5)
        ('10 min', '6 h', '90 s', '0.5 s')
    """
    for unit, name in _UNITS:
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:g} s"


def percent(share: float) -> str:
    """Return a share in percent, with as many digits as a small one needs.

    Example:
        >>> percent(0.412), percent(0.001), percent(0.0004)
        ('41.2 %', '0.1 %', '0.04 %')
    """
    digits = 1 if share >= 0.001 or share == 0 else 2
    return f"{100 * share:.{digits}f} %"


def in_shell(text: str) -> str:
    """Return text as a shell takes it for one word, in the quotes that leave it readable.

    Example:
        >>> print(in_shell("status = 'FAIL'"), in_shell("checkout"))
        "status = 'FAIL'" checkout
    """
    return f'"{text}"' if "'" in text and not _OBEYED.search(text) else shlex.quote(text)


def how_many(events: float, rows: int, noun: str) -> str:
    """Return a count, and whether it is an estimate.

    Example:
        >>> how_many(85, 85, "runs"), how_many(4200, 85, "runs")
        ('85 runs', 'estimated 4,200 runs, from 85 seen')
    """
    if round(events) == rows:
        return f"{rows:,} {noun}"
    return f"estimated {events:,.0f} {noun}, from {rows:,} seen"
