"""Merges rows of the same event, and provides SQL for weights, percentiles and counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from .._failures import FailureOutcomes
from ._archive import ArchiveFile
from ._columns import (
    AMENDMENTS,
    Attributes,
    attribute_column,
    attribute_map,
    attribute_values,
    other_keys_in_rest,
    quoted,
    rest_column,
    text,
)
from ._parquet import LocalFiles, select_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "BASE_TYPE",
    "MIN_ROWS_ABOVE",
    "MIN_SAMPLED_ROWS",
    "Merged",
    "Superseded",
    "Z",
    "count_if",
    "count_rows",
    "failed_column",
    "failed_status",
    "merge",
    "percentiles",
    "ranked",
    "sum_counts",
]


Z = 1.96
"""Number of standard errors on each side of an estimate in a 95% interval."""

MIN_SAMPLED_ROWS = 20
"""Minimum number of sampled rows for an interval."""

MIN_ROWS_ABOVE = 10
"""Minimum number of sampled rows above a percentile for its interval."""


def failed_column(failures: FailureOutcomes, *, is_run: str = "type = 'pipeline.wide'") -> str:
    """Return SQL for the `failed` column, from which every failure rate is calculated.

    The column is true for a failure, null for a row that failure rates exclude (a run that was cancelled
    externally, a stage that was cancelled or will be retried, a custom event), and false otherwise.

    Args:
        failures: The outcomes of runs that count as failures. A stage fails with status FAIL.
        is_run: SQL: true for the row of a run.
    """
    outcome = "coalesce(outcome, if(status = 'FAIL', 'failed', 'ok'))"
    failed = f"when {outcome} in ({text(*failures.outcomes)}) then true" if failures.outcomes else ""
    excluded = f"when {outcome} in ({text(*failures.not_counted)}) then null" if failures.not_counted else ""
    return f"""case when {is_run} then case {failed} {excluded} else false end
        else {failed_status("status")} end"""


def failed_status(status: str) -> str:
    """Return SQL for the `failed` column of a stage or an item, from the SQL expression of its status."""
    return f"case when {status} = 'FAIL' then true when {status} in ('OK', 'SKIP') then false end"


def count_if(condition: str = "true") -> str:
    """Return SQL for the weighted number of rows for which a condition is true.

    Example:
        >>> count_if("failed")
        'coalesce(sum(sample_rate) filter (failed), 0)'
    """
    return f"coalesce(sum(sample_rate) filter ({condition}), 0)"


def ranked(rows: str, value: str, keys: Sequence[str], *, weighted: bool) -> str:
    """Return SQL for rows with the columns that `percentiles` needs: the value, and its cumulative weight.

    Args:
        rows: SQL query for the rows.
        value: SQL expression of the value; rows for which it is null are ignored.
        keys: Columns by which the rows are grouped.
        weighted: Whether any row has a weight other than 1. Without weights, the query is much cheaper.
    """
    if not weighted:
        return f"(select *, {value} as value from ({rows}))"
    group = f"partition by {', '.join(keys)}" if keys else ""
    return f"""(select *, sum(sample_rate) over ({group} order by value nulls last) as cumulative,
        sum(sample_rate) filter (value is not null) over ({group}) as total_weight
        from (select *, {value} as value from ({rows})))"""


def percentiles(ranks: Sequence[float | str], *, weighted: bool) -> str:
    """Return SQL for a list of percentiles of ranked rows.

    A percentile is the smallest value with enough rows at or below it.

    Args:
        ranks: Numbers from 0 to 1, or SQL expressions of such numbers.
        weighted: The same as for `ranked`.
    """
    if not weighted:
        return f"quantile_disc(value, [{', '.join(map(str, ranks))}])"
    # The sum of many weights is subject to rounding errors.
    found = (
        f"min(value) filter (value is not null and cumulative >= total_weight * ({rank}) * (1 - 1e-12))"
        for rank in ranks
    )
    return f"[{', '.join(found)}]"


BASE_TYPE = "replace(type, '.amend', '')"
"""SQL: the key that an event and its amendments share, in addition to `event_id`."""

_IS_AMENDMENT = f"type in ({text(*AMENDMENTS)})"


class Superseded(Struct, frozen=True):
    """The rows of the archive that new rows replace.

    Attributes:
        table: A table with their `base` and `event_id`.
        count: Number of these rows.
    """

    table: str
    count: int

    @property
    def is_superseded(self) -> str:
        """SQL: true for a row that is superseded."""
        return f"({BASE_TYPE}, event_id) in (from {self.table})"

    @property
    def is_current(self) -> str:
        """SQL: true for a row that is not superseded."""
        return f"(event_id is null or ({BASE_TYPE}, event_id) not in (from {self.table}))"


class Merged(Struct, frozen=True):
    """The result of merging a table of new rows.

    Attributes:
        files: The archive files that may contain rows of the same runs.
        related_rows: SQL that selects the rows of these files; None if there are no such files.
        superseded: The rows of the archive that the table now contains.
    """

    files: list[ArchiveFile]
    related_rows: str | None
    superseded: Superseded


def merge(
    connection: DuckDBPyConnection,
    table: str,
    attributes: Attributes,
    files: Sequence[ArchiveFile],
    local: LocalFiles,
) -> Merged:
    """Reduce a table to one row per event, with its amendments merged into it.

    Rows are deduplicated by `event_id`; the last write wins. An amendment without its event remains a row.

    Args:
        connection: The connection that contains the table.
        table: Name of the table of new rows.
        attributes: The attribute columns of the table.
        files: All files of the archive.
        local: Resolves the paths of these files.
    """
    overlapping = _overlapping(files, *_id_range(connection, table))
    related_rows = select_rows(local.paths(overlapping))
    superseded = f"{table}_superseded"
    found: list[tuple[str, str]] = []
    if related_rows is not None:
        found = connection.execute(f"""
            select distinct {BASE_TYPE} as base, event_id from {related_rows} old
            where event_id is not null
                and exists (from {table} new where new.event_id = old.event_id
                    and replace(new.type, '.amend', '') = replace(old.type, '.amend', ''))
        """).fetchall()
    connection.execute(f"create or replace table {superseded} (base varchar, event_id varchar)")
    merged = Merged(overlapping, related_rows, Superseded(superseded, len(found)))
    if found:
        connection.executemany(f"insert into {superseded} values (?, ?)", found)
        connection.execute(
            f"insert into {table} by name"
            f" select * from {related_rows} where {merged.superseded.is_superseded}"
        )
    _deduplicate(connection, table, attributes)
    return merged


def _deduplicate(connection: DuckDBPyConnection, table: str, attributes: Attributes) -> None:
    repeated_rows = f"{table}_repeated"
    repeated = f"""(select {BASE_TYPE} as base, event_id from {table} where event_id is not null
        group by all having count(*) > 1)"""
    connection.execute(
        f"create or replace table {repeated_rows} as select *, {BASE_TYPE} as base from {table}"
        f" where ({BASE_TYPE}, event_id) in {repeated}"
    )
    if connection.execute(f"select count(*) from {repeated_rows}").fetchall() != [(0,)]:
        connection.execute(f"delete from {table} where ({BASE_TYPE}, event_id) in {repeated}")
        amended = _amended(connection, repeated_rows, attributes)
        connection.execute(f"insert into {table} by name {_merged(repeated_rows, amended)}")
    connection.execute(f"drop table {repeated_rows}")


def _overlapping(files: Sequence[ArchiveFile], first: str | None, last: str | None) -> list[ArchiveFile]:
    """Return the files that may contain an event whose id is in a range."""
    if first is None or last is None:
        return []

    def may_overlap(file: ArchiveFile) -> bool:
        if file.first_id is None or file.last_id is None:
            return file.has_events
        return file.first_id <= last and first <= file.last_id

    return list(filter(may_overlap, files))


def _id_range(database: DuckDBPyConnection, table: str) -> tuple[str | None, str | None]:
    """Return a range that contains the ids of all events of the runs in a table; None if it is empty."""
    found: tuple[str | None, str | None] | None = database.execute(f"""
        select least(min(event_id), min(pipeline_run_id)),
            -- The ids of a run's events are the run's id, a slash and a suffix; 0 follows the slash in ASCII.
            greatest(max(event_id), max(pipeline_run_id) || '0')
        from {table}
    """).fetchone()
    assert found is not None
    return found


def _amended(connection: DuckDBPyConnection, repeated_rows: str, attributes: Attributes) -> Attributes:
    """Return the columns of the attributes that occur in an amendment; the others remain unchanged."""
    amendments = f"from {repeated_rows} where {_IS_AMENDMENT}"
    in_rest = connection.execute(
        f"select distinct unnest(json_keys(rest, '$.attributes')) {amendments} and rest is not null"
    ).fetchall()
    names = [quoted(attribute_column(key)) for key in attributes]
    (counts,) = connection.execute(
        f"select {''.join(f'count({name}), ' for name in names)} count(*) {amendments}"
    ).fetchall()
    amended = {key for (key,) in in_rest} | {
        key for key, count in zip(attributes, counts, strict=False) if count
    }
    return {key: type for key, type in attributes.items() if key in amended}


def _merged(repeated_rows: str, attributes: Attributes) -> str:
    names = [quoted(attribute_column(key)) for key in attributes]
    new_values = "".join(f", {value}" for value in attribute_values(attributes, "all_attributes"))
    return f"""
        with events as (
            select * from {repeated_rows} where not {_IS_AMENDMENT}
            qualify row_number() over (
                partition by base, event_id
                order by started_at desc nulls last, ended_at desc nulls last, segment desc
            ) = 1
        ), amendments as (
            -- An amendment that was delivered twice is the same except for its segment.
            select distinct on (columns(* exclude (segment))) * from {repeated_rows} where {_IS_AMENDMENT}
        ), changes as (
            select base, event_id, max(segment) as last_segment, sum(redacted)::bigint as more_redacted,
                flatten(list(truncated order by amended_at)) as more_truncated,
                list({other_keys_in_rest()} order by amended_at) filter (rest is not null) as more_rests,
                list({attribute_map(attributes)} order by amended_at) as more_attributes
            from amendments group by all
        ), weights as (
            select base, event_id, max(sample_rate) as sample_rate, max(sample_reason) as sample_reason
            from {repeated_rows} group by all
        ), weighted as (
            -- An event that was delivered again was not sampled again.
            select e.* replace (w.sample_rate as sample_rate, w.sample_reason as sample_reason)
            from events e join weights w using (base, event_id)
        ), combined as (
            -- The last value of each attribute wins, whether it is in a column or in `rest`.
            select *,
                list_reduce([{attribute_map(attributes)}] || more_attributes,
                    lambda one, next: map_concat(one, next)) as all_attributes,
                list_reduce([coalesce({other_keys_in_rest()}, '{{}}')] || coalesce(more_rests, []),
                    lambda one, next: json_merge_patch(one, next)::varchar) as others
            from weighted join changes using (base, event_id)
        ), amended as (
            select * exclude (base, {"".join(f"{name}, " for name in names)}
                last_segment, more_redacted, more_truncated, more_rests, more_attributes,
                all_attributes, others)
            replace (
                greatest(segment, last_segment) as segment,
                coalesce(redacted, 0) + coalesce(more_redacted, 0) as redacted,
                list_concat(coalesce(truncated, []), coalesce(more_truncated, [])) as truncated,
                {rest_column("others", attributes, "all_attributes")} as rest
            ){new_values}
            from combined
        )
        select * exclude (base) from weighted anti join changes using (base, event_id)
        union all by name
        from amended
        union all by name
        select a.* exclude (base) from amendments a anti join events using (base, event_id)
    """


_KEYS = ("topology", "pipeline_name", "stage_name", "status", "outcome", "service_version")


def count_rows(table: str, superseded: Superseded) -> str:
    """Return SQL that counts the new rows of a table.

    Rows that replace rows of the archive have already been counted.
    """
    return f"""
        select 'stageflow.counts' as type, null::varchar as event_id, day,
            date_trunc('hour', started_at) as started_at, {", ".join(_KEYS)}, sum(sample_rate) as sample_rate
        from {table}
        where type in ('stage.wide', 'pipeline.wide') and sample_rate is not null
            and {superseded.is_current}
        group by all"""


def sum_counts(counts: str) -> str:
    """Return SQL that sums counts with the same keys."""
    return f"""
        select 'stageflow.counts' as type, null::varchar as event_id, day, started_at, {", ".join(_KEYS)},
            sum(sample_rate) as sample_rate
        from ({counts}) group by all"""
