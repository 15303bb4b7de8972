"""The columns of the archive, including those of attributes."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, inspect as shapes

from ..schema import PipelineWide, StageWide, WideAmend

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "AMENDMENTS",
    "ATTRIBUTE",
    "COLUMNS",
    "FAILURE",
    "MAP",
    "PLACES",
    "TYPED",
    "Attributes",
    "Column",
    "Field",
    "Kinds",
    "all_attributes",
    "attribute_column",
    "attribute_values",
    "caseless",
    "choose_columns",
    "columns_of",
    "count_kinds",
    "encode_shape",
    "fields_of",
    "is_column_name",
    "others_in_rest",
    "quoted",
    "rest_of",
    "shape_of",
    "text",
]


ATTRIBUTE = "attributes."
"""How the columns of attributes begin."""

TYPED: Mapping[str, type[Struct]] = {
    "stage.wide": StageWide,
    "pipeline.wide": PipelineWide,
    "stage.wide.amend": WideAmend,
    "pipeline.wide.amend": WideAmend,
}
"""The types of events whose fields are columns; of all others the data stands in `rest` as it is."""

FAILURE = "failure"
"""The column of the views that states whether a row counts as a failure; see `weights.failure_of`."""

AMENDMENTS = ("stage.wide.amend", "pipeline.wide.amend")

_NAME = re.compile(r"[^\s,;{}()=\"'/]{1,100}")
"""What Delta Lake lets be the name of a column, and what nobody has to escape."""


class Field(Struct, frozen=True):
    """A key of an event's data.

    Attributes:
        name: The key.
        parts: The keys below it, where it holds an object whose fields are columns; else none.
        column: The column it is in, where it has no parts.
        optional: True where it may be null as a whole.
    """

    name: str
    parts: tuple[str, ...]
    column: str
    optional: bool


class Column(Struct, frozen=True):
    """A column: its name, and its type in DuckDB's words.

    `shape` is its type in the words of DuckDB's `from_json`.
    """

    name: str
    type: str
    shape: Any


def _kind(type: shapes.Type) -> tuple[str, Any]:
    """Return the type of a column that holds such values, and its shape in JSON."""
    if isinstance(type, shapes.Metadata):
        return _kind(type.type)
    if isinstance(type, shapes.UnionType):
        return _kind(next(each for each in type.types if not isinstance(each, shapes.NoneType)))
    if isinstance(type, shapes.StrType | shapes.LiteralType):
        return "VARCHAR", "VARCHAR"
    if isinstance(type, shapes.BoolType):
        return "BOOLEAN", "BOOLEAN"
    if isinstance(type, shapes.IntType):
        return "BIGINT", "BIGINT"
    if isinstance(type, shapes.FloatType):
        return "DOUBLE", "DOUBLE"
    if (
        isinstance(type, shapes.ListType)
        and _kind(type.item_type)[0] == "VARCHAR"
        and not _is_struct(type.item_type)
    ):
        return "VARCHAR[]", ["VARCHAR"]
    return "VARCHAR", "JSON"


def _is_struct(type: shapes.Type) -> bool:
    return isinstance(type, shapes.StructType)


def _without_null(type: shapes.Type) -> tuple[shapes.Type, bool]:
    if isinstance(type, shapes.Metadata):
        return _without_null(type.type)
    if isinstance(type, shapes.UnionType):
        others = [each for each in type.types if not isinstance(each, shapes.NoneType)]
        return _without_null(others[0])[0], len(others) < len(type.types)
    return type, False


def fields_of(shape: type[Struct]) -> list[Field]:
    """Return the fields of a wide event, in the order of the schema, but for its attributes."""
    return [field for field, _ in _fields(shape)]


@functools.cache
def _fields(shape: type[Struct]) -> list[tuple[Field, list[Column]]]:
    found = []
    info = shapes.type_info(shape)
    assert isinstance(info, shapes.StructType)
    for field in info.fields:
        if field.name == "attributes":
            continue
        inner, optional = _without_null(field.type)
        if isinstance(inner, shapes.StructType) and all(
            _kind(part.type)[0] != "VARCHAR[]" and _kind(part.type)[1] != "JSON" for part in inner.fields
        ):
            columns = [Column(part.name, *_kind(part.type)) for part in inner.fields]
            found.append(
                (Field(field.name, tuple(part.name for part in inner.fields), "", optional), columns)
            )
            continue
        type, json = _kind(field.type)
        if field.name.endswith("_at"):
            type = "TIMESTAMPTZ"
        found.append((Field(field.name, (), field.name, optional), [Column(field.name, type, json)]))
    return found


def columns_of(shape: type[Struct]) -> list[str]:
    """Return the columns of a wide event, but for those of its attributes."""
    return [column.name for _, columns in _fields(shape) for column in columns]


def _collect() -> tuple[dict[str, Column], dict[str, tuple[str, ...]]]:
    columns: dict[str, Column] = {}
    places: dict[str, tuple[str, ...]] = {}
    for shape in (StageWide, PipelineWide, WideAmend):
        for field, found in _fields(shape):
            for column in found:
                columns.setdefault(column.name, column)
                place = (field.name, column.name) if field.parts else (field.name,)
                assert places.setdefault(column.name, place) == place, f"two fields are named {column.name}"
    # Of a stage's own event, which has no schema.
    columns["emitted_at"] = Column("emitted_at", "TIMESTAMPTZ", "VARCHAR")
    places["emitted_at"] = ("emitted_at",)
    return columns, places


COLUMNS, PLACES = _collect()
"""The columns of the schema by name, and where in an event's data each is found."""


def attribute_column(key: str) -> str:
    """Return the name of an attribute's column.

    Example:
        >>> attribute_column("hits")
        'attributes.hits'
    """
    return ATTRIBUTE + key


def is_column_name(key: str) -> bool:
    """Return whether an attribute's key may be a part of a column's name.

    Control, format and private-use characters are not allowed, nor are characters that this Python version
    does not know: DuckDB and Delta Lake may know an upper and a lower case of them.
    """
    return _NAME.fullmatch(key) is not None and key.isprintable()


def caseless(key: str) -> str:
    """Return a form that two keys share if DuckDB, Delta Lake or Spark treats their columns as the same.

    Each of them ignores case in its own way: some only in ASCII, some depending on the context of a letter.

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
    """Return a name as SQL has it.

    Example:
        >>> quoted("attributes.hits")
        '"attributes.hits"'
    """
    return '"' + name.replace('"', '""') + '"'


def text(*values: str) -> str:
    """Return texts as SQL has them, with commas between.

    Half of a surrogate pair, as an argument of a command may have it, is written out: nothing has it.

    Example:
        >>> text("a", "it's")
        "'a', 'it''s'"
    """
    encoded = (value.encode(errors="backslashreplace").decode() for value in values)
    return ", ".join("'" + value.replace("'", "''") + "'" for value in encoded)


def shape_of(columns: Iterable[Column]) -> dict[str, Any]:
    """Return the shape of an event's data, as `from_json` takes it, for these columns."""
    shape: dict[str, Any] = {}
    for column in columns:
        *above, last = PLACES[column.name]
        inner = shape
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = column.shape
    return shape


def encode_shape(shape: Any) -> str:
    """Return a shape as text in SQL."""
    return text(msgspec.json.encode(shape).decode())


Attributes = dict[str, str]
"""The columns of attributes: the key of each, and its type in DuckDB's words."""

Kinds = Mapping[str, Mapping[str, int]]
"""How often each attribute has which kind of value."""

_TYPE_OF = {"text": "VARCHAR", "number": "DOUBLE", "bool": "BOOLEAN"}
"""The kinds of JSON values that a column can carry, and its type then."""

_KIND_OF = {type: kind for kind, type in _TYPE_OF.items()}

MAP = "MAP(VARCHAR, JSON)"
"""What all attributes of an event are in DuckDB, before they are put into columns."""


def _attribute_kind(value: str) -> str:
    # From 2**53 on a whole number may not be the same as a double any more.
    return f"""case coalesce(left({value}, 1), 'n')
        when '"' then 'text' when 't' then 'bool' when 'f' then 'bool' when 'n' then 'null'
        when '{{' then 'object' when '[' then 'array'
        else case when length({value}) > 15 and regexp_full_match({value}, '-?[0-9]+')
            and abs(try_cast({value} as double)) >= 9007199254740992 then 'large' else 'number' end end"""


def count_kinds(connection: DuckDBPyConnection, maps: str) -> Kinds:
    """Return how often each attribute has which kind of value, the most frequent first.

    Args:
        connection: Where they are.
        maps: SQL that selects maps of attributes.
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


def choose_columns(kinds: Kinds, known: Attributes, most: int) -> Attributes:
    """Return the columns of attributes: those there are, and as many new ones as there is room for."""
    chosen = dict(known)
    taken = set(map(caseless, chosen))
    for key, counts in kinds.items():
        fit = [kind for kind in counts if kind in _TYPE_OF]
        if fit and len(chosen) < most and is_column_name(key) and (name := caseless(key)) not in taken:
            chosen[key] = _TYPE_OF[max(fit, key=counts.__getitem__)]
            taken.add(name)
    return chosen


# ------------------------------------------------------------ from a map to columns


def attribute_values(attributes: Attributes, entries: str, kinds: Kinds | None = None) -> list[str]:
    """Return in SQL the values of the columns, each with its name.

    Args:
        attributes: The columns.
        entries: SQL that gives all attributes of a row.
        kinds: Which kinds of values there are in all of them, where that is known.
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


def rest_of(others: str, attributes: Attributes, entries: str, kinds: Kinds | None = None) -> str:
    """Return in SQL what of a row is in no column, as JSON; null for nothing.

    Args:
        others: SQL that gives what there is beside attributes, as an object of JSON, or null.
        attributes: The columns.
        entries: SQL that gives all attributes of the row.
        kinds: See `attribute_values`.
    """
    fits = {(key, _KIND_OF[type]) for key, type in attributes.items()}
    others = f"nullif({others}, '{{}}')"
    if kinds is not None and all((key, kind) in fits for key, counts in kinds.items() for kind in counts):
        return others
    pairs = text(*(f"{kind} {key}" for key, kind in sorted(fits))) or "''"
    strays = f"""list_filter(map_entries({entries}),
        lambda entry: {_attribute_kind("(entry.value::varchar)")} || ' ' || entry.key not in ({pairs}))"""
    # Put together as text: to merge two objects of JSON leaves out what is null.
    as_field = f"""'"attributes":' || to_json(map_from_entries({strays}))::varchar || '}}'"""
    return f"""case when {entries} is null or len({strays}) = 0 then {others}
        else coalesce({others}[:-2] || ',', '{{') || {as_field} end"""


# ------------------------------------------------------------ from columns to a map


def all_attributes(attributes: Attributes) -> str:
    """Return in SQL the map of all attributes of a row, out of its columns and `rest`."""
    pairs = ", ".join(
        f"{{'key': {text(key)}, 'value': to_json({quoted(attribute_column(key))})}}" for key in attributes
    )
    in_columns = f"list_filter([{pairs}], lambda pair: pair.value is not null)" if pairs else "[]"
    in_rest = f"""case when json_type(rest, '$.attributes') = 'OBJECT'
        then from_json(rest::json->'$.attributes', '"{MAP}"') end"""
    return f"""map_concat(map_from_entries({in_columns})::{MAP}, coalesce({in_rest}, map {{}}::{MAP}))"""


def others_in_rest() -> str:
    """Return in SQL what `rest` has beside attributes; null where there is none."""
    return "case when rest is not null then json_merge_patch(rest, '{\"attributes\":null}')::varchar end"
