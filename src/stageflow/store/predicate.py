"""A predicate as it was given: whether it is one, which fields it names, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import QueryError, did_you_mean
from .sandbox import must_read_views_only, parse

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["as_query_error", "must_be_predicate", "must_be_text", "named_fields", "parenthesised"]

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
