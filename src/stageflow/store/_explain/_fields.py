"""The fields that `explain` compares, and their roles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isfinite
from typing import Literal

from msgspec import Struct

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
from .._columns import COLUMNS, FAILED

__all__ = [
    "DOCUMENTS",
    "IDS",
    "PROCESS_FIELDS",
    "RESULTS",
    "STAGE_FIELDS",
    "Column",
    "Field",
    "is_measured_time",
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

_MEASURED = re.compile(r"(^|[._])(time_to_\w+|duration|latency|elapsed)([._]\w+)?$|_(ms|us|ns|seconds)$")


def is_measured_time(name: str) -> bool:
    """Return whether a name is that of a measured time, as timers and `record_llm` write it.

    Example:
        >>> is_measured_time("attributes.db_ms"), is_measured_time("attributes.model")
        (True, False)
        >>> is_measured_time("attributes.gen_ai.response.time_to_first_chunk")
        True
    """
    return _MEASURED.search(name) is not None


DOCUMENTS = frozenset(name for name, column in COLUMNS.items() if column.json_type == "JSON") | {"rest"}
"""JSON documents, whose fields are compared one by one or not at all."""

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
    def kind(self) -> Literal["category", "number", "time"]:
        """How values are compared: categories by equality, numbers and times by their order."""
        if self.type.startswith(("TIMESTAMP", "DATE")):
            return "time"
        number = self.type in _NUMBERS or self.type.startswith("DECIMAL")
        return "number" if number and self.name not in _NUMERIC_IDS else "category"

    @property
    def has_literal(self) -> bool:
        """Whether a value can be written as a literal. For other types, such as lists, their text can."""
        """Whether a value can be written as a literal; the text of a list can."""
        return self.type in {"VARCHAR", "BOOLEAN"} or self.kind != "category" or self.type in _NUMBERS

    @property
    def sql(self) -> str:
        """The SQL expression of the value in a predicate."""
        return quoted(self.name) if self.has_literal else f"CAST({quoted(self.name)} AS VARCHAR)"

    @property
    def code_sql(self) -> str:
        """The SQL expression of the value as it is compared: a number, or a hash, which is 0 for NULL."""
        if self.kind == "number":
            return f"CAST({quoted(self.name)} AS DOUBLE)"
        if self.kind == "time":
            return f"epoch({quoted(self.name)})"
        # The hash of some values (false, 0) is 0, which represents NULL.
        return f"CASE WHEN {quoted(self.name)} IS NULL THEN 0 ELSE greatest(hash({self.sql}), 1) END"


class Field(Struct, frozen=True):
    """A column of a row, or of one of its stages.

    Attributes:
        column: The column.
        stage: Name of the stage; None for a column of the row.
    """

    column: Column
    stage: str | None = None

    @property
    def name(self) -> str:
        """The name in the result: the column, or "stage/column"."""
        return self.column.name if self.stage is None else f"{self.stage}/{self.column.name}"

    @property
    def is_attribute(self) -> bool:
        """Whether the application set the field."""
        return self.column.name.startswith("attributes.")

    def predicate(self, condition: str) -> str:
        """Return a predicate over the view from a predicate over the column.

        A missing field of a stage also matches runs that do not have the stage.
        """
        if self.stage is None:
            return condition
        missing = condition == f"{self.column.sql} IS NULL"
        inner = f"{self.column.sql} IS NOT NULL" if missing else condition
        stages = f"stage_name = {literal(self.stage)} AND status <> 'RETRY' AND {inner}"
        operator = "NOT IN" if missing else "IN"
        return f"pipeline_run_id {operator} (SELECT pipeline_run_id FROM stages WHERE {stages})"


def quoted(name: str) -> str:
    """Return a name as an SQL identifier, in quotes unless it is a field of the schema.

    Example:
        >>> quoted("org_id"), quoted("attributes.model")
        ('org_id', '"attributes.model"')
    """
    return name if name in _UNQUOTED else '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """Return a value as an SQL literal.

    Example:
        >>> literal("it's"), literal(True), literal(2.5)
        ("'it''s'", 'TRUE', '2.5')
    """
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float) and not isfinite(value):
        return f"'{value}'::DOUBLE"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return repr(int(value))  # 3.0 would be a DECIMAL, whose range can be smaller than that of the column
    if isinstance(value, int | float):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"
