"""The comparison of a selection with the rest, from the predicates to the result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum, auto
from typing import TYPE_CHECKING

import numpy as np
from msgspec import structs

from ..._explained import Difference, LeftOut
from ..._time import rfc3339
from ...errors import QueryError, did_you_mean
from ...schema import Role
from .._columns import FAILED
from .._selection import FIELDS_HINT, as_query_error, check_binds, named_fields, parenthesized
from ._changes import find_changes
from ._combinations import find_combinations
from ._comparing import FieldValues, compare_field
from ._explanation import Explanation
from ._fields import (
    PROCESS_FIELDS,
    RESULTS,
    SUBORDINATE,
    UNREAD,
    Column,
    Field,
    attribute_role,
    is_time_name,
    quoted,
)
from ._finding import Finding, Tested
from ._locations import find_locations
from ._measure import measure
from ._onset import find_onset
from ._orders import find_orders, iso
from ._ranking import Ranked, rank, significant
from ._reading import PREDICATE_ERRORS, Fields, columns_of, has_view
from ._request import Request
from ._same_time import SameTimeRows
from ._sample import Floats, Population, Sample, sample_rows
from ._slow import describe_slow
from ._summary import end_of, onset_of, summarize
from ._totals import RowCounts, Totals, count_rows, count_totals

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["investigate"]


_FAILURES = frozenset({FAILED, "status = 'FAIL'"})

_COMMENT = re.compile(r"""('(?:[^']|'')*'|"(?:[^"]|"")*")|--[^\n]*""")
"""String literals and quoted identifiers, which are kept, and comments."""

_MAX_EFFECTS = 5
"""Maximum number of effects: they show where to look, but not why."""

_CONCENTRATED = 2.0
"""From this design effect upward, the concentration of the selection in a few clusters is a limitation."""

_FEW = 20
"""Below this number of independent selected rows, the absence of differences says little."""

_MAX_SETTINGS = 50
"""Durations with up to this number of different values are settings, such as timeouts."""


def investigate(connection: DuckDBPyConnection, request: Request) -> Explanation:
    """Compare a selection with the rest; see `explain` for the arguments.

    Raises:
        QueryError: A predicate is invalid, or it refers to an unknown field.
    """
    all_columns = columns_of(connection, request.over)
    has_failure = any(column.name == FAILED for column in all_columns)
    where, against = request.where, request.against
    if where is None and has_failure:
        where, against = FAILED, against if against is not None else f"not {FAILED}"
    where = where if where is not None else "status = 'FAIL'"
    columns = [column for column in all_columns if column.name != FAILED]  # derived from `outcome`
    names = [column.name for column in columns]
    known = {*names, *RESULTS, "stage_name"}
    if request.over == "runs" and has_view(connection, "stages"):
        known |= {column.name for column in columns_of(connection, "stages")}
    referenced: set[str] = set()
    for predicate in (where, *([against] if against is not None else [])):
        referenced |= named_fields(connection, predicate, known)
        check_binds(connection, request.over, predicate)
    if request.within is not None:
        named_fields(connection, request.within, known)
        check_binds(connection, request.over, request.within)
    request = structs.replace(request, where=where, against=against)
    try:
        population, cluster, counted = _population(connection, request, columns)
        copied = [column for column in columns if column.name not in UNREAD - referenced]
        with sample_rows(connection, population, copied, (counted.selection, counted.rest)) as sample:
            totals = count_totals(connection, sample, counted.users)
            investigation = _Investigation(
                connection, request, columns, sample, totals, frozenset(referenced), cluster
            )
            return investigation.explanation()
    except PREDICATE_ERRORS as error:
        raise as_query_error(connection, error, where, names) from error


def _as_text(seconds: float) -> str:
    return rfc3339(round(seconds * 1e6))


def _is_true(predicate: str) -> str:
    return f"coalesce({parenthesized(predicate)}::BOOLEAN, FALSE)"


def _population(
    connection: DuckDBPyConnection, request: Request, columns: Sequence[Column]
) -> tuple[Population, str | None, RowCounts]:
    """Return the predicates of the comparison, the field whose values are the clusters, and the counts."""
    names = {column.name for column in columns}
    selected = _is_true(request.where or "TRUE")
    eligible = "TRUE" if request.against is None else _is_true(request.against)
    if request.within is not None:
        common = _is_true(request.within)
        selected, eligible = f"({selected} AND {common})", f"({eligible} AND {common})"
    rate = "TRY_CAST(sample_rate AS DOUBLE)"
    is_weight = f"isfinite({rate}) AND {rate} > 1"
    weight = (
        f"CASE WHEN {is_weight} THEN least({rate}, 1e9) ELSE 1 END" if "sample_rate" in names else "1::DOUBLE"
    )
    run = next((name for name in ("pipeline_run_id", "event_id") if name in names), None)
    single = f"CAST({quoted(run)} AS VARCHAR)" if run is not None else "CAST(row_number() OVER () AS VARCHAR)"
    population = Population(request.over, selected, eligible, weight, single)
    possible = [name for name in ("session_id", "root_run_id", "user_id") if name in names]
    counted = count_rows(connection, population, names, possible)
    cluster = request.cluster
    if cluster is not None:
        if cluster not in names:
            raise QueryError(
                f"unknown field {cluster!r} for clusters{did_you_mean(cluster, names)}",
                sql=cluster,
                hint=FIELDS_HINT,
            )
    else:
        cluster = next((name for name in possible if counted.present[name]), None)
    if cluster is not None:
        parts = [f"CAST({quoted(cluster)} AS VARCHAR)"]
        if cluster == "session_id" and "root_run_id" in names:
            parts.append("CAST(root_run_id AS VARCHAR)")
        population = replace(population, cluster=f"coalesce({', '.join((*parts, single))})")
    elif request.over == "stages":
        cluster = run
    return population, cluster, counted


class _Role(Enum):
    """What a finding can be, in the order of the differences."""

    CAUSE = auto()
    DUE_TO_TIME = auto()
    EFFECT = auto()


class _Investigation:
    def __init__(
        self,
        connection: DuckDBPyConnection,
        request: Request,
        columns: Sequence[Column],
        sample: Sample,
        totals: Totals,
        referenced: frozenset[str],
        cluster: str | None,
    ) -> None:
        self._connection = connection
        self._request = request
        self._columns = {column.name: column for column in columns}
        self._sample = sample
        self._referenced = referenced
        self._cluster = cluster
        self._selected_by_result = bool(referenced & RESULTS)
        self._values: dict[str, FieldValues] = {}
        self._left_out: dict[str, list[str]] = {}
        self._tested: dict[str, Tested] = {}
        self._totals = totals
        restricts_time = "started_at" in referenced and request.against is None
        self._same_time = SameTimeRows.of(sample) if restricts_time else None

    def explanation(self) -> Explanation:
        selection, rest = self._sample.totals
        if not selection.rows:
            return self._explanation("No rows are selected.")
        if not rest.rows:
            return self._explanation("No other rows remain for the comparison.")
        fields = Fields(
            self._connection,
            self._request,
            self._columns,
            self._sample,
            self._totals,
            self._referenced,
            self._cluster,
        )
        self._values, self._left_out = fields.values, fields.left_out
        self._compare_fields(fields)
        alpha = self._request.alpha
        tested = list(self._tested.values())
        combined = self._combinations(fields)
        found = significant([*tested, *combined], alpha, skipped=fields.skipped)
        cohorts = self._sample.cohorts
        causes, due_to_time, effects = (
            rank([one for one in found if self._role(one.finding) == role], self._values, cohorts, alpha)
            for role in _Role
        )
        causes += due_to_time
        differences, likely_effects = self._differences(causes, effects)
        onset, onset_range = self._onset([one.finding for one in causes])
        cause = differences[0].condition if differences else None
        locations = find_locations(
            self._connection, self._sample, self._columns, self._kind_of_selection(), cause
        )
        explanation = self._explanation(
            "",
            differences,
            likely_effects,
            fields=len(self._tested),
            comparisons=sum(one.comparisons for one in (*tested, *combined)),
        )
        sql = None if differences else self._concentration()
        explanation = structs.replace(
            explanation,
            onset=onset,
            onset_range=onset_range,
            same_time=self._same_time.described if self._same_time is not None else None,
            locations=locations,
            sql=sql,
        )
        explanation = structs.replace(explanation, summary=summarize(explanation))
        return self._with_changes(explanation) if self._request.changed else explanation

    def _onset(self, causes: Sequence[Finding]) -> tuple[str | None, tuple[str, str] | None]:
        """Return when the selection becomes more frequent in the rows of the first cause, and the range."""
        started = self._values.get("started_at")
        if not causes or started is None or started.numbers is None:
            return None, None
        first, cohorts = causes[0], self._sample.cohorts
        if any(field.column == "started_at" for field in first.fields):
            return self._refined(first, first, started.numbers)
        found, comparisons, lowest = find_orders(
            started.field, started.numbers, cohorts, first.mask, outside=False
        )
        if found and lowest * comparisons <= self._request.alpha:
            return self._refined(first, found[0], started.numbers)
        # If most of these rows are selected from the start, they begin when the cause does.
        if any(field.column == "started_at" for one in causes[1:] for field in one.fields):
            begin = np.nanmin(started.numbers[first.mask & cohorts.selected])
            return f"{iso(np.floor(begin))}Z", None
        return None, None

    def _refined(
        self, cause: Finding, time: Finding, starts: Floats
    ) -> tuple[str | None, tuple[str, str] | None]:
        """Return the onset among the rows that meet a cause apart from its times.

        The limits of a condition on the time are those of the quantiles that were searched, and therefore
        coarse.
        """
        detected = onset_of(time)
        if detected is None:
            return None, None
        parts = cause.parts or (cause,)
        masks = [part.mask for part in parts if part.fields[0].column != "started_at"]
        rows = np.asarray(np.logical_and.reduce([~np.isnan(starts), *masks]))
        if (end := end_of(time)) is not None:
            rows &= starts <= datetime.fromisoformat(end).timestamp()
        onset = find_onset(starts, self._sample.cohorts, rows)
        if onset is None:
            return detected, None
        # The rounded limit of the condition is as likely; the result then states one time.
        is_likely = onset.earliest <= datetime.fromisoformat(detected).timestamp() <= onset.latest
        return detected if is_likely else _as_text(onset.at), (
            _as_text(onset.earliest),
            _as_text(onset.latest),
        )

    def _concentration(self) -> str | None:
        """Return a query for the clusters with most of the selected rows."""
        if self._cluster is None or self._totals.design_effect < _CONCENTRATED:
            return None
        conditions = self._conditions()
        return (
            f"SELECT {quoted(self._cluster)}, count(*) FROM {self._request.over} "
            f"WHERE {' AND '.join(conditions)} GROUP BY 1 ORDER BY 2 DESC LIMIT 10"
        )

    def _compare_fields(self, fields: Fields) -> None:
        sample = self._sample
        for name, values in fields.values.items():
            field = values.field
            # A missing status means that the stage did not run, which the other fields follow.
            absence = field.view != "stages" or field.is_attribute or field.column == "status"
            cohorts, effect = sample.cohorts, self._totals.design_effect
            if field.column == self._cluster:
                # Whether the runs of a user have something in common is the question here.
                effect = sample.run_effect
                cohorts = replace(cohorts, design_effect=effect)
            tested = compare_field(values, fields.tables[name], cohorts, effect, absence=absence)
            if tested.left_out:
                fields.leave_out(tested.left_out, [name])
            if tested.comparisons:
                self._tested[name] = tested

    # ------------------------------------------------------------ findings

    def _combinations(self, fields: Fields) -> list[Tested]:
        possible = [
            self._values[name] for name in self._tested if self._can_be_cause(self._values[name].field)
        ]
        # Without the rows of other times, no field that changed before the selection started, such as a
        # version, takes the place of the time in a combination.
        rows = (
            self._same_time.rows if self._same_time is not None else np.ones(len(self._sample.starts), bool)
        )
        return find_combinations(possible, fields.tables, self._sample.cohorts, rows)

    def _can_be_cause(self, field: Field) -> bool:
        return field.column not in SUBORDINATE and not self._is_result(field)

    def _role(self, finding: Finding) -> _Role:
        if self._is_effect(finding):
            return _Role.EFFECT
        is_due_to_time = self._same_time is not None and self._same_time.share(finding) is not None
        return _Role.DUE_TO_TIME if is_due_to_time else _Role.CAUSE

    def _is_effect(self, finding: Finding) -> bool:
        """Return whether a finding is a likely effect, if the predicate refers to results."""
        return any(self._is_effect_of(field, finding) for field in finding.fields)

    def _is_effect_of(self, field: Field, finding: Finding) -> bool:
        # Every stage of a pipeline has a status, even one that never started, so the presence of a status
        # depends on the pipeline and is not a result.
        if field.view == "stages" and field.column == "status" and finding.is_absence:
            return False
        if finding.condition == field.is_missing and self._selected_by_result:
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
        is_above = ">" in str(where) and "<" not in str(where)
        if is_above and self._referenced & durations and self._referenced <= durations | others:
            return f"slow {self._request.over}"
        return f"selected {self._request.over}"

    def _described(self) -> str | None:
        selection, rest = self._sample.totals
        total = selection.count + rest.count
        return describe_slow(str(self._request.where), selection.count / total if total else 0.0)

    def _differences(
        self, causes: Sequence[Ranked], effects: Sequence[Ranked]
    ) -> tuple[tuple[Difference, ...], tuple[Difference, ...]]:
        """Return the possible causes and the likely effects, with exact counts of all rows."""
        causes, effects = causes[: self._request.limit], effects[:_MAX_EFFECTS]
        measured = measure(
            self._connection,
            self._sample,
            self._columns,
            self._totals,
            [one.finding for one in (*causes, *effects)],
            durations=self._kind_of_selection().startswith("slow"),
        )
        return self._confirmed(causes, measured[: len(causes)]), self._confirmed(
            effects, measured[len(causes) :]
        )

    def _confirmed(self, ranked: Sequence[Ranked], measured: Sequence[Difference]) -> tuple[Difference, ...]:
        """Return the differences that hold for all rows, in the order that was requested."""
        found = []
        for one, difference in zip(ranked, measured, strict=True):
            if difference.rate <= difference.other_rate:
                # The sample and the query disagree about values that have no order or no text.
                self._left_out.setdefault("a query does not find its values", []).extend(difference.fields)
                continue
            found.append(
                structs.replace(
                    difference,
                    deviance=one.deviance,
                    q_value=one.q,
                    run_ids=self._sample.run_ids(one.finding.mask),
                    parts=tuple(part.text for part in one.finding.parts),
                    sql=self._sql(one.finding.condition.sql),
                    synonyms=tuple(synonym.text for synonym in one.synonyms),
                    verdict=one.verdict,
                    relates_to=one.relates_to.text if one.relates_to is not None else None,
                    varies=one.varies.text if one.varies is not None else None,
                    same_time_share=self._same_time.share(one.finding)
                    if self._same_time is not None
                    else None,
                )
            )
        if self._request.sort == "excess":
            found.sort(key=lambda one: -one.excess)
        elif self._request.sort == "lift":
            found.sort(key=lambda one: -(one.lift if one.lift is not None else float("inf")))
        return tuple(found)

    def _conditions(self) -> list[str]:
        """Return the predicates of the selection, without comments, so that a query fits on one line."""
        predicates = [str(self._request.where), *([self._request.within] if self._request.within else [])]
        return [parenthesized(_COMMENT.sub(lambda found: found[1] or "", one).strip()) for one in predicates]

    def _sql(self, condition: str) -> str:
        conditions = self._conditions()
        order = " ORDER BY started_at DESC" if "started_at" in self._columns else ""
        matching = " AND ".join((*conditions, condition))
        return f"SELECT * FROM {self._request.over} WHERE {matching}{order} LIMIT 100"

    def _with_changes(self, explanation: Explanation) -> Explanation:
        stages = columns_of(self._connection, "stages") if has_view(self._connection, "stages") else []
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
        independent = max(1, round(selection.rows / self._totals.design_effect))
        if self._totals.design_effect >= _CONCENTRATED and self._cluster is not None:
            limitations.append(
                f"The {self._kind_of_selection()} are concentrated in a few values of {self._cluster}; "
                f"they count as {independent:,} independent {self._request.over}."
            )
        if fields and independent < _FEW:
            limitations.append(
                f"With {independent:,} independent {self._request.over}, only a strong difference can be "
                f"found."
            )
        if not self._sample.is_complete:
            limitations.append(
                f"Numbers, times, combinations and attributes in JSON documents were compared in a sample of "
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
            described=self._described(),
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
