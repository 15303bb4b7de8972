"""Merges the rows of events that supersede each other, weighs and counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from .._failures import FailureOutcomes
from ._archive import ArchiveFile
from ._columns import (
    AMENDMENTS,
    Attributes,
    all_attributes,
    attribute_column,
    attribute_values,
    others_in_rest,
    quoted,
    rest_of,
    text,
)
from ._parquet import LocalFiles, select_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "BASE",
    "FEWEST",
    "FEWEST_ABOVE",
    "KINDS",
    "NO_KINDS",
    "Merged",
    "Superseded",
    "Z",
    "count_if",
    "count_rows",
    "failure_of",
    "merge",
    "percentiles",
    "ranked",
    "summed",
]


Z = 1.96
"""Standard errors to each side of an estimate that make 95 %."""

FEWEST = 20
"""Sampled rows from which on an interval is given."""

FEWEST_ABOVE = 10
"""Sampled rows above a percentile from which on its interval is given."""


def failure_of(failures: FailureOutcomes, *, is_run: str = "type = 'pipeline.wide'") -> str:
    """Return SQL for the column `failure`, from which every failure rate is calculated.

    The column is true for a failure, null for a row that failure rates leave out (a run that was cancelled
    externally, a stage that was cancelled or will be retried, a custom event), and false otherwise.

    Args:
        failures: The outcomes of runs that count as failures. A stage fails with status FAIL.
        is_run: SQL: true for the row of a run.
    """
    outcome = "coalesce(outcome, if(status = 'FAIL', 'failed', 'ok'))"
    of_runs = f"when {outcome} in ({text(*failures.outcomes)}) then true" if failures.outcomes else ""
    left_out = f"when {outcome} in ({text(*failures.not_counted)}) then null" if failures.not_counted else ""
    return f"""case when {is_run} then case {of_runs} {left_out} else false end
        else case when status = 'FAIL' then true when status in ('OK', 'SKIP') then false end end"""


def count_if(condition: str = "true") -> str:
    """Return what counts, in SQL, the rows for which a condition holds, each as often as it stands for.

    Example:
        >>> count_if("status = 'FAIL'")
        "coalesce(sum(sample_rate) filter (status = 'FAIL'), 0)"
    """
    return f"coalesce(sum(sample_rate) filter ({condition}), 0)"


def ranked(rows: str, value: str, keys: Sequence[str], *, weighted: bool) -> str:
    """Return rows in SQL with what `percentiles` needs: the value, and how much lies at or below it.

    Args:
        rows: What selects them.
        value: What percentiles are of; where it is null a row does not count.
        keys: By which they are grouped.
        weighted: Whether any row stands for more than one. Without that it is a good deal cheaper.
    """
    if not weighted:
        return f"(select *, {value} as value from ({rows}))"
    group = f"partition by {', '.join(keys)}" if keys else ""
    return f"""(select *, sum(sample_rate) over ({group} order by value nulls last) as reached,
        sum(sample_rate) filter (value is not null) over ({group}) as whole
        from (select *, {value} as value from ({rows})))"""


def percentiles(ranks: Sequence[float | str], *, weighted: bool) -> str:
    """Return what gives, in SQL, percentiles of ranked rows: the smallest value that so much is at or below.

    Args:
        ranks: From 0 to 1, or SQL that gives such a number.
        weighted: As it was said to `ranked`.
    """
    if not weighted:
        return f"quantile_disc(value, [{', '.join(map(str, ranks))}])"
    # A sum of many weights is not exact to its last digit.
    found = (
        f"min(value) filter (value is not null and reached >= whole * ({rank}) * (1 - 1e-12))"
        for rank in ranks
    )
    return f"[{', '.join(found)}]"


BASE = "replace(type, '.amend', '')"
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
    def replaces(self) -> str:
        """SQL: true for a row that is superseded."""
        return f"({BASE}, event_id) in (from {self.table})"

    @property
    def spares(self) -> str:
        """SQL: true for a row that is not superseded."""
        return f"(event_id is null or ({BASE}, event_id) not in (from {self.table}))"


class Merged(Struct, frozen=True):
    """The result of merging a table of new rows.

    Attributes:
        files: The archive files that may contain rows of the same runs.
        near: SQL that selects the rows of these files; None if there are no such files.
        superseded: The rows of the archive that the table now contains.
    """

    files: list[ArchiveFile]
    near: str | None
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
    near = select_rows(local.paths(overlapping))
    superseded = f"{table}_superseded"
    found: list[tuple[str, str]] = []
    if near is not None:
        found = connection.execute(f"""
            select distinct {BASE} as base, event_id from {near} old
            where event_id is not null
                and exists (from {table} new where new.event_id = old.event_id
                    and replace(new.type, '.amend', '') = replace(old.type, '.amend', ''))
        """).fetchall()
    connection.execute(f"create or replace table {superseded} (base varchar, event_id varchar)")
    merged = Merged(overlapping, near, Superseded(superseded, len(found)))
    if found:
        connection.executemany(f"insert into {superseded} values (?, ?)", found)
        connection.execute(
            f"insert into {table} by name select * from {near} where {merged.superseded.replaces}"
        )
    _deduplicate(connection, table, attributes)
    return merged


def _deduplicate(connection: DuckDBPyConnection, table: str, attributes: Attributes) -> None:
    several = f"{table}_several"
    repeated = f"""(select {BASE} as base, event_id from {table} where event_id is not null
        group by all having count(*) > 1)"""
    connection.execute(
        f"create or replace table {several} as select *, {BASE} as base from {table}"
        f" where ({BASE}, event_id) in {repeated}"
    )
    if connection.execute(f"select count(*) from {several}").fetchall() != [(0,)]:
        connection.execute(f"delete from {table} where ({BASE}, event_id) in {repeated}")
        amended = _amended(connection, several, attributes)
        connection.execute(f"insert into {table} by name {_merged(several, amended)}")
    connection.execute(f"drop table {several}")


def _overlapping(files: Sequence[ArchiveFile], first: str | None, last: str | None) -> list[ArchiveFile]:
    """Return the files that may have an event whose id lies between these two."""
    if first is None or last is None:
        return []

    def may_have_it(file: ArchiveFile) -> bool:
        if file.first_id is None or file.last_id is None:
            return file.has_events
        return file.first_id <= last and first <= file.last_id

    return list(filter(may_have_it, files))


def _id_range(database: DuckDBPyConnection, table: str) -> tuple[str | None, str | None]:
    """Return two ids between which lie those of all events of the runs in a table; None for no event."""
    found: tuple[str | None, str | None] | None = database.execute(f"""
        select least(min(event_id), min(pipeline_run_id)),
            -- The ids of a run's events are its own, a slash and more; 0 comes after the slash.
            greatest(max(event_id), max(pipeline_run_id) || '0')
        from {table}
    """).fetchone()
    assert found is not None
    return found


def _amended(connection: DuckDBPyConnection, several: str, attributes: Attributes) -> Attributes:
    """Return the columns of the attributes that an amendment speaks of; the others stay as they are."""
    amendments = f"from {several} where {_IS_AMENDMENT}"
    in_rest = connection.execute(
        f"select distinct unnest(json_keys(rest, '$.attributes')) {amendments} and rest is not null"
    ).fetchall()
    names = [quoted(attribute_column(key)) for key in attributes]
    (counts,) = connection.execute(
        f"select {''.join(f'count({name}), ' for name in names)} count(*) {amendments}"
    ).fetchall()
    said = {key for (key,) in in_rest} | {
        key for key, count in zip(attributes, counts, strict=False) if count
    }
    return {key: type for key, type in attributes.items() if key in said}


def _merged(several: str, attributes: Attributes) -> str:
    names = [quoted(attribute_column(key)) for key in attributes]
    said = "".join(f", {value}" for value in attribute_values(attributes, "said"))
    return f"""
        with events as (
            select * from {several} where not {_IS_AMENDMENT}
            qualify row_number() over (
                partition by base, event_id
                order by started_at desc nulls last, ended_at desc nulls last, segment desc
            ) = 1
        ), amendments as (
            -- What was delivered twice is the same but for where it stood.
            select distinct on (columns(* exclude (segment))) * from {several} where {_IS_AMENDMENT}
        ), amended as (
            select base, event_id, max(segment) as last_segment, sum(redacted)::bigint as more_redacted,
                flatten(list(truncated order by amended_at)) as more_truncated,
                list({others_in_rest()} order by amended_at) filter (rest is not null) as more_rests,
                list({all_attributes(attributes)} order by amended_at) as more_said
            from amendments group by all
        ), told as (
            select base, event_id, max(sample_rate) as sample_rate, max(sample_reason) as sample_reason
            from {several} group by all
        ), whole as (
            -- What came again has not been sampled again.
            select e.* replace (t.sample_rate as sample_rate, t.sample_reason as sample_reason)
            from events e join told t using (base, event_id)
        ), said as (
            -- The last word on each attribute counts, whether it stood in a column or in `rest`.
            select *,
                list_reduce([{all_attributes(attributes)}] || more_said,
                    lambda one, next: map_concat(one, next)) as said,
                list_reduce([coalesce({others_in_rest()}, '{{}}')] || coalesce(more_rests, []),
                    lambda one, next: json_merge_patch(one, next)::varchar) as others
            from whole join amended using (base, event_id)
        ), with_what_was_said as (
            select * exclude (base, {"".join(f"{name}, " for name in names)}
                last_segment, more_redacted, more_truncated, more_rests, more_said, said, others)
            replace (
                greatest(segment, last_segment) as segment,
                coalesce(redacted, 0) + coalesce(more_redacted, 0) as redacted,
                list_concat(coalesce(truncated, []), coalesce(more_truncated, [])) as truncated,
                {rest_of("others", attributes, "said")} as rest
            ){said}
            from said
        )
        select * exclude (base) from whole anti join amended using (base, event_id)
        union all by name
        from with_what_was_said
        union all by name
        select a.* exclude (base) from amendments a anti join events using (base, event_id)
    """


_KEYS = ("topology", "pipeline_name", "stage_name", "status", "outcome", "service_version")

KINDS = (
    "select distinct coalesce(pipeline_name, ''), coalesce(outcome, ''), coalesce(service_version, '')"
    " from {counts} where stage_name is null"
)
"""SQL that selects the kinds of runs of which there are counts."""

NO_KINDS = "select '', '', '' where false"


def count_rows(table: str, superseded: Superseded) -> str:
    """Return SQL that counts the new rows of a table.

    Rows that replace rows of the archive are already counted.
    """
    return f"""
        select 'stageflow.counts' as type, null::varchar as event_id, day,
            date_trunc('hour', started_at) as started_at, {", ".join(_KEYS)}, sum(sample_rate) as sample_rate
        from {table}
        where type in ('stage.wide', 'pipeline.wide') and sample_rate is not null
            and {superseded.spares}
        group by all"""


def summed(counts: str) -> str:
    """Return SQL that selects counts, those of the same added up."""
    return f"""
        select 'stageflow.counts' as type, null::varchar as event_id, day, started_at, {", ".join(_KEYS)},
            sum(sample_rate) as sample_rate
        from ({counts}) group by all"""
