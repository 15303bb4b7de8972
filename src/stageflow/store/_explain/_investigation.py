"""How a question is answered: the rows, every field of them, the findings, and what is said of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from ...errors import QueryError
from .._columns import FAILURE
from .._selection import Over, as_query_error, must_bind, named_fields
from ._difference import Difference, Explanation, LeftOut, Together
from ._fields import COURSE, DOCUMENTS, IDS, OF_STAGES, PROCESS, Column, Field, implied, is_measured_time
from ._findings import Compared, Finding, Ranked, both_needed, compare, rank, significant
from ._sample import LookedAt, looked_at

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["investigate"]


_OF_THE_QUESTION = (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError)
"""What a question is to blame for; a query that was interrupted, or a full disk, is told as it is."""

_HARDLY_EVER = 0.005


def investigate(
    connection: DuckDBPyConnection,
    where: str | None,
    against: str | None,
    over: Over,
    limit: int,
    alpha: float,
) -> Explanation:
    """Answer `explain`, which says what the arguments are."""
    columns = _columns(connection, over)
    if where is None and any(column.name == FAILURE for column in columns):
        where, against = FAILURE, against if against is not None else f"not {FAILURE}"
    where = where if where is not None else "status = 'FAIL'"
    columns = [column for column in columns if column.name != FAILURE]  # it repeats the outcome
    names = [column.name for column in columns]
    named: set[str] = set()
    for predicate in (where, *([against] if against is not None else [])):
        named |= named_fields(connection, predicate, {*names, *COURSE})
        must_bind(connection, over, predicate)
    try:
        with looked_at(connection, over, columns, where, against) as rows:
            return _Question(connection, rows, columns, named, where, against, over, limit, alpha).answer()
    except _OF_THE_QUESTION as error:
        raise as_query_error(connection, error, where, names) from error


def _columns(connection: DuckDBPyConnection, view: str) -> list[Column]:
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {view}").fetchall()
    except _OF_THE_QUESTION as error:
        raise QueryError(f"there is no view {view!r}: {str(error).splitlines()[0]}", sql=view) from error
    return [Column(name, type_) for name, type_, *_ in described if name not in DOCUMENTS]


class _Question:
    def __init__(
        self,
        connection: DuckDBPyConnection,
        rows: LookedAt,
        columns: Sequence[Column],
        named: set[str],
        where: str,
        against: str | None,
        over: Over,
        limit: int,
        alpha: float,
    ) -> None:
        self._connection = connection
        self._rows = rows
        self._columns = {column.name: column for column in columns}
        self._named = named
        self._where = where
        self._against = against
        self._over: Over = over
        self._limit = limit
        self._alpha = alpha
        self._by_course = bool(named & COURSE)
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self._order = ""
        if "started_at" in self._columns:
            self._order = " ORDER BY started_at DESC"

    def answer(self) -> Explanation:
        selection, rest = self._rows.all
        if not selection.rows:
            return self._explanation("nothing is selected")
        if not rest.rows:
            return self._explanation("everything is selected, and nothing is left to compare it with")
        compared = self._compared()
        passed_over = len(self._rows.stages_left_out) * len(self._columns_of_stages())
        told = significant(
            [one for _, one in compared], self._rows.sides, self._alpha, passed_over=passed_over
        )
        given = [one for one in told if not self._is_consequence(one.finding)]
        came = [one for one in told if self._is_consequence(one.finding)]
        ranked = rank(given, self._rows.sides, self._alpha)
        differences = self._differences(ranked)
        fields = {ranked.finding.field.name for ranked in given}
        verdict = "no field differs"
        if differences:
            verdict = f"{len(fields)} {'field differs' if len(fields) == 1 else 'fields differ'}"
        return self._explanation(
            verdict,
            differences,
            self._differences(rank(came, self._rows.sides, self._alpha)),
            together=self._together(ranked),
            fields=len(compared),
            comparisons=sum(one.comparisons for _, one in compared),
        )

    def _compared(self) -> list[tuple[Field, Compared]]:
        self._leave_out_by_name()
        left_out = frozenset(name for names in self._left_out.values() for name in names)
        compared: list[tuple[Field, Compared]] = []
        same = self._same_as_named()
        fields = [self._rows.fields(left_out | same)]
        if self._over == "runs":
            fields.append(self._rows.fields_of_stages(self._columns_of_stages()))
        for field, values in (one for some in fields for one in some):
            # Of a stage's own fields only its status is missing for a reason: the stage did not run.
            absence = field.stage is None or field.is_attribute or field.column.name == "status"
            one = compare(field, values, self._rows.sides, absence=absence)
            if one.left_out:
                self._left_out[one.left_out].append(field.name)
            if one.comparisons:
                compared.append((field, one))
        if self._rows.stages_left_out:
            self._left_out["stages of few runs"] += self._rows.stages_left_out
        return compared

    def _leave_out_by_name(self) -> None:
        names = [name for name in self._columns if name != "sample_rate"]
        defining = implied(self._named)
        self._leave_out("they say what the selection is made by", (n for n in names if n in defining))
        self._leave_out("names of one run", (n for n in names if n in IDS - defining))
        if "started_at" in self._columns:
            said = {"day", "ended_at"} - defining
            self._leave_out("said by started_at", (name for name in names if name in said))
        self._leave_out("counted with", ("sample_rate",) if "sample_rate" in self._columns else ())

    def _same_as_named(self) -> frozenset[str]:
        """Find the fields that only rename one by which the selection is made."""
        made_by = {name for name in self._named if name in self._columns and name not in COURSE}
        categories = [column for column in self._columns.values() if column.kind == "category"]
        if not any(column.name in made_by for column in categories):
            return frozenset()
        others = frozenset(column.name for column in self._columns.values() if column not in categories)
        codes = {field.column.name: values for field, values in self._rows.fields(others)}
        left_out = {name for names in self._left_out.values() for name in names}
        same = set()
        for name, values in codes.items():
            for made in made_by & codes.keys():
                if name in left_out or name in same:
                    continue
                pairs = np.unique(np.stack([values, codes[made]]), axis=1).shape[1]
                if 1 < pairs == len(np.unique(values)) == len(np.unique(codes[made])):
                    same.add(name)
        self._leave_out("other names for what the selection is made by", same)
        return frozenset(same)

    def _columns_of_stages(self) -> list[Column]:
        # Asked of the catalogue: a query that fails would end a transaction that the caller has open.
        known = "SELECT 1 FROM information_schema.tables WHERE table_name = 'stages' LIMIT 1"
        if not self._connection.execute(known).fetchall():
            return []
        columns = _columns(self._connection, "stages")
        needed = {column.name for column in columns} >= {"pipeline_run_id", "stage_name", "status"}
        kept = [one for one in columns if one.name in OF_STAGES or one.name.startswith("attributes.")]
        return kept if needed else []

    def _leave_out(self, why: str, names: Iterable[str]) -> None:
        if found := list(names):
            self._left_out[why] += found

    def _is_consequence(self, finding: Finding) -> bool:
        """Tell what the run came to from what it was given, where the selection is made by the former.

        Every stage of a pipeline has a status, also one that never started: whether there is one is
        which pipeline it was. A stage that did not run, and so left no attributes, did not because the
        run had ended. An attribute that the other runs practically always have was not written for
        the same reason.
        """
        of = finding.field
        in_the_pipeline = of.stage is not None and of.column.name == "status" and finding.kind == "absence"
        if of.column.name in PROCESS:
            return True
        if in_the_pipeline or not self._by_course:
            return False
        if of.column.name in COURSE or is_measured_time(of.column.name):
            return True
        if finding.kind != "absence" or finding.negated:
            return False
        if of.stage is not None:
            return True
        return of.is_attribute and self._rows.sides.parts(finding.mask)[1].share < _HARDLY_EVER

    def _differences(self, ranked: Sequence[Ranked]) -> tuple[Difference, ...]:
        return tuple(self._difference(one) for one in ranked[: self._limit])

    def _together(self, ranked: Sequence[Ranked]) -> Together | None:
        """Return two differences of which it takes both, where there are such."""
        pair = both_needed([one.finding for one in ranked], self._rows.sides, self._alpha)
        if pair is None:
            return None
        conditions = [finding.told(self._rows.value)[2] for finding in pair]
        selection, rest = self._rows.sides.parts(pair[0].mask & pair[1].mask)
        return Together(
            says=(self._words(pair[0]), self._words(pair[1])),
            selection=selection,
            rest=rest,
            sql=self._sql(" AND ".join(conditions)),
        )

    def _sql(self, condition: str) -> str:
        where = f"({self._where}\n)" if "--" in self._where else f"({self._where})"
        return f"SELECT * FROM {self._over} WHERE {where} AND {condition}{self._order} LIMIT 100"

    def _difference(self, ranked: Ranked) -> Difference:
        finding = ranked.finding
        value, says, condition = finding.told(self._rows.value)
        selection, rest = self._rows.sides.parts(finding.mask)
        return Difference(
            field=finding.field.name,
            kind=finding.kind,
            value=value,
            says=says,
            selection=selection,
            rest=rest,
            lift=selection.share / rest.share if rest.share else None,
            effect=ranked.effect,
            q_value=ranked.q,
            run_ids=self._rows.run_ids(finding.mask),
            sql=self._sql(condition),
            synonyms=tuple(self._words(synonym) for synonym in ranked.synonyms),
            along_with=self._words(ranked.along_with) if ranked.along_with else None,
        )

    def _words(self, finding: Finding) -> str:
        return f"{finding.field.name} {finding.told(self._rows.value)[1]}"

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
        selection, rest = self._rows.all
        selected = self._rows.sides.selected
        return Explanation(
            where=self._where,
            against=self._against,
            over=self._over,
            selection=selection,
            rest=rest,
            selection_looked_at=int(selected.sum()),
            rest_looked_at=int((~selected).sum()),
            fields=fields,
            comparisons=comparisons,
            alpha=self._alpha,
            verdict=verdict,
            differences=differences,
            consequences=consequences,
            together=together,
            left_out=tuple(LeftOut(why, tuple(names)) for why, names in self._left_out.items()),
        )
