"""How counts, shares and milliseconds are written, so that a column of them lines up."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["count", "milliseconds", "percentile", "share", "size"]


def count(number: float | None) -> str:
    """Return a count with its thousands apart, or nothing for none.

    Example:
        >>> count(12345), count(0)
        ('12,345', '')
    """
    return f"{number:,.0f}" if number else ""


def milliseconds(number: float | None) -> str:
    """Return milliseconds with two decimals, or nothing where none were measured.

    Example:
        >>> milliseconds(1234.5678), milliseconds(None)
        ('1,234.57', '')
    """
    return "" if number is None else f"{number:,.2f}"


def share(part: float, whole: float) -> str:
    """Return a share in percent.

    Example:
        >>> share(1, 3)
        '33.3 %'
    """
    return f"{100 * part / whole:.1f} %" if whole else ""


def percentile(weighted: Iterable[tuple[float, float]], rank: float) -> float | None:
    """Return the smallest value that `rank` percent of all weight lies at or below.

    Args:
        weighted: Pairs of a value and its weight.
        rank: 0 to 100.

    Returns:
        None where there are no values.

    Example:
        >>> percentile([(5.0, 1), (1.0, 1), (3.0, 8)], 50)
        3.0
    """
    ordered = sorted(weighted)
    needed = sum(weight for _, weight in ordered) * rank / 100
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        if reached >= needed:
            return value
    return ordered[-1][0] if ordered else None


def size(number: float) -> str:
    """Return a number of bytes.

    Example:
        >>> size(999), size(64 << 20)
        ('999 B', '67.1 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
