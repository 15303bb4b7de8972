"""The tables and views in PostgreSQL: one append-only table of events, and the `runs` and `stages` views."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import date, timedelta

from .._failures import FailureOutcomes
from ..errors import invalid_argument
from ..schema import PipelineWide, StageWide
from ..store import COLUMNS, DATA_PATHS, columns_of, quoted, text

__all__ = ["check_schema", "fingerprint", "mark_sql", "partition_sql", "table_sql", "tables_sql", "view_sql"]


_NAME = re.compile(r"[a-z_][a-z0-9_]{0,49}")

_TYPES = {
    "VARCHAR": "text",
    "VARCHAR[]": "text[]",
    "BIGINT": "bigint",
    "DOUBLE": "double precision",
    "BOOLEAN": "boolean",
    "TIMESTAMPTZ": "timestamptz",
}
"""The PostgreSQL type for each type of the store."""


def check_schema(schema: object) -> str:
    """Return the validated name of a schema.

    Raises:
        InvalidArgumentError: The name is invalid.
    """
    if not isinstance(schema, str) or not _NAME.fullmatch(schema):
        raise invalid_argument(
            "PostgresExporter", "schema", schema, "at most 50 lower-case letters, digits and '_'"
        )
    return schema


def table_sql(schema: str) -> Sequence[str]:
    """Return the statements that create the table of events, its default partition and its indexes.

    The default partition receives the events of days without a partition, so that a user without the
    privilege to create partitions can insert events.

    Args:
        schema: Name of the schema.
    """
    return (
        f"create schema if not exists {schema}",
        f"""create table if not exists {schema}.events (
    day date not null,
    event_id text not null,
    revision bigint not null,
    type text not null,
    run_id text,
    data jsonb not null,
    number bigint generated always as identity,
    exported_at timestamptz not null default now(),
    primary key (day, event_id, revision)
) partition by range (day)""",
        f"create table if not exists {schema}.events_default partition of {schema}.events default",
        f"create index if not exists events_run_id on {schema}.events (run_id)",
        f"create index if not exists events_type on {schema}.events (type, day)",
        f"create index if not exists events_amendments on {schema}.events (event_id) where revision > 0",
    )


def partition_sql(schema: str, day: date) -> str:
    """Return the statement that creates the partition of a day.

    Args:
        schema: Name of the schema.
        day: The day, in UTC.
    """
    return (
        f"create table if not exists {schema}.events_{day:%Y%m%d} partition of {schema}.events"
        f" for values from ('{day}') to ('{day + timedelta(days=1)}')"
    )


def view_sql(schema: str) -> Sequence[str]:
    """Return the statements that replace the views. The columns have the same names as in the store.

    Args:
        schema: Name of the schema.
    """
    failures = FailureOutcomes()
    run_failed = (
        f"case when outcome in ({text(*failures.outcomes)}) then true"
        f" when outcome in ({text(*failures.not_counted)}) then null else false end"
    )
    stage_failed = "case when status = 'FAIL' then true when status in ('OK', 'SKIP') then false end"
    statements = []
    for name, kind, event, failed in (
        ("runs", "pipeline.wide", PipelineWide, run_failed),
        ("stages", "stage.wide", StageWide, stage_failed),
    ):
        columns = columns_of(event)
        values = ",\n        ".join(f"{_value(column)} as {quoted(column)}" for column in columns)
        statements += [
            f"drop view if exists {schema}.{name}",
            f"""create view {schema}.{name} as
with amendments as (
    select a.event_id, jsonb_object_agg(each.key, each.value order by a.revision) as attributes
    from {schema}.events a, jsonb_each(a.data->'attributes') each
    where a.revision > 0 and a.type = '{kind}.amend' and jsonb_typeof(a.data->'attributes') = 'object'
    group by a.event_id
), merged as (
    select
        {values},
        coalesce(e.data->'attributes', '{{}}') || coalesce(a.attributes, '{{}}') as attributes,
        e.day
    from {schema}.events e left join amendments a using (event_id)
    where e.type = '{kind}' and e.revision = 0
)
select {", ".join(map(quoted, columns))}, attributes, {failed} as failed, day from merged""",
        ]
    return statements


def tables_sql(schema: str = "stageflow") -> str:
    """Return the statements that create the tables and views, for a database administrator.

    Args:
        schema: Name of the schema; default "stageflow".

    Raises:
        InvalidArgumentError: The name of the schema is invalid.

    Example:
        print(postgres_tables())
    """
    check_schema(schema)
    statements = (*table_sql(schema), *view_sql(schema), mark_sql(schema))
    return ";\n\n".join(statements) + ";\n"


def mark_sql(schema: str) -> str:
    """Return the statement that records the version of the tables and views, as a comment."""
    return f"comment on table {schema}.events is {text(fingerprint(schema))}"


def fingerprint(schema: str) -> str:
    """Return the version of the tables and views: it changes when a statement changes."""
    statements = "\n".join((*table_sql(schema), *view_sql(schema)))
    return f"stageflow export {hashlib.sha256(statements.encode()).hexdigest()[:16]}"


def _value(column: str) -> str:
    """Return the SQL expression of a column of a view."""
    *above, last = DATA_PATHS[column]
    parent = "e.data" + "".join(f"->{text(key)}" for key in above)
    found = COLUMNS[column]
    if found.type == "VARCHAR[]":
        value = f"{parent}->{text(last)}"
        items = f"array(select jsonb_array_elements_text({value}))"
        return f"case when jsonb_typeof({value}) = 'array' then {items} end"
    kind = _TYPES[found.type]
    value = f"{parent}->>{text(last)}"
    return f"({value})::{kind}" if kind != "text" else f"({value})"
