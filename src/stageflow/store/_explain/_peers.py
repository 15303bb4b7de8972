"""Compares one run with its peers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from msgspec import structs
from scipy import special, stats

from ..._explained import Measured, Part, SameError, StageMeasured, UnusualValue
from ..._quantities import duration as duration_text
from ..._time import epoch_us
from ...journal import RunRecord
from ...schema import Role, fields_with
from .._columns import ATTRIBUTE, DATA_PATHS
from .._error_groups import failed_with
from .._selection import parenthesized
from ._fields import DOCUMENTS, IDS, STAGE_FIELDS, SUBORDINATE, Column, Field, literal, quoted
from ._run_explanation import RunExplanation
from ._sample import Floats
from ._values import ValueTable, count_values

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["compare_with_peers"]


_MAX_PEERS = 25_000

_RARE = 0.05
"""Maximum share of the peers with a value that is unusual, and with any value that is as rare."""

_LOW, _HIGH = 0.005, 0.995
"""The percentiles outside of which a number is unusual."""

_MIN_PEERS = 20
"""Minimum number of peers for an unusual value; `_MIN_PEERS_OF_NUMBER` for a number."""

_MIN_PEERS_OF_NUMBER = 100

_MIN_SIMILAR, _MIN_LIFT, _MAX_P = 5, 3.0, 1e-4
"""A value is also unusual if at least this number of runs with the same problem have it, if having it is this
many times as frequent among them as among the peers, or not having it this many times as rare, and if that is
less likely than this by chance."""

_COMMON = 0.75
"""Minimum share of the peers with a value that is never unusual."""

_SAME_TIME_S, _MIN_SAME_TIME = 3600, 200
"""The peers from the same time started at most this number of seconds before or after the run; if they are
fewer than this number, they are the nearest ones."""

_NEARLY_ALL = 0.95
"""Minimum share of the peers from the same time with a value that is due to the time."""

_SLOW = 0.9
"""The percentile from which on a stage took long, if it took at least twice as long as the median."""

_MAX_UNUSUAL = 20

_WEIGHT = 'greatest(coalesce(sample_rate, 1), 1)::DOUBLE AS "#weight"'
"""SQL: the number of runs that a run represents."""

_RESULTS = fields_with(Role.OUTCOME) | fields_with(Role.DURATION)
_GROWING = frozenset({"uptime_s", "memory_peak_bytes"})
"""Measurements that increase during the life of a process: the newest run always has the highest value."""

_IGNORED = (
    *(_RESULTS, _GROWING, IDS, DOCUMENTS, SUBORDINATE),
    *(fields_with(Role.TIME), fields_with(Role.RECORD), {"day", "failed", "pipeline_name", "topology"}),
)
_NOT_COMPARED = frozenset().union(*_IGNORED)

Record = Mapping[str, Any]


def compare_with_peers(
    connection: DuckDBPyConnection, record: RunRecord, within: str | None
) -> RunExplanation:
    """Compare a run with other runs of the same pipeline with the outcome `ok`.

    Args:
        connection: The connection with the views of a store.
        record: The record of the run, which may not have ended.
        within: A predicate for the peers; None for all.
    """
    run = record.run
    pipeline = run.get("pipeline_name")
    of_pipeline = f"pipeline_name = {literal(pipeline)}" if pipeline is not None else "pipeline_name IS NULL"
    condition = (
        f"{of_pipeline} AND coalesce(outcome, if(status = 'OK', 'ok', 'failed')) = 'ok' "
        f"AND pipeline_run_id <> {literal(run['event_id'])} AND {parenthesized(within or 'TRUE')}"
    )
    same_error = _same_error(connection, run, within)
    newest = (
        f'SELECT *, FALSE AS "#selected", {_WEIGHT} FROM runs WHERE {condition} '
        f"ORDER BY started_at DESC, event_id LIMIT {_MAX_PEERS}"
    )
    with _copied(connection, newest) as table:
        fetched: dict[str, Any] = connection.execute(
            f'SELECT duration_ms, "#weight" FROM {table}'
        ).fetchnumpy()
        weights = fetched["#weight"]
        peers = Part(len(weights), float(weights.sum()), 1.0 if len(weights) else 0.0)
        stages = tuple(_stages(connection, table, record))
        similar = _similar(same_error, stages, of_pipeline)
        duration = _measured(_as_number(run.get("duration_ms")), _plain(fetched["duration_ms"]), weights)
        explanation = RunExplanation(
            run_id=str(run["event_id"]),
            pipeline=pipeline or "",
            outcome=str(run.get("outcome") or run.get("status")),
            started_at=str(run["started_at"]),
            summary="",
            error=run.get("error"),
            peers=peers,
            duration_ms=duration,
            stages=stages,
            unusual=tuple(_unusual(connection, table, record, similar, condition, within)),
            similar_are=similar.description if similar is not None else None,
            same_error=same_error,
            limitations=tuple(_limitations(peers.rows)),
        )
    return structs.replace(explanation, summary=_summary(explanation, run.get("first_failed_stage")))


@contextmanager
def _copied(connection: DuckDBPyConnection, query: str) -> Generator[str]:
    """Copy the rows of a query to a temporary table, and drop it when the block ends."""
    table = f"stageflow_peers_{uuid4().hex}"
    try:
        connection.execute(f"CREATE TEMP TABLE {table} AS {query}")
        yield table
    finally:
        with suppress(Exception):  # do not hide an exception that is propagating
            connection.execute(f"DROP TABLE IF EXISTS {table}")


def _limitations(peers: int) -> Iterable[str]:
    if peers == _MAX_PEERS:
        yield f"The peers are the newest {peers:,} runs."
    if peers < _MIN_PEERS:
        yield f"There are fewer than {_MIN_PEERS} peers, too few to find unusual values."
    elif peers < _MIN_PEERS_OF_NUMBER:
        yield f"There are fewer than {_MIN_PEERS_OF_NUMBER} peers, too few to find unusual numbers."


# ------------------------------------------------------------ durations


def _plain(values: Any) -> Floats:
    return np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)


def _as_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _percentile(values: Floats, weights: Floats, rank: float) -> float:
    """Return the smallest value with enough weight at or below it; the values are in ascending order."""
    cumulative = np.cumsum(weights)
    at = int(np.searchsorted(cumulative, cumulative[-1] * rank * (1 - 1e-12)))
    return float(values[min(at, len(values) - 1)])


def _sorted(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    known = ~np.isnan(values)
    order = np.argsort(values[known], kind="stable")
    return values[known][order], weights[known][order]


def _measured(value: float | None, values: Floats, weights: Floats) -> Measured:
    values, weights = _sorted(values, weights)
    if not len(values):
        return Measured(value=value)
    return Measured(
        value=value,
        p50=_percentile(values, weights, 0.5),
        p95=_percentile(values, weights, 0.95),
        percentile=None if value is None else float(weights[values < value].sum() / weights.sum()),
    )


def _stages(connection: DuckDBPyConnection, table: str, record: RunRecord) -> Iterable[StageMeasured]:
    """Compare the times of each stage that ran with those of the peers in which it ran."""
    ran = _own_stages(record)
    fetched: dict[str, Any] = connection.execute(
        f"WITH earlier AS (SELECT pipeline_run_id, stage_name, "
        f"sum(duration_ms + coalesce(retry_after_ms, 0)) AS ms "
        f"FROM stages WHERE status = 'RETRY' GROUP BY ALL) "
        f"SELECT s.stage_name AS stage, s.duration_ms AS ran, "
        f"round(greatest(0, s.queue_ms - coalesce(earlier.ms, 0)), 3) AS waited, "
        f'coalesce(earlier.ms, 0) AS retried, p."#weight" AS weight '
        f"FROM stages s JOIN {table} p USING (pipeline_run_id) "
        f"LEFT JOIN earlier USING (pipeline_run_id, stage_name) "
        f"WHERE s.status NOT IN ('RETRY', 'SKIP', 'CANCEL')"
        + (f" AND s.stage_name IN ({', '.join(literal(name) for name in ran)})" if ran else " AND FALSE")
    ).fetchnumpy()
    names = np.asarray(fetched["stage"], dtype=object)
    critical = record.run.get("critical_path") or ()
    for name, stage in ran.items():
        here = np.flatnonzero(names == name)
        weights = fetched["weight"][here]
        times = {
            key: _measured(own, _plain(fetched[key][here]), weights)
            for key, own in _times(record, stage).items()
        }
        yield StageMeasured(
            stage=name,
            status=str(stage.get("status", "OPEN")),
            attempts=stage.get("attempts"),
            critical=name in critical,
            peers=len(here),
            ran_ms=times["ran"],
            waited_ms=times["waited"],
            retried_ms=times["retried"],
        )


def _own_stages(record: RunRecord) -> dict[str, Record]:
    """Return the last event of each stage that ran, or its attempt in progress, by its name."""
    found: dict[str, Record] = {}
    for stage in record.stages:
        if stage.get("status") not in ("RETRY", "SKIP") and stage.get("attempts") != 0:
            found[str(stage["stage_name"])] = stage
    for running in record.run.get("stages_running", ()):
        found[str(running["stage_name"])] = running
    return found


def _times(record: RunRecord, stage: Record) -> dict[str, float | None]:
    run = record.run
    if "status" not in stage:  # in progress
        if stage.get("started_at") is None or run.get("duration_ms") is None:
            return {"ran": None, "waited": None, "retried": None}
        offset = datetime.fromisoformat(stage["started_at"]) - datetime.fromisoformat(run["started_at"])
        ran = max(0.0, float(run["duration_ms"]) - offset.total_seconds() * 1000)
        return {"ran": ran, "waited": None, "retried": None}
    # `queue_ms` ends when the last attempt starts.
    retried = sum(
        (_as_number(other.get("duration_ms")) or 0.0) + (_as_number(other.get("retry_after_ms")) or 0.0)
        for other in record.stages
        if other.get("status") == "RETRY" and other["stage_name"] == stage["stage_name"]
    )
    waited = _as_number(stage.get("queue_ms"))
    return {
        "ran": _as_number(stage.get("duration_ms")),
        "waited": None if waited is None else round(max(0.0, waited - retried), 3),
        "retried": round(retried, 3),
    }


# ------------------------------------------------------------ values


@dataclass(frozen=True)
class _Similar:
    """The runs with the same problem.

    Attributes:
        condition: The condition over `runs`.
        description: What they are.
    """

    condition: str
    description: str


def _similar(
    same_error: SameError | None, stages: Sequence[StageMeasured], of_pipeline: str
) -> _Similar | None:
    """Return the runs with the same error, or in which the same stage took much longer; None for neither."""
    if same_error is not None:
        return _Similar(same_error.where, "runs with the same error")
    # Many peers can have the same problem, so that the 95th percentile is as high.
    slow = [
        one
        for one in stages
        if (one.ran_ms.percentile or 0.0) >= _SLOW and one.ran_ms.excess >= (one.ran_ms.p50 or 0.0)
    ]
    if not slow:
        return None
    longest = max(slow, key=lambda one: one.ran_ms.excess)
    limit = (longest.ran_ms.p50 or 0.0) + longest.ran_ms.excess / 2
    return _Similar(
        f"{of_pipeline} AND pipeline_run_id IN (SELECT pipeline_run_id FROM stages WHERE stage_name = "
        f"{literal(longest.stage)} AND status <> 'RETRY' AND duration_ms >= {limit!r})",
        f"runs in which {longest.stage} took longer than {duration_text(limit)}",
    )


def _unusual(
    connection: DuckDBPyConnection,
    table: str,
    record: RunRecord,
    similar: _Similar | None,
    of_peers: str,
    within: str | None,
) -> list[UnusualValue]:
    """Return the unusual values of a run, the best leads first.

    Args:
        connection: The connection.
        table: The table of the peers.
        record: The record of the run.
        similar: The runs with the same problem.
        of_peers: The condition over `runs` for the peers.
        within: A predicate for the runs with the same problem; None for all.
    """
    if similar is not None:
        # The rows with the same problem are counted as the selection.
        connection.execute(
            f"INSERT INTO {table} SELECT *, TRUE, {_WEIGHT} FROM runs "
            f"WHERE {parenthesized(similar.condition)} AND {parenthesized(within or 'TRUE')} "
            f"AND pipeline_run_id <> {literal(record.run['event_id'])} "
            f"ORDER BY started_at DESC, event_id LIMIT {_MAX_PEERS}"
        )
    found = _unusual_of(connection, table, "runs", {"": record.run})
    stages = {
        name: stage
        for name, stage in _own_stages(record).items()
        if stage.get("status") not in ("CANCEL", "SKIP")
    }
    if stages:
        found += _unusual_of(connection, table, "stages", stages)
    started_us = epoch_us(record.run["started_at"])
    return sorted(_with_time(connection, found, of_peers, started_us), key=_order)[:_MAX_UNUSUAL]


def _order(one: UnusualValue) -> tuple[bool, float, float, float, str]:
    """Return the sort key: the values that distinguish the runs with the same problem best come first."""
    common, share = one.similar_share, one.share
    is_due_to_time = one.same_time_share is not None
    if common is None:
        return is_due_to_time, 0.0, 0.0, share, one.field
    # The deviance that it explains per run with the same problem; infinite if no peer has the value.
    deviance = float(special.rel_entr(common, share) + special.rel_entr(1 - common, 1 - share))
    return is_due_to_time, -deviance, -common, share, one.field


@dataclass(frozen=True)
class _Found:
    """An unusual value, and where it is: the column of a stage, or that of the runs if `stage` is empty."""

    value: UnusualValue
    stage: str
    column: Column

    @classmethod
    def of(cls, stage: str, column: Column, values: Iterable[UnusualValue]) -> list[_Found]:
        return [cls(value, stage, column) for value in values]


def _stage_rows(runs: str, names: Iterable[str], columns: str) -> str:
    """Return the query for the last events of stages of runs.

    Args:
        runs: The runs, a table or a query in parentheses.
        names: The names of the stages.
        columns: The columns of `runs`, named `p`.
    """
    return (
        f'(SELECT s.*, s.stage_name AS "#stage", {columns} FROM stages s '
        f"JOIN {runs} p USING (pipeline_run_id) WHERE s.stage_name IN ({', '.join(map(literal, names))}) "
        f"AND s.status NOT IN ('RETRY', 'SKIP', 'CANCEL'))"
    )


def _with_time(
    connection: DuckDBPyConnection, found: Sequence[_Found], of_peers: str, started_us: int
) -> Iterable[UnusualValue]:
    """Compare unusual values with the peers from the time of the run.

    Returns:
        The values with `same_time_share`, without those that are unusual only at another time.
    """
    # A number outside the percentiles of all peers is not typical of any time.
    yield from (one.value for one in found if one.value.low is not None)
    texts = [one for one in found if one.value.low is None]
    if not texts:
        return
    # Read from the store: the compared peers are the newest, and may not include any from that time.
    apart = f"abs(epoch_us(started_at) - {started_us})"
    columns = {quoted(one.column.name) for one in texts if not one.stage} | {"pipeline_run_id", _WEIGHT}
    near = (
        f"SELECT {', '.join(sorted(columns))} FROM runs WHERE {of_peers} "
        f"QUALIFY {apart} <= {_SAME_TIME_S * 1_000_000} "
        f"OR row_number() OVER (ORDER BY {apart}, event_id) <= {_MIN_SAME_TIME}"
    )
    with _copied(connection, near) as table:
        of_stages = _stage_rows(table, {one.stage for one in texts}, 'p."#weight"')
        for source, of_source in (
            (table, [one for one in texts if not one.stage]),
            (of_stages, [one for one in texts if one.stage]),
        ):
            for one, share in zip(of_source, _shares(connection, source, of_source), strict=True):
                if share < _NEARLY_ALL:
                    yield one.value
                elif one.value.similar_share is not None:
                    yield structs.replace(one.value, same_time_share=share)


def _shares(connection: DuckDBPyConnection, source: str, found: Sequence[_Found]) -> Sequence[float]:
    """Return the share of rows with each value among those with any value; 0 if these are too few."""
    if not found:
        return ()
    shares = []
    for one in found:
        text, value = f"CAST({Field.of_column(one.column).text} AS VARCHAR)", _as_text(one.value.value)
        present = f"{text} IS NOT NULL" + (f' AND "#stage" = {literal(one.stage)}' if one.stage else "")
        total = f'sum("#weight") FILTER ({present})'
        matching = f'coalesce(sum("#weight") FILTER ({present} AND {text} = {literal(value)}), 0)'
        shares.append(f"if(count(*) FILTER ({present}) >= {_MIN_PEERS}, {matching} / {total}, 0)")
    (row,) = connection.execute(f"SELECT {', '.join(shares)} FROM {source}").fetchall()
    return row


def _unusual_of(
    connection: DuckDBPyConnection, table: str, view: str, own: Mapping[str, Record]
) -> list[_Found]:
    """Return the unusual values of a run, or of its stages by name."""
    described = connection.execute(f"DESCRIBE SELECT * FROM {view}").fetchall()
    columns = [Column(name, type_) for name, type_, *_ in described]
    columns = [
        column
        for column in columns
        if column.name not in _NOT_COMPARED
        and (
            column.name.startswith(ATTRIBUTE)
            or column.name in (DATA_PATHS if view == "runs" else STAGE_FIELDS)
        )
        and any(_own_value(column.name, record) is not None for record in own.values())
    ]
    source, stage = table, ""
    if view == "stages":
        source = _stage_rows(table, own, 'p."#selected", p."#weight"')
        stage = ', "#stage"'
    categories = [column for column in columns if column.type in ("VARCHAR", "BOOLEAN")]
    found: list[_Found] = []
    tables = count_values(
        connection,
        source,
        [Field.of_column(column) for column in categories],
        by_stage=view == "stages",
        is_weighted=True,
        is_complete=True,
    )
    for column, by_stage in zip(categories, tables, strict=True):
        for name, record in own.items():
            value = _own_value(column.name, record)
            if isinstance(value, str | bool) and name in by_stage:
                values = _unusual_value(_field_name(name, column), value, by_stage[name])
                found += _Found.of(name, column, values)
    numbers = [column for column in columns if column.is_number]
    if numbers:
        copied = ", ".join(f"{quoted(column.name)}::DOUBLE AS n{n}" for n, column in enumerate(numbers))
        fetched: dict[str, Any] = connection.execute(
            f'SELECT {copied}, "#weight"{stage} FROM {source} WHERE NOT "#selected"'
        ).fetchnumpy()
        stage_names = np.asarray(fetched["#stage"], dtype=object) if stage else None
        for n, column in enumerate(numbers):
            numbers_of_peers = _plain(fetched[f"n{n}"])
            for name, record in own.items():
                number = _as_number(_own_value(column.name, record))
                if number is not None:
                    here = slice(None) if stage_names is None else stage_names == name
                    among, weights = numbers_of_peers[here], fetched["#weight"][here]
                    values = _extreme_number(_field_name(name, column), number, among, weights)
                    found += _Found.of(name, column, values)
    return found


def _field_name(stage: str, column: Column) -> str:
    return f"{stage}/{column.name}" if stage else column.name


def _own_value(column: str, record: Record) -> Any:
    """Return the value of a column in the data of an event; None if it is missing."""
    if column.startswith(ATTRIBUTE):
        return (record.get("attributes") or {}).get(column.removeprefix(ATTRIBUTE))
    value: Any = record
    for key in DATA_PATHS.get(column, (column,)):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _as_text(value: str | float | bool) -> str:
    """Return a value as DuckDB casts it to text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unusual_value(field: str, value: str | bool, table: ValueTable) -> Iterable[UnusualValue]:
    counts, rows = table.counts.weight[1], table.counts.rows[1]
    total = float(counts.sum())
    if rows.sum() < _MIN_PEERS:
        return
    text = _as_text(value)
    same = np.array([known == text for known in table.texts], bool)
    share = float(counts[same].sum()) / total
    # A rare value is unusual only if most peers have a frequent one: each user is rare. The run itself
    # counts as well, so that a value that no peer has is as rare as those that one peer has.
    as_rare = float(counts[rows <= rows[same].sum() + 1].sum())
    is_rare = share < _RARE and as_rare / total < _RARE
    of_similar, similar_rows = table.counts.weight[0], table.counts.rows[0]
    similar_share = float(of_similar[same].sum() / of_similar.sum()) if similar_rows.sum() else 0.0
    is_shared = (
        similar_rows[same].sum() >= _MIN_SIMILAR
        and share < _COMMON
        and (similar_share >= _MIN_LIFT * share or 1 - share >= _MIN_LIFT * (1 - similar_share))
        and stats.binom.sf(similar_rows[same].sum() - 1, similar_rows.sum(), share) < _MAX_P
    )
    if is_rare or is_shared:
        most = int(np.argmax(counts))
        yield UnusualValue(
            field=field,
            value=value,
            share=share,
            typical=table.texts[most],
            typical_share=float(counts[most]) / total,
            similar_share=similar_share if is_shared else None,
        )


def _extreme_number(field: str, number: float, values: Floats, weights: Floats) -> Iterable[UnusualValue]:
    values, weights = _sorted(values, weights)
    if len(values) < _MIN_PEERS_OF_NUMBER or np.isnan(number):
        return
    low, median, high = (_percentile(values, weights, rank) for rank in (_LOW, 0.5, _HIGH))
    if not low <= number <= high:
        as_extreme = values >= number if number > high else values <= number
        share = float(weights[as_extreme].sum() / weights.sum())
        yield UnusualValue(field=field, value=number, share=share, typical=median, low=low, high=high)


# ------------------------------------------------------------ errors


def _same_error(connection: DuckDBPyConnection, run: Record, within: str | None) -> SameError | None:
    """Return the runs of the `ErrorGroup` to which the run belongs."""
    fingerprint = run.get("error_fingerprint")
    if fingerprint is None:
        return None
    # The error of a run that timed out after a failure of a stage is that of the run.
    stage = run.get("first_failed_stage") if run.get("outcome") in ("failed", "degraded") else None
    where = failed_with(run.get("pipeline_name"), stage, kind=run.get("error_type"), fingerprint=fingerprint)
    weight = "greatest(coalesce(sample_rate, 1), 1)::DOUBLE"
    same = f"FILTER ({where})"
    time = "strftime(timezone('UTC', {}(started_at) {}), '%Y-%m-%dT%H:%M:%S.%fZ')"
    ((rows, count, failed, total, first_at, last_at),) = connection.execute(
        f"SELECT count(*) {same}, coalesce(sum({weight}) {same}, 0), "
        f"coalesce(sum({weight}) FILTER (failed AND {where}), 0), "
        f"coalesce(sum({weight}) FILTER (failed), 0), "
        f"{time.format('min', same)}, {time.format('max', same)} FROM runs "
        f"WHERE {parenthesized(within or 'TRUE')}"
    ).fetchall()
    if not rows or not total:  # the run does not count as a failure, or the filter excludes it
        return None
    return SameError(
        fingerprint=fingerprint,
        stage=stage,
        where=where,
        failures=Part(rows, count, failed / total),
        first_at=first_at,
        last_at=last_at,
    )


# ------------------------------------------------------------ summary


_VERBS = {
    "failed": "failed after",
    "timeout": "timed out after",
    "cancelled": "was cancelled after",
    "crashed": "crashed after",
    "open": "has been running for",
    "closed": "has no end; it was last recorded after",
}

_MAX_PARTS = 3
_MIN_PART = 0.05
"""Minimum share of the excess time of a part that the summary contains."""


def _summary(explanation: RunExplanation, failed_in: str | None) -> str:
    """Return the result in one sentence."""
    duration = explanation.duration_ms
    verb = _VERBS.get(explanation.outcome, "took")
    taken = duration_text(duration.value) if duration.value is not None else "an unknown time"
    if failed_in is not None and explanation.outcome == "failed":
        verb = f"failed in {failed_in} after"
    sentence = f"This run {verb} {taken}"
    if duration.p50 is None or duration.p95 is None:
        return f"{sentence}. No other run of this pipeline has the outcome ok."
    sentence += f", typically {duration_text(duration.p50)} (p50; p95 {duration_text(duration.p95)})"
    parts = _excess_parts(explanation.stages)
    if duration.excess > 0 and parts:
        sentence += ": " + ", ".join(parts)
    return f"{sentence}."


def _excess_parts(stages: Sequence[StageMeasured]) -> list[str]:
    """Return where the run spent more time than its peers, longest first."""
    on_path = [stage for stage in stages if stage.critical] or list(stages)
    found = [
        (measured.excess, f"{what} {stage.stage}")
        for stage in on_path
        for what, measured in (
            ("in", stage.ran_ms),
            ("waiting before", stage.waited_ms),
            ("retrying", stage.retried_ms),
        )
    ]
    total = sum(excess for excess, _ in found if excess > 0)
    found = sorted((one for one in found if one[0] > _MIN_PART * total), reverse=True)
    return [f"+{duration_text(excess)} {where}" for excess, where in found[:_MAX_PARTS]]
