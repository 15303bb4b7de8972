"""Exact counts of what happened, hour by hour: in files of their own, whatever is sampled of the events.

A count is a row: its hour in `started_at`, and how many there were in `sample_rate`.
"""

from __future__ import annotations

from .merge import Superseded

__all__ = ["KINDS", "NO_KINDS", "count_rows", "summed"]

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
