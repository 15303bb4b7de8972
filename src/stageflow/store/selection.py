"""Converts filters of runs and stages to SQL."""

from __future__ import annotations

from typing import Literal

from ..journal import RunFilter
from .columns import text
from .predicate import parenthesised

__all__ = ["Over", "condition"]

Over = Literal["runs", "stages"]
"""The view that a query reads: one row per run, or one per stage."""


def condition(over: Over, filter: RunFilter | None, where: str | None) -> str:
    """Return the SQL condition for the selected rows of a view.

    Args:
        over: The view.
        filter: A filter of runs. For stages, `stage`, `pipeline` (their topology) and `status` are compared
            with their own fields.
        where: SQL predicate in addition to it; `must_be_predicate` validates it.

    Example:
        >>> condition("stages", RunFilter(stage="search:FAIL"), "attempts > 1")
        "stage_name = 'search' and status = 'FAIL' and (attempts > 1)"
    """
    parts = []
    if filter is not None:
        name, _, status = (filter.stage or "").partition(":")
        if over == "stages":
            parts += [f"stage_name = {text(name)}"] if name else []
            parts += [f"status = {text(status.upper())}"] if status else []
            parts += [f"status = {text(filter.status.upper())}"] if filter.status else []
            parts += [f"topology = {text(filter.pipeline)}"] if filter.pipeline else []
        else:
            if name:
                of_stage = f"stage_name = {text(name)}" + (
                    f" and status = {text(status.upper())}" if status else ""
                )
                parts.append(f"pipeline_run_id in (select pipeline_run_id from stages where {of_stage})")
            if filter.status:
                parts.append(
                    f"(status = {text(filter.status.upper())} or outcome = {text(filter.status.lower())})"
                )
            parts += [f"pipeline_name = {text(filter.pipeline)}"] if filter.pipeline else []
        if filter.id:
            names = ("request_id", "session_id", "user_id", "org_id")
            ids = (f"{name} = {text(filter.id)}" for name in names)
            parts.append(f"(starts_with(pipeline_run_id, {text(filter.id)}) or {' or '.join(ids)})")
        if filter.slower_than is not None:
            parts.append(f"duration_ms > {float(filter.slower_than) * 1000!r}")
        if filter.roots:
            root = "parent_run_id is null"
            of_root = f"pipeline_run_id in (select pipeline_run_id from runs where {root})"
            parts.append(root if over == "runs" else of_root)
        # The day, too: files are pruned by it.
        if filter.since:
            parts.append(f"started_at >= {text(filter.since)}::timestamptz")
            parts.append(f"day >= {text(filter.since[:10])}::date")
        if filter.until:
            parts.append(f"started_at < {text(filter.until)}::timestamptz")
            parts.append(f"day <= {text(filter.until[:10])}::date")
    if where:
        parts.append(parenthesised(where))
    return " and ".join(parts) or "true"
