"""Turns the lines of journal segments into rows: DuckDB parses them, nothing passes through Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..journal.layout import Segment
from .columns import (
    COLUMNS,
    PLACES,
    TYPED,
    attribute_column,
    encode_shape,
    is_column_name,
    quoted,
    shape_of,
    text,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Attributes", "as_pattern", "load_rows"]

Attributes = dict[str, str]
"""The columns of attributes: the key of each, and its type in DuckDB's words."""

_Kinds = Mapping[str, Mapping[str, int]]
"""How often each attribute has which kind of value."""

_TYPE_OF = {"text": "VARCHAR", "number": "DOUBLE", "bool": "BOOLEAN"}
"""The kinds of JSON values that a column can carry, and its type then."""

_KIND_OF = {type: kind for kind, type in _TYPE_OF.items()}

_IS_TYPED = f"""(event.type in ({text(*TYPED)})
    and event.data.event_id is not null and event.data.schema_version is not null)"""
"""What says in SQL that an event is one of ours, and not one of somebody else's that has our name."""

_BESIDE_A_PAYLOAD = (
    "stage_name",
    "attempt",
    "event_id",
    "emitted_at",
    *(name for name, place in PLACES.items() if place[0] in ("correlation_ids", "pipeline_metadata")),
)
"""The columns of a stage's own event; a payload may have any other key, and means something else by it."""


def load_rows(
    connection: DuckDBPyConnection,
    table: str,
    segments: Sequence[Segment],
    known: Attributes,
    most_attributes: int,
) -> Attributes:
    """Make a table of the events of these segments, and return the columns that attributes have there.

    A line that is broken, or is being written, is no row.

    Args:
        connection: Where the table is made; one of that name is replaced.
        table: Its name.
        segments: What to read.
        known: Columns that there are already: a key keeps its type.
        most_attributes: How many columns attributes may have; the rest stands in `rest`.

    Raises:
        FileNotFoundError: A segment is gone.
    """
    parsed = f"{table}_parsed"
    _parse(connection, parsed, segments)
    kinds = _kinds(connection, parsed)
    attributes = _choose(kinds, known, most_attributes)
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


def _parse(connection: DuckDBPyConnection, parsed: str, segments: Sequence[Segment]) -> None:
    """Make a table of the lines: segment, event as far as the schema goes, and the line where it has more."""
    data = shape_of(COLUMNS.values())
    data["attributes"] = "MAP(VARCHAR, JSON)"
    shape = encode_shape({"type": "VARCHAR", "journal": "JSON", "data": data})
    # Nothing is filtered here: a filter that looks into `event` would have every line parsed twice.
    connection.execute(f"""
        create or replace table {parsed} as
        select replace(parse_filename(filename), '.kept', '') as segment, from_json(json, {shape}) as event,
            case when {_has_no_more("json")} then null else json end as line
        from {_lines(segments)}
    """)


def _has_no_more(line: str) -> str:
    """Return what says in SQL that an event is one of ours, with just as many keys as its schema has."""
    return " or ".join(
        f"""(starts_with({line}, '{{"type":"{type}","data":{{')"""
        f" and len(json_keys({line}, '$.data')) = {len(shape.__struct_fields__)})"
        for type, shape in TYPED.items()
    )


def _lines(segments: Sequence[Segment]) -> str:
    files = [as_pattern(segment.path) for segment in segments if os.stat(segment.path).st_size]
    if not files:
        return "(select null::json as json, '' as filename where false)"
    # It leaves out what is no JSON, also a last line of which half is written.
    return f"read_ndjson_objects([{text(*files)}], filename = true, ignore_errors = true)"


# ------------------------------------------------------------ attributes


def _kind(value: str) -> str:
    # Beyond 2**53 a whole number is not the same as a double any more.
    return f"""case coalesce(left({value}, 1), 'n')
        when '"' then 'text' when 't' then 'bool' when 'f' then 'bool' when 'n' then 'null'
        when '{{' then 'object' when '[' then 'array'
        else case when length({value}) > 15 and regexp_full_match({value}, '-?[0-9]+')
            and abs(try_cast({value} as double)) > 9007199254740992 then 'large' else 'number' end end"""


def _kinds(connection: DuckDBPyConnection, parsed: str) -> _Kinds:
    found = connection.execute(f"""
        select entry.key, {_kind("(entry.value::varchar)")} as kind, count(*)
        from (select unnest(map_entries(event.data.attributes)) as entry from {parsed} where {_IS_TYPED})
        group by all order by count(*) desc, entry.key
    """).fetchall()
    kinds: dict[str, dict[str, int]] = {}
    for key, kind, count in found:
        kinds.setdefault(key, {})[kind] = count
    return kinds


def _choose(kinds: _Kinds, known: Attributes, most: int) -> Attributes:
    """Return the columns of attributes: those there are, and as many new ones as there is room for."""
    chosen = dict(known)
    # Neither DuckDB nor Delta Lake tells two columns apart that differ in case alone.
    taken = {key.lower() for key in chosen}
    for key, counts in kinds.items():
        fit = [kind for kind in counts if kind in _TYPE_OF]
        if fit and key.lower() not in taken and is_column_name(key) and len(chosen) < most:
            chosen[key] = _TYPE_OF[max(fit, key=counts.__getitem__)]
            taken.add(key.lower())
    return chosen


def _attribute_values(attributes: Attributes, kinds: _Kinds) -> list[str]:
    values = []
    for key, type in attributes.items():
        value = f"map_extract(event.data.attributes, {text(key)})[1]"
        as_text = f"({value}::varchar)"
        cast = f"{value} ->> '$'" if type == "VARCHAR" else f"{as_text}::{type}"
        if key not in kinds:
            cast = f"null::{type}"
        elif kinds[key].keys() != {_KIND_OF[type]}:
            cast = f"case when {_kind(as_text)} = '{_KIND_OF[type]}' then {cast} end"
        values.append(f"{cast} as {quoted(attribute_column(key))}")
    return values


def _rest(attributes: Attributes, kinds: _Kinds) -> str:
    """Return what says in SQL, as JSON, what of an event is in no column; null for nothing."""
    known = ", ".join(
        f'"{field}":null' for field in dict.fromkeys([*(place[0] for place in PLACES.values()), "attributes"])
    )
    unknown_keys = f"json_merge_patch(line->'$.data', {text('{' + known + '}')})"
    fits = {(key, _KIND_OF[type]) for key, type in attributes.items()}
    if all((key, kind) in fits for key, counts in kinds.items() for kind in counts):
        return f"case when line is not null then nullif({unknown_keys}::varchar, '{{}}') end"
    pairs = text(*(f"{kind} {key}" for key, kind in sorted(fits)))
    strays = f"""list_filter(map_entries(event.data.attributes),
        lambda entry: {_kind("(entry.value::varchar)")} || ' ' || entry.key not in ({pairs or "''"}))"""
    stray_attributes = f"json_object('attributes', to_json(map_from_entries({strays})))"
    return f"""case
        when event.data.attributes is null or len({strays}) = 0
            then case when line is not null then nullif({unknown_keys}::varchar, '{{}}') end
        when line is null then {stray_attributes}::varchar
        else json_merge_patch({unknown_keys}, {stray_attributes})::varchar end"""


# ------------------------------------------------------------ rows


def _schema_values(names: Sequence[str]) -> list[str]:
    values = []
    for name in names:
        column = COLUMNS[name]
        value = "event.data." + ".".join(map(quoted, PLACES[name]))
        if column.type == "TIMESTAMPTZ":
            value = f"try_cast({value} as timestamptz)"
        elif column.shape == "JSON":
            value = f"nullif({value}::varchar, 'null')"
        values.append(f"{value} as {quoted(name)}")
    return values


def _day(*moments: str) -> str:
    # An event that has no time of its own has that of its writer: its name begins with it.
    moments = (*moments, "strptime(left(segment, 8), '%Y%m%d')")
    return f"coalesce({', '.join(f'try_cast({moment} as date)' for moment in moments)})"


def _typed(parsed: str, attributes: Attributes, kinds: _Kinds) -> str:
    values = [*_schema_values(list(COLUMNS)), *_attribute_values(attributes, kinds)]
    day = _day("event.data.started_at[:10]", "event.data.amended_at[:10]")
    return f"""select segment, event.type as type, {day} as day, null::varchar as sample_reason,
        {", ".join(values)},
        {_rest(attributes, kinds)} as rest from {parsed} where {_IS_TYPED}"""


def _untyped(parsed: str) -> str:
    return f"""select segment, event.type as type, {_day("event.data.emitted_at[:10]")} as day,
        {", ".join(_schema_values(_BESIDE_A_PAYLOAD))}, coalesce((line->'$.data')::varchar, 'null') as rest
        from {parsed} where not ({_IS_TYPED}) and event.type is not null and json_exists(line, '$.data')"""
