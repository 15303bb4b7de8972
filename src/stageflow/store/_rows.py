"""Converts events of the journal to rows of the archive, and back."""

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
    DATA_PATHS,
    MAP_TYPE,
    SCHEMAS,
    Attributes,
    Field,
    Kinds,
    attribute_values,
    choose_columns,
    count_kinds,
    encode_structure,
    fields_of,
    quoted,
    rest_column,
    structure_of,
    text,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["escape_glob", "event_of_row", "events_of", "load_rows"]


_DEFAULT_MAX_LINE = 16 << 20
"""Default limit of a line in bytes; DuckDB allocates twice that for each thread."""


def _as_time(value: str) -> str:
    """Return SQL for a timestamp; null unless its year has four digits.

    DuckDB also accepts years that `datetime` cannot represent, and returns text for them.
    """
    in_range = f"{value}[5] = '-' and {value} between '0001' and '9999-12-31'"
    return f"case when {in_range} then try_cast({value} as timestamptz) end"


_REQUIRED_KEYS = {
    type: [f"event.data.{name} is not null" for name in ("event_id", "schema_version", *REQUIRED[type])]
    for type in SCHEMAS
}
_VALID_TIMES = {
    type: [
        f"({_as_time(f'event.data.{name}')}) is not null" for name in REQUIRED[type] if name.endswith("_at")
    ]
    for type in SCHEMAS
}
_IS_TYPED = "({})".format(
    " or ".join(
        f"(event.type = {text(type)} and {' and '.join([*_REQUIRED_KEYS[type], *_VALID_TIMES[type]])})"
        for type in SCHEMAS
    )
)
"""SQL: true for an intact wide event; false for a damaged one and for a custom event of the same name."""

_CUSTOM_EVENT_COLUMNS = tuple(name for name, path in DATA_PATHS.items() if path[0] in CUSTOM_EVENT_KEYS)
"""The columns of a custom event. A key of its payload can have the name of any other column."""


def load_rows(
    connection: DuckDBPyConnection,
    table: str,
    segments: Sequence[Segment],
    known: Attributes,
    max_attributes: int,
) -> Attributes:
    """Create a table of the events of segments, and return its attribute columns.

    Damaged and incomplete lines are ignored.

    Args:
        connection: The DuckDB connection.
        table: Name of the table; an existing table is replaced.
        segments: The segments to read.
        known: Existing attribute columns, which keep their types.
        max_attributes: Maximum number of attribute columns; other attributes are stored in `rest`.

    Raises:
        FileNotFoundError: A segment no longer exists.
    """
    import duckdb

    parsed = f"{table}_parsed"
    try:
        _parse(connection, parsed, segments, _DEFAULT_MAX_LINE)
    except duckdb.InvalidInputException as error:
        if "maximum_object_size" not in str(error):
            raise
        # No line is longer than its file. This needs more memory, so it is only the second attempt.
        _parse(connection, parsed, segments, max(os.stat(segment.path).st_size for segment in segments) + 1)
    kinds = count_kinds(connection, f"select event.data.attributes from {parsed} where {_IS_TYPED}")
    attributes = choose_columns(kinds, known, max_attributes)
    connection.execute(
        f"create or replace table {table} as {_schema_rows(parsed, attributes, kinds)}"
        f" union all by name {_other_rows(parsed)}"
    )
    connection.execute(f"drop table {parsed}")
    return attributes


def escape_glob(path: str) -> str:
    """Return a glob pattern that matches only this path: DuckDB interprets every path as a pattern.

    Example:
        >>> escape_glob("data[1]/a.parquet")
        'data[[]1]/a.parquet'
    """
    return "".join(f"[{character}]" if character in "[*?" else character for character in path)


# ------------------------------------------------------------ parsing


def _parse(connection: DuckDBPyConnection, parsed: str, segments: Sequence[Segment], longest: int) -> None:
    """Create a table with the segment and the event of each line, and the line if it has other keys."""
    data = structure_of(COLUMNS.values())
    data["attributes"] = MAP_TYPE
    structure = encode_structure({"type": "VARCHAR", "journal": "JSON", "data": data})
    # Do not filter here: a filter on `event` would parse every line twice.
    connection.execute(f"""
        create or replace table {parsed} as
        select replace(parse_filename(filename), '.kept', '') as segment,
            from_json(json, {structure}) as event,
            case when {_has_schema_keys_only("json")} then null else json end as line
        from {_lines(segments, longest)}
    """)


def _has_schema_keys_only(line: str) -> str:
    """Return SQL that is true for a wide event that has exactly the keys of its schema, in their order."""
    return " or ".join(
        f"""(starts_with({line}, '{{"type":"{type}","data":{{')"""
        f" and json_keys({line}, '$.data') = [{text(*schema.__struct_fields__)}])"
        for type, schema in SCHEMAS.items()
    )


def _lines(segments: Sequence[Segment], longest: int) -> str:
    files = [escape_glob(segment.path) for segment in segments if os.stat(segment.path).st_size]
    if not files:
        return "(select null::json as json, '' as filename where false)"
    # DuckDB ignores invalid JSON, such as a last line that is being written.
    return f"""read_ndjson_objects([{text(*files)}], filename = true, ignore_errors = true,
        maximum_object_size = {longest})"""


# ------------------------------------------------------------ rows


def _schema_values(names: Sequence[str]) -> list[str]:
    values = []
    for name in names:
        column = COLUMNS[name]
        value = "event.data." + ".".join(map(quoted, DATA_PATHS[name]))
        if column.type == "TIMESTAMPTZ":
            value = _as_time(value)
        elif name == "sample_rate":  # weights every count and rate
            value = f"case when {value} >= 1 and isfinite({value}) then {value} else 1 end"
        elif column.type == "DOUBLE":  # DuckDB accepts NaN and 1e999, which would make every sum invalid
            value = f"case when isfinite({value}) then {value} end"
        elif column.json_type == "JSON":
            value = f"nullif({value}::varchar, 'null')"
        values.append(f"{value} as {quoted(name)}")
    return values


def _unknown_keys() -> str:
    """Return the SQL expression of the keys of an event that the schemas do not have, as JSON or null."""
    known = ", ".join(
        f'"{field}":null'
        for field in dict.fromkeys([*(path[0] for path in DATA_PATHS.values()), "attributes"])
    )
    patched = f"json_merge_patch(line->'$.data', {text('{' + known + '}')})::varchar"
    return f"case when line is not null then {patched} end"


def _day(*times: str) -> str:
    # An event without a time has the day of its writer, with which the name of the segment begins.
    times = (*times, "strptime(left(segment, 8), '%Y%m%d')")
    return f"coalesce({', '.join(f'try_cast({time} as date)' for time in times)})"


def _schema_rows(parsed: str, attributes: Attributes, kinds: Kinds) -> str:
    entries = "event.data.attributes"
    values = [*_schema_values(list(COLUMNS)), *attribute_values(attributes, entries, kinds)]
    day = _day("event.data.started_at[:10]", "event.data.amended_at[:10]")
    return f"""select segment, event.type as type, {day} as day, null::varchar as sample_reason,
        {", ".join(values)},
        {rest_column(_unknown_keys(), attributes, entries, kinds)} as rest from {parsed} where {_IS_TYPED}"""


def _other_rows(parsed: str) -> str:
    return f"""select segment, event.type as type, {_day("event.data.emitted_at[:10]")} as day,
        {", ".join(_schema_values(_CUSTOM_EVENT_COLUMNS))},
        coalesce((line->'$.data')::varchar, 'null') as rest
        from {parsed} where not ({_IS_TYPED}) and event.type is not null and json_exists(line, '$.data')"""


_FIELDS: dict[str, list[Field]] = {type: fields_of(schema) for type, schema in SCHEMAS.items()}

_JSON_COLUMNS = frozenset(name for name, column in COLUMNS.items() if column.json_type == "JSON")
"""The columns that contain JSON."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def events_of(cursor: DuckDBPyConnection) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the type and data of the event of each row of a result.

    The result must have the columns `type` and `rest`. Numbers are equal to those that were emitted; times
    have microseconds.
    """
    names = [name for name, *_ in cursor.description or ()]
    for values in cursor.fetchall():
        event = event_of_row(dict(zip(names, values, strict=True)))
        if event is not None:
            yield event


def event_of_row(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the type and data of the event of a row, or None if it was damaged before it was archived."""
    try:
        data = _data(row)
    except ValueError:
        return None
    return (row["type"], data) if is_well_formed(row["type"], msgspec.json.encode(data)) else None


def _data(row: Mapping[str, Any]) -> dict[str, Any]:
    rest = decode_stored(row["rest"].encode(), dict[str, Any]) if row["rest"] is not None else {}
    fields = _FIELDS.get(row["type"])
    if fields is None or row["schema_version"] is None:
        return rest
    data: dict[str, Any] = {}
    for field in fields:
        if field.parts:
            parts = {key: _value(column, row.get(column)) for key, column in field.parts.items()}
            empty = field.optional and all(value is None for value in parts.values())
            data[field.name] = None if empty else parts
        else:
            data[field.name] = _value(field.name, row.get(field.name))
    data["attributes"] = {
        name.removeprefix(ATTRIBUTE): _as_integer(value)
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
    if name in _JSON_COLUMNS:
        return decode_stored(value.encode())
    return _as_integer(value)


def _as_integer(value: Any) -> Any:
    # All numeric columns are doubles. JSON has a single type of number, and 3 is written without a fraction.
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
