"""The columns of the archive, and SQL that converts attributes to and from columns."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, inspect as msgspec_types

from ..schema import PipelineWide, StageWide, WideAmend, prefix_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "AMENDMENTS",
    "ATTRIBUTE",
    "COLUMNS",
    "DATA_PATHS",
    "FAILED",
    "MAP_TYPE",
    "SCHEMAS",
    "Attributes",
    "Column",
    "Field",
    "Kinds",
    "attribute_column",
    "attribute_map",
    "attribute_values",
    "caseless",
    "choose_columns",
    "columns_of",
    "count_kinds",
    "encode_structure",
    "fields_of",
    "is_column_name",
    "other_keys_in_rest",
    "quoted",
    "rest_column",
    "structure_of",
    "text",
]


ATTRIBUTE = "attributes."
"""Prefix of the columns of attributes."""

SCHEMAS: Mapping[str, type[Struct]] = {
    "stage.wide": StageWide,
    "pipeline.wide": PipelineWide,
    "stage.wide.amend": WideAmend,
    "pipeline.wide.amend": WideAmend,
}
"""The types of events whose fields are columns. The data of other events is stored unchanged in `rest`."""

FAILED = "failed"
"""The column of the views that states whether a row counts as a failure; see `failed_column`."""

AMENDMENTS = ("stage.wide.amend", "pipeline.wide.amend")

_NAME = re.compile(r"[^\s,;{}()=\"'/]{1,100}")
"""Column names that Delta Lake accepts, and that need no escaping."""


class Field(Struct, frozen=True):
    """A key of an event's data.

    Attributes:
        name: The key.
        parts: The keys of the nested object and their columns, if its fields are columns; otherwise empty.
        column: The column that contains the value, if the field has no parts.
        optional: True if the whole field can be null.
    """

    name: str
    parts: Mapping[str, str]
    column: str
    optional: bool


class Column(Struct, frozen=True):
    """A column of the archive.

    Attributes:
        name: Name of the column.
        type: Its DuckDB type.
        json_type: The type of the value in JSON, as in the structure argument of DuckDB's `from_json`.
    """

    name: str
    type: str
    json_type: Any


def _types(type: msgspec_types.Type) -> tuple[str, Any]:
    """Return the DuckDB type of a column for values of a type, and their type in JSON."""
    if isinstance(type, msgspec_types.Metadata):
        return _types(type.type)
    if isinstance(type, msgspec_types.UnionType):
        return _types(next(each for each in type.types if not isinstance(each, msgspec_types.NoneType)))
    if isinstance(type, msgspec_types.StrType | msgspec_types.LiteralType):
        return "VARCHAR", "VARCHAR"
    if isinstance(type, msgspec_types.BoolType):
        return "BOOLEAN", "BOOLEAN"
    if isinstance(type, msgspec_types.IntType):
        return "BIGINT", "BIGINT"
    if isinstance(type, msgspec_types.FloatType):
        return "DOUBLE", "DOUBLE"
    if (
        isinstance(type, msgspec_types.ListType)
        and _types(type.item_type)[0] == "VARCHAR"
        and not _is_struct(type.item_type)
    ):
        return "VARCHAR[]", ["VARCHAR"]
    return "VARCHAR", "JSON"


def _is_struct(type: msgspec_types.Type) -> bool:
    return isinstance(type, msgspec_types.StructType)


def _without_null(type: msgspec_types.Type) -> tuple[msgspec_types.Type, bool]:
    if isinstance(type, msgspec_types.Metadata):
        return _without_null(type.type)
    if isinstance(type, msgspec_types.UnionType):
        others = [each for each in type.types if not isinstance(each, msgspec_types.NoneType)]
        return _without_null(others[0])[0], len(others) < len(type.types)
    return type, False


def fields_of(schema: type[Struct]) -> list[Field]:
    """Return the fields of a wide event except its attributes, in the order of the schema."""
    return [field for field, _ in _fields(schema)]


@functools.cache
def _fields(schema: type[Struct]) -> list[tuple[Field, list[Column]]]:
    found = []
    info = msgspec_types.type_info(schema)
    assert isinstance(info, msgspec_types.StructType)
    for field in info.fields:
        if field.name == "attributes":
            continue
        inner, optional = _without_null(field.type)
        prefix = prefix_of(field)
        if isinstance(inner, msgspec_types.StructType) and (
            prefix
            or all(
                not isinstance(_types(part.type)[1], list) and _types(part.type)[1] != "JSON"
                for part in inner.fields
            )
        ):
            columns = [Column(prefix + part.name, *_types(part.type)) for part in inner.fields]
            parts = {part.name: prefix + part.name for part in inner.fields}
            found.append((Field(field.name, parts, "", optional), columns))
            continue
        type, json = _types(field.type)
        if field.name.endswith("_at"):
            type = "TIMESTAMPTZ"
        found.append((Field(field.name, {}, field.name, optional), [Column(field.name, type, json)]))
    return found


def columns_of(schema: type[Struct]) -> list[str]:
    """Return the columns of a wide event, except those of its attributes."""
    return [column.name for _, columns in _fields(schema) for column in columns]


def _collect() -> tuple[dict[str, Column], dict[str, tuple[str, ...]]]:
    columns: dict[str, Column] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for schema in (StageWide, PipelineWide, WideAmend):
        for field, found in _fields(schema):
            keys = list(field.parts) or [""]
            for key, column in zip(keys, found, strict=True):
                columns.setdefault(column.name, column)
                path = (field.name, key) if key else (field.name,)
                assert paths.setdefault(column.name, path) == path, f"two fields are named {column.name}"
    # The time of a custom event, which has no schema.
    columns["emitted_at"] = Column("emitted_at", "TIMESTAMPTZ", "VARCHAR")
    paths["emitted_at"] = ("emitted_at",)
    return columns, paths


COLUMNS, DATA_PATHS = _collect()
"""The columns of the schema by name, and the path of each in the data of an event."""


def attribute_column(key: str) -> str:
    """Return the name of an attribute's column.

    Example:
        >>> attribute_column("hits")
        'attributes.hits'
    """
    return ATTRIBUTE + key


def is_column_name(key: str) -> bool:
    """Return whether the key of an attribute can be part of a column name.

    Control, format and private-use characters are not allowed. Neither are characters that this version of
    Python does not know, because DuckDB or Delta Lake may know an upper and a lower case of them.
    """
    return _NAME.fullmatch(key) is not None and key.isprintable()


def caseless(key: str) -> str:
    """Return a form that two keys share if DuckDB, Delta Lake or Spark treats their columns as the same.

    Each of them handles case differently: some only in ASCII, some depending on the context of a letter.

    Example:
        >>> (
        ...     caseless("Hits") == caseless("hits"),
        ...     caseless("Σ") == caseless("ς"),
        ...     caseless("a") == caseless("b"),
        ... )
        (True, True, False)
    """
    return unicodedata.normalize("NFKC", key).casefold().upper().casefold()


def quoted(name: str) -> str:
    """Return a name as an SQL identifier in quotes.

    Example:
        >>> quoted("attributes.hits")
        '"attributes.hits"'
    """
    return '"' + name.replace('"', '""') + '"'


def text(*values: str) -> str:
    """Return strings as SQL literals, separated by commas.

    A lone surrogate, as in an undecodable command-line argument, is escaped; no stored text contains it.

    Example:
        >>> text("a", "it's")
        "'a', 'it''s'"
    """
    encoded = (value.encode(errors="backslashreplace").decode() for value in values)
    return ", ".join("'" + value.replace("'", "''") + "'" for value in encoded)


def structure_of(columns: Iterable[Column]) -> dict[str, Any]:
    """Return the structure of an event's data with these columns, as `from_json` accepts it."""
    structure: dict[str, Any] = {}
    for column in columns:
        *above, last = DATA_PATHS[column.name]
        inner = structure
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = column.json_type
    return structure


def encode_structure(structure: Any) -> str:
    """Return a structure as an SQL literal."""
    return text(msgspec.json.encode(structure).decode())


Attributes = dict[str, str]
"""The DuckDB types of attribute columns, by the key of the attribute."""

Kinds = Mapping[str, Mapping[str, int]]
"""How often each attribute has a value of each kind."""

_TYPE_OF = {"text": "VARCHAR", "number": "DOUBLE", "bool": "BOOLEAN"}
"""The column type for each kind of JSON value that can be a column."""

_KIND_OF = {type: kind for kind, type in _TYPE_OF.items()}

MAP_TYPE = "MAP(VARCHAR, JSON)"
"""The DuckDB type of all attributes of an event, before they are converted to columns."""


def _attribute_kind(value: str) -> str:
    # From 2**53 on, a double cannot represent every integer.
    return f"""case coalesce(left({value}, 1), 'n')
        when '"' then 'text' when 't' then 'bool' when 'f' then 'bool' when 'n' then 'null'
        when '{{' then 'object' when '[' then 'array'
        else case when length({value}) > 15 and regexp_full_match({value}, '-?[0-9]+')
            and abs(try_cast({value} as double)) >= 9007199254740992 then 'large' else 'number' end end"""


def count_kinds(connection: DuckDBPyConnection, maps: str) -> Kinds:
    """Return how often each attribute has a value of each kind, most frequent attribute first.

    Args:
        connection: The DuckDB connection.
        maps: SQL query for maps of attributes.
    """
    found = connection.execute(f"""
        select entry.key, {_attribute_kind("(entry.value::varchar)")} as kind, count(*)
        from (select unnest(map_entries(attributes)) as entry from ({maps}) maps(attributes))
        group by all order by count(*) desc, entry.key
    """).fetchall()
    kinds: dict[str, dict[str, int]] = {}
    for key, kind, count in found:
        kinds.setdefault(key, {})[kind] = count
    return kinds


def choose_columns(kinds: Kinds, known: Attributes, max_columns: int) -> Attributes:
    """Return the attribute columns: the known ones, and new ones up to the maximum."""
    chosen = dict(known)
    taken = set(map(caseless, chosen))
    for key, counts in kinds.items():
        fitting = [kind for kind in counts if kind in _TYPE_OF]
        is_allowed = len(chosen) < max_columns and is_column_name(key)
        if fitting and is_allowed and (name := caseless(key)) not in taken:
            chosen[key] = _TYPE_OF[max(fitting, key=counts.__getitem__)]
            taken.add(name)
    return chosen


# ------------------------------------------------------------ from a map to columns


def attribute_values(attributes: Attributes, entries: str, kinds: Kinds | None = None) -> list[str]:
    """Return the SQL expressions of attribute columns, each with its name.

    Args:
        attributes: The columns.
        entries: SQL expression of the map of all attributes of a row.
        kinds: The kinds of values of each attribute, if known.
    """
    values = []
    for key, type in attributes.items():
        value = f"map_extract({entries}, {text(key)})[1]"
        as_text = f"({value}::varchar)"
        cast = f"{value} ->> '$'" if type == "VARCHAR" else f"{as_text}::{type}"
        if kinds is not None and key not in kinds:
            cast = f"null::{type}"
        elif kinds is None or kinds[key].keys() != {_KIND_OF[type]}:
            cast = f"case when {_attribute_kind(as_text)} = '{_KIND_OF[type]}' then {cast} end"
        values.append(f"{cast} as {quoted(attribute_column(key))}")
    return values


def rest_column(others: str, attributes: Attributes, entries: str, kinds: Kinds | None = None) -> str:
    """Return the SQL expression of the `rest` column: all values that are in no column, as JSON, or null.

    Args:
        others: SQL expression of the keys other than attributes, as a JSON object, or null.
        attributes: The columns.
        entries: SQL expression of the map of all attributes of the row.
        kinds: See `attribute_values`.
    """
    fits = {(key, _KIND_OF[type]) for key, type in attributes.items()}
    others = f"nullif({others}, '{{}}')"
    if kinds is not None and all((key, kind) in fits for key, counts in kinds.items() for kind in counts):
        return others
    pairs = text(*(f"{kind} {key}" for key, kind in sorted(fits))) or "''"
    strays = f"""list_filter(map_entries({entries}),
        lambda entry: {_attribute_kind("(entry.value::varchar)")} || ' ' || entry.key not in ({pairs}))"""
    # Concatenate strings, because `json_merge_patch` removes null values.
    as_field = f"""'"attributes":' || to_json(map_from_entries({strays}))::varchar || '}}'"""
    return f"""case when {entries} is null or len({strays}) = 0 then {others}
        else coalesce({others}[:-2] || ',', '{{') || {as_field} end"""


# ------------------------------------------------------------ from columns to a map


def attribute_map(attributes: Attributes) -> str:
    """Return the SQL expression of the map of all attributes of a row, from its columns and `rest`."""
    pairs = ", ".join(
        f"{{'key': {text(key)}, 'value': to_json({quoted(attribute_column(key))})}}" for key in attributes
    )
    in_columns = f"list_filter([{pairs}], lambda pair: pair.value is not null)" if pairs else "[]"
    in_rest = f"""case when json_type(rest, '$.attributes') = 'OBJECT'
        then from_json(rest::json->'$.attributes', '"{MAP_TYPE}"') end"""
    return (
        f"map_concat(map_from_entries({in_columns})::{MAP_TYPE}, coalesce({in_rest}, map {{}}::{MAP_TYPE}))"
    )


def other_keys_in_rest() -> str:
    """Return the SQL expression of the keys of `rest` other than attributes; null if there are none."""
    return "case when rest is not null then json_merge_patch(rest, '{\"attributes\":null}')::varchar end"
