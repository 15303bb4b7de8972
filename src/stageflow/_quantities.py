"""Shares, durations and times as short texts."""

from __future__ import annotations

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

    Example:
        >>> duration(4123), duration(12.34), duration(0.5)
        ('4.1 s', '12 ms', '0.5 ms')
    """
    if ms is None:
        return ""
    return f"{ms / 1000:,.1f} s" if ms >= 1000 else f"{ms:.0f} ms" if ms >= 100 else f"{ms:.2g} ms"


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
