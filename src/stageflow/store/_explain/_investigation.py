"""The comparison of a selection with the rest, from the predicates to the result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import duckdb
import numpy as np
from msgspec import structs

from ...errors import QueryError, did_you_mean
from ...schema import Role
from .._columns import ATTRIBUTE, FAILED
from .._selection import FIELDS_HINT, as_query_error, check_binds, named_fields, parenthesized
from ._changes import find_changes
from ._combinations import find_combinations
from ._comparing import FieldValues, compare_field, is_categorical
from ._documents import document_fields
from ._explanation import Difference, Explanation, LeftOut
from ._fields import (
    DOCUMENTS,
    IDS,
    PROCESS_FIELDS,
    RESULTS,
    STAGE_FIELDS,
    SUBORDINATE,
    Column,
    Field,
    attribute_role,
    is_time_name,
    quoted,
    with_equivalents,
)
from ._finding import Finding, Tested
from ._locations import find_locations
from ._ranking import Ranked, rank, significant
from ._request import Request
from ._sample import Question, Sample, sample_rows
from ._significance import counts_of_masks
from ._summary import onset_of, summarize
from ._totals import count_totals, measure
from ._values import ValueTable, count_values

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["investigate"]


_PREDICATE_ERRORS = (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError)
"""Errors that a predicate causes. Others, such as an interrupted query, propagate unchanged."""

_FAILURES = frozenset({FAILED, "status = 'FAIL'"})

_MAX_SETTINGS = 50
"""Durations with up to this number of different values are settings, such as timeouts."""


def investigate(connection: DuckDBPyConnection, request: Request) -> Explanation:
    """Compare a selection with the rest; see `explain` for the arguments.

    Raises:
        QueryError: A predicate is invalid, or it refers to an unknown field.
    """
    all_columns = _columns(connection, request.over)
    has_failure = any(column.name == FAILED for column in all_columns)
    where, against = request.where, request.against
    if where is None and has_failure:
        where, against = FAILED, against if against is not None else f"not {FAILED}"
    where = where if where is not None else "status = 'FAIL'"
    columns = [column for column in all_columns if column.name != FAILED]  # derived from `outcome`
    names = [column.name for column in columns]
    known = {*names, *RESULTS, "stage_name"}
    if request.over == "runs" and _has_stages(connection):
        known |= {column.name for column in _columns(connection, "stages")}
    referenced: set[str] = set()
    for predicate in (where, *([against] if against is not None else [])):
        referenced |= named_fields(connection, predicate, known)
        check_binds(connection, request.over, predicate)
    if request.within is not None:
        named_fields(connection, request.within, known)
        check_binds(connection, request.over, request.within)
    request = structs.replace(request, where=where, against=against)
    question, cluster = _question(connection, request, columns)
    try:
        with sample_rows(connection, question, columns) as sample:
            investigation = _Investigation(
                connection, request, columns, sample, frozenset(referenced), cluster
            )
            return investigation.explanation()
    except _PREDICATE_ERRORS as error:
        raise as_query_error(connection, error, where, names) from error


def _columns(connection: DuckDBPyConnection, view: str) -> list[Column]:
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {view}").fetchall()
    except _PREDICATE_ERRORS as error:
        raise QueryError(f"there is no view {view!r}: {str(error).splitlines()[0]}", sql=view) from error
    return [Column(name, type_) for name, type_, *_ in described]


def _has_stages(connection: DuckDBPyConnection) -> bool:
    # Query the catalog first: a query that fails would abort a transaction that the caller has open.
    known = "SELECT 1 FROM information_schema.tables WHERE table_name = 'stages' LIMIT 1"
    return bool(connection.execute(known).fetchall())


def _is_true(predicate: str) -> str:
    return f"coalesce((\n{predicate}\n)::BOOLEAN, FALSE)"


def _question(
    connection: DuckDBPyConnection, request: Request, columns: Sequence[Column]
) -> tuple[Question, str | None]:
    """Return the predicates of the comparison, and the field whose values are the clusters."""
    names = {column.name for column in columns}
    selected = _is_true(request.where or "TRUE")
    eligible = "TRUE" if request.against is None else _is_true(request.against)
    if request.within is not None:
        common = _is_true(request.within)
        selected, eligible = f"({selected} AND {common})", f"({eligible} AND {common})"
    weight = "greatest(coalesce(sample_rate, 1), 1)::DOUBLE" if "sample_rate" in names else "1::DOUBLE"
    run = next((name for name in ("pipeline_run_id", "event_id") if name in names), None)
    single = f"CAST({quoted(run)} AS VARCHAR)" if run is not None else "CAST(row_number() OVER () AS VARCHAR)"
    question = Question(request.over, selected, eligible, weight, single)
    cluster = request.cluster
    if cluster is not None:
        if cluster not in names:
            raise QueryError(
                f"unknown field {cluster!r} for clusters{did_you_mean(cluster, names)}",
                sql=cluster,
                hint=FIELDS_HINT,
            )
    else:
        possible = [name for name in ("session_id", "root_run_id", "user_id") if name in names]
        cluster = None
        if possible:
            (counts,) = connection.execute(
                f"SELECT {', '.join(f'count({name})' for name in possible)} "
                f"FROM ({question.rows(', '.join(possible))})"
            ).fetchall()
            cluster = next((name for name, count in zip(possible, counts, strict=True) if count), None)
    if cluster is not None:
        parts = [f"CAST({quoted(cluster)} AS VARCHAR)"]
        if cluster == "session_id" and "root_run_id" in names:
            parts.append("CAST(root_run_id AS VARCHAR)")
        question = replace(question, cluster=f"coalesce({', '.join((*parts, single))})")
    elif request.over == "stages":
        cluster = run
    return question, cluster


class _Investigation:
    def __init__(
        self,
        connection: DuckDBPyConnection,
        request: Request,
        columns: Sequence[Column],
        sample: Sample,
        referenced: frozenset[str],
        cluster: str | None,
    ) -> None:
        self._connection = connection
        self._request = request
        self._columns = {column.name: column for column in columns}
        self._sample = sample
        self._referenced = referenced
        self._cluster = cluster
        self._defining = with_equivalents(referenced)
        self._selected_by_result = bool(referenced & RESULTS)
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self._values: dict[str, FieldValues] = {}
        self._tables: dict[str, ValueTable | None] = {}
        self._tested: dict[str, Tested] = {}
        self._totals = count_totals(connection, sample, self._columns)

    def explanation(self) -> Explanation:
        selection, rest = self._sample.totals
        if not selection.rows:
            return self._explanation("No rows are selected.")
        if not rest.rows:
            return self._explanation("There are no other rows to compare the selection with.")
        self._compare_fields()
        alpha = self._request.alpha
        tested = list(self._tested.values())
        combined = self._combinations()
        skipped = len(self._sample.skipped_stages) * len(self._stage_columns())
        found = significant([*tested, *combined], alpha, skipped=skipped)
        cohorts = self._sample.cohorts
        causes = rank(
            [one for one in found if not self._is_effect(one.finding)], self._values, cohorts, alpha
        )
        effects = rank([one for one in found if self._is_effect(one.finding)], self._values, cohorts, alpha)
        differences = self._differences(causes)
        onset = onset_of([one.finding for one in causes])
        locations = find_locations(self._connection, self._sample, self._columns, self._kind_of_selection())
        explanation = self._explanation(
            "",
            differences,
            self._differences(effects),
            fields=len(self._tested),
            comparisons=sum(one.comparisons for one in (*tested, *combined)),
        )
        explanation = structs.replace(explanation, onset=onset, locations=locations)
        explanation = structs.replace(explanation, summary=summarize(explanation))
        return self._with_changes(explanation) if self._request.changed else explanation

    # ------------------------------------------------------------ fields

    def _compare_fields(self) -> None:
        self._leave_out_by_name()
        self._read_fields()
        if self._request.over == "runs":
            self._read_stage_fields()
        else:
            self._read_run_fields()
        self._leave_out_equivalents()
        sample = self._sample
        for name, values in self._values.items():
            field = values.field
            # A missing status means that the stage did not run, which the other fields follow.
            absence = field.view != "stages" or field.is_attribute or field.column == "status"
            cohorts, effect = sample.cohorts, self._totals.design_effect
            if field.column == self._cluster:
                # Whether the runs of a user have something in common is the question here.
                effect = sample.run_effect
                cohorts = replace(cohorts, design_effect=effect)
            tested = compare_field(values, self._tables[name], cohorts, effect, absence=absence)
            if tested.left_out:
                self._leave_out(tested.left_out, [name])
            if tested.comparisons:
                self._tested[name] = tested
        self._leave_out("stages that occur in few runs", sample.skipped_stages)

    def _leave_out_by_name(self) -> None:
        names = [name for name in self._columns if name != "sample_rate"]
        defining = self._defining
        per = self._request.per
        self._leave_out("each row is compared with those with the same value", [per] if per else ())
        self._leave_out("used to define the selection", (n for n in names if n in defining and n != per))
        self._leave_out("unique ids", (n for n in names if n in IDS - defining))
        documents = (n for n in names if n in DOCUMENTS - defining - {"rest"})
        self._leave_out("JSON documents of results", documents)
        if "started_at" in self._columns:
            derived = {"day", "ended_at"} - defining
            self._leave_out("derived from started_at", (name for name in names if name in derived))
        self._leave_out("the weight of each row", ("sample_rate",) if "sample_rate" in self._columns else ())
        cluster = self._cluster
        if cluster is not None and cluster in {"session_id", self._request.cluster} - defining:
            self._leave_out("its values are the clusters", [cluster])

    def _leave_out(self, reason: str, names: Iterable[str]) -> None:
        if found := list(names):
            self._left_out[reason] += found

    def _read_fields(self) -> None:
        sample = self._sample
        documents, replaced = self._document_fields(sample.table, list(self._columns.values()))
        excluded = {name for names in self._left_out.values() for name in names} | replaced | {"rest"}
        fields = [Field.of_column(one) for name, one in self._columns.items() if name not in excluded]
        fields += documents
        read = sample.values(fields)
        self._add([FieldValues(field, *values) for field, values in zip(fields, read, strict=True)])
        source = f"({sample.question.rows(', '.join(quoted(name) for name in self._columns))})"
        self._count(fields, sample.table, source)

    def _document_fields(
        self,
        table: str,
        columns: Sequence[Column],
        view: Literal["stages", "runs"] | None = None,
        excluded: Collection[str] = (),
    ) -> tuple[list[Field], frozenset[str]]:
        if not any(column.name == "rest" and column.type == "VARCHAR" for column in columns):
            return [], frozenset()
        fields, replaced, left_out = document_fields(self._connection, table, columns, view)
        for reason, names in left_out.items():
            self._leave_out(reason, names)
        usable = [one for one in fields if one.column not in self._defining and one.column not in excluded]
        return usable, replaced

    def _add(self, values: Iterable[FieldValues]) -> None:
        for one in values:
            self._values[one.field.name] = one
            self._tables[one.field.name] = None

    def _count(self, fields: Sequence[Field], table: str, source: str) -> None:
        """Count the values of fields: in all rows, or in the sample if nearly every value is unique."""
        sample, weighted = self._sample, self._sample.cohorts.is_weighted
        categorical = [field for field in fields if is_categorical(self._values[field.name])]
        if sample.is_complete:
            groups = [(table, categorical, True)]
        else:
            common = [one for one in categorical if not one.in_documents and self._repeats(one)]
            groups = [
                (source, common, True),
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
                self._tables[field.name] = by_stage[""]

    def _repeats(self, field: Field) -> bool:
        hashes = self._values[field.name].hashes
        assert hashes is not None, "a categorical field has hashes"
        return len(np.unique(hashes)) < len(hashes) / 2

    def _stage_columns(self) -> list[Column]:
        if not _has_stages(self._connection):
            return []
        columns = _columns(self._connection, "stages")
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
                if one.name in self._values and is_categorical(self._values[one.name]):
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
                    and of.name in self._values
                    and self._values[of.name].hashes is not None
                )
            ]
            source = (
                f'(SELECT r."#selected", r."#weight", s.stage_name AS "#stage", '
                f"{', '.join(f's.{quoted(column.name)}' for column in columns)} FROM stages s JOIN "
                f"({sample.question.rows('pipeline_run_id')}) r USING (pipeline_run_id) "
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
                    if name in self._values and is_categorical(self._values[name]):
                        self._tables[name] = counted.with_missing(totals)

    def _read_run_fields(self) -> None:
        """Read the attributes of the runs of stages."""
        known = "SELECT 1 FROM information_schema.tables WHERE table_name = 'runs' LIMIT 1"
        if "pipeline_run_id" not in self._columns or not self._connection.execute(known).fetchall():
            return
        columns = [
            one
            for one in _columns(self._connection, "runs")
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
        source = (
            f'(SELECT q."#selected", q."#weight", {copied} '
            f"FROM ({sample.question.rows('pipeline_run_id')}) q "
            f"LEFT JOIN runs r USING (pipeline_run_id))"
        )
        self._count(fields, table, source)

    def _leave_out_equivalents(self) -> None:
        """Leave out the fields whose values correspond one to one to a field that defines the selection."""
        defining = [name for name in self._referenced if name in self._columns and name not in RESULTS]
        fields = [Field.of_column(self._columns[name]) for name in defining]
        fields = [field for field in fields if field.text is not None and field.number is None]
        others = [hashes for hashes, _ in self._sample.values(fields)]
        equivalent = []
        for name, values in self._values.items():
            if values.hashes is None or values.numbers is not None or values.field.view is not None:
                continue
            for other in others:
                assert other is not None, "a field with text has hashes"
                pairs = np.unique(np.stack([values.hashes, other]), axis=1).shape[1]
                if 1 < pairs == len(np.unique(values.hashes)) == len(np.unique(other)):
                    equivalent.append(name)
                    break
        self._leave_out("equivalent to a field that defines the selection", equivalent)
        for name in equivalent:
            del self._values[name]

    # ------------------------------------------------------------ findings

    def _combinations(self) -> list[Tested]:
        possible = [
            self._values[name] for name in self._tested if self._can_be_cause(self._values[name].field)
        ]
        return find_combinations(possible, self._tables, self._sample.cohorts)

    def _can_be_cause(self, field: Field) -> bool:
        return field.column not in SUBORDINATE and not self._is_result(field)

    def _is_effect(self, finding: Finding) -> bool:
        """Return whether a finding is a likely effect, if the predicate refers to results."""
        return any(self._is_effect_of(field, finding) for field in finding.fields)

    def _is_effect_of(self, field: Field, finding: Finding) -> bool:
        # Every stage of a pipeline has a status, even one that never started, so the presence of a status
        # depends on the pipeline and is not a result.
        if field.view == "stages" and field.column == "status" and finding.is_absence:
            return False
        if finding.is_absence and self._selected_by_result and finding.text.endswith("is missing"):
            # A stage that did not run because the run had ended has no attributes.
            known = field.column in RESULTS or attribute_role(field.column) is not None
            return known or field.view == "stages"
        return self._is_result(field)

    def _is_result(self, field: Field) -> bool:
        """Return whether the values of a field are likely effects."""
        if field.column in PROCESS_FIELDS:
            return True
        if not self._selected_by_result:
            return False
        if (role := attribute_role(field.column)) is not None:
            return role is not Role.LABEL
        return field.column in RESULTS or (is_time_name(field.column) and not self._is_setting(field))

    def _is_setting(self, field: Field) -> bool:
        numbers = self._values[field.name].numbers
        return numbers is None or len(np.unique(numbers[~np.isnan(numbers)])) <= _MAX_SETTINGS

    # ------------------------------------------------------------ result

    def _kind_of_selection(self) -> str:
        where = self._request.where
        if where in _FAILURES:
            return "failures"
        durations = {"duration_ms", "total_ms"}
        others = {"stage_name", "pipeline_name", self._request.per}
        if self._referenced & durations and self._referenced <= durations | others:
            return f"slow {self._request.over}"
        return f"selected {self._request.over}"

    def _differences(self, ranked: Sequence[Ranked]) -> tuple[Difference, ...]:
        shown = ranked[: self._request.limit]
        measured = measure(
            self._connection,
            self._sample,
            self._columns,
            self._totals,
            [one.finding for one in shown],
            durations=self._kind_of_selection().startswith("slow"),
        )
        found = [
            structs.replace(
                difference,
                deviance=one.deviance,
                q_value=one.q,
                run_ids=self._sample.run_ids(one.finding.mask),
                sql=self._sql(one.finding.condition),
                synonyms=tuple(synonym.text for synonym in one.synonyms),
                verdict=one.verdict,
                relates_to=one.relates_to.text if one.relates_to is not None else None,
                varies=one.varies.text if one.varies is not None else None,
            )
            for one, difference in zip(shown, measured, strict=True)
        ]
        if self._request.sort == "excess":
            found.sort(key=lambda one: -one.excess)
        elif self._request.sort == "lift":
            found.sort(key=lambda one: -(one.lift if one.lift is not None else float("inf")))
        return tuple(found)

    def _sql(self, condition: str) -> str:
        conditions = [parenthesized(str(self._request.where))]
        conditions += [parenthesized(self._request.within)] if self._request.within is not None else []
        order = " ORDER BY started_at DESC" if "started_at" in self._columns else ""
        matching = " AND ".join((*conditions, condition))
        return f"SELECT * FROM {self._request.over} WHERE {matching}{order} LIMIT 100"

    def _with_changes(self, explanation: Explanation) -> Explanation:
        stages = _columns(self._connection, "stages") if _has_stages(self._connection) else []
        changes = find_changes(
            self._connection,
            self._sample,
            self._columns,
            stages,
            onset=explanation.onset,
            history=self._request.history,
        )
        return structs.replace(
            explanation,
            changes=changes.found,
            changes_before=changes.before,
            changes_by=changes.by,
            limitations=(*explanation.limitations, *changes.limitations),
        )

    def _explanation(
        self,
        summary: str,
        differences: tuple[Difference, ...] = (),
        effects: tuple[Difference, ...] = (),
        *,
        fields: int = 0,
        comparisons: int = 0,
    ) -> Explanation:
        selection, rest = self._sample.totals
        selected = self._sample.cohorts.selected
        limitations = list(self._request.limitations)
        if not self._sample.is_complete:
            limitations.append(
                f"Numbers, times, combinations and attributes in documents were compared in a sample of "
                f"{int(selected.sum()):,} selected and {int((~selected).sum()):,} other rows; other values "
                f"were counted in all rows."
            )
        return Explanation(
            summary=summary,
            where=str(self._request.where),
            against=self._request.against,
            within=self._request.within,
            over=self._request.over,
            pipeline=self._request.pipeline,
            selected_are=self._kind_of_selection(),
            selection=selection,
            rest=rest,
            selection_compared=int(selected.sum()),
            rest_compared=int((~selected).sum()),
            cluster=self._cluster,
            clusters=self._totals.clusters,
            users=self._totals.users,
            design_effect=self._totals.design_effect,
            fields=fields,
            comparisons=comparisons,
            alpha=self._request.alpha,
            differences=differences,
            effects=effects,
            left_out=tuple(LeftOut(reason, tuple(names)) for reason, names in self._left_out.items()),
            limitations=tuple(limitations),
        )
