"""Adds amounts to the numbers among a record's fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._numbers import as_number

__all__ = ["added", "as_amount"]


def added(fields: dict[str, Any], amounts: Mapping[str, float]) -> dict[str, float]:
    """Add each amount to the field of its name, and return the new totals. What was no number gives way.

    Example:
        >>> fields = {"db_ms": 0.1}
        >>> added(fields, {"db_ms": 0.2, "db_count": 1})
        {'db_ms': 0.3, 'db_count': 1}
    """
    totals: dict[str, float] = {}
    for name, amount in amounts.items():
        before = as_number(fields.get(name, 0))
        try:
            total = amount if before is None or type(before) is bool else before + amount
        except OverflowError:  # a whole number that no float can hold
            total = amount
        # To the millionth: 0.1 + 0.2 is 0.3 for who reads it.
        totals[name] = round(total, 6) if type(total) is float else total
    fields.update(totals)
    return totals


def as_amount(value: Any) -> int | float | None:
    """Return a value as a number that can be added up, or None.

    Example:
        >>> [as_amount(value) for value in (2, 0.5, "x", None, float("nan"))]
        [2, 0.5, None, None, None]
    """
    number = as_number(value)
    return int(number) if type(number) is bool else number
