"""Suggestions for the filter bar: fields and their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..store import PinnedStore, count_if, quoted, resolve_field, text
from ._api import Completion, Completions
from ._question import Question

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["complete"]

_MAX_VALUES = 50
_MAX_LENGTH = 200

_TYPES = {"BOOLEAN": "boolean", "VARCHAR": "text", "DATE": "time"}
_HIDDEN = ("segment", "sample_reason", "rest")


def complete(store: PinnedStore, question: Question, snapshot: int) -> Completions:
    """Return the fields, or the most frequent values of a field; see `Completions`.

    Raises:
        QueryError: The field does not exist.
    """

    def read(cursor: DuckDBPyConnection) -> list[Completion]:
        return _fields(cursor, question) if question.field is None else _values(cursor, question)

    found = store.query(read, "completions")
    return Completions(snapshot=snapshot, suggestions=tuple(found))


def _fields(cursor: DuckDBPyConnection, question: Question) -> list[Completion]:
    described = cursor.execute(f"describe select * from {question.over}").fetchall()
    return [
        Completion(text=name, kind="field", type=_type(str(kind)))
        for name, kind, *_ in sorted(described)
        if name not in _HIDDEN
    ]


def _type(kind: str) -> str:
    if kind.endswith("[]"):
        return "list"
    return "time" if kind.startswith("TIMESTAMP") else _TYPES.get(kind, "number")


def _values(cursor: DuckDBPyConnection, question: Question) -> list[Completion]:
    field = quoted(resolve_field(cursor, question.over, str(question.field)))
    value = f"{field}::varchar"
    prefix = f"and starts_with(lower({value}), {text(question.prefix.lower())})" if question.prefix else ""
    found = cursor.execute(
        f"select {value}, {count_if()} from {question.over}"
        f" where {field} is not null and length({value}) <= {_MAX_LENGTH} {prefix}"
        f" group by 1 order by 2 desc, 1 limit {_MAX_VALUES}"
    ).fetchall()
    return [Completion(text=name, kind="value", count=float(count)) for name, count in found]
