"""Converts numbers of any type, such as those of numpy, to the numbers that JSON has."""

from __future__ import annotations

import operator
from math import isfinite
from numbers import Complex, Integral, Number, Real
from typing import Any

from ._interrupts import INTERRUPTS

__all__ = ["as_number", "item_of"]

_EXACT = float(1 << 53)
"""At this magnitude and above, a float may differ from the integer that it represents."""


def as_number(value: Any) -> int | float | None:
    """Return a number as a plain `bool`, `int` or `float`; None for anything else, NaN and infinity.

    Numbers are all instances of `numbers.Number`, including `Decimal` and `Fraction`, and the scalars and
    zero-dimensional arrays of numpy and similar libraries; complex numbers are not. A `Decimal` or `Fraction`
    becomes the nearest float, or an `int` if it is an integer that a float may not represent exactly.

    Example:
        >>> from decimal import Decimal
        >>> [as_number(value) for value in (3, True, Decimal("9.99"), 2j, "7", float("nan"))]
        [3, True, 9.99, None, None, None]
    """
    kind = type(value)
    if kind is int or kind is bool:
        integer: int = value
        return integer
    try:
        if kind is not float and hasattr(kind, "item"):
            value = item_of(value)
            kind = type(value)
        if kind is bool or issubclass(kind, int):
            return value if kind is bool else int.__int__(value)
        if issubclass(kind, float):
            real = float.__float__(value)
            return real if isfinite(real) else None
        if not issubclass(kind, Number) or (issubclass(kind, Complex) and not issubclass(kind, Real)):
            return None
        if issubclass(kind, Integral):
            return operator.index(value)
        real = float(value)
        if not isfinite(real):
            return None
        if abs(real) >= _EXACT and (whole := int(value)) == value:
            return whole
        return real
    except BaseException as error:  # raised by a number type of the application
        INTERRUPTS.contain(error)
        return None


def item_of(value: Any) -> Any:
    """Return the item of a scalar or a zero-dimensional array; any other value as it is.

    The types of numpy, torch, jax and cupy have the same interface: `ndim` and `item()`. An array on another
    device is copied, as its `repr` would do. An array that is not computed yet, which has `compute()`, stays
    as it is.

    Raises:
        Exception: Whatever the type raises.
    """
    kind = type(value)
    if not hasattr(kind, "item") or not hasattr(kind, "ndim") or hasattr(kind, "compute") or value.ndim:
        return value
    unit = getattr(getattr(value, "dtype", None), "kind", None)
    if unit == "M":  # in nanoseconds, `item()` would return an integer
        return value.astype("datetime64[us]").item()
    if unit == "m":
        return value.astype("timedelta64[us]").item()
    return value.item()
