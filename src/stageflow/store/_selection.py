"""Selects rows: by SQL predicate, by filter, or by a short form."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import typer

from .._time import get_clock
from .._timeparse import parse_time
from ..errors import QueryError, did_you_mean
from ..journal import RunFilter
from ._columns import text
from ._sandbox import must_read_views_only, parse

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "Over",
    "as_predicate",
    "as_query_error",
    "condition",
    "must_be_predicate",
    "must_be_text",
    "named_fields",
    "parenthesised",
]


_UNKNOWN_COLUMN = re.compile(r'(?:Referenced column "|does not have a column named ")([^"]+)"')

_CONSTANT = re.compile(r"\s*(true|false|null)\s*(--.*)?", re.IGNORECASE)
"""What says the same of every row, and is meant to."""

_OF_DUCKDB = {"user", "current_user", "session_user", "current_role", "current_catalog", "current_schema"}
"""Names that are no columns, and mean something to DuckDB."""


def parenthesised(predicate: str) -> str:
    """Return a predicate so that others may stand beside it; a comment at its end stays one.

    Example:
        >>> parenthesised("a or b")
        '(a or b)'
    """
    return f"({predicate}\n)" if "--" in predicate else f"({predicate})"


def must_be_predicate(connection: DuckDBPyConnection, predicate: str) -> Any:
    """Return how DuckDB parses a predicate.

    Raises:
        QueryError: It is not a single expression, reads anything except the views, or escapes the parentheses
            that enclose it.
    """
    # Its own parentheses must match as it stands: then none of them can close one around it.
    _parse(connection, predicate, predicate)
    tree = _parse(connection, predicate, parenthesised(predicate))
    must_read_views_only(connection, tree, predicate)
    # `1.4`, `user = 'u1'` (DuckDB's own user): the same for every row, and never what was meant.
    if not set(_names(tree)) - _OF_DUCKDB and not _CONSTANT.fullmatch(predicate):
        raise QueryError(
            f"{predicate!r} names no column, and says the same of every row",
            sql=predicate,
            hint="`describe runs` lists the columns: user_id = 'u1', service_version = '1.4'",
        )
    return tree


def must_be_text(query: str) -> None:
    """Refuse what no database takes for text.

    Raises:
        QueryError: It has half of a surrogate pair.
    """
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise QueryError(f"this is no text: {query!r}: {error.reason}", sql=query) from None


def _parse(connection: DuckDBPyConnection, predicate: str, condition: str) -> Any:
    must_be_text(predicate)
    tree = parse(connection, f"SELECT 1 WHERE {condition}")
    if tree["error"]:
        raise QueryError(
            f"this is no predicate: {predicate!r}: {tree['error_message']}",
            sql=predicate,
            hint="a predicate is what may stand after WHERE, such as: status = 'FAIL' AND org_id = 'acme'",
        )
    return tree


def named_fields(connection: DuckDBPyConnection, predicate: str, known: Collection[str]) -> set[str]:
    """Return which of the known fields a predicate names.

    Raises:
        QueryError: It is not one expression.
    """
    # The parser of DuckDB tells a text from a name, which a pattern cannot.
    tree = must_be_predicate(connection, predicate)
    lowered = {name.lower(): name for name in known}
    return {lowered[name.lower()] for name in _names(tree) if name.lower() in lowered}


def _names(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from part.get("column_names", ()) if part.get("type") == "COLUMN_REF" else ()
        part = part.values()
    elif not isinstance(part, list):
        return
    for item in part:
        yield from _names(item)


def as_query_error(error: Exception, predicate: str, known: Collection[str]) -> QueryError:
    """Return what DuckDB said of a predicate as an error of ours, with the nearest name of a field."""
    said = str(error)
    found = _UNKNOWN_COLUMN.search(said)
    near = did_you_mean(found[1], known) if found else ""
    first = said.partition("\n")[0].rstrip("!.")
    return QueryError(
        f"DuckDB cannot answer for the predicate {predicate!r}: {first}{near}",
        sql=predicate,
        hint="`DESCRIBE runs` and `DESCRIBE stages` list the fields; attributes stand in quotes: "
        "\"attributes.model\" = 'm-large'",
    )


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


def as_predicate(text: str) -> str:
    """Return a selection as SQL."""
    if version := re.fullmatch(r"version=(\S+)", text):
        return "service_version = '{}'".format(version[1].replace("'", "''"))
    since, dots, until = text.partition("..")
    if not dots:
        return text
    now = datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)
    try:
        window = parse_time(since, now), parse_time(until, now)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return "started_at >= '{}'::timestamptz and started_at < '{}'::timestamptz".format(*window)
