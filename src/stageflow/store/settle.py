"""One event, one row: amendments merged, and what came twice counted once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .columns import AMENDMENTS, attribute_column, quoted, text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["BASE", "settle"]

BASE = "replace(type, '.amend', '')"
"""SQL: what an event is, and what amends it, have in common beside their `event_id`."""

_IS_AMENDMENT = f"type in ({text(*AMENDMENTS)})"


def settle(
    connection: DuckDBPyConnection, table: str, attributes: Iterable[str], archived: str | None
) -> list[tuple[str, str]]:
    """Leave one row in a table for each event, with what amends it merged into it.

    Of rows with one `event_id` the last counts. An amendment whose event is nowhere stays a row.

    Args:
        connection: That has the table.
        table: Of new rows.
        attributes: Keys that have a column in it.
        archived: SQL that selects the rows of the archive that may belong to them; None for none.

    Returns:
        Type and `event_id` of the rows of the archive that rows of the table now stand for; they are
        in the table `superseded` as well.
    """
    superseded: list[tuple[str, str]] = []
    if archived is not None:
        superseded = connection.execute(f"""
            select distinct {BASE} as base, event_id from {archived} old
            where event_id is not null
                and exists (from {table} new where new.event_id = old.event_id
                    and replace(new.type, '.amend', '') = replace(old.type, '.amend', ''))
        """).fetchall()
    connection.execute("create or replace table superseded (base varchar, event_id varchar)")
    if superseded:
        connection.executemany("insert into superseded values (?, ?)", superseded)
        connection.execute(
            f"insert into {table} by name select * from {archived}"
            f" where ({BASE}, event_id) in (from superseded)"
        )
    several = f"""(select {BASE} as base, event_id from {table} where event_id is not null
        group by all having count(*) > 1)"""
    connection.execute(
        f"create or replace table {table}_several as select *, {BASE} as base from {table}"
        f" where ({BASE}, event_id) in {several}"
    )
    if connection.execute(f"select count(*) from {table}_several").fetchall() != [(0,)]:
        connection.execute(f"delete from {table} where ({BASE}, event_id) in {several}")
        connection.execute(f"insert into {table} by name {_merged(f'{table}_several', attributes)}")
    connection.execute(f"drop table {table}_several")
    return superseded


def _merged(several: str, attributes: Iterable[str]) -> str:
    columns = [quoted(attribute_column(key)) for key in attributes]
    last = "".join(f", arg_max({column}, amended_at) as {column}" for column in columns)
    replaced = "".join(f", coalesce(a.{column}, e.{column}) as {column}" for column in columns)
    return f"""
        with events as (
            select * from {several} where not {_IS_AMENDMENT}
            qualify row_number() over (
                partition by base, event_id
                order by started_at desc nulls last, ended_at desc nulls last, segment desc
            ) = 1
        ), amendments as (
            select * from {several} where {_IS_AMENDMENT}
            qualify row_number() over (partition by base, event_id, amended_at order by segment) = 1
        ), amended as (
            select base, event_id, max(segment) as segment, sum(redacted)::bigint as redacted,
                flatten(list(truncated order by amended_at)) as truncated,
                list(rest order by amended_at) filter (rest is not null) as rests{last}
            from amendments group by all
        ), told as (
            select base, event_id, max(sample_rate) as sample_rate, max(sample_reason) as sample_reason
            from {several} group by all
        )
        select e.* exclude (base) replace (
            coalesce(greatest(a.segment, e.segment), e.segment) as segment,
            coalesce(e.redacted, 0) + coalesce(a.redacted, 0) as redacted,
            -- What came again has not been sampled again.
            t.sample_rate as sample_rate, t.sample_reason as sample_reason,
            case when a.event_id is null then e.truncated
                else list_concat(coalesce(e.truncated, []), coalesce(a.truncated, [])) end as truncated,
            case when a.rests is null then e.rest
                else list_reduce(list_prepend(coalesce(e.rest, '{{}}'), a.rests),
                    lambda one, next: json_merge_patch(one, next)::varchar) end as rest{replaced}
        )
        from events e left join amended a using (base, event_id) join told t using (base, event_id)
        union all by name
        select m.* exclude (base) from amendments m anti join events e using (base, event_id)
    """
