"""Turns any value into one that JSON can carry, so that no event is lost for a value in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..events.counters import TALLY

__all__ = ["plain", "safe_text", "short_repr", "text_key"]

_LONGEST_REPR = 200
_DEEPEST = 16
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


def plain(value: Any, depth: int = 0) -> Any:
    """Return `value` as str, int, float, bool, None, list or dict, its own copy.

    What JSON cannot carry (also NaN, an integer over 64 bits, a nesting over 16 deep) becomes its
    `repr`, cut to 200 characters, and is counted in `stats().coerced_values`.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, int):
        return int(value) if _INT_MIN <= value <= _INT_MAX else short_repr(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else short_repr(value)
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {text_key(key): plain(item, depth + 1) for key, item in list(value.items())}
        if isinstance(value, (list, tuple)):
            return [plain(item, depth + 1) for item in list(value)]
    return short_repr(value)


def text_key(key: Any) -> str:
    """Return the key of a mapping as text, whatever it is."""
    if isinstance(key, str):
        return safe_text(key)
    return str(plain(key, _DEEPEST))


def safe_text(text: str) -> str:
    """Return `text` without what UTF-8 cannot carry (lone surrogates become `?`)."""
    if text.isascii():
        return str(text)
    return text.encode("utf-8", "replace").decode()


def short_repr(value: Any) -> str:
    """Return the `repr` of a value, cut, also of one whose `__repr__` raises; and count it."""
    TALLY.coerced_values += 1
    try:
        text = safe_text(repr(value))
    except Exception:
        text = f"<{type(value).__name__}: its repr could not be made>"
    return text if len(text) <= _LONGEST_REPR else text[: _LONGEST_REPR - 1] + "…"
