"""Suggestions for the filter bar: fields and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..store import ATTRIBUTE, SYNONYMS, PinnedStore, count_if, field_sql, quoted, text
from ._api import Completion, Completions
from ._facets import shown_fields
from ._question import Question

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["complete"]

_MAX_VALUES = 50
_MAX_LENGTH = 200

_TYPES = {"BOOLEAN": "boolean", "VARCHAR": "text", "DATE": "time"}
_HIDDEN = ("segment", "sample_reason", "rest")
_GROUPED = ("VARCHAR", "BOOLEAN")
"""The types of fields by which rows are grouped."""

_OF_STAGES = ("status", "error_type", "attempts", "duration_ms", "queue_ms")
"""The fields of stages that are suggested for runs, in addition to attributes."""

_NO_GROUPS = ("request_id", "session_id", "schema_version", "error", "error_fingerprint")
"""Fields that identify a request or an error, or that are too long for a legend."""

_COMMON = (
    "pipeline_name",
    "stage_name",
    "outcome",
    "status",
    "service_version",
    "org_id",
    "environment",
    "host",
    "error_type",
)
"""The fields by which people group most often, most frequent first."""

_NEWEST = 20_000
"""Number of the newest rows in which the values of fields are counted."""

_ROWS_OF_A_VALUE, _FEW = 10, 10
"""A field whose values have fewer rows on average is an id, if it has more than a few values."""


def complete(store: PinnedStore, question: Question, snapshot: int) -> Completions:
    """Return the fields, the most frequent values of a field, or the fields with a value; see `Completions`.

    Raises:
        QueryError: The field does not exist.
    """

    def read(cursor: DuckDBPyConnection) -> list[Completion]:
        if question.field is not None:
            return _values(cursor, question)
        return _fields(cursor, question) if question.value is None else _with_value(cursor, question)

    found = store.query(read, "completions")
    return Completions(snapshot=snapshot, suggestions=tuple(found))


def _fields(cursor: DuckDBPyConnection, question: Question) -> list[Completion]:
    described = {name: str(kind) for name, kind in _described(cursor, question.over) if name not in _HIDDEN}
    shown = shown_fields(cursor, question.over)
    values = _values_of(cursor, question.over, list(shown)).get("", {})
    of_stages = _fields_of_stages(cursor) if question.over == "runs" else []
    return [
        Completion(
            text=name,
            kind="field",
            type=_type(kind),
            usefulness=_usefulness(name, values.get(name)) if kind in _GROUPED and name in shown else None,
            synonyms=SYNONYMS.get(name, ()),
        )
        for name, kind in sorted(described.items())
    ] + of_stages


def _fields_of_stages(cursor: DuckDBPyConnection) -> list[Completion]:
    """Return the fields of the stages of runs: the attributes, and how the stage ended."""
    kinds = {
        name: str(kind)
        for name, kind in _described(cursor, "stages")
        if name.startswith(ATTRIBUTE) or name in _OF_STAGES
    }
    values = _values_of(cursor, "stages", list(kinds), by_stage=True)
    return [
        Completion(
            text=f"{stage}/{name}",
            kind="stage field",
            type=_type(kinds[name]),
            usefulness=_usefulness(name, counts) if kinds[name] in _GROUPED else None,
        )
        for stage, fields in sorted(values.items())
        for name, counts in sorted(fields.items())
        if counts.rows and "/" not in stage
    ]


def _described(cursor: DuckDBPyConnection, over: str) -> list[tuple[str, str]]:
    return [row[:2] for row in cursor.execute(f"describe select * from {over}").fetchall()]


class _Counts(NamedTuple):
    """The number of rows with a value, and the number of different values."""

    rows: int
    distinct: int


def _values_of(
    cursor: DuckDBPyConnection, over: str, names: Sequence[str], *, by_stage: bool = False
) -> dict[str, dict[str, _Counts]]:
    """Return the counts of each field in the newest rows, by stage; without stages, for an empty name."""
    if not names:
        return {}
    stage, ended = ("stage_name", "where status <> 'RETRY'") if by_stage else ("''", "")
    columns = ", ".join(map(quoted, names))
    counts = ", ".join(f"count({quoted(name)}), approx_count_distinct({quoted(name)})" for name in names)
    found = cursor.execute(f"""
        select stage, {counts} from (
            select {stage} as stage, {columns} from {over} {ended} order by started_at desc limit {_NEWEST}
        ) where stage is not null group by stage""").fetchall()
    return {
        row[0]: {name: _Counts(row[1 + 2 * at], row[2 + 2 * at]) for at, name in enumerate(names)}
        for row in found
    }


def _usefulness(name: str, counts: _Counts | None) -> int | None:
    """Return how useful it is to group by a field; None for ids, which have about as many values as rows."""
    if counts is None or not counts.rows or name in _NO_GROUPS:
        return None
    if counts.distinct * _ROWS_OF_A_VALUE > counts.rows and counts.distinct > _FEW:
        return None
    # A chart shows ten values: a field with more of them is less useful, and one value shows nothing.
    first = 3 if 2 <= counts.distinct <= _FEW else 2 if counts.distinct > _FEW else 1
    known = len(_COMMON) - _COMMON.index(name) if name in _COMMON else 0
    return 100 * first + 10 * min(known, 9) + (1 if name.startswith(ATTRIBUTE) else 0)


def _with_value(cursor: DuckDBPyConnection, question: Question) -> list[Completion]:
    """Return the fields with a value in the newest rows, most rows first; a field of a run first."""
    value = str(question.value)
    shown = [name for name, kind in shown_fields(cursor, question.over).items() if kind == "VARCHAR"]
    found = [
        Completion(text=name, kind="field", type="text", count=float(rows), value=recorded)
        for name, (rows, recorded) in _rows_with(cursor, question.over, shown, value).get("", {}).items()
        if rows
    ]
    if question.over == "runs":
        of_stages = [
            name
            for name, kind in _described(cursor, "stages")
            if kind == "VARCHAR" and (name.startswith(ATTRIBUTE) or name in _OF_STAGES)
        ]
        found += [
            Completion(
                text=f"{stage}/{name}", kind="stage field", type="text", count=float(rows), value=recorded
            )
            for stage, fields in _rows_with(cursor, "stages", of_stages, value, by_stage=True).items()
            for name, (rows, recorded) in fields.items()
            if rows and "/" not in stage
        ]
    return sorted(found, key=lambda each: (each.kind != "field", -(each.count or 0), each.text))


def _rows_with(
    cursor: DuckDBPyConnection, over: str, names: Sequence[str], value: str, *, by_stage: bool = False
) -> dict[str, dict[str, tuple[int, str]]]:
    """Return in how many of the newest rows each field has a value, and the value, by stage.

    Without stages, the key is an empty name, as in `_values_of`.
    """
    if not names:
        return {}
    stage, ended = ("stage_name", "where status <> 'RETRY'") if by_stage else ("''", "")
    counts = ", ".join(
        f"count(*) filter ({has_value}), any_value({quoted(name)}) filter ({has_value})"
        for name in names
        for has_value in (f"lower({quoted(name)}) = {text(value.lower())}",)
    )
    found = cursor.execute(f"""
        select stage, {counts} from (
            select {stage} as stage, {", ".join(map(quoted, names))} from {over} {ended}
            order by started_at desc limit {_NEWEST}
        ) where stage is not null group by stage""").fetchall()
    return {
        row[0]: {name: (row[1 + 2 * at], row[2 + 2 * at]) for at, name in enumerate(names)} for row in found
    }


def _type(kind: str) -> str:
    if kind.endswith("[]"):
        return "list"
    return "time" if kind.startswith("TIMESTAMP") else _TYPES.get(kind, "number")


def _values(cursor: DuckDBPyConnection, question: Question) -> list[Completion]:
    _, field = field_sql(cursor, question.over, str(question.field))
    value = f"{field}::varchar"
    prefix = f"and starts_with(lower({value}), {text(question.prefix.lower())})" if question.prefix else ""
    found = cursor.execute(
        f"select {value}, {count_if()} from {question.over}"
        f" where {field} is not null and length({value}) <= {_MAX_LENGTH} {prefix}"
        f" group by 1 order by 2 desc, 1 limit {_MAX_VALUES}"
    ).fetchall()
    return [Completion(text=name, kind="value", count=float(count)) for name, count in found]
