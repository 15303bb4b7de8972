"""Turns any value into one that JSON can carry, at bounded cost: of a text it asks only the length."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from math import isfinite
from typing import Any

from ..errors import as_text
from ..events.counters import TALLY
from ..interrupts import INTERRUPTS, is_a
from .short_repr import short_repr

__all__ = ["SHOWN_CHARS", "Cut", "Plain", "Shown", "flat", "is_mapping", "items_of", "text_key", "unlike"]

SHOWN_CHARS = 200
"""Characters that are shown of a `repr`."""

_MOST_WORK = 50_000
"""What one event may cost: 1 for each number and container, 5 for each text and name."""

_OF_TEXT = 5
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


class Cut(str):
    """Says what stood here and was too much."""

    __slots__ = ()


class Shown(str):
    """The `repr` of what JSON cannot carry, longer than it will be shown."""

    __slots__ = ()


def flat(fields: Mapping[str, Any], most: int, name_chars: int, chars: int) -> dict[str, Any] | None:
    """Return a copy of fields that are few, flat and short, which is the common case; else None."""
    if type(fields) is not dict or len(fields) > most:
        return None
    copy = fields.copy()
    for key, item in copy.items():
        kind = type(item)
        if type(key) is not str or not key.isascii() or len(key) > name_chars:
            return None
        if kind is str:
            chars -= len(item)
            if chars < 0 or not item.isascii():
                return None
        elif kind is int:
            if not _INT_MIN <= item <= _INT_MAX:
                return None
        elif kind is float:
            if not isfinite(item):
                return None
        elif kind is not bool and item is not None:
            return None
    return copy


class Plain:
    """Copies the values of one event as str, int, float, bool, None, list or dict.

    What JSON cannot carry (also NaN, an integer over 64 bits, what contains itself) becomes the
    beginning of its `repr`, as `Shown`; what lies too deep or comes after too much, a `Cut`. Both
    are counted in `stats().coerced_values`. Texts stay as they are, of any length.

    Args:
        depth: Levels that are copied.
        text_chars: Characters that will be left of a text.

    Attributes:
        size: Bytes that the last copy takes as JSON, at least.
    """

    def __init__(self, depth: int, text_chars: int) -> None:
        self._depth = depth
        self._text_chars = text_chars
        self._left = _MOST_WORK
        self.size = 0

    def copy(self, value: Any) -> Any:
        """Return a copy of the value of one field."""
        self.size = 0
        return self._copy(value, ())

    def _copy(self, value: Any, inside: tuple[int, ...]) -> Any:
        """`inside` holds the ids of what contains the value."""
        self._left -= 1
        self.size += 1
        if value is None or value is True or value is False:
            return value
        # Use the real types and their own methods: a subclass may override any method called here.
        if is_a(value, str):
            text = str.__str__(value)
            self._left -= _OF_TEXT
            self.size += min(len(text), self._text_chars) + 2
            return text
        if is_a(value, int) and _INT_MIN <= (number := int.__int__(value)) <= _INT_MAX:
            return number
        if is_a(value, float) and isfinite(real := float.__float__(value)):
            return real
        try:
            if isinstance(value, (Mapping, list, tuple)) and id(value) not in inside:
                if len(inside) >= self._depth:
                    return self._cut(f"deeper than {self._depth} levels")
                copied = self._container(value, (*inside, id(value)))
                if copied is not None:
                    return copied
        except BaseException as error:
            INTERRUPTS.contain(error)
        self._left -= _OF_TEXT
        shown = Shown(short_repr(value))
        self.size += min(len(shown), SHOWN_CHARS)
        return shown

    def _container(self, value: Any, within: tuple[int, ...]) -> Any:
        """Return the copy of what holds others, or None where it cannot be read."""
        room = max(self._left, 0)
        names = getattr(type(value), "_fields", None)
        if isinstance(names, tuple) and isinstance(value, tuple):
            value = dict(zip(names, value, strict=False))  # a row: its names say what may be stored
        if isinstance(value, Mapping):
            items = items_of(value, room // _OF_TEXT + 1)
            if items is None:
                return None
            if len(items) * _OF_TEXT > room:
                return self._cut("too many parts")
            self._left -= len(items) * _OF_TEXT
            copied: dict[str, Any] = {}
            for key, item in items:
                name = text_key(key)
                self.size += len(name) + 4
                copied[unlike(name, copied)] = self._copy(item, within)
            return copied
        parts = list(islice(value, room + 1))
        if len(parts) > room:
            return self._cut("too many parts")
        return [self._copy(item, within) for item in parts]

    def _cut(self, why: str) -> Cut:
        TALLY.coerced_values += 1
        return Cut(f"[cut: {why}]")


def is_mapping(value: Any) -> bool:
    """Return whether a value is a mapping; False if its `__class__` raises."""
    try:
        return isinstance(value, Mapping)
    except BaseException as error:
        INTERRUPTS.contain(error)
        return False


def items_of(fields: Mapping[Any, Any], most: int) -> list[tuple[Any, Any]] | None:
    """Return the first items of a mapping, or None for one of the application's that cannot be read."""
    try:
        return list(islice(fields.items(), most))
    except BaseException as error:
        INTERRUPTS.contain(error)
        return None


def text_key(key: Any) -> str:
    """Return the key of a mapping as text, whatever it is."""
    if is_a(key, str):
        return str.__str__(key)
    if is_a(key, int) and not is_a(key, bool):
        number = int.__int__(key)
        return str(number) if _INT_MIN <= number <= _INT_MAX else short_repr(key)
    return as_text(key) if key is None or is_a(key, (float, bool)) else short_repr(key)


def unlike(name: str, names: Mapping[str, Any]) -> str:
    """Return a name that is none of `names`: with its number behind it, where it would be."""
    number = len(names)
    shown = name
    while shown in names:
        number += 1
        shown = f"{name} ({number})"
    return shown
