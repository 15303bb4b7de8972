"""One event, one row: amendments merged, and what came twice counted once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .attributes import Attributes, all_attributes, attribute_values, others_in_rest, rest_of
from .columns import AMENDMENTS, attribute_column, quoted, text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["BASE", "settle"]

BASE = "replace(type, '.amend', '')"
"""SQL: what an event is, and what amends it, have in common beside their `event_id`."""

_IS_AMENDMENT = f"type in ({text(*AMENDMENTS)})"


def settle(
    connection: DuckDBPyConnection, table: str, attributes: Attributes, archived: str | None
) -> list[tuple[str, str]]:
    """Leave one row in a table for each event, with what amends it merged into it.

    Of rows with one `event_id` the last counts. An amendment whose event is nowhere stays a row.

    Args:
        connection: That has the table.
        table: Of new rows.
        attributes: The columns that attributes have in it.
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
        amended = _amended(connection, f"{table}_several", attributes)
        connection.execute(f"insert into {table} by name {_merged(f'{table}_several', amended)}")
    connection.execute(f"drop table {table}_several")
    return superseded


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
