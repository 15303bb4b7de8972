"""The fields that `explain` compares, and their roles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from math import isfinite
from typing import Literal

from msgspec import Struct

from ..._calls import CALL_ROLES
from ..._genai import ATTRIBUTE_ROLES
from ...schema import (
    CorrelationIds,
    PipelineMetadata,
    PipelineWide,
    ProcessSample,
    Resource,
    Role,
    StageWide,
    Trace,
    fields_with,
)
from .._columns import ATTRIBUTE, COLUMNS, FAILED

__all__ = [
    "DOCUMENTS",
    "IDS",
    "PROCESS_FIELDS",
    "RESULTS",
    "STAGE_FIELDS",
    "SUBORDINATE",
    "UNREAD",
    "Column",
    "Condition",
    "Field",
    "attribute_role",
    "is_time_name",
    "literal",
    "quoted",
    "with_equivalents",
]


_OUTCOME = fields_with(Role.OUTCOME) | {FAILED}
_DURATION = fields_with(Role.DURATION)
_TIME = fields_with(Role.TIME) | {"day"}

RESULTS = _OUTCOME | _DURATION | fields_with(Role.WORK)
"""Fields that depend on how a run or a stage ended, and on how long it took."""

PROCESS_FIELDS = fields_with(Role.PROCESS)
"""Measurements of the process when a run ended. They do not depend on the input of the run."""

SUBORDINATE = frozenset({"pid", "worker_pid", "parent_run_id"})
"""Fields that say little about a cause: they are listed after all other differences."""

_MEASURED = re.compile(r"(^|[._])(time_to_\w+|duration|latency|elapsed)([._]\w+)?$|_(ms|us|ns|seconds)$")


def is_time_name(name: str) -> bool:
    """Return whether a name is that of a duration, as timers write it, or of a setting such as a timeout.

    Example:
        >>> is_time_name("attributes.db_ms"), is_time_name("attributes.model")
        (True, False)
    """
    return _MEASURED.search(name) is not None


def attribute_role(name: str) -> Role | None:
    """Return the role of an attribute that the library writes, such as by `record_llm`; None for any other.

    Example:
        >>> attribute_role("attributes.gen_ai.usage.output_tokens"), attribute_role("attributes.plan")
        (<Role.WORK: 'work'>, None)
    """
    attribute = name.removeprefix(ATTRIBUTE)
    return ATTRIBUTE_ROLES.get(attribute) or CALL_ROLES.get(attribute)


DOCUMENTS = frozenset(name for name, column in COLUMNS.items() if column.json_type == "JSON") | {"rest"}
"""JSON documents. The attributes in `rest` are compared by their leaves."""

UNREAD = DOCUMENTS - {"rest"}
"""JSON documents that are not compared, so that they are read only if a predicate refers to them."""

IDS = fields_with(Role.IDENTITY) | {"segment", "sample_reason"}
"""Ids of a single run or attempt, and fields that describe how it was stored."""

STAGE_FIELDS = (
    "status",
    "error_type",
    "duration_ms",
    "queue_ms",
    "attempts",
    "items_total",
    "items_failed",
    "items_failure_types",
    "items_max_ms",
    "stream_chunks",
    "stream_first_chunk_ms",
    "stream_blocked_ms",
    "stream_abandoned",
    "worker_host",
    "worker_queue_ms",
    "log_warnings",
    "log_errors",
)
"""Fields of each stage of a run that are compared, in addition to its attributes."""


def with_equivalents(names: Iterable[str]) -> frozenset[str]:
    """Return the fields to which a predicate refers, and all fields that are equivalent to them.

    Example:
        >>> "error_type" in with_equivalents(["status"]), "error_type" in with_equivalents(["org_id"])
        (True, False)
    """
    names = frozenset(names)
    return names.union(*(family for family in (_OUTCOME, _DURATION, _TIME) if family & names))


_INTEGERS = frozenset(f"{sign}{size}INT" for sign in ("", "U") for size in ("TINY", "SMALL", "BIG", "HUGE"))
_NUMBERS = _INTEGERS | {"INTEGER", "UINTEGER", "FLOAT", "DOUBLE"}
_NUMERIC_IDS = frozenset({"pid", "worker_pid"})
"""Columns whose numbers have no order."""

_SCHEMAS = (PipelineWide, StageWide, CorrelationIds, PipelineMetadata, Resource, ProcessSample, Trace)
_UNQUOTED = frozenset(name for schema in _SCHEMAS for name in schema.__struct_fields__)
"""Identifiers that need no quotes in SQL. Any other name may be a reserved word."""


class Column(Struct, frozen=True):
    """A column of a view.

    Attributes:
        name: Name of the column.
        type: Its type in DuckDB.
    """

    name: str
    type: str

    @property
    def is_time(self) -> bool:
        """Whether the column contains points in time."""
        return self.type.startswith(("TIMESTAMP", "DATE")) and not self.type.endswith("]")

    @property
    def is_number(self) -> bool:
        """Whether the column contains numbers that have an order."""
        number = self.type in _NUMBERS or (self.type.startswith("DECIMAL") and not self.type.endswith("]"))
        return number and self.name not in _NUMERIC_IDS


class Condition(Struct, frozen=True):
    """A condition on the rows that are compared, on their stages or on their run.

    Attributes:
        predicate: A predicate over a row of `view`.
        view: The view whose rows have the field: "stages" or "runs"; None for the view that is compared.
        negated: With a view: whether the condition is that no row of the run matches.
    """

    predicate: str
    view: Literal["stages", "runs"] | None = None
    negated: bool = False

    @property
    def sql(self) -> str:
        """The condition as a predicate over the compared view."""
        if self.view is None:
            return self.predicate
        operator = "NOT IN" if self.negated else "IN"
        return f"pipeline_run_id {operator} (SELECT pipeline_run_id FROM {self.view} WHERE {self.predicate})"


class Field(Struct, frozen=True, kw_only=True):
    """A field that is compared, and the SQL expressions of its value.

    Attributes:
        column: Name of the column, or of the attribute if `rest` contains it.
        view: The view whose row has the field, if it is not the view that is compared: "stages" or "runs".
        stage: Name of the stage, if `view` is "stages".
        text: Expression of the value as it is compared for equality; None for values such as times, of which
            only the order is compared.
        text_kind: How a value of `text` is written as a literal. The value of a "list" is a JSON array.
        number: Expression of the value as a number or a time, whose order is compared; None if it has none.
        is_time: Whether `number` is a point in time, in seconds since 1970.
        order: Expression that is compared with the limit of a threshold or an interval.
        time_type: The type of a literal for a point in time.
        in_documents: Whether the value is part of a JSON document.
    """

    column: str
    view: Literal["stages", "runs"] | None = None
    stage: str | None = None
    text: str | None = None
    text_kind: Literal["text", "number", "boolean", "list"] = "text"
    number: str | None = None
    is_time: bool = False
    order: str = ""
    time_type: str = "TIMESTAMPTZ"
    in_documents: bool = False

    @classmethod
    def of_column(
        cls, column: Column, view: Literal["stages", "runs"] | None = None, stage: str | None = None
    ) -> Field:
        """Return the field of a column."""
        name = quoted(column.name)
        if column.is_time:
            has_zone = column.type in {"TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"}
            order = name if has_zone or column.type in {"TIMESTAMP", "DATE"} else f"CAST({name} AS TIMESTAMP)"
            # Infinite times, and those that Python cannot represent, have no order.
            usable = f"isfinite({order}) AND year({order}) BETWEEN 1 AND 9999"
            return cls(
                column=column.name,
                view=view,
                stage=stage,
                number=f"CASE WHEN {usable} THEN epoch({order}) END",
                is_time=True,
                order=order,
                time_type="TIMESTAMPTZ" if has_zone else "TIMESTAMP",
            )
        if column.is_number:
            return cls(
                column=column.name,
                view=view,
                stage=stage,
                text=name,
                text_kind="number",
                number=f"CASE WHEN isfinite(CAST({name} AS DOUBLE)) THEN CAST({name} AS DOUBLE) END",
                order=name,
            )
        kind: Literal["text", "number", "boolean", "list"] = "text"
        text = name
        if column.type.endswith("[]"):
            kind, text = "list", f"CAST(to_json({name}) AS VARCHAR)"
        elif column.type == "BOOLEAN":
            kind = "boolean"
        elif column.type in _NUMBERS:
            kind = "number"
        elif column.type != "VARCHAR":
            text = f"CAST({name} AS VARCHAR)"
        return cls(column=column.name, view=view, stage=stage, text=text, text_kind=kind, order=name)

    @property
    def name(self) -> str:
        """The name in the result: the column, "stage/column" or "run/column"."""
        if self.view is None:
            return self.column
        return f"{self.stage if self.view == 'stages' else 'run'}/{self.column}"

    @property
    def is_attribute(self) -> bool:
        """Whether the application set the field."""
        return self.column.startswith(ATTRIBUTE)

    @property
    def value(self) -> str:
        """The SQL expression that is null if the field has no value."""
        return self.number or self.order if self.is_time else self.text or self.order

    def condition(self, predicate: str) -> Condition:
        """Return the condition that the row that has the field matches a predicate."""
        return Condition(self._of_stage(predicate), self.view)

    @property
    def is_missing(self) -> Condition:
        """The condition for the rows without a value, including those without the stage."""
        if self.view is None:
            return Condition(f"{self.value} IS NULL")
        present = f"pipeline_run_id IS NOT NULL AND {self.value} IS NOT NULL"
        return Condition(self._of_stage(present), self.view, negated=True)

    @property
    def has_value(self) -> Condition:
        """The condition for the rows with a value."""
        return self.condition(f"{self.value} IS NOT NULL")

    def _of_stage(self, predicate: str) -> str:
        if self.view != "stages":
            return predicate
        return f"stage_name = {literal(self.stage)} AND status <> 'RETRY' AND {predicate}"


def quoted(name: str) -> str:
    """Return a name as an SQL identifier, in quotes unless it is a field of the schema.

    Example:
        >>> quoted("org_id"), quoted("attributes.model")
        ('org_id', '"attributes.model"')
    """
    return name if name in _UNQUOTED else '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    r"""Return a value as an SQL literal on one line, so that it can be copied from a terminal.

    Example:
        >>> literal("it's"), literal(True), literal(2.5)
        ("'it''s'", 'TRUE', '2.5')
        >>> print(literal("two\nlines"))
        ('two' || chr(10) || 'lines')
    """
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float) and not isfinite(value):
        return f"'{value}'::DOUBLE"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return repr(int(value))  # 3.0 would be a DECIMAL, whose range can be smaller than that of the column
    if isinstance(value, int | float):
        return repr(value)
    parts = []
    for is_printable, characters in groupby(str(value), str.isprintable):
        if is_printable:
            parts.append("'" + "".join(characters).replace("'", "''") + "'")
        else:
            parts += [f"chr({ord(character)})" for character in characters]
    return parts[0] if len(parts) == 1 else f"({' || '.join(parts)})" if parts else "''"
