"""Which rows a question is about: the filters of runs and stages, as SQL."""

from __future__ import annotations

from typing import Literal

from ..journal import RunFilter
from .columns import text
from .predicate import parenthesised

__all__ = ["Over", "condition"]

Over = Literal["runs", "stages"]
"""What a question is about: whole runs, or their stages one by one."""


def condition(over: Over, where: RunFilter | None, predicate: str | None) -> str:
    """Return in SQL which rows of a view are wanted.

    Args:
        over: The view.
        where: The filter of runs; of stages `stage`, `pipeline` (their topology) and `status` are their own.
        predicate: SQL on top of it; `must_be_predicate` says whether it is any.

    Example:
        >>> condition("stages", RunFilter(stage="search:FAIL"), "attempts > 1")
        "stage_name = 'search' and status = 'FAIL' and (attempts > 1)"
    """
    parts = []
    if where is not None:
        name, _, status = (where.stage or "").partition(":")
        if over == "stages":
            parts += [f"stage_name = {text(name)}"] if name else []
            parts += [f"status = {text(status.upper())}"] if status else []
            parts += [f"status = {text(where.status.upper())}"] if where.status else []
            parts += [f"topology = {text(where.pipeline)}"] if where.pipeline else []
        else:
            if name:
                of_stage = f"stage_name = {text(name)}" + (
                    f" and status = {text(status.upper())}" if status else ""
                )
                parts.append(f"pipeline_run_id in (select pipeline_run_id from stages where {of_stage})")
            if where.status:
                parts.append(
                    f"(status = {text(where.status.upper())} or outcome = {text(where.status.lower())})"
                )
            parts += [f"pipeline_name = {text(where.pipeline)}"] if where.pipeline else []
        if where.id:
            ids = (f"{name} = {text(where.id)}" for name in ("request_id", "session_id", "user_id", "org_id"))
            parts.append(f"(starts_with(pipeline_run_id, {text(where.id)}) or {' or '.join(ids)})")
        if where.slower_than_ms is not None:
            parts.append(f"duration_ms > {float(where.slower_than_ms)!r}")
        if where.roots:
            root = "parent_run_id is null"
            of_root = f"pipeline_run_id in (select pipeline_run_id from runs where {root})"
            parts.append(root if over == "runs" else of_root)
        # The day as well: whole files are passed over by it.
        if where.since:
            parts.append(f"started_at >= {text(where.since)}::timestamptz")
            parts.append(f"day >= {text(where.since[:10])}::date")
        if where.until:
            parts.append(f"started_at < {text(where.until)}::timestamptz")
            parts.append(f"day <= {text(where.until[:10])}::date")
    if predicate:
        parts.append(parenthesised(predicate))
    return " and ".join(parts) or "true"
