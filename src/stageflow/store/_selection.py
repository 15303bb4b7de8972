"""Conditions for rows: SQL predicates, filters, and short forms such as `2h..1h`."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, structs

from .._time import get_clock
from .._timeparse import parse_duration, parse_time
from ..errors import QueryError, did_you_mean
from ..journal import OTHER_IDS, RunFilter
from ._columns import ATTRIBUTE, FAILED, SCHEMAS, columns_of, quoted, text
from ._field_names import similar_field
from ._sandbox import check_reads_views_only, parse, parts

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "FIELDS_HINT",
    "Over",
    "TwoWindows",
    "as_predicate",
    "as_query_error",
    "check_binds",
    "check_encodable",
    "compare_with_earlier",
    "condition",
    "field_sql",
    "fields_of",
    "hint_for_text",
    "named_fields",
    "parenthesized",
    "parse_predicate",
    "refuse_duckdb_names",
    "resolve_field",
]


FIELDS_HINT = (
    'the queries `describe runs` and `describe stages` list the fields; an attribute is "attributes.NAME"'
)

_UNKNOWN_COLUMN = re.compile(r'(?:Referenced column "|does not have a column named ")([^"]+)"')

_CONSTANT = re.compile(r"\s*(true|false|null)\s*(--.*)?", re.IGNORECASE)
"""A constant predicate. It is accepted, because it is probably intentional."""

_NO_CONDITION = re.compile(r"TIME|DATE|INTERVAL|UUID|BLOB|STRUCT|MAP|.*\[\d*\]$")
"""The types of DuckDB whose values cannot be converted to a boolean."""

_WORD = re.compile(r"\w+")

_DISPLAYED = re.compile(
    r"""'(?:[^']|'')*'|"(?P<quoted>(?:[^"]|"")*)"|--[^\n]*
    |\b(?P<stage>[^\W\d]\w*)/(?P<of_stage>attributes\.\w+(?:\.\w+)*|\w+)\b(?!\s*\()
    |\b(?P<attribute>attributes\.\w+(?:\.\w+)*)""",
    re.VERBOSE,
)
"""Text, quoted identifiers and comments, and names of fields as `explain` displays them: "stage/field" and
"attributes.NAME"."""

_WINDOW = re.compile(r"(?P<since>[\w\s:+.-]*?)\.\.(?P<until>[\w\s:+.-]*)")
"""Two times. A predicate can also contain two dots, in a string literal."""

_RUN = "run"
"""For stages, "run/field" is a field of their run."""

_DUCKDB_NAMES = {"user", "current_user", "session_user", "current_role", "current_catalog", "current_schema"}
"""Names that are not fields of the views, but to which DuckDB assigns a value."""


def parenthesized(predicate: str) -> str:
    """Return a predicate in parentheses.

    If it may end with a comment, the closing parenthesis is on a separate line.

    Displayed names of fields are translated to SQL. A stage whose name is more than a word is written in
    quotes: "my stage/attributes.n".

    Example:
        >>> parenthesized("a or b"), parenthesized("attributes.n > 3")
        ('(a or b)', '("attributes.n" > 3)')
        >>> parenthesized("llm/status = 'FAIL'").startswith("((select any_value(field) from")
        True
    """
    translated = _DISPLAYED.sub(_as_sql, predicate)
    return f"({translated}\n)" if "--" in predicate else f"({translated})"


def _as_sql(found: re.Match[str]) -> str:
    if found["attribute"]:
        return quoted(found["attribute"])
    if (place := _stage_field(found)) is None:
        return found[0]
    stage, field = place
    rows = "runs" if stage == _RUN else f"stages where stage_name = {text(stage)} and status <> 'RETRY'"
    # The derived table renames the id, so that the outer one belongs to the row of the view.
    values = f"select pipeline_run_id as of_run, {quoted(field)} as field from {rows}"
    return f"(select any_value(field) from ({values}) where of_run = pipeline_run_id)"


def _stage_field(found: re.Match[str]) -> tuple[str, str] | None:
    """Return the stage and the field of a displayed name; None if it is another name, or a division."""
    stage, field = found["stage"], found["of_stage"]
    if found["quoted"] and "/" in found["quoted"]:
        stage, field = _parts_of(found["quoted"].replace('""', '"'))
    if not stage or not (field.startswith(ATTRIBUTE) or field in _stage_columns()):
        return None
    return None if found["stage"] and stage in _run_columns() else (stage, field)


def _parts_of(name: str) -> tuple[str, str]:
    """Return the stage and the field of a displayed name. The name of an attribute can contain a slash."""
    if name.startswith(ATTRIBUTE):
        return "", name
    stage, slash, attribute = name.partition(f"/{ATTRIBUTE}")
    if slash:
        return stage, ATTRIBUTE + attribute
    stage, _, field = name.rpartition("/")
    return stage, field


@functools.cache
def _stage_columns() -> frozenset[str]:
    return frozenset((*columns_of(SCHEMAS["stage.wide"]), FAILED))


@functools.cache
def _run_columns() -> frozenset[str]:
    return frozenset((*columns_of(SCHEMAS["pipeline.wide"]), *_stage_columns()))


def parse_predicate(connection: DuckDBPyConnection, predicate: str) -> Any:
    """Return the parse tree of a predicate.

    Raises:
        QueryError: It is not a single expression, reads anything except the views, or escapes the parentheses
            that enclose it.
    """
    # Parse it without the parentheses first: a predicate such as `a) or (b` is then invalid.
    _parse(connection, predicate, predicate)
    tree = _parse(connection, predicate, parenthesized(predicate))
    check_reads_views_only(connection, tree, predicate)
    refuse_duckdb_names(tree, predicate)
    # A constant such as `1.4` is probably a mistake.
    if not any(_names(tree)) and not _CONSTANT.fullmatch(predicate):
        raise QueryError(
            f"{predicate!r} does not refer to a field, so it has the same value for every row",
            sql=predicate,
            hint="the query `describe runs` lists the fields: user_id = 'u1', service_version = '1.4'",
        )
    return tree


def refuse_duckdb_names(tree: Any, sql: str) -> None:
    """Reject `user` and similar names, which DuckDB resolves to properties of the connection.

    Raises:
        QueryError: A query or predicate uses such a name and does not define it.
    """
    used = {names[0].lower() for names in _references(tree) if len(names) == 1} & _DUCKDB_NAMES
    used -= {str(part.get("alias")).lower() for part in parts(tree)}
    if used:
        name = min(used)
        raise QueryError(
            f"{name!r} is built into DuckDB and is not a field of the views: {sql}",
            sql=sql,
            hint="use user_id" if name.endswith("user") else FIELDS_HINT,
        )


def check_encodable(query: str) -> None:
    """Verify that a query can be encoded as UTF-8.

    Raises:
        QueryError: It contains a lone surrogate.
    """
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise QueryError(f"invalid text {query!r}: {error.reason}", sql=query) from None


def _parse(connection: DuckDBPyConnection, predicate: str, condition: str) -> Any:
    check_encodable(predicate)
    tree = parse(connection, f"SELECT 1 WHERE {condition}")
    if tree["error"]:
        raise QueryError(
            f"invalid predicate {predicate!r}: {tree['error_message']}",
            sql=predicate,
            hint="expected a condition as in a WHERE clause: failed and org_id = 'acme'",
        )
    return tree


def named_fields(connection: DuckDBPyConnection, predicate: str, known: Collection[str]) -> set[str]:
    """Return the known fields to which a predicate refers.

    Raises:
        QueryError: The predicate is invalid.
    """
    # Use DuckDB's parser, because a pattern cannot distinguish text from names.
    tree = parse_predicate(connection, predicate)
    lowered = {name.lower(): name for name in known}
    return {lowered[name.lower()] for name in _names(tree) if name.lower() in lowered}


def _is_last_attempt(part: dict[str, Any]) -> bool:
    """Return whether a part of a tree is `status <> 'RETRY'`, which selects attempts and not results."""
    right = part.get("right")
    literal = right.get("literal") if isinstance(right, dict) else None
    return (
        part.get("type") == "COMPARE_NOTEQUAL"
        and isinstance(literal, dict)
        and literal.get("text") == "RETRY"
    )


def _names(tree: Any) -> Iterator[str]:
    for names in _references(tree):
        yield from names


def _references(tree: Any) -> Iterator[list[str]]:
    ignored = {id(part["left"]) for part in parts(tree) if _is_last_attempt(part)}
    for part in parts(tree):
        if part.get("type") == "COLUMN_REF" and id(part) not in ignored:
            yield part["column_names"]


Over = Literal["runs", "stages"]
"""The view that a query reads: one row per run, or one per stage."""


def fields_of(connection: DuckDBPyConnection, view: str) -> list[str]:
    """Return the names of all columns of a view."""
    return [name for name, *_ in connection.execute(f"describe select * from {view}").fetchall()]


def check_binds(connection: DuckDBPyConnection, over: Over, predicate: str) -> None:
    """Verify that a predicate can be evaluated for the rows of a view.

    Raises:
        QueryError: It refers to an unknown field, or DuckDB cannot evaluate it.
    """
    import duckdb

    known = fields_of(connection, over)
    _check_stages(connection, predicate)
    try:
        # In a WHERE clause, a predicate cannot contain aggregates, window functions or `unnest`.
        connection.execute(f"select 1 from {over} where {parenthesized(predicate)}::boolean limit 0")
        described = connection.execute(f"describe select {parenthesized(predicate)} from {over}").fetchall()
    except (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError) as error:
        if _UNKNOWN_COLUMN.search(str(error)):
            known += _attributes_elsewhere(connection.cursor(), over)
        raise as_query_error(connection, error, predicate, known) from error
    type = str(described[0][1])
    # DuckDB reports this only when it evaluates the predicate in combination with others.
    if _NO_CONDITION.match(type):
        raise QueryError(
            f"{predicate!r} is a value of type {type} and not a condition",
            sql=predicate,
            hint="compare the value: started_at >= '2026-11-24', stages_total > 3",
        )


def _attributes_elsewhere(connection: DuckDBPyConnection, over: Over) -> list[str]:
    """Return the displayed names of the attributes in the other view: of stages for runs, and vice versa."""
    other: Over = "stages" if over == "runs" else "runs"
    # `explain` also accepts a database that has only one of the views.
    columns = connection.execute(
        "select column_name from information_schema.columns where table_name = ?", [other]
    ).fetchall()
    names = [name for (name,) in columns if name.startswith(ATTRIBUTE)]
    if other == "runs" or not names:
        return [f"{_RUN}/{name}" for name in names]
    counts = "".join(f", count({quoted(name)})" for name in names)
    found = connection.execute(f"""
        select stage_name{counts} from stages
        where stage_name is not null and status <> 'RETRY' group by stage_name order by stage_name""")
    return [
        f"{stage}/{name}"
        for stage, *of_stage in found.fetchall()
        for name, count in zip(names, of_stage, strict=True)
        if count
    ]


def _check_stages(connection: DuckDBPyConnection, predicate: str) -> None:
    """Verify that the stages of displayed fields exist: a misspelled name would silently match nothing."""
    named = {place[0] for found in _DISPLAYED.finditer(predicate) if (place := _stage_field(found))} - {_RUN}
    if not named:
        return
    stages = connection.execute("select distinct stage_name from stages").fetchall()
    known = [name for (name,) in stages if name is not None]
    for stage in sorted(named - set(known)):
        raise QueryError(
            f"unknown stage {stage!r} in {predicate!r}{did_you_mean(stage, known)}",
            sql=predicate,
            hint="`stageflow stats` lists the stages",
        )


def as_query_error(
    connection: DuckDBPyConnection, error: Exception, predicate: str, known: Collection[str]
) -> QueryError:
    """Convert a DuckDB error about a predicate to a `QueryError` that suggests the closest field."""
    found = _UNKNOWN_COLUMN.search(str(error))
    if found is None:
        first = str(error).partition("\n")[0].rstrip("!.")
        return QueryError(
            f"DuckDB cannot evaluate the predicate {predicate!r}: {first}", sql=predicate, hint=FIELDS_HINT
        )
    hint = hint_for_text(connection, error, f"select 1 where {parenthesized(predicate)}", known)
    if hint is None and _WORD.fullmatch(predicate.strip()):
        hint = (
            "a predicate compares fields: user_id = 'u1'; `explain` and `compare` also accept failed,"
            " a window (2h..1h) and version=1.5, and `explain` accepts slow and the id of a run"
        )
    return unknown_field(found[1], known, predicate, hint)


def unknown_field(name: str, known: Collection[str], sql: str, hint: str | None = None) -> QueryError:
    """Return the error about an unknown field, which suggests the closest one."""
    where = "" if sql == name else f" in {sql!r}"
    return QueryError(f"unknown field {name!r}{where}{_near(name, known)}", sql=sql, hint=hint or FIELDS_HINT)


def _near(name: str, known: Collection[str]) -> str:
    field = similar_field(name, known)
    if field is None:
        return ""
    return f'; did you mean "{field}"?' if "." in field else f"; did you mean {field!r}?"


def hint_for_text(
    connection: DuckDBPyConnection, error: Exception, sql: str, known: Collection[str]
) -> str | None:
    """Return a hint if an unknown field of a query is probably text without quotes, as in `status = FAIL`."""
    found = _UNKNOWN_COLUMN.search(str(error))
    if found is None:
        return None
    name, fields = found[1], {field.lower() for field in known}
    # The error has aborted the transaction of the connection, but not that of a new cursor.
    for part in parts(parse(connection.cursor(), sql)):
        operands = [part.get("left"), part.get("right"), *(part.get("children") or ())]
        names = {
            operand["column_names"][-1].lower()
            for operand in operands
            if isinstance(operand, dict) and operand.get("type") == "COLUMN_REF"
        }
        if name.lower() in names and names & fields and part.get("class") != "CONJUNCTION":
            return f"write text in single quotes: '{name}'"
    return None


def resolve_field(connection: DuckDBPyConnection, over: Over, name: str) -> str:
    """Return the column for a field, or for an attribute with or without the prefix `attributes.`.

    Raises:
        QueryError: There is no such field.
    """
    known = fields_of(connection, over)
    if (field := _find_field(name, known)) is None:
        raise unknown_field(name, known, name)
    return field


def _find_field(name: str, known: Collection[str]) -> str | None:
    by_lower_case = {field.lower(): field for field in known}
    candidates = (name.lower(), f"{ATTRIBUTE}{name.lower()}")
    return next((by_lower_case[each] for each in candidates if each in by_lower_case), None)


def field_sql(connection: DuckDBPyConnection, over: Over, name: str) -> tuple[str, str]:
    """Return the name of a field and its SQL expression: a column, or a field of a stage of a run.

    Args:
        connection: A connection with the views.
        over: The view of the rows.
        name: A column, an attribute with or without the prefix `attributes.`, or a displayed name:
            "stage/field" for a stage of a run, "run/field" for the run of a stage.

    Raises:
        QueryError: The field or the stage does not exist.
    """
    found = _DISPLAYED.fullmatch('"{}"'.format(name.replace('"', '""')))
    if found is None or (place := _stage_field(found)) is None:
        known = fields_of(connection, over)
        if (column := _find_field(name, known)) is None:
            raise unknown_field(name, [*known, *_attributes_elsewhere(connection, over)], name)
        return column, quoted(column)
    stage, field = place
    _check_stages(connection, found[0])
    resolve_field(connection, "runs" if stage == _RUN else "stages", field)
    return name, _as_sql(found)


def condition(over: Over, filter: RunFilter | None, where: str | None) -> str:
    """Return the SQL condition for the selected rows of a view.

    Args:
        over: The view.
        filter: A filter for runs. In the view `stages`, `stage`, `pipeline` (the topology) and `status` apply
            to the fields of the stage itself.
        where: Additional SQL predicate; `parse_predicate` validates it.

    Example:
        >>> condition("stages", RunFilter(stage="search:FAIL"), "attempts > 1")
        "stage_name = 'search' and status = 'FAIL' and (attempts > 1)"
    """
    conditions = []
    if filter is not None:
        name, _, status = (filter.stage or "").partition(":")
        if over == "stages":
            conditions += [f"stage_name = {text(name)}"] if name else []
            conditions += [f"status = {text(status.upper())}"] if status else []
            conditions += [f"status = {text(filter.status.upper())}"] if filter.status else []
            conditions += [f"topology = {text(filter.pipeline)}"] if filter.pipeline else []
        else:
            if name:
                of_stage = f"stage_name = {text(name)}" + (
                    f" and status = {text(status.upper())}" if status else ""
                )
                conditions.append(f"pipeline_run_id in (select pipeline_run_id from stages where {of_stage})")
            if filter.status:
                conditions.append(
                    f"(status = {text(filter.status.upper())} or outcome = {text(filter.status.lower())})"
                )
            conditions += [f"pipeline_name = {text(filter.pipeline)}"] if filter.pipeline else []
        if filter.id:
            ids = (f"{name}_id = {text(filter.id)}" for name in OTHER_IDS)
            conditions.append(f"(starts_with(pipeline_run_id, {text(filter.id)}) or {' or '.join(ids)})")
        if filter.id_prefix:
            ids = (
                f"starts_with({name}_id, {text(filter.id_prefix)})" for name in ("pipeline_run", *OTHER_IDS)
            )
            conditions.append(f"({' or '.join(ids)})")
        for kind in OTHER_IDS:
            if (value := getattr(filter, kind)) is not None:
                conditions.append(f"{kind}_id = {text(value)}")
        if filter.slower_than is not None:
            conditions.append(f"duration_ms > {float(filter.slower_than) * 1000!r}")
        if filter.roots:
            root = "parent_run_id is null"
            of_root = f"pipeline_run_id in (select pipeline_run_id from runs where {root})"
            conditions.append(root if over == "runs" else of_root)
        # Include the day, by which files are pruned.
        if filter.since:
            conditions.append(f"started_at >= {text(filter.since)}::timestamptz")
            conditions.append(f"day >= {text(filter.since[:10])}::date")
        if filter.until:
            conditions.append(f"started_at < {text(filter.until)}::timestamptz")
            conditions.append(f"day <= {text(filter.until[:10])}::date")
    if where:
        conditions.append(parenthesized(where))
    return " and ".join(conditions) or "true"


def as_predicate(text: str) -> str:
    """Return the SQL predicate for a selection: failed, a window (2h..1h), version=1.5, or a predicate.

    Raises:
        QueryError: A time of a window is invalid, or the window ends before it begins.

    Example:
        >>> as_predicate("failed"), as_predicate("version=1.5"), as_predicate("attempts > 1")
        ('failed', "service_version = '1.5'", 'attempts > 1')
    """
    if text == "failed":
        return FAILED
    if text == "slow":
        raise QueryError(
            "slow cannot be compared with another selection",
            sql=text,
            hint="use a threshold, such as duration_ms > 500; `explain slow` compares with all other rows",
        )
    if version := re.fullmatch(r"version=(\S+)", text):
        return "service_version = '{}'".format(version[1].replace("'", "''"))
    window = _window(text)
    return text if window is None else _in_window(*window)


def _window(text: str) -> tuple[str, str] | None:
    """Return the start and the end of a window such as `2h..1h`; None if the text is not a window."""
    found = _WINDOW.fullmatch(text)
    if found is None:
        return None
    now = _now()
    try:
        begin, end = parse_time(found["since"], now), parse_time(found["until"], now)
    except ValueError as error:
        raise QueryError(f"window {text!r}: {error}", sql=text) from None
    if end <= begin:
        raise QueryError(f"window {text!r} ends before it begins", sql=text, hint="for example: 2h..1h")
    return begin, end


def _in_window(begin: str, end: str) -> str:
    return f"started_at >= '{begin}'::timestamptz and started_at < '{end}'::timestamptz"


def _now() -> datetime:
    return datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)


class TwoWindows(Struct, frozen=True):
    """The comparison of a window with the same window some time earlier.

    Attributes:
        where: The predicate of the window.
        against: The predicate of the earlier window.
        within: The predicate that restricts both windows, for example to failures; None for all rows.
        filter: The filter of both windows, without its times.
    """

    where: str
    against: str
    within: str | None
    filter: RunFilter


def compare_with_earlier(text: str, earlier: str, filter: RunFilter) -> TwoWindows:
    """Return the comparison of a selection with the same selection some time earlier.

    Args:
        text: The selection: a window, or any other selection, for which the filter states the window.
        earlier: The time span, such as "1d" or "1w"; a day has 24 hours.
        filter: The filter. If it has `since` and no `until`, the window ends now.

    Raises:
        QueryError: The selection has no window or two windows, or the window is longer than the time span.

    Example:
        >>> day = RunFilter(since="2026-11-24T10:00:00Z", until="2026-11-24T12:00:00Z")
        >>> compare_with_earlier("failed", "1d", day).against
        "started_at >= '2026-11-23T10:00:00.000000Z'::timestamptz and \
started_at < '2026-11-23T12:00:00.000000Z'::timestamptz"
    """
    window = None if text == "slow" else _window(text)
    within = None if window is not None else as_predicate(text)
    if window is None:
        if filter.since is None:
            raise QueryError(
                f"a comparison with {earlier} earlier requires a window",
                sql=text,
                hint="select a window (2h..now), or use --since 2h",
            )
        window = filter.since, filter.until or parse_time("now", _now())
    elif filter.since is not None or filter.until is not None:
        raise QueryError(
            f"the selection {text!r} is already a window", sql=text, hint="omit --since and --until"
        )
    begin, end = (datetime.fromisoformat(time) for time in window)
    shift = timedelta(seconds=parse_duration(earlier))
    if end - begin > shift:
        raise QueryError(
            f"the window is longer than {earlier}, so it overlaps with the one {earlier} earlier",
            sql=text,
            hint="use a shorter window or a longer time span, such as 1w",
        )
    before = (parse_time((time - shift).isoformat(), time) for time in (begin, end))
    without_times = structs.replace(filter, since=None, until=None)
    return TwoWindows(_in_window(*window), _in_window(*before), within, without_times)
