"""Reads the values of all fields that `explain` compares, and lists those that it leaves out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import duckdb
import numpy as np
from msgspec import structs

from ...errors import QueryError
from .._columns import ATTRIBUTE
from ._comparing import FieldValues
from ._documents import document_fields
from ._fields import (
    IDS,
    RESULTS,
    STAGE_FIELDS,
    UNREAD,
    Column,
    Field,
    quoted,
    with_equivalents,
)
from ._request import Request
from ._sample import Sample
from ._significance import counts_of_masks
from ._totals import Totals
from ._values import ValueTable, count_values

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["PREDICATE_ERRORS", "Fields", "columns_of", "has_view"]


PREDICATE_ERRORS = (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError)
"""Errors that a predicate causes. Others, such as an interrupted query, propagate unchanged."""


def columns_of(connection: DuckDBPyConnection, view: str) -> list[Column]:
    """Return the columns of a view.

    Raises:
        QueryError: The view does not exist.
    """
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {view}").fetchall()
    except PREDICATE_ERRORS as error:
        raise QueryError(
            f"the view {view!r} does not exist: {str(error).splitlines()[0]}", sql=view
        ) from error
    return [Column(name, type_) for name, type_, *_ in described]


def has_view(connection: DuckDBPyConnection, name: str) -> bool:
    """Return whether there is a view or a table of this name."""
    # Query the catalog: a query that fails would abort a transaction that the caller has open.
    known = f"SELECT 1 FROM information_schema.tables WHERE table_name = '{name}' LIMIT 1"
    return bool(connection.execute(known).fetchall())


class Fields:
    """The values of the fields to compare, in the sampled rows.

    Args:
        connection: The connection.
        request: The comparison.
        columns: The columns of the view that is compared.
        sample: The sample.
        totals: The counts of all rows.
        referenced: The fields to which the predicates refer.
        cluster: The field whose values are the clusters; None if it is none.

    Attributes:
        values: The values by the name of the field.
        tables: How often each value of a field occurs; None if its values are not compared for equality.
        left_out: The names of the fields that are not compared, by reason.
        skipped: Number of fields of the stages that are not compared.
    """

    def __init__(
        self,
        connection: DuckDBPyConnection,
        request: Request,
        columns: Mapping[str, Column],
        sample: Sample,
        totals: Totals,
        referenced: frozenset[str],
        cluster: str | None,
    ) -> None:
        self._connection = connection
        self._request = request
        self._columns = columns
        self._sample = sample
        self._totals = totals
        self._referenced = referenced
        self._cluster = cluster
        self._defining = with_equivalents(referenced)
        self.values: dict[str, FieldValues] = {}
        self.tables: dict[str, ValueTable | None] = {}
        self.left_out: dict[str, list[str]] = defaultdict(list)
        self._leave_out_by_name()
        self._read_columns()
        if request.over == "runs":
            self._read_stage_fields()
        else:
            self._read_run_fields()
        self._leave_out_equivalents()
        self.leave_out("stages that occur in few runs", sample.skipped_stages)
        self.skipped = len(sample.skipped_stages) * len(self._stage_columns())

    def leave_out(self, reason: str, names: Iterable[str]) -> None:
        """List fields that are not compared."""
        if found := list(names):
            self.left_out[reason] += found

    def _leave_out_by_name(self) -> None:
        names = [name for name in self._columns if name != "sample_rate"]
        defining = self._defining
        per = self._request.per
        self.leave_out("each row is compared with those with the same value", [per] if per else ())
        self.leave_out("used to define the selection", (n for n in names if n in defining and n != per))
        self.leave_out("unique ids", (n for n in names if n in IDS - defining))
        documents = (n for n in names if n in UNREAD - defining)
        self.leave_out("JSON documents of results", documents)
        if "started_at" in self._columns:
            derived = {"day", "ended_at"} - defining
            self.leave_out("derived from started_at", (name for name in names if name in derived))
        self.leave_out("the weight of each row", ("sample_rate",) if "sample_rate" in self._columns else ())
        cluster = self._cluster
        if cluster is not None and cluster in {"session_id", self._request.cluster} - defining - IDS:
            self.leave_out("used as the cluster", [cluster])

    def _read_columns(self) -> None:
        sample = self._sample
        documents, replaced = self._document_fields(sample.table, list(self._columns.values()))
        excluded = {name for names in self.left_out.values() for name in names} | replaced | {"rest"}
        fields = [Field.of_column(one) for name, one in self._columns.items() if name not in excluded]
        fields += documents
        read = sample.values(fields)
        self._add([FieldValues(field, *values) for field, values in zip(fields, read, strict=True)])
        source = f"({sample.population.rows(', '.join(quoted(name) for name in self._columns))})"
        self._count(fields, sample.table, source)

    def _document_fields(
        self,
        table: str,
        columns: Sequence[Column],
        view: Literal["stages", "runs"] | None = None,
    ) -> tuple[list[Field], frozenset[str]]:
        if not any(column.name == "rest" and column.type == "VARCHAR" for column in columns):
            return [], frozenset()
        fields, replaced, left_out = document_fields(self._connection, table, columns, view)
        for reason, names in left_out.items():
            self.leave_out(reason, names)
        usable = [one for one in fields if one.column not in self._defining]
        return usable, replaced

    def _add(self, values: Iterable[FieldValues]) -> None:
        for one in values:
            self.values[one.field.name] = one
            self.tables[one.field.name] = None

    def _count(self, fields: Sequence[Field], table: str, source: str | None) -> None:
        """Count the values of fields in all rows; in the sample, if nearly every value is unique.

        Args:
            fields: The fields.
            table: The sample.
            source: A query for all rows; None to count in the sample only.
        """
        sample, weighted = self._sample, self._sample.cohorts.is_weighted
        categorical = [field for field in fields if self.values[field.name].is_categorical]
        if sample.is_complete:
            groups = [(table, categorical, True)]
        else:
            common = [one for one in categorical if source and not one.in_documents and self._repeats(one)]
            groups = [
                (source or table, common, True),
                (table, [one for one in categorical if one not in common], False),
            ]
        for place, of_group, is_complete in groups:
            tables = count_values(
                self._connection,
                place,
                of_group,
                by_stage=False,
                is_weighted=weighted,
                is_complete=is_complete,
            )
            for field, by_stage in zip(of_group, tables, strict=True):
                self.tables[field.name] = by_stage[""]

    def _repeats(self, field: Field) -> bool:
        hashes = self.values[field.name].hashes
        assert hashes is not None, "a categorical field has hashes"
        return len(np.unique(hashes)) < len(hashes) / 2

    def _stage_columns(self) -> list[Column]:
        if not has_view(self._connection, "stages"):
            return []
        columns = columns_of(self._connection, "stages")
        required = {column.name for column in columns} >= {"pipeline_run_id", "stage_name", "status"}
        of_stages = self._defining if "stage_name" in self._referenced else self._referenced - RESULTS
        compared = [
            one
            for one in columns
            if (one.name in STAGE_FIELDS or one.name.startswith(ATTRIBUTE) or one.name == "rest")
            and one.name not in of_stages
        ]
        return compared if required and "pipeline_run_id" in self._columns else []

    def _read_stage_fields(self) -> None:
        columns = self._stage_columns()
        if not columns:
            return
        sample = self._sample
        stages = sample.join_stages(columns)
        table = f"{sample.table}_stages"
        documents, replaced = self._document_fields(table, columns, "stages")
        fields = [
            Field.of_column(one, "stages")
            for one in columns
            if one.name not in replaced and one.name != "rest"
        ]
        fields += documents
        by_stage = {}
        for stage, read in sample.stage_values(stages, fields):
            of_stage = [structs.replace(field, stage=stage) for field in fields]
            by_stage[stage] = of_stage
            self._add(
                FieldValues(field, *values)
                for field, values in zip(of_stage, read, strict=True)
                if values[0] is None or (values[0] != 0).any()
            )
        self._count_stages(fields, by_stage, table, columns)

    def _count_stages(
        self,
        fields: Sequence[Field],
        by_stage: Mapping[str, Sequence[Field]],
        table: str,
        columns: Sequence[Column],
    ) -> None:
        sample = self._sample
        wanted: dict[str, Field] = {}
        for of_stage in by_stage.values():
            for field, one in zip(fields, of_stage, strict=True):
                if one.name in self.values and self.values[one.name].is_categorical:
                    wanted[field.column] = field
        everywhere = list(wanted.values())
        groups: list[tuple[str, list[Field], bool]] = [(table, everywhere, True)]
        if not sample.is_complete:
            common = [
                one
                for one in everywhere
                if not one.in_documents
                and all(
                    self._repeats(of)
                    for of_stage in by_stage.values()
                    for of in of_stage
                    if of.column == one.column
                    and of.name in self.values
                    and self.values[of.name].hashes is not None
                )
            ]
            source = (
                f'(SELECT r."#selected", r."#weight", s.stage_name AS "#stage", '
                f"{', '.join(f's.{quoted(column.name)}' for column in columns)} FROM stages s JOIN "
                f"({sample.population.rows('pipeline_run_id')}) r USING (pipeline_run_id) "
                f"WHERE s.status <> 'RETRY')"
            )
            groups = [
                (source, common, True),
                (table, [one for one in everywhere if one not in common], False),
            ]
        everything = np.ones(len(sample.cohorts.selected), bool)
        for place, of_group, is_complete in groups:
            totals = self._totals.counts if is_complete else counts_of_masks([everything], sample.cohorts)
            tables = count_values(
                self._connection,
                place,
                of_group,
                by_stage=True,
                is_weighted=sample.cohorts.is_weighted,
                is_complete=is_complete,
            )
            for field, of_stages in zip(of_group, tables, strict=True):
                for stage, counted in of_stages.items():
                    name = f"{stage}/{field.column}"
                    if name in self.values and self.values[name].is_categorical:
                        self.tables[name] = counted.with_missing(totals)

    def _read_run_fields(self) -> None:
        """Read the attributes of the runs of stages."""
        if "pipeline_run_id" not in self._columns or not has_view(self._connection, "runs"):
            return
        columns = [
            one
            for one in columns_of(self._connection, "runs")
            if (one.name.startswith(ATTRIBUTE) or one.name in {"pipeline_name", "rest"})
            and one.name not in self._referenced
        ]
        if not columns:
            return
        copied = ", ".join(f"r.{quoted(one.name)}" for one in columns)
        sample = self._sample
        table = (
            f'(SELECT s."#", s."#selected", s."#weight", {copied} FROM {sample.table} s '
            f"LEFT JOIN runs r USING (pipeline_run_id))"
        )
        documents, replaced = self._document_fields(table, columns, "runs")
        fields = [
            Field.of_column(one, "runs") for one in columns if one.name not in replaced and one.name != "rest"
        ]
        fields += documents
        read = sample.values(fields, table)
        self._add([FieldValues(field, *values) for field, values in zip(fields, read, strict=True)])
        self._count(fields, table, None)

    def _leave_out_equivalents(self) -> None:
        """Leave out the fields whose values correspond one to one to a field that defines the selection."""
        defining = [name for name in self._referenced if name in self._columns and name not in RESULTS]
        fields = [Field.of_column(self._columns[name]) for name in defining]
        fields = [field for field in fields if field.text is not None and field.number is None]
        others = [hashes for hashes, _ in self._sample.values(fields)]
        equivalent = []
        for name, values in self.values.items():
            if values.hashes is None or values.numbers is not None or values.field.view is not None:
                continue
            for other in others:
                assert other is not None, "a field with text has hashes"
                pairs = np.unique(np.stack([values.hashes, other]), axis=1).shape[1]
                if 1 < pairs == len(np.unique(values.hashes)) == len(np.unique(other)):
                    equivalent.append(name)
                    break
        self.leave_out("equivalent to a field that defines the selection", equivalent)
        for name in equivalent:
            del self.values[name]
