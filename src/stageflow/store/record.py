"""Events again, as they were emitted, out of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ..journal.stored import decode_stored
from ..journal.wide import is_well_formed
from ..timestamps import rfc3339
from .columns import ATTRIBUTE, COLUMNS, TYPED, Field, fields_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["events_of"]

_FIELDS: dict[str, list[Field]] = {type: fields_of(shape) for type, shape in TYPED.items()}

_AS_JSON = frozenset(name for name, column in COLUMNS.items() if column.shape == "JSON")
"""The columns that hold JSON."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def events_of(cursor: DuckDBPyConnection) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return type and data of the event that each row of an answer was.

    `type` and `rest` are among its columns. Numbers are equal to those that were emitted;
    moments have six digits of a second.
    """
    names = [name for name, *_ in cursor.description or ()]
    for values in cursor.fetchall():
        row = dict(zip(names, values, strict=True))
        try:
            data = _data(row)
        except ValueError:  # JSON that was damaged before it was archived
            continue
        if is_well_formed(row["type"], msgspec.json.encode(data)):
            yield row["type"], data


def _data(row: Mapping[str, Any]) -> dict[str, Any]:
    rest = decode_stored(row["rest"].encode(), dict[str, Any]) if row["rest"] is not None else {}
    fields = _FIELDS.get(row["type"])
    if fields is None or row["schema_version"] is None:
        return rest
    data: dict[str, Any] = {}
    for field in fields:
        if field.parts:
            parts = {part: _value(part, row.get(part)) for part in field.parts}
            empty = field.optional and all(value is None for value in parts.values())
            data[field.name] = None if empty else parts
        else:
            data[field.name] = _value(field.name, row.get(field.name))
    data["attributes"] = {
        name.removeprefix(ATTRIBUTE): _plain(value)
        for name, value in row.items()
        if name.startswith(ATTRIBUTE) and value is not None
    } | rest.pop("attributes", {})
    if (reason := row.get("sample_reason")) is not None:
        data["sample_reason"] = reason
    return data | rest


def _value(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, datetime):
        return rfc3339((value - _EPOCH) // timedelta(microseconds=1))
    if name in _AS_JSON:
        return decode_stored(value.encode())
    return _plain(value)


def _plain(value: Any) -> Any:
    # All numbers of a column are doubles. JSON has one kind of number, and 3 is how people write it.
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
