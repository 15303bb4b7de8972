"""Built-in queries for statistics: groups, totals and volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ._archive import ArchiveFile
from ._columns import FAILED, quoted, text
from ._merge import MIN_ROWS_ABOVE, MIN_SAMPLED_ROWS, Z, count_if, percentiles, ranked
from ._result_list import ResultList
from ._rows import escape_glob
from ._selection import Over, resolve_field

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Interval", "Share", "Stat", "Total", "Volume", "stats", "totals", "volume"]


_RANKS = (0.5, 0.9, 0.95, 0.99)

Interval = tuple[float, float]
"""A 95% confidence interval: the lower and the upper end."""


class Stat(Struct, frozen=True):
    """The statistics of a stage or a pipeline, overall or in one time bucket.

    Counts are numbers of runs, or of stages that ended, weighted by `sample_rate`.

    Attributes:
        pipeline: Name of the pipeline; for a stage, the topology that it ran in.
        stage: Name of the stage; None for whole runs.
        since: Start of the time bucket; None without buckets.
        rows: Number of events.
        count: Number of runs or stages that ended.
        ok: Number of them that were OK and did not count as failures.
        failed: Number of stages with status FAIL, or of runs with an outcome that counts as a failure: by
            default `failed`, `timeout` and `crashed`.
        skipped: Number of stages that were skipped; 0 for runs.
        cancelled: Number of stages that were cancelled, or of runs that were cancelled externally.
        retried: Number of attempts that were retried; 0 for runs.
        failure_rate: `failed`, divided by the number of ends without those that were cancelled (and
            suspended runs); None if there are none.
        p50_ms: Median duration of runs, or of stages that ran, in milliseconds; None if nothing ran.
        p90_ms: 90th percentile of the duration, in milliseconds.
        p95_ms: 95th percentile of the duration, in milliseconds.
        p99_ms: 99th percentile of the duration, in milliseconds.
        estimated: True if a row has a weight other than 1, so that the numbers are estimates.
        count_interval: The 95% interval of `count`; None if no rows, or too few, were sampled.
        failure_rate_interval: The 95% interval of `failure_rate`.
        p95_interval: The 95% interval of `p95_ms`.
        group: Value of the field `by`, as text; None if the rows have no value, or without `by`.
    """

    pipeline: str
    stage: str | None
    since: datetime | None
    rows: int
    count: float
    ok: float
    failed: float
    skipped: float
    cancelled: float
    retried: float
    failure_rate: float | None
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    estimated: bool = False
    count_interval: Interval | None = None
    failure_rate_interval: Interval | None = None
    p95_interval: Interval | None = None
    group: str | None = None


def stats(
    connection: DuckDBPyConnection,
    condition: str,
    over: Over,
    *,
    by: str | None,
    bucket_s: float | None,
    weighted: bool,
) -> list[Stat]:
    """Return the statistics of each stage, or pipeline; see `EventStore.stats`.

    They are ordered by time, then by count.
    """
    group = f"{quoted(resolve_field(connection, over, by))}::varchar" if by is not None else "null::varchar"
    of_stages = over == "stages"
    name = "topology" if of_stages else "pipeline_name"
    stage = "stage_name" if of_stages else "null::varchar"
    ended = "status <> 'RETRY'" if of_stages else "true"
    ran = f"case when {'attempts > 0 and ' if of_stages else ''}{ended} then duration_ms end"
    since = (
        "null::timestamptz"
        if bucket_s is None
        else f"time_bucket(to_seconds({float(bucket_s)!r}), started_at)"
    )

    def of_stage(status: str) -> str:
        return count_if(f"status = '{status}'") if of_stages else "0"

    cancelled = "status = 'CANCEL'" if of_stages else "outcome = 'cancelled'"

    rows = f"""select *, {name} as pipeline, {stage} as stage, {since} as since, {group} as by_value
        from {over} where {condition}"""
    ordered = ranked(rows, ran, _KEYS, weighted=weighted)
    statistics = f"""
        select pipeline, stage, since, by_value,
            count(*), {count_if(ended)} as ended,
            {count_if(f"status = 'OK' and {FAILED} is not true")}, {count_if(FAILED)} as failures,
            {of_stage("SKIP")}, {count_if(cancelled)}, {of_stage("RETRY")},
            failures / nullif({count_if(f"{FAILED} is not null")}, 0) as failure_rate,
            {percentiles(_RANKS, weighted=weighted)} as ranks
        from ordered group by {", ".join(_KEYS)}"""
    intervals = _intervals(ended) if weighted else "select * from statistics"
    found = connection.execute(f"""
        with ordered as {"materialized" if weighted else "not materialized"} (from {ordered}),
            statistics as ({statistics})
        {intervals} order by since nulls first, ended desc, pipeline, stage, by_value
    """).fetchall()
    result = []
    for pipeline, stage_name, start, value, *counts, ranks, sampled, intervals in (
        found if weighted else ((*row, 0, ((None, None),) * 3) for row in found)
    ):
        values: list[Any] = [*counts, *(ranks or (None,) * 4), sampled > 0]
        values += [*_known_intervals(sampled, intervals), value]
        result.append(Stat(pipeline or "", stage_name, start, *values))
    return ResultList(result, "draw_stats", by=by)


_KEYS = ("pipeline", "stage", "since", "by_value")
"""The columns by which rows are grouped."""


def _known_intervals(sampled: int, intervals: Sequence[Sequence[float | None]]) -> Iterator[Interval | None]:
    for low, high in intervals:
        yield None if sampled < MIN_SAMPLED_ROWS or low is None or high is None else (low, high)


def _intervals(ended: str) -> str:
    """Return SQL that adds the number of sampled rows and the three intervals to the statistics."""
    same = " and ".join(f"{key} is not distinct from f.{key}" for key in _KEYS)
    extra = "sample_rate * (sample_rate - 1)"  # the contribution of a sampled row to the variance
    # The variance does not include events of which none was kept; the number of rows is a lower bound.
    return f"""
        , errors as (
            select f.pipeline, f.stage, f.since, f.by_value,
                count(*) filter (sample_rate > 1) as sampled,
                count(*) filter (sample_rate > 1 and value > f.ranks[3]) as above,
                count(*) filter ({ended}) as seen,
                any_value(f.ended) as ended, any_value(f.failure_rate) as rate,
                {count_if(f"{FAILED} is not null")} as rated,
                sqrt(coalesce(sum({extra}) filter ({ended}), 0)) as of_count,
                sqrt(coalesce(sum({extra} * power({FAILED}::int - f.failure_rate, 2))
                    filter ({FAILED} is not null), 0)) / nullif(rated, 0) as of_rate,
                sqrt(coalesce(sum({extra} * power((value <= f.ranks[3])::int - 0.95, 2))
                    filter (value is not null), 0)) / nullif(max(total_weight), 0) as of_p95
            from statistics f join ordered o on o.{same.replace(" and ", " and o.")}
            group by {", ".join(f"f.{key}" for key in _KEYS)}
        ), ends as (
            select o.pipeline, o.stage, o.since, o.by_value,
                {percentiles(("least(0.95 + " + str(Z) + " * of_p95, 1)",), weighted=True)}[1] as high,
                {percentiles(("greatest(0.95 - " + str(Z) + " * of_p95, 0)",), weighted=True)}[1] as low
            from errors f join ordered o on o.{same.replace(" and ", " and o.")}
            group by {", ".join(f"o.{key}" for key in _KEYS)}
        )
        select f.*, sampled,
            [[greatest(f.ended - {Z} * of_count, seen), f.ended + {Z} * of_count],
            [greatest(rate - {Z} * of_rate, 0), least(rate + {Z} * of_rate, 1)],
            case when above >= {MIN_ROWS_ABOVE} then [low, high] else [null, null] end]
        from statistics f
            join errors e on e.{same.replace(" and ", " and e.")}
            join ends x on x.{same.replace(" and ", " and x.")}
        """


class Total(Struct, frozen=True):
    """The exact number of runs of a pipeline, or of ends of a stage, with the same outcome.

    Attributes:
        pipeline: Name of the pipeline; for a stage, the topology that it ran in.
        stage: Name of the stage; None for whole runs.
        status: OK, FAIL, SKIP, CANCEL or RETRY.
        outcome: Outcome of the runs: ok, degraded, failed, ...; None for stages.
        count: The number, counted before sampling.
        failed: Whether it counts as a failure: True or False; None if failure rates exclude it, because it
            was cancelled, suspended or retried.
    """

    pipeline: str
    stage: str | None
    status: str
    outcome: str | None
    count: float
    failed: bool | None = None


def totals(
    connection: DuckDBPyConnection,
    *,
    since: str | None,
    until: str | None,
    pipeline: str | None,
    stage: str | None,
) -> list[Total]:
    """Return totals of full hours, those of runs first."""
    conditions = [
        *([f"hour >= date_trunc('hour', {text(since)}::timestamptz)"] if since else []),
        *([f"hour < {text(until)}::timestamptz"] if until else []),
        *([f"coalesce(pipeline_name, topology) = {text(pipeline)}"] if pipeline else []),
        *([f"stage_name = {text(stage)}"] if stage else []),
    ]
    found = connection.execute(f"""
        select coalesce(pipeline_name, topology, '') as pipeline, stage_name as stage, status, outcome,
            sum(count) as ended, any_value({FAILED})
        from counts where {" and ".join(conditions) or "true"}
        group by 1, 2, 3, 4 order by stage nulls first, pipeline, ended desc, status, outcome
    """).fetchall()
    return ResultList((Total(*row) for row in found), "draw_totals")


class Share(Struct, frozen=True):
    """The part of an archive that a day, a type of event or a field makes up.

    Attributes:
        name: The day, the type or the column.
        events: Number of rows; for a field, the number of rows that have a value.
        emitted: Number of wide events before sampling; None if they are not counted.
        bytes: Compressed size on disk. The size of a column is divided among the types by the number of their
            values.
    """

    name: str
    events: int
    emitted: float | None
    bytes: int


class Volume(Struct, frozen=True):
    """The size of an archive, and of the segments that are not archived yet.

    Attributes:
        events: Number of event rows in the archive.
        bytes: Size of their files.
        count_bytes: Size of the files of exact counts.
        journal_bytes: Size of the segments that are not in the archive.
        days: By day, newest first.
        types: By type, largest first.
        fields: By column, largest first.
    """

    events: int
    bytes: int
    count_bytes: int
    journal_bytes: int
    days: list[Share]
    types: list[Share]
    fields: list[Share]


def volume(
    connection: DuckDBPyConnection, files: Sequence[ArchiveFile], paths: Sequence[str], journal_bytes: int
) -> Volume:
    """Return the volume of files.

    Args:
        connection: The connection with the views.
        files: All files of the archive.
        paths: Local paths of the files that contain events.
        journal_bytes: See `Volume`.
    """
    event_files = [file for file in files if file.has_events]
    emitted = {
        str(day): count
        for day, count in connection.execute("select day, sum(count) from counts group by 1").fetchall()
    }
    days: dict[str, tuple[int, int]] = {}
    for file in event_files:
        rows, size = days.get(file.day, (0, 0))
        days[file.day] = (rows + file.rows, size + file.size)
    fields = _bytes_of_columns(connection, paths) if paths else {}
    by_type = _values_by_type(connection, paths, list(fields)) if paths else {}
    values = {name: sum(counts[name] for counts in by_type.values()) for name in fields}
    return Volume(
        sum(file.rows for file in event_files),
        sum(file.size for file in event_files),
        sum(file.size for file in files if not file.has_events),
        journal_bytes,
        [
            Share(day, rows, emitted.get(day), size)
            for day, (rows, size) in sorted(days.items(), reverse=True)
        ],
        sorted(
            (
                Share(
                    type,
                    counts[""],
                    None,
                    round(sum(fields[name] * counts[name] / values[name] for name in fields if values[name])),
                )
                for type, counts in by_type.items()
            ),
            key=lambda share: -share.bytes,
        ),
        sorted(
            (Share(name, values[name], None, size) for name, size in fields.items()),
            key=lambda share: -share.bytes,
        ),
    )


def _bytes_of_columns(connection: DuckDBPyConnection, paths: Sequence[str]) -> dict[str, int]:
    found = connection.execute(f"""
        select split_part(path_in_schema, ', ', 1) as name, sum(total_compressed_size)::bigint
        from parquet_metadata([{text(*map(escape_glob, paths))}]) group by 1
    """).fetchall()
    return dict(found)


def _values_by_type(
    connection: DuckDBPyConnection, paths: Sequence[str], columns: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Return, for each type, the number of rows (with the key ""), and of values in each column."""
    counted = ", ".join(f"count({quoted(name)})" for name in columns)
    rows = (
        f"read_parquet([{text(*map(escape_glob, paths))}], union_by_name = true, hive_partitioning = false)"
    )
    found = connection.execute(f"select type, count(*), {counted} from {rows} group by 1").fetchall()
    return {type: dict(zip(["", *columns], counts, strict=True)) for type, *counts in found}
