"""What occurred for the first time shortly before the selection became more frequent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import stats

from ..._explained import Change, Part
from ..._time import rfc3339
from ...schema import Role, fields_with
from .._columns import ATTRIBUTE
from ._fields import Column, attribute_role, quoted
from ._onset import find_onset
from ._sample import Floats, Population, Sample

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Changes", "find_changes"]


_ERRORS = frozenset({"error_type", "error_fingerprint", "first_failed_stage"})
_IDS = frozenset({"request_id", "session_id"})
_LABELS = (fields_with(Role.LABEL) | _ERRORS) - _IDS - fields_with(Role.IDENTITY)

_MAX_CHANGES = 10

_MAX_P = 0.05
"""Maximum probability that as many values of a field occur for the first time this close to the onset."""

_FIRST_PART = 0.05
"""The share of the rows, from the first one, in which every value is new because the record starts there."""

_RESOLUTION = 0.005
"""The accuracy of the onset, as a share of the rows."""

_MIN_ROWS = 2


@dataclass(frozen=True)
class Changes:
    """What is new, and the time to which it was compared.

    Attributes:
        found: The changes.
        before: The time before which they occurred; None if it is unknown.
        by: How the time was determined: as the lower limit of a difference, as the time that separates the
            frequencies of the selection best, or as the first selected row.
        limitations: Why changes may be missing, in sentences.
    """

    found: tuple[Change, ...] = ()
    before: str | None = None
    by: Literal["onset", "rate", "first row"] | None = None
    limitations: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Value:
    field: str
    text: str
    first_s: float
    position: int
    selection: tuple[int, float]
    rest: tuple[int, float]


def find_changes(
    connection: DuckDBPyConnection,
    sample: Sample,
    columns: Mapping[str, Column],
    stage_columns: Sequence[Column],
    *,
    onset: str | None,
    history: str | None,
) -> Changes:
    """Return the values that occurred for the first time shortly before the onset of the selection.

    A value is new if it does not occur in any earlier row, also outside the time window of the comparison.
    A field whose values are new all the time, such as a path, is not a change: a value is returned only if
    the number of first occurrences near the onset exceeds that in the rest of the record.

    Args:
        connection: The connection.
        sample: The sample of the rows that are compared.
        columns: The columns of the view.
        stage_columns: The columns of the stages of runs.
        onset: When the selection becomes more frequent; None if no difference contains a time.
        history: A predicate for the rows in which values can have occurred before; None for all rows.
    """
    if "started_at" not in columns:
        return Changes(limitations=("Changes are unknown, because the rows have no started_at.",))
    population = sample.population
    ((first_selected, last),) = connection.execute(
        f'SELECT min(epoch(started_at)) FILTER ("#selected"), max(epoch(started_at)) '
        f"FROM ({population.rows('started_at')})"
    ).fetchall()
    if first_selected is None:
        return Changes()
    onset_s, by = _onset(sample, onset, first_selected)
    earlier = _History(population, history, last)
    fetched: Any = connection.execute(
        f"SELECT epoch(started_at) AS time FROM ({earlier.rows('started_at')}) ORDER BY time"
    ).fetchnumpy()
    times: Floats = fetched["time"]
    before = _as_text(onset_s)
    at = int(np.searchsorted(times, onset_s))
    if at <= _FIRST_PART * len(times):
        note = f"Only {at:,} of {len(times):,} rows started before {before}, so changes cannot be determined."
        return Changes((), before, by, (note,))
    values = _values(connection, earlier, times, _compared(connection, sample.table, columns.values()), "")
    if stage_columns and population.view == "runs":
        attributes = _compared(
            connection,
            f"(SELECT s.* FROM stages s JOIN {sample.table} USING (pipeline_run_id))",
            [column for column in stage_columns if column.name.startswith(ATTRIBUTE)],
        )
        values += _values(connection, earlier, times, attributes, "stages")
    selection, rest = sample.totals
    found: list[tuple[float, Change]] = []
    fields: dict[str, list[_Value]] = {}
    for value in values:
        fields.setdefault(value.field, []).append(value)
    for of_field in fields.values():
        positions = np.sort([value.position for value in of_field])
        for value in of_field:
            p = _chance(positions, value.position, at, len(times))
            share, rest_share = value.selection[1] / selection.count, value.rest[1] / max(1.0, rest.count)
            if p > _MAX_P or not value.selection[0] or share <= rest_share:
                continue
            change = Change(
                field=value.field,
                value=value.text,
                first_at=_as_text(value.first_s),
                before_onset_s=round(onset_s - value.first_s, 6),
                selection=Part(*value.selection, share),
                rest=Part(*value.rest, rest_share),
            )
            found.append((-share * -float(np.log(max(p, 1e-12))), change))
    found.sort(key=lambda one: (one[0], one[1].field, one[1].value))
    # The stages of a run often have an attribute in common.
    distinct: dict[tuple[str, str, str], Change] = {}
    for _, change in found:
        distinct.setdefault((change.field.rpartition("/")[2], change.value, change.first_at), change)
    return Changes(tuple(distinct.values())[:_MAX_CHANGES], before, by)


def _onset(
    sample: Sample, onset: str | None, first_selected: float
) -> tuple[float, Literal["onset", "rate", "first row"]]:
    """Return the time when the selection becomes more frequent, in seconds since 1970."""
    if onset is not None:
        return datetime.fromisoformat(onset).timestamp(), "onset"
    separated = find_onset(sample.starts, sample.cohorts)
    if separated is not None and separated.p <= _MAX_P:
        return separated.at, "rate"
    return first_selected, "first row"


@dataclass(frozen=True)
class _History:
    """All rows in which a value can have occurred, including those that are not compared."""

    population: Population
    condition: str | None
    last_s: float

    def rows(self, columns: str) -> str:
        """Return a query for the rows, with `selected`, `eligible` and `weight`."""
        one = self.population
        condition = f"(\n{self.condition}\n)" if self.condition is not None else "TRUE"
        return (
            f'SELECT {one.selected} AS "#selected", {one.eligible} AS "#eligible", '
            f'{one.weight} AS "#weight", {columns} FROM {one.view} '
            f"WHERE {condition} AND epoch(started_at) <= {self.last_s!r}"
        )


def _compared(connection: DuckDBPyConnection, table: str, columns: Any) -> list[Column]:
    """Return the columns with a category, whose values repeat."""
    possible = [
        column
        for column in columns
        if column.type in ("VARCHAR", "BOOLEAN")
        and (
            column.name in _LABELS
            or (column.name.startswith(ATTRIBUTE) and attribute_role(column.name) in (None, Role.LABEL))
        )
    ]
    if not possible:
        return []
    counts = ", ".join(
        f"approx_count_distinct({quoted(one.name)}), count({quoted(one.name)})" for one in possible
    )
    ((*found,),) = connection.execute(f"SELECT {counts} FROM {table}").fetchall()
    return [
        column
        for column, distinct, present in zip(possible, found[::2], found[1::2], strict=True)
        if distinct <= present / _MIN_ROWS
    ]


def _values(
    connection: DuckDBPyConnection,
    history: _History,
    times: Floats,
    columns: Sequence[Column],
    view: Literal["", "stages"],
) -> list[_Value]:
    """Return when each value that occurs in several rows first occurred, in one pass."""
    if not columns:
        return []
    names = [f"v{n}" for n in range(len(columns))]
    copied = ", ".join(f"{quoted(one.name)} AS {name}" for one, name in zip(columns, names, strict=True))
    if view:
        runs = history.rows("pipeline_run_id, started_at")
        source = (
            f'SELECT r.* EXCLUDE (pipeline_run_id), s.stage_name AS "#stage", {copied} FROM stages s '
            f"JOIN ({runs}) r USING (pipeline_run_id) WHERE s.status <> 'RETRY'"
        )
    else:
        source = history.rows(f'started_at, NULL::VARCHAR AS "#stage", {copied}')
    index = " ".join(f"WHEN grouping({name}) = 0 THEN {n}" for n, name in enumerate(names))
    text = " ".join(f"WHEN grouping({name}) = 0 THEN CAST({name} AS VARCHAR)" for name in names)
    sets = ", ".join(f'("#stage", {name})' for name in names)
    selected, others = 'FILTER ("#selected")', 'FILTER (NOT "#selected" AND "#eligible")'
    found = connection.execute(
        f'SELECT CASE {index} END, CASE {text} END AS text, "#stage", min(epoch(started_at)), '
        f'count(*) {selected}, coalesce(sum("#weight") {selected}, 0), '
        f'count(*) {others}, coalesce(sum("#weight") {others}, 0) '
        f"FROM ({source}) GROUP BY GROUPING SETS ({sets}) "
        f"HAVING text IS NOT NULL AND count(*) >= {_MIN_ROWS}"
    ).fetchall()
    values = []
    for n, value, stage, first_s, *counts in found:
        name = columns[n].name if stage is None else f"{stage}/{columns[n].name}"
        position = int(np.searchsorted(times, first_s))
        values.append(_Value(name, value, first_s, position, (counts[0], counts[1]), (counts[2], counts[3])))
    return values


def _chance(positions: Any, position: int, onset: int, rows: int) -> float:
    """Return the probability that as many values of a field occur first this close to the onset.

    First occurrences elsewhere follow a Poisson process over the rows. The rate includes one occurrence more
    than observed, so that a field with a single change has the probability of the distance itself.

    Args:
        positions: The position of the first row of each value of the field.
        position: That of one of the values.
        onset: The position of the onset.
        rows: Number of rows.
    """
    start = _FIRST_PART * rows
    if position <= start:
        return 1.0
    accuracy = max(1.0, _RESOLUTION * rows)
    distance = max(float(abs(onset - position)), accuracy)
    low = max(start, onset - distance)
    high = min(rows, onset + (accuracy if position <= onset else distance))
    known = positions[positions > start]
    near = int(((known >= low) & (known <= high)).sum())
    elsewhere = rows - start - (high - low)
    rate = (len(known) - near + 1) / max(1.0, elsewhere)
    return float(stats.poisson.sf(near - 1, rate * (high - low)))


def _as_text(seconds: float) -> str:
    return rfc3339(round(seconds * 1e6))
