"""Turns any value into one that JSON can carry, so that no event is lost for a value in it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from ..errors import as_text
from ..events.counters import TALLY

__all__ = ["plain", "safe_text", "short_repr", "text_key"]

_LONGEST_REPR = 200
_DEEPEST = 16
_MOST_PARTS = 10_000
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


def plain(value: Any) -> Any:
    """Return `value` as str, int, float, bool, None, list or dict, its own copy.

    What JSON cannot carry (also NaN, an integer over 64 bits, a nesting over 16 deep, what contains
    itself, what comes after 10,000 parts) becomes its `repr`, cut to 200 characters, and is counted
    in `stats().coerced_values`.
    """
    if type(value) is dict and len(value) < _MOST_PARTS:
        # The common case, at a third of the price: a flat dict of short values.
        copy = value.copy()
        for key, item in copy.items():
            kind = type(item)
            if type(key) is not str or not key.isascii():
                break
            if kind is str:
                if not item.isascii():
                    break
            elif kind is int:
                if not _INT_MIN <= item <= _INT_MAX:
                    break
            elif kind is float:
                if not isfinite(item):
                    break
            elif kind is not bool and item is not None:
                break
        else:
            return copy
    return _plain(value, (), [_MOST_PARTS])


def _plain(value: Any, inside: tuple[int, ...], left: list[int]) -> Any:
    """`inside` holds the ids of what contains the value, `left` how many parts may still come."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, int):
        return int(value) if _INT_MIN <= value <= _INT_MAX else short_repr(value)
    if isinstance(value, float):
        return float(value) if isfinite(value) else short_repr(value)
    left[0] -= 1
    if len(inside) < _DEEPEST and left[0] > 0 and id(value) not in inside:
        within = (*inside, id(value))
        if isinstance(value, Mapping):
            left[0] -= len(value)
            return {text_key(key): _plain(item, within, left) for key, item in list(value.items())}
        if isinstance(value, (list, tuple)):
            left[0] -= len(value)
            return [_plain(item, within, left) for item in list(value)]
    return short_repr(value)


def text_key(key: Any) -> str:
    """Return the key of a mapping as text, whatever it is."""
    if isinstance(key, str):
        return safe_text(key)
    return str(key if isinstance(key, (int, float)) or key is None else short_repr(key))


def safe_text(text: str) -> str:
    """Return `text` without what UTF-8 cannot carry (lone surrogates become `?`)."""
    if not isinstance(text, str):  # an output made by hand may hold anything
        text = as_text(text)
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
