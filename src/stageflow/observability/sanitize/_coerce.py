"""Coerces any value to a value that JSON can represent."""

from __future__ import annotations

import os
import reprlib
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from itertools import islice
from math import isfinite
from typing import Any
from uuid import UUID

from msgspec import Struct

from ..._interrupts import INTERRUPTS, is_a
from ..._numbers import as_number, item_of
from ...errors import as_text, type_name
from ...events import GLOBAL_COUNTERS

__all__ = [
    "REPR_CHARS",
    "Coercer",
    "ReprText",
    "Truncated",
    "copy_if_simple",
    "fields_of",
    "is_mapping",
    "items_of",
    "safe_repr",
    "safe_text",
    "text_key",
    "to_simple",
    "unique_key",
]


_MAX_PARTS = 200
"""Maximum number of nested values in a `repr`, over all levels."""

_MAX_CHARS = 2_000
"""Maximum length of a `repr`. It exceeds the recorded length, so that redaction sees complete secrets."""

_MISSING = object()
_REPR_OF_STRUCT: Any = Struct.__repr__

REPR_CHARS = 200
"""Number of characters of a `repr` that are recorded."""

_MAX_WORK = 50_000
"""Maximum cost of one event: 1 for each number and container, 5 for each string and name."""

_TEXT_COST = 5
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1

_SETS = (set, frozenset)
_STR_TYPES = (UUID, IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)
"""Types that are recorded as their `str`."""


class _BoundedRepr(reprlib.Repr):
    """A `reprlib.Repr` with a total bound. It does not truncate in the middle, which could split a secret."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 6
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = _MAX_PARTS
        self.maxdeque = self.maxarray = self.maxlong = _MAX_PARTS
        self._left = _MAX_PARTS

    def repr1(self, x: Any, level: int) -> str:
        self._left -= 1
        return super().repr1(x, level) if self._left > 0 else "..."

    def repr_set(self, x: Iterable[Any], level: int) -> str:
        return super().repr_set(set(islice(x, _MAX_PARTS + 1)), level)  # `reprlib` sorts all members

    def repr_frozenset(self, x: Iterable[Any], level: int) -> str:
        return super().repr_frozenset(frozenset(islice(x, _MAX_PARTS + 1)), level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return super().repr_dict(dict(islice(x.items(), _MAX_PARTS + 1)), level)

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[:_MAX_CHARS])

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:_MAX_CHARS])

    repr_bytearray = repr_bytes

    def repr_int(self, x: int, level: int) -> str:
        return repr(x)  # raises for too many digits

    def repr_instance(self, x: Any, level: int) -> str:
        return repr(x)


def safe_repr(value: Any) -> str:
    """Return the start of the `repr` of a value, even if its `__repr__` raises, and count the value."""
    GLOBAL_COUNTERS.coerced_values += 1
    try:
        return safe_text(str.__str__(_BoundedRepr().repr(value))[:_MAX_CHARS])
    except BaseException as error:
        INTERRUPTS.contain(error)
        return f"<repr() of {type_name(value)} failed: {type_name(error)}>"


def safe_text(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 cannot encode, replaced by `?`."""
    if text.isascii():
        return str(text)
    return text.encode("utf-8", "replace").decode()


def fields_of(value: Any, most: int) -> list[tuple[str, Any]] | None:
    """Return the first fields of a value with their names, or None if its type declares no fields.

    Raises:
        Exception: Whatever the type raises.
    """
    kind = type(value)
    if is_a(value, Struct):
        return _values(value, value.__struct_fields__, most) if kind.__repr__ is _REPR_OF_STRUCT else None
    if hasattr(kind, "__dataclass_fields__"):
        # The decorator wraps the `__repr__` that it generates.
        if not hasattr(kind.__repr__, "__wrapped__"):
            return None
        import dataclasses  # already imported by the module that declares the dataclass

        return _values(value, (field.name for field in dataclasses.fields(kind) if field.repr), most)
    if (attributes := getattr(kind, "__attrs_attrs__", None)) is not None:
        code = getattr(kind.__repr__, "__code__", None)
        if code is None or not code.co_filename.startswith("<attrs generated"):
            return None
        return _values(value, (each.name for each in attributes if each.repr is True), most)
    if hasattr(kind, "__repr_args__") and kind.__repr__.__module__.startswith("pydantic"):
        return _of_model(value, most)
    return None


def _of_model(value: Any, most: int) -> list[tuple[str, Any]] | None:
    declared = getattr(type(value), "__pydantic_fields__", None) or {}
    found = []
    for name, item in islice(value.__repr_args__(), most):
        if name is None:  # not a model: an address, a color, ...
            return None
        if not getattr(declared.get(name), "exclude", None):
            found.append((name, item))
    return found


def _values(value: Any, names: Iterable[str], most: int) -> list[tuple[str, Any]]:
    found = []
    for name in islice(names, most):
        item = getattr(value, name, _MISSING)
        if item is not _MISSING:  # deleted, or never set
            found.append((name, item))
    return found


class Truncated(str):
    """The substitute for a value that exceeded a limit, with the reason."""

    __slots__ = ()


class ReprText(str):
    """The `repr` of a value that JSON cannot represent, before it is truncated to `REPR_CHARS`."""

    __slots__ = ()


def copy_if_simple(
    fields: Mapping[str, Any], most: int, name_chars: int, chars: int
) -> dict[str, Any] | None:
    """Return a copy of fields that are few, flat and short, which is the common case, or else None.

    Args:
        fields: The fields.
        most: Maximum number of fields.
        name_chars: Maximum length of a name.
        chars: Maximum total length of all strings.
    """
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


class Coercer:
    """Copies the values of one event as str, int, float, bool, None, list or dict.

    Numbers of any type become numbers; dates, times, paths and UUIDs become text; members of an `Enum` become
    their values, sets become lists, and dataclasses and models become objects; see `docs/wide-events.md`.
    What JSON cannot represent (NaN, an integer over 64 bits, a container that contains itself) becomes the
    beginning of its `repr`, as `ReprText`; what is nested too deeply or exceeds the size limit becomes a
    `Truncated`.
    Both are counted in `stats().coerced_values`. Text of any length is not changed.

    Args:
        depth: Maximum nesting level.
        text_chars: Number of characters to which strings will be truncated later.

    Attributes:
        size: Minimum size of the last copy as JSON, in bytes.
    """

    def __init__(self, depth: int, text_chars: int) -> None:
        self._depth = depth
        self._text_chars = text_chars
        self._left = _MAX_WORK
        self.size = 0

    def copy(self, value: Any) -> Any:
        """Return a copy of the value of one field."""
        self.size = 0
        return self._copy(value, ())

    def _copy(self, value: Any, inside: tuple[int, ...]) -> Any:
        """Copy a value. `inside` contains the ids of the containers of the value."""
        self._left -= 1
        self.size += 1
        if value is None or value is True or value is False:
            return value
        # Use the real types and their methods, because a subclass may override any method that is called
        # here.
        if is_a(value, str):
            text = str.__str__(value)
            self._left -= _TEXT_COST
            self.size += min(len(text), self._text_chars) + 2
            return text
        if is_a(value, int) and _INT_MIN <= (number := int.__int__(value)) <= _INT_MAX:
            return number
        if is_a(value, float):
            value = float.__float__(value)
            if isfinite(value):
                return value
        try:
            simple = to_simple(value)
            if simple is not value and (simple is None or is_a(simple, (str, int, float))):
                return self._copy(simple, inside)
            if id(simple) not in inside and (parts := self._parts(simple)) is not None:
                if len(inside) >= self._depth:
                    return self._cut(f"deeper than {self._depth} levels")
                copied = self._container(parts, (*inside, id(simple)))
                if copied is not None:
                    return copied
        except BaseException as error:
            INTERRUPTS.contain(error)
        self._left -= _TEXT_COST
        text = ReprText(safe_repr(value))
        self.size += min(len(text), REPR_CHARS)
        return text

    def _parts(self, value: Any) -> Mapping[Any, Any] | list[Any] | tuple[Any, ...] | None:
        """Return a container as a mapping, a list or a tuple; None for anything else."""
        if isinstance(value, tuple) and isinstance(names := getattr(type(value), "_fields", None), tuple):
            return dict(zip(names, value, strict=False))  # a named tuple: redaction needs the names
        if isinstance(value, (Mapping, list, tuple)):
            return value
        left = max(self._left, 0)
        if is_a(value, (*_SETS, deque)):
            parts = list(islice(value, left + 1))
            return _sorted(parts) if is_a(value, _SETS) else parts
        fields = fields_of(value, left // _TEXT_COST + 1)
        return None if fields is None else dict(fields)

    def _container(self, value: Any, within: tuple[int, ...]) -> Any:
        """Return a copy of a container, or None if it cannot be read."""
        left = max(self._left, 0)
        if isinstance(value, Mapping):
            items = items_of(value, left // _TEXT_COST + 1)
            if items is None:
                return None
            if len(items) * _TEXT_COST > left:
                return self._cut("too many parts")
            self._left -= len(items) * _TEXT_COST
            copied: dict[str, Any] = {}
            for key, item in items:
                name = text_key(key)
                self.size += len(name) + 4
                copied[unique_key(name, copied)] = self._copy(item, within)
            return copied
        parts = list(islice(value, left + 1))
        if len(parts) > left:
            return self._cut("too many parts")
        return [self._copy(item, within) for item in parts]

    def _cut(self, why: str) -> Truncated:
        GLOBAL_COUNTERS.coerced_values += 1
        return Truncated(f"[cut: {why}]")


def to_simple(value: Any) -> Any:
    """Return the number, text or other simple value that represents a value in JSON, or the value itself.

    Raises:
        Exception: Whatever the type raises.
    """
    kind = type(value)
    if hasattr(kind, "item"):
        value = item_of(value)
        kind = type(value)
    if (number := as_number(value)) is not None:
        return value if kind is int else number  # an `int` over 64 bits needs no conversion
    if issubclass(kind, Enum):
        enum_value = value.value
        return enum_value if type(enum_value) in (str, int, float, bool) else value.name
    if issubclass(kind, (datetime, date, time)):
        text = value.isoformat()
        return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
    if issubclass(kind, timedelta):
        return timedelta.total_seconds(value)
    if issubclass(kind, _STR_TYPES):
        return str(value)
    if hasattr(kind, "__fspath__"):
        return os.fsdecode(value)
    return value


def _sorted(parts: list[Any]) -> list[Any]:
    """Return the members of a set, sorted if all are strings or numbers of one type."""
    kinds = {type(part) for part in parts}
    return sorted(parts) if len(kinds) == 1 and kinds <= {str, int, float} else parts


def is_mapping(value: Any) -> bool:
    """Return whether a value is a mapping; False if its `__class__` raises."""
    try:
        return isinstance(value, Mapping)
    except BaseException as error:
        INTERRUPTS.contain(error)
        return False


def items_of(fields: Mapping[Any, Any], most: int) -> list[tuple[Any, Any]] | None:
    """Return the first items of a mapping, or None for a custom mapping that cannot be read."""
    try:
        return list(islice(fields.items(), most))
    except BaseException as error:
        INTERRUPTS.contain(error)
        return None


def text_key(key: Any) -> str:
    """Return the key of a mapping as a string, whatever its type."""
    if is_a(key, str):
        return str.__str__(key)
    try:
        simple = to_simple(key)
    except BaseException as error:
        INTERRUPTS.contain(error)
        simple = key
    if is_a(simple, str):
        return str.__str__(simple)
    if is_a(simple, int) and not is_a(simple, bool):
        number = int.__int__(simple)
        return str(number) if _INT_MIN <= number <= _INT_MAX else safe_repr(key)
    return as_text(simple) if simple is None or is_a(simple, (float, bool)) else safe_repr(key)


def unique_key(name: str, names: Mapping[str, Any]) -> str:
    """Return `name`, with a number appended if `names` already contains it."""
    number = len(names)
    key = name
    while key in names:
        number += 1
        key = f"{name} ({number})"
    return key
