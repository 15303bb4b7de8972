"""Adds amounts to the numbers among a record's fields."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from ..interrupts import INTERRUPTS

__all__ = ["added", "is_amount"]


def added(fields: dict[str, Any], amounts: Mapping[str, float]) -> dict[str, float]:
    """Add each amount to the field of its name, and return the new totals. What was no number gives way.

    Example:
        >>> fields = {"db_ms": 0.1}
        >>> added(fields, {"db_ms": 0.2, "db_count": 1})
        {'db_ms': 0.3, 'db_count': 1}
    """
    totals: dict[str, float] = {}
    for name, amount in amounts.items():
        before = fields.get(name, 0)
        try:
            total = amount if type(before) not in (int, float) else before + amount
        except OverflowError:  # a whole number that no float can hold
            total = amount
        # To the millionth: 0.1 + 0.2 is 0.3 for who reads it.
        totals[name] = round(total, 6) if type(total) is float else total
    fields.update(totals)
    return totals


def is_amount(value: Any) -> bool:
    """Tell whether a value can be added up.

    Example:
        >>> [is_amount(value) for value in (2, 0.5, "x", None, float("nan"))]
        [True, True, False, False, False]
    """
    try:
        return isinstance(value, (int, float)) and isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return True
    except BaseException as error:  # raised by a value that fakes its type
        INTERRUPTS.contain(error)
        return False
