"""Converts events to rows, and rows to events."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from .._state_file import decode_stored
from .._time import rfc3339
from ..journal import REQUIRED, Segment, is_well_formed
from ..schema import CUSTOM_EVENT_KEYS
from ._columns import (
    ATTRIBUTE,
    COLUMNS,
    MAP,
    PLACES,
    TYPED,
    Attributes,
    Field,
    Kinds,
    attribute_values,
    choose_columns,
    count_kinds,
    encode_shape,
    fields_of,
    quoted,
    rest_of,
    shape_of,
    text,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["as_pattern", "events_of", "load_rows"]


_LONGEST_LINE = 16 << 20
"""Bytes of a line that is found at the first attempt; DuckDB holds twice that in memory for each thread."""


def _as_time(value: str) -> str:
    """Return SQL for a timestamp; null unless its year has four digits.

    DuckDB also accepts years that `datetime` cannot represent, and returns text for them.
    """
    in_range = f"{value}[5] = '-' and {value} between '0001' and '9999-12-31'"
    return f"case when {in_range} then try_cast({value} as timestamptz) end"


_NEEDED = {
    type: [f"event.data.{name} is not null" for name in ("event_id", "schema_version", *REQUIRED[type])]
    for type in TYPED
}
_TIMES = {
    type: [
        f"({_as_time(f'event.data.{name}')}) is not null" for name in REQUIRED[type] if name.endswith("_at")
    ]
    for type in TYPED
}
_IS_TYPED = "({})".format(
    " or ".join(
        f"(event.type = {text(type)} and {' and '.join([*_NEEDED[type], *_TIMES[type]])})" for type in TYPED
    )
)
"""SQL: true for an intact wide event; false for a damaged one and for a custom event of the same name."""

_BESIDE_A_PAYLOAD = tuple(name for name, place in PLACES.items() if place[0] in CUSTOM_EVENT_KEYS)
"""The columns of a stage's own event; a payload may have any other key, and means something else by it."""


def load_rows(
    connection: DuckDBPyConnection,
    table: str,
    segments: Sequence[Segment],
    known: Attributes,
    max_attributes: int,
) -> Attributes:
    """Make a table of the events of these segments, and return the columns that attributes have there.

    A line that is broken, or is being written, is no row.

    Args:
        connection: Where the table is made; one of that name is replaced.
        table: Its name.
        segments: What to read.
        known: Columns that there are already: a key keeps its type.
        max_attributes: How many columns attributes may have; the rest stands in `rest`.

    Raises:
        FileNotFoundError: A segment is gone.
    """
    import duckdb

    parsed = f"{table}_parsed"
    try:
        _parse(connection, parsed, segments, _LONGEST_LINE)
    except duckdb.InvalidInputException as error:
        if "maximum_object_size" not in str(error):
            raise
        # No line is longer than its file. So much memory is not asked for where it need not be.
        _parse(connection, parsed, segments, max(os.stat(segment.path).st_size for segment in segments) + 1)
    kinds = count_kinds(connection, f"select event.data.attributes from {parsed} where {_IS_TYPED}")
    attributes = choose_columns(kinds, known, max_attributes)
    connection.execute(
        f"create or replace table {table} as {_typed(parsed, attributes, kinds)}"
        f" union all by name {_untyped(parsed)}"
    )
    connection.execute(f"drop table {parsed}")
    return attributes


def as_pattern(path: str) -> str:
    """Return a path as a pattern that fits it alone: DuckDB takes every path for one.

    Example:
        >>> as_pattern("data[1]/a.parquet")
        'data[[]1]/a.parquet'
    """
    return "".join(f"[{sign}]" if sign in "[*?" else sign for sign in path)


# ------------------------------------------------------------ parsing


def _parse(connection: DuckDBPyConnection, parsed: str, segments: Sequence[Segment], longest: int) -> None:
    """Make a table of the lines: segment, event as far as the schema goes, and the line where it has more."""
    data = shape_of(COLUMNS.values())
    data["attributes"] = MAP
    shape = encode_shape({"type": "VARCHAR", "journal": "JSON", "data": data})
    # Nothing is filtered here: a filter that looks into `event` would have every line parsed twice.
    connection.execute(f"""
        create or replace table {parsed} as
        select replace(parse_filename(filename), '.kept', '') as segment, from_json(json, {shape}) as event,
            case when {_has_no_more("json")} then null else json end as line
        from {_lines(segments, longest)}
    """)


def _has_no_more(line: str) -> str:
    """Return what says in SQL that an event is one of ours, with just as many keys as its schema has."""
    return " or ".join(
        f"""(starts_with({line}, '{{"type":"{type}","data":{{')"""
        f" and len(json_keys({line}, '$.data')) = {len(shape.__struct_fields__)})"
        for type, shape in TYPED.items()
    )


def _lines(segments: Sequence[Segment], longest: int) -> str:
    files = [as_pattern(segment.path) for segment in segments if os.stat(segment.path).st_size]
    if not files:
        return "(select null::json as json, '' as filename where false)"
    # It leaves out what is no JSON, also a last line of which half is written.
    return f"""read_ndjson_objects([{text(*files)}], filename = true, ignore_errors = true,
        maximum_object_size = {longest})"""


# ------------------------------------------------------------ rows


def _schema_values(names: Sequence[str]) -> list[str]:
    values = []
    for name in names:
        column = COLUMNS[name]
        value = "event.data." + ".".join(map(quoted, PLACES[name]))
        if column.type == "TIMESTAMPTZ":
            value = _as_time(value)
        elif name == "sample_rate":  # weights every count and rate
            value = f"case when {value} >= 1 and isfinite({value}) then {value} else 1 end"
        elif column.type == "DOUBLE":  # DuckDB accepts NaN and 1e999; one such value invalidates every sum
            value = f"case when isfinite({value}) then {value} end"
        elif column.shape == "JSON":
            value = f"nullif({value}::varchar, 'null')"
        values.append(f"{value} as {quoted(name)}")
    return values


def _unknown_keys() -> str:
    """Return in SQL, as JSON, the keys of an event's data that no schema of ours has; null for none."""
    known = ", ".join(
        f'"{field}":null' for field in dict.fromkeys([*(place[0] for place in PLACES.values()), "attributes"])
    )
    patched = f"json_merge_patch(line->'$.data', {text('{' + known + '}')})::varchar"
    return f"case when line is not null then {patched} end"


def _day(*moments: str) -> str:
    # An event that has no time of its own has that of its writer: its name begins with it.
    moments = (*moments, "strptime(left(segment, 8), '%Y%m%d')")
    return f"coalesce({', '.join(f'try_cast({moment} as date)' for moment in moments)})"


def _typed(parsed: str, attributes: Attributes, kinds: Kinds) -> str:
    entries = "event.data.attributes"
    values = [*_schema_values(list(COLUMNS)), *attribute_values(attributes, entries, kinds)]
    day = _day("event.data.started_at[:10]", "event.data.amended_at[:10]")
    return f"""select segment, event.type as type, {day} as day, null::varchar as sample_reason,
        {", ".join(values)},
        {rest_of(_unknown_keys(), attributes, entries, kinds)} as rest from {parsed} where {_IS_TYPED}"""


def _untyped(parsed: str) -> str:
    return f"""select segment, event.type as type, {_day("event.data.emitted_at[:10]")} as day,
        {", ".join(_schema_values(_BESIDE_A_PAYLOAD))}, coalesce((line->'$.data')::varchar, 'null') as rest
        from {parsed} where not ({_IS_TYPED}) and event.type is not null and json_exists(line, '$.data')"""


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
