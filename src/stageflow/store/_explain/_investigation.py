"""The comparison of a selection with the rest, from the predicates to the result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from ...errors import QueryError
from .._columns import FAILED
from .._selection import Over, as_query_error, check_binds, named_fields
from ._difference import Difference, ExcludedFields, Explanation, Together
from ._fields import (
    DOCUMENTS,
    IDS,
    PROCESS_FIELDS,
    RESULTS,
    STAGE_FIELDS,
    Column,
    is_measured_time,
    with_equivalents,
)
from ._findings import FieldComparison, Finding, Ranked, compare, find_interaction, rank, significant
from ._sample import Sample, sample_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["investigate"]


_PREDICATE_ERRORS = (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError)
"""Errors that a predicate causes. Others, such as an interrupted query, propagate unchanged."""

_RARELY_MISSING = 0.005


@dataclass(frozen=True)
class _Request:
    """A validated call of `explain`; see its arguments.

    Attributes:
        referenced: The fields to which the predicates refer.
    """

    where: str
    against: str | None
    over: Over
    limit: int
    alpha: float
    referenced: frozenset[str]


def investigate(
    connection: DuckDBPyConnection,
    where: str | None,
    against: str | None,
    over: Over,
    limit: int,
    alpha: float,
) -> Explanation:
    """Compare a selection with the rest; see `explain` for the arguments."""
    columns = _columns(connection, over)
    if where is None and any(column.name == FAILED for column in columns):
        where, against = FAILED, against if against is not None else f"not {FAILED}"
    where = where if where is not None else "status = 'FAIL'"
    columns = [column for column in columns if column.name != FAILED]  # derived from `outcome`
    names = [column.name for column in columns]
    referenced: set[str] = set()
    for predicate in (where, *([against] if against is not None else [])):
        referenced |= named_fields(connection, predicate, {*names, *RESULTS})
        check_binds(connection, over, predicate)
    request = _Request(where, against, over, limit, alpha, frozenset(referenced))
    try:
        with sample_rows(connection, over, columns, where, against) as sample:
            return _Investigation(connection, request, columns, sample).explanation()
    except _PREDICATE_ERRORS as error:
        raise as_query_error(connection, error, where, names) from error


def _columns(connection: DuckDBPyConnection, view: str) -> list[Column]:
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {view}").fetchall()
    except _PREDICATE_ERRORS as error:
        raise QueryError(f"there is no view {view!r}: {str(error).splitlines()[0]}", sql=view) from error
    return [Column(name, type_) for name, type_, *_ in described if name not in DOCUMENTS]


class _Investigation:
    def __init__(
        self, connection: DuckDBPyConnection, request: _Request, columns: Sequence[Column], sample: Sample
    ) -> None:
        self._connection = connection
        self._request = request
        self._columns = {column.name: column for column in columns}
        self._sample = sample
        self._selected_by_result = bool(request.referenced & RESULTS)
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self._order = " ORDER BY started_at DESC" if "started_at" in self._columns else ""

    def explanation(self) -> Explanation:
        selection, rest = self._sample.totals
        if not selection.rows:
            return self._explanation("no rows are selected")
        if not rest.rows:
            return self._explanation("there are no other rows to compare the selection with")
        alpha, cohorts = self._request.alpha, self._sample.cohorts
        comparisons = self._compare_fields()
        skipped = len(self._sample.skipped_stages) * len(self._stage_columns())
        found = significant(comparisons, cohorts, alpha, skipped=skipped)
        causes = [one for one in found if not self._is_consequence(one.finding)]
        consequences = [one for one in found if self._is_consequence(one.finding)]
        ranked = rank(causes, cohorts, alpha)
        differences = self._differences(ranked)
        fields = {one.finding.field.name for one in causes}
        verdict = "no field differs"
        if differences:
            verdict = f"{len(fields)} {'field differs' if len(fields) == 1 else 'fields differ'}"
        return self._explanation(
            verdict,
            differences,
            self._differences(rank(consequences, cohorts, alpha)),
            together=self._together(ranked),
            fields=len(comparisons),
            comparisons=sum(comparison.comparisons for comparison in comparisons),
        )

    def _compare_fields(self) -> list[FieldComparison]:
        self._leave_out_by_name()
        excluded = frozenset(name for names in self._left_out.values() for name in names)
        comparisons: list[FieldComparison] = []
        fields = [self._sample.fields(excluded | self._leave_out_by_values())]
        if self._request.over == "runs":
            fields.append(self._sample.stage_fields(self._stage_columns()))
        for field, values in (each for group in fields for each in group):
            # A missing status means that the stage did not run, which the other fields follow.
            absence = field.stage is None or field.is_attribute or field.column.name == "status"
            comparison = compare(field, values, self._sample.cohorts, absence=absence)
            if comparison.excluded:
                self._left_out[comparison.excluded].append(field.name)
            if comparison.comparisons:
                comparisons.append(comparison)
        self._leave_out("stages that occur in few runs", self._sample.skipped_stages)
        return comparisons

    def _leave_out_by_name(self) -> None:
        names = [name for name in self._columns if name != "sample_rate"]
        defining = with_equivalents(self._request.referenced)
        self._leave_out("used to define the selection", (n for n in names if n in defining))
        self._leave_out("unique ids", (n for n in names if n in IDS - defining))
        if "started_at" in self._columns:
            derived = {"day", "ended_at"} - defining
            self._leave_out("derived from started_at", (name for name in names if name in derived))
        self._leave_out("the weight of each row", ("sample_rate",) if "sample_rate" in self._columns else ())

    def _leave_out_by_values(self) -> frozenset[str]:
        """Leave out the fields whose values correspond one to one to a field that defines the selection."""
        defining = {
            name for name in self._request.referenced if name in self._columns and name not in RESULTS
        }
        categories = [column for column in self._columns.values() if column.kind == "category"]
        if not any(column.name in defining for column in categories):
            return frozenset()
        others = frozenset(column.name for column in self._columns.values() if column not in categories)
        codes = {field.column.name: values for field, values in self._sample.fields(others)}
        excluded = {name for names in self._left_out.values() for name in names}
        equivalent = set()
        for name, values in codes.items():
            for other in defining & codes.keys():
                if name in excluded or name in equivalent:
                    continue
                pairs = np.unique(np.stack([values, codes[other]]), axis=1).shape[1]
                if 1 < pairs == len(np.unique(values)) == len(np.unique(codes[other])):
                    equivalent.add(name)
        self._leave_out("equivalent to a field that defines the selection", equivalent)
        return frozenset(equivalent)

    def _stage_columns(self) -> list[Column]:
        # Query the catalog first: a query that fails would abort a transaction that the caller has open.
        known = "SELECT 1 FROM information_schema.tables WHERE table_name = 'stages' LIMIT 1"
        if not self._connection.execute(known).fetchall():
            return []
        columns = _columns(self._connection, "stages")
        required = {column.name for column in columns} >= {"pipeline_run_id", "stage_name", "status"}
        compared = [one for one in columns if one.name in STAGE_FIELDS or one.name.startswith("attributes.")]
        return compared if required else []

    def _leave_out(self, reason: str, names: Iterable[str]) -> None:
        if found := list(names):
            self._left_out[reason] += found

    def _is_consequence(self, finding: Finding) -> bool:
        """Return whether a finding is a result of the run, if the predicate refers to results as well.

        Every stage of a pipeline has a status, even one that never started, so the presence of a status
        depends on the pipeline and is not a result. A stage that did not run because the run had ended
        has no attributes. An attribute that almost all other runs have is missing for the same reason.
        """
        field = finding.field
        if field.column.name in PROCESS_FIELDS:
            return True
        is_stage_presence = (
            field.stage is not None and field.column.name == "status" and finding.kind == "absence"
        )
        if is_stage_presence or not self._selected_by_result:
            return False
        if field.column.name in RESULTS or is_measured_time(field.column.name):
            return True
        if finding.kind != "absence" or finding.negated:
            return False
        if field.stage is not None:
            return True
        return field.is_attribute and self._sample.cohorts.parts(finding.mask)[1].share < _RARELY_MISSING

    def _differences(self, ranked: Sequence[Ranked]) -> tuple[Difference, ...]:
        return tuple(self._difference(one) for one in ranked[: self._request.limit])

    def _together(self, ranked: Sequence[Ranked]) -> Together | None:
        """Return two differences that explain the selection only together, or None."""
        pair = find_interaction([one.finding for one in ranked], self._sample.cohorts, self._request.alpha)
        if pair is None:
            return None
        conditions = [finding.describe(self._sample.value)[2] for finding in pair]
        selection, rest = self._sample.cohorts.parts(pair[0].mask & pair[1].mask)
        return Together(
            descriptions=(self._describe(pair[0]), self._describe(pair[1])),
            selection=selection,
            rest=rest,
            sql=self._sql(" AND ".join(conditions)),
        )

    def _sql(self, condition: str) -> str:
        where = self._request.where
        where = f"({where}\n)" if "--" in where else f"({where})"
        return f"SELECT * FROM {self._request.over} WHERE {where} AND {condition}{self._order} LIMIT 100"

    def _difference(self, ranked: Ranked) -> Difference:
        finding = ranked.finding
        value, description, condition = finding.describe(self._sample.value)
        selection, rest = self._sample.cohorts.parts(finding.mask)
        return Difference(
            field=finding.field.name,
            kind=finding.kind,
            value=value,
            description=description,
            selection=selection,
            rest=rest,
            lift=selection.share / rest.share if rest.share else None,
            effect=ranked.effect,
            q_value=ranked.q,
            run_ids=self._sample.run_ids(finding.mask),
            sql=self._sql(condition),
            synonyms=tuple(self._describe(synonym) for synonym in ranked.synonyms),
            along_with=self._describe(ranked.along_with) if ranked.along_with else None,
        )

    def _describe(self, finding: Finding) -> str:
        return f"{finding.field.name} {finding.describe(self._sample.value)[1]}"

    def _explanation(
        self,
        verdict: str,
        differences: tuple[Difference, ...] = (),
        consequences: tuple[Difference, ...] = (),
        *,
        together: Together | None = None,
        fields: int = 0,
        comparisons: int = 0,
    ) -> Explanation:
        selection, rest = self._sample.totals
        selected = self._sample.cohorts.selected
        return Explanation(
            where=self._request.where,
            against=self._request.against,
            over=self._request.over,
            selection=selection,
            rest=rest,
            selection_compared=int(selected.sum()),
            rest_compared=int((~selected).sum()),
            fields=fields,
            comparisons=comparisons,
            alpha=self._request.alpha,
            verdict=verdict,
            differences=differences,
            consequences=consequences,
            together=together,
            excluded=tuple(ExcludedFields(reason, tuple(names)) for reason, names in self._left_out.items()),
        )
