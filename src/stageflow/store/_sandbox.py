"""Restricts untrusted queries: checks the statement as parsed by DuckDB against an allow-list.

DuckDB must read the files of the journal and the archive for the views, so `allowed_directories` cannot
protect these files from a query. Checking the parsed statement can: a query may reference the views, its own
common table expressions and a few table functions; everything else is refused, including unknown constructs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import QueryError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["VIEWS", "VIEWS_HINT", "check_reads_views_only", "parse", "parts"]


VIEWS = frozenset({"runs", "stages", "items", "events", "counts"})

VIEWS_HINT = "the views are runs, stages, items, events and counts"

_TABLE_FUNCTIONS = frozenset(
    {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}
)

_QUERIES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})

_TABLES = frozenset(
    {"BASE_TABLE", "SUBQUERY", "JOIN", "EXPRESSION_LIST", "EMPTY", "TABLE_FUNCTION", "PIVOT", "SHOW_REF"}
)

# Refuse functions whose result depends on anything other than their arguments (current_setting, write_log,
# nextval, sleep_ms, ...), except functions for time and random numbers.
_ALLOWED_VOLATILE = frozenset(
    {
        "current_date",
        "current_localtime",
        "current_localtimestamp",
        "error",
        "gen_random_uuid",
        "get_current_time",
        "get_current_timestamp",
        "now",
        "random",
        "setseed",
        "today",
        "transaction_timestamp",
        "uuid",
        "uuidv4",
        "uuidv7",
    }
)

_REFUSED = frozenset(
    {"current_query", "current_setting", "getenv", "getvariable", "sleep_ms", "stats", "write_log"}
)


_ALLOWED_REFS = frozenset(
    {"COLUMN_REF", "LAMBDA_REF", "POSITIONAL_REFERENCE", "SHOW_REF", "BOUND_COLUMN_REF", "BOUND_REF"}
)


def parse(connection: DuckDBPyConnection, statement: str) -> Any:
    """Return the parse tree of a statement; its `error` is True unless it consists of SELECT statements.

    Raises:
        QueryError: The statement is nested too deeply.
    """
    (parsed,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [statement]).fetchall()[0]
    try:
        return json.loads(parsed)
    except RecursionError:
        raise QueryError("the query is nested too deeply", sql=statement) from None


def check_reads_views_only(connection: DuckDBPyConnection, tree: Any, query: str) -> None:
    """Raise an error if a parsed statement does anything except read the views.

    Args:
        connection: A DuckDB connection, to look up functions and tables.
        tree: The result of `parse`.
        query: The text of the query, for error messages.

    Raises:
        QueryError: The statement references another table, a file, a function that reads, or a setting.
    """
    ctes = {name.lower() for name in _ctes(tree)}
    for name in ctes - VIEWS:
        # Outside the scope of the expression, DuckDB would resolve its name to a file or to one of its
        # tables.
        if not name.replace("_", "a").replace(" ", "a").isalnum() or _is_table(connection, name):
            raise _refused(query, f"the common table expression {name!r}", "rename it")
    functions: set[str] = set()
    for part in parts(tree):
        kind = part.get("type")
        if "from_table" in part and (part["from_table"] or {}).get("type") not in _TABLES:
            raise _refused(query, f"a table of type {(part['from_table'] or {}).get('type')}")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _QUERIES:
            raise _refused(query, f"{kind.removesuffix('_QUERY_NODE').removesuffix('_NODE')} in a query")
        if kind == "BASE_TABLE":
            _check_view(part, ctes, query)
        elif kind == "SHOW_REF" and part.get("query") is None:
            raise _refused(query, "SHOW", "the query `describe runs` lists the columns of a view")
        elif kind == "TABLE_FUNCTION":
            name = str(part["function"].get("function_name", "")).lower()
            if name not in _TABLE_FUNCTIONS:
                raise _refused(query, f"the table function {name}()")
        elif (
            isinstance(kind, str) and ("_REF" in kind or kind.endswith("_GET")) and kind not in _ALLOWED_REFS
        ):
            raise _refused(query, f"a reference of type {kind}")
        if "function_name" in part:
            functions.add(str(part["function_name"]).lower())
    if found := _refused_functions(connection, functions - _TABLE_FUNCTIONS):
        raise _refused(query, f"the function {min(found)}()")


def _is_table(connection: DuckDBPyConnection, name: str) -> bool:
    return bool(
        connection.execute(
            """select 1 from duckdb_tables() where lower(table_name) = $1
            union all select 1 from duckdb_views() where lower(view_name) = $1""",
            [name],
        ).fetchall()
    )


def _check_view(table: Mapping[str, Any], ctes: set[str], query: str) -> None:
    name = str(table.get("table_name", "")).lower()
    schema, catalog = str(table.get("schema_name", "")).lower(), str(table.get("catalog_name", "")).lower()
    if name in ctes and not schema and not catalog:
        return
    if name not in VIEWS or schema not in ("", "main") or catalog not in ("", "memory"):
        full = ".".join(filter(None, (catalog, schema, name)))
        raise _refused(query, f"the table or file {full!r}")


_impure: frozenset[str] | None = None
"""Built-in functions that depend on more than their arguments; listing them takes DuckDB 20 ms."""


def _refused_functions(connection: DuckDBPyConnection, names: set[str]) -> set[str]:
    global _impure
    if not names:
        return set()
    if _impure is None:
        rows = connection.execute(
            """select distinct function_name from duckdb_functions() where internal
                and (function_type = 'scalar' and stability not in ('CONSISTENT', 'CONSISTENT_WITHIN_QUERY')
                    or function_type = 'scalar' and has_side_effects
                    or function_type = 'macro' and macro_definition ilike '%from %')"""
        ).fetchall()
        _impure = frozenset(name for (name,) in rows)
    return names & (_impure - _ALLOWED_VOLATILE | _REFUSED)


def _ctes(tree: Any) -> Iterator[str]:
    for part in parts(tree):
        for entry in (part.get("cte_map") or {}).get("map", ()):
            yield str(entry["key"])
        if part.get("type") in ("RECURSIVE_CTE_NODE", "CTE_NODE") and part.get("cte_name"):
            yield str(part["cte_name"])


def parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a parse tree; iteratively, because a query may nest deeply."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _refused(query: str, construct: str, hint: str = VIEWS_HINT) -> QueryError:
    return QueryError(
        f"a query can read only the views, but this one references {construct}: {query}",
        sql=query,
        hint=hint,
    )
