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
from .._columns import COLUMNS, FAILURE

__all__ = [
    "COURSE",
    "DOCUMENTS",
    "IDS",
    "OF_STAGES",
    "PROCESS",
    "Column",
    "Field",
    "implied",
    "is_measured_time",
    "literal",
    "quoted",
]


_OUTCOME = fields_with(Role.OUTCOME) | {FAILURE}
_DURATION = fields_with(Role.DURATION)
_WHEN = fields_with(Role.TIME) | {"day"}

COURSE = _OUTCOME | _DURATION | fields_with(Role.WORK)
"""What a run or a stage came to."""

PROCESS = fields_with(Role.PROCESS)
"""How the process was when a run ended: nothing that the run was given."""

_MEASURED = re.compile(r"(^|[._])(time_to_\w+|duration|latency|elapsed)([._]\w+)?$|_(ms|us|ns|seconds)$")


def is_measured_time(name: str) -> bool:
    """Tell by its name whether a field is a time that was measured, as timers and `record_llm` leave them.

    Example:
        >>> is_measured_time("attributes.db_ms"), is_measured_time("attributes.model")
        (True, False)
        >>> is_measured_time("attributes.gen_ai.response.time_to_first_chunk")
        True
    """
    return _MEASURED.search(name) is not None


DOCUMENTS = frozenset(name for name, column in COLUMNS.items() if column.shape == "JSON") | {"rest"}
"""JSON whole, which is compared field by field or not at all."""

IDS = fields_with(Role.IDENTITY) | {"segment", "sample_reason"}
"""Names of one run or one attempt, and how it came to be stored."""

OF_STAGES = ("status", "error_type", "duration_ms", "queue_ms", "attempts")
"""What of each stage of a run is compared, beside its attributes."""


def implied(named: Iterable[str]) -> frozenset[str]:
    """Return the fields that say what a predicate says, by the fields that it names.

    Example:
        >>> "error_type" in implied(["status"]), "error_type" in implied(["org_id"])
        (True, False)
    """
    named = frozenset(named)
    return named.union(*(family for family in (_OUTCOME, _DURATION, _WHEN) if family & named))


_INTEGERS = frozenset(f"{sign}{size}INT" for sign in ("", "U") for size in ("TINY", "SMALL", "BIG", "HUGE"))
_NUMBERS = _INTEGERS | {"INTEGER", "UINTEGER", "FLOAT", "DOUBLE"}
_NOT_AMOUNTS = frozenset({"pid"})
"""Numbers that are names: nothing is more or less than another."""

_SHAPES = (PipelineWide, StageWide, CorrelationIds, PipelineMetadata, Resource, ProcessSample, Trace)
_PLAIN = frozenset(name for shape in _SHAPES for name in shape.__struct_fields__)
"""Names that SQL takes as they are; any other one may be a word of its own."""


class Column(Struct, frozen=True):
    """A column of a view.

    Attributes:
        name: Its name.
        type: Its type, as DuckDB writes it.
    """

    name: str
    type: str

    @property
    def kind(self) -> Literal["category", "number", "moment"]:
        """How its values are compared: by equality, by size, or by size as a time."""
        if self.type.startswith(("TIMESTAMP", "DATE")):
            return "moment"
        number = self.type in _NUMBERS or self.type.startswith("DECIMAL")
        return "number" if number and self.name not in _NOT_AMOUNTS else "category"

    @property
    def has_text(self) -> bool:
        """Whether a value can be written as a literal; the text of a list can."""
        return self.type in {"VARCHAR", "BOOLEAN"} or self.kind != "category" or self.type in _NUMBERS

    @property
    def compared(self) -> str:
        """The expression for its value in a predicate."""
        return quoted(self.name) if self.has_text else f"CAST({quoted(self.name)} AS VARCHAR)"

    @property
    def fetched(self) -> str:
        """The expression by which its values are compared here: a number, or a hash with 0 for null."""
        if self.kind == "number":
            return f"CAST({quoted(self.name)} AS DOUBLE)"
        if self.kind == "moment":
            return f"epoch({quoted(self.name)})"
        # The hash of some values (false, 0) is 0, which stands for null.
        return f"CASE WHEN {quoted(self.name)} IS NULL THEN 0 ELSE greatest(hash({self.compared}), 1) END"


class Field(Struct, frozen=True):
    """A column of a row, or of one stage of it.

    Attributes:
        column: The column.
        stage: Of which stage; None for the row's own.
    """

    column: Column
    stage: str | None = None

    @property
    def name(self) -> str:
        """The name by which it is told."""
        return self.column.name if self.stage is None else f"{self.stage}/{self.column.name}"

    @property
    def is_attribute(self) -> bool:
        """Whether the application gave it."""
        return self.column.name.startswith("attributes.")

    def predicate(self, condition: str) -> str:
        """Return a predicate over the view, from one over the column.

        Where a stage's field is missing, the stage may be missing altogether.
        """
        if self.stage is None:
            return condition
        missing = condition == f"{self.column.compared} IS NULL"
        inner = f"{self.column.compared} IS NOT NULL" if missing else condition
        chosen = f"stage_name = {literal(self.stage)} AND status <> 'RETRY' AND {inner}"
        word = "NOT IN" if missing else "IN"
        return f"pipeline_run_id {word} (SELECT pipeline_run_id FROM stages WHERE {chosen})"


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL, in quotes unless it is a field's of the schema.

    Example:
        >>> quoted("org_id"), quoted("attributes.model")
        ('org_id', '"attributes.model"')
    """
    return name if name in _PLAIN else '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """Return a value as a literal of SQL.

    Example:
        >>> literal("it's"), literal(True), literal(2.5)
        ("'it''s'", 'TRUE', '2.5')
    """
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float) and not isfinite(value):
        return f"'{value}'::DOUBLE"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return repr(int(value))  # 3.0 would be a DECIMAL, which a large integer of its column may not fit
    if isinstance(value, int | float):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"
