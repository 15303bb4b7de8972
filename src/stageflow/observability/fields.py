"""Reads the fields of dataclasses, attrs classes, msgspec Structs and pydantic models.

A field that the `repr` of its class omits is not recorded, and neither are those of a class with a custom
`repr`: applications use both to hide values.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from msgspec import Struct

from ..interrupts import is_a

__all__ = ["fields_of"]

_MISSING = object()
_REPR_OF_STRUCT: Any = Struct.__repr__


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
