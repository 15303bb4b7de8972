"""The attributes that have no column: lists, objects, large integers, and values of another type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .._columns import ATTRIBUTE
from ._fields import Column, Field, literal, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["document_fields"]


_MAX_DOCUMENTS = 5_000
"""Maximum number of different documents that are read to find the attributes."""

_MAX_LEAVES = 200

_MAX_DEPTH = 6

_NOT_IN_PATHS = frozenset('"\\*')
"""Characters that a JSON path cannot contain, or that have a meaning in it."""

_Kind = Literal["text", "number", "boolean", "list"]

_Path = tuple[str, ...]


def document_fields(
    connection: DuckDBPyConnection,
    table: str,
    columns: Sequence[Column],
    view: Literal["stages", "runs"] | None = None,
) -> tuple[list[Field], frozenset[str], dict[str, list[str]]]:
    """Return the fields of the attributes in `rest`.

    Args:
        connection: The connection.
        table: The table, or a query in parentheses, with the `rest` column.
        columns: The columns of the table.
        view: The view of the fields, if it is not the view that is compared.

    Returns:
        The fields; the columns that they replace, because `rest` contains other values of the same attribute;
        and the attributes that are not compared, by reason.
    """
    left_out: dict[str, list[str]] = {}
    found = connection.execute(
        f"SELECT DISTINCT CAST(json_extract(rest, '$.attributes') AS VARCHAR) AS document FROM {table} "
        f"WHERE json_valid(rest) AND json_type(rest, '$.attributes') = 'OBJECT' "
        f"ORDER BY hash(document), document LIMIT {_MAX_DOCUMENTS + 1}"
    ).fetchall()
    if len(found) > _MAX_DOCUMENTS:
        left_out["attributes that only rare JSON documents contain"] = ["rest"]
    leaves: dict[_Path, set[_Kind]] = {}
    for (document,) in found[:_MAX_DOCUMENTS]:
        try:
            for path, kind in _leaves(msgspec.json.decode(document), ()):
                leaves.setdefault(path, set()).add(kind)
        except (msgspec.DecodeError, RecursionError):
            left_out["attributes in JSON documents that cannot be read"] = ["rest"]
    by_name = {column.name: column for column in columns}
    fields, replaced = [], set()
    names: set[str] = set()
    for n, (path, kinds) in enumerate(sorted(leaves.items())):
        name = ATTRIBUTE + ".".join(path)
        if n >= _MAX_LEAVES:
            left_out.setdefault(
                f"beyond the maximum of {_MAX_LEAVES} attributes in JSON documents", []
            ).append(name)
        elif any(not key or not _NOT_IN_PATHS.isdisjoint(key) for key in path):
            left_out.setdefault("a JSON path cannot contain the name", []).append(name)
        elif name in names:
            left_out.setdefault("several attributes have this name", []).append(name)
        else:
            names.add(name)
            column = by_name.get(name)
            fields.append(_field(name, path, kinds, column, view))
            replaced |= {name} if column is not None else set()
    return fields, frozenset(replaced), left_out


def _leaves(value: Any, path: _Path) -> Iterator[tuple[_Path, _Kind]]:
    if isinstance(value, Mapping) and value and len(path) < _MAX_DEPTH:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif path and value is not None:
        yield path, _kind_of(value)


def _kind_of(value: Any) -> _Kind:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, list):
        return "list"
    # Integers that a double cannot represent are identifiers.
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53):
        return "number"
    return "text"


def _field(
    name: str,
    path: _Path,
    kinds: set[_Kind],
    column: Column | None,
    view: Literal["stages", "runs"] | None,
) -> Field:
    steps = "".join(f'."{key}"' for key in path)
    where = literal(f"$.attributes{steps}")
    text = f"CASE WHEN json_valid(rest) THEN json_extract_string(rest, {where}) END"
    if column is not None:
        # Values of another type than that of the column: compare all of them as text.
        known = f"regexp_replace(CAST({quoted(name)} AS VARCHAR), '\\.0$', '')"
        number = f"CAST({quoted(name)} AS DOUBLE)" if column.is_number else None
        order = quoted(name) if column.is_number else ""
        return Field(
            column=name,
            view=view,
            text=f"coalesce({known}, {text})",
            number=number,
            order=order,
            in_documents=True,
        )
    if kinds == {"list"}:
        return Field(column=name, view=view, text=text, text_kind="list", in_documents=True)
    if kinds == {"number"}:
        value = f"TRY_CAST({text} AS DOUBLE)"
        return Field(
            column=name,
            view=view,
            text=value,
            text_kind="number",
            number=value,
            order=value,
            in_documents=True,
        )
    return Field(column=name, view=view, text=text, in_documents=True)
