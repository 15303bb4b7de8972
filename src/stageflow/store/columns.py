"""The columns of an event as a row: one for each field of the schema and each attribute, one for the rest.

Fields of nested objects are columns by their own name (`user_id`, `service`, `host`, `trace_id`): no
two of them share one. An attribute `hits` is the column `"attributes.hits"`. What no column can carry
stands in `rest`, as JSON, so that a row gives back the whole event.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from msgspec import inspect as shapes

from ..schema import PipelineWide, StageWide, WideAmend

__all__ = [
    "AMENDMENTS",
    "ATTRIBUTE",
    "COLUMNS",
    "FAILURE",
    "PLACES",
    "TYPED",
    "Column",
    "Field",
    "attribute_column",
    "caseless",
    "columns_of",
    "encode_shape",
    "fields_of",
    "is_column_name",
    "quoted",
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
