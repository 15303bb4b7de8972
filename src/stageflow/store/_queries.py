"""Runs queries over the current state of a journal and its archive."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from .._failures import FailureOutcomes
from ..errors import ArchiveDamagedError, ClosedError, QueryError, invalid_argument
from ..journal import Journal, RunRecord, no_run, several_runs
from ..render import as_html
from ._archive import Archive
from ._columns import text
from ._database import as_os_errors, duckdb_message, interruptible, open_database
from ._frames import to_arrow, to_pandas, to_polars
from ._interruption import Interruption, interrupted_after
from ._parquet import may_be_damage
from ._rows import escape_glob, events_of
from ._sandbox import VIEWS_HINT, check_reads_views_only, parse
from ._selection import (
    FIELDS_HINT,
    Over,
    check_binds,
    check_encodable,
    fields_of,
    hint_for_text,
    parse_predicate,
    refuse_duckdb_names,
)
from ._snapshot import EVERYTHING, RETRIES, Scope, Snapshot, is_missing_file
from ._statistics import Volume

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow
    from duckdb import DuckDBPyConnection

__all__ = ["Queries", "Rows", "load_run"]


_Result = TypeVar("_Result")

_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?(\(\s*(analyze|format)\b[^)]*\)\s*)?", re.IGNORECASE)


class Rows(Struct, frozen=True):
    """The result of a query.

    Attributes:
        columns: Names of the columns.
        rows: The rows; timestamps are `datetime` objects in UTC.
        more: True if `limit` cut off further rows.
    """

    columns: list[str]
    rows: list[tuple[Any, ...]]
    more: bool = False

    def dicts(self) -> list[dict[str, Any]]:
        """Return each row as a dict."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def to_polars(self) -> polars.DataFrame:
        """Return a polars data frame. Columns with the same name are numbered: `count`, `count_2`.

        Raises:
            MissingExtraError: polars is not installed.
        """
        return to_polars(self.columns, self.rows)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a pandas data frame. Columns with the same name are numbered, as in `to_polars`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_pandas(self.columns, self.rows)

    def to_arrow(self) -> pyarrow.Table:
        """Return an Arrow table. Columns with the same name are numbered, as in `to_polars`.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        return to_arrow(self.columns, self.rows)

    def _repr_html_(self) -> str | None:
        title = f"the first {len(self.rows)} rows" if self.more else ""
        return as_html("draw_rows", self.columns, self.rows, title=title)


class Queries:
    """A database over a journal and its archive. Threads can share it; it executes one query at a time.

    Args:
        journal: Directory of the journal; None for the archive alone.
        archive: The archive.
        memory: Memory limit of DuckDB.
        disk: Size limit of DuckDB's temporary directory.
        timeout: Default timeout of a query, in seconds.
        before: Called before each refresh.
        failures: Called at each refresh; returns which outcomes count as failures.
        verify: Whether to verify the checksum of each archive file before reading it.

    Attributes:
        excluded: Why the last result does not include the archive, or parts of it that were not needed; None
            if it includes all of it.
    """

    def __init__(
        self,
        journal: str | None,
        archive: Archive,
        *,
        memory: str,
        disk: str,
        timeout: float,
        before: Callable[[], None],
        failures: Callable[[], FailureOutcomes],
        verify: bool = False,
    ) -> None:
        self.timeout = check_timeout(timeout)
        self._archive = archive
        self._before = before
        self._pid = os.getpid()
        self._closed = False
        self._pinned = self._is_stale = False
        self._lock = threading.RLock()
        self._database = open_database(memory, disk=disk)
        self._snapshot = Snapshot(
            self._database, journal, archive, failures, max_attributes=256, verify=verify
        )
        self.excluded: OSError | None = None
        self._restrict_access()

    def _restrict_access(self) -> None:
        """Let DuckDB read only the directories of the snapshot, and lock this setting."""
        # DuckDB compares paths literally, so allow each directory both as a path and as a pattern.
        plain = [os.path.join(folder, "") for folder in self._snapshot.folders]
        folders = text(*plain, *map(escape_glob, plain))
        self._database.execute(f"set allowed_directories = [{folders}]")
        self._database.execute("set enable_external_access = false")
        self._database.execute("set lock_configuration = true")

    @property
    def is_closed(self) -> bool:
        """True after `close`, and in a forked child."""
        return self._closed or self._pid != os.getpid()

    @property
    def address(self) -> str:
        """Address of the archive."""
        return self._archive.address

    @property
    def weighted(self) -> bool:
        """True if a row of the snapshot has a weight other than 1."""
        return self._snapshot.weighted

    def refresh(self, scope: Scope) -> None:
        """Load the current state of the journal and the archive.

        Args:
            scope: The rows that the query needs. If the archive cannot be read but the scope is available,
                `excluded` is set and nothing is raised.

        Raises:
            ArchiveDamagedError: A file of the archive is damaged or missing.
            OSError: The journal or the archive cannot be read.
        """
        self._check_open()
        if self._pinned:
            return
        with self._lock, as_os_errors(self._archive.address):
            try:
                self._refresh_all()
                self.excluded = None
            except OSError as error:
                if not self._snapshot.refresh_within(scope):
                    raise
                self.excluded = error

    def pin(self) -> None:
        """Load the current state, and keep it: queries no longer refresh it, and run concurrently.

        Raises:
            ArchiveDamagedError: A file of the archive is damaged or missing.
            OSError: The journal or the archive cannot be read.
            QueryError: An `Interruption` interrupted it.
        """
        import duckdb

        try:
            with interrupted_after(self._database, None):
                self.refresh(EVERYTHING)
        except duckdb.InterruptException:
            raise QueryError("interrupted while reading the records", sql="") from None
        self._pinned = True

    def is_current(self) -> bool:
        """Return whether the journal and the archive are unchanged since they were loaded.

        Raises:
            OSError: The journal or the archive cannot be read.
        """
        self._check_open()
        with self._lock, as_os_errors(self._archive.address):
            return not self._is_stale and self._snapshot.is_current()

    def _refresh_all(self) -> None:
        with as_os_errors(self._archive.address):
            self._before()
            try:
                self._snapshot.refresh()
            except Exception as error:
                if may_be_damage(error):
                    self._snapshot.verify()
                raise

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None,
        limit: int | None,
        timeout: float | None,
        since: datetime | None = None,
    ) -> Rows:
        """Run one query; see `EventStore.sql`."""
        check_encodable(query)
        counts = "counts" in query.lower()
        scope = Scope(counts=counts) if since is None else Scope.ended_since(since, counts=counts)

        def execute(cursor: DuckDBPyConnection) -> Rows:
            _check_query(cursor, query)  # which names are allowed depends on the snapshot
            return _fetch(cursor.execute(query, parameters), query, limit)

        return self.run(execute, query, timeout, scope=scope)

    def run(
        self,
        execute: Callable[[DuckDBPyConnection], _Result],
        sql: str,
        timeout: float | None = None,
        *,
        predicates: Sequence[str | None] = (),
        over: Sequence[Over] = (),
        scope: Scope = EVERYTHING,
    ) -> _Result:
        """Run a query on the current snapshot, in a read-only transaction with a timeout.

        Args:
            execute: Executes the query with a cursor.
            sql: The query, for error messages.
            timeout: Seconds; default that of the store.
            predicates: Predicates that the caller of the library passed; they are validated first.
            over: The views that must have every field of these predicates.
            scope: The rows that the query needs; see `refresh`.

        Raises:
            QueryError: The query fails or exceeds the timeout, or a predicate is invalid.
        """
        import duckdb

        seconds = self.timeout if timeout is None else check_timeout(timeout)
        self._check_open()
        # The views of a pinned snapshot do not change, and each query has its own cursor.
        with contextlib.nullcontext() if self._pinned else self._lock:
            previous: object = None
            for attempt in range(RETRIES):
                self.refresh(scope)
                state = self._snapshot.state
                cursor = self._database.cursor()
                interruptions: tuple[Interruption, ...] = ()
                try:
                    with interrupted_after(cursor, seconds) as interruptions, interruptible():
                        # In addition to the sandbox: a query cannot write.
                        cursor.execute("begin transaction read only")
                        for predicate in filter(None, predicates):
                            parse_predicate(cursor, predicate)
                            for view in over:
                                check_binds(cursor, view, predicate)
                        return execute(cursor)
                except duckdb.InterruptException:
                    if any(interruption.requested for interruption in interruptions):
                        raise QueryError(f"interrupted: {sql}", sql=sql) from None
                    raise QueryError(
                        f"no result within {seconds:g} s: {sql}",
                        sql=sql,
                        hint="narrow the query (day >= '2026-11-24'), or allow more time: timeout=...",
                    ) from None
                except duckdb.Error as error:
                    can_reload = not self._pinned and attempt < RETRIES - 1 and state != previous
                    if self._pinned and may_be_damage(error):
                        self._check_pinned_files(error)
                    if can_reload and is_missing_file(error):
                        previous = state
                        self._snapshot.invalidate()
                    elif self._pinned or not may_be_damage(error) or not self._can_leave_out_damage():
                        raise _as_query_error(cursor, sql, error) from None
                finally:
                    cursor.interrupt()  # rows that were not fetched need not be computed
                    cursor.close()
        raise AssertionError("the last attempt has raised")

    def _check_pinned_files(self, error: Exception) -> None:
        """Verify that the files of a pinned snapshot are intact, after a query failed.

        Raises:
            ArchiveDamagedError: A file is damaged or missing.
            OSError: A file was moved or deleted; a new store may be able to read the records.
        """
        with self._lock:
            try:
                self._snapshot.verify()
            except OSError:
                self._is_stale = True
                raise
            if is_missing_file(error):
                self._is_stale = True
                raise OSError(f"archive {self._archive.address}: {duckdb_message(error)}") from None

    def _can_leave_out_damage(self) -> bool:
        """Verify the archive, and return whether another attempt may leave out damaged files.

        Raises:
            ArchiveDamagedError: A file is damaged, and no other attempt can leave it out.
        """
        try:
            self._snapshot.verify()
        except ArchiveDamagedError:
            if self.excluded is not None:
                raise
            return True
        return False

    def volume(self) -> Volume:
        """Return the size of the stored events; see `EventStore.volume`."""
        return self.run(self._snapshot.volume, "volume")

    def close(self) -> None:
        """Close the database."""
        if self._pid == os.getpid():  # a forked child does not have the threads of the database
            with self._lock:
                self._closed = True
                self._database.close()

    def _check_open(self) -> None:
        if self.is_closed:
            raise ClosedError(
                "this EventStore is closed (an EventStore is closed in the child process after a fork)",
                hint="create a new EventStore",
            )


def check_timeout(seconds: float) -> float:
    """Return a timeout in seconds if it is valid.

    Raises:
        InvalidArgumentError: It is not a positive number, or it is too large.
    """
    if not (isinstance(seconds, int | float) and 0 < seconds <= threading.TIMEOUT_MAX):
        raise invalid_argument("EventStore", "timeout", seconds, "more than 0 seconds")
    return seconds


def _check_query(connection: DuckDBPyConnection, query: str) -> None:
    kinds = _statement_types(connection, query)
    # `explain analyze` executes the statement that it explains, which could write a file.
    explain = _EXPLAIN.match(query) if kinds == ["EXPLAIN"] else None
    if explain:
        kinds = _statement_types(connection, query[explain.end() :])
    if kinds != ["SELECT"]:
        if not kinds:
            problem = "the query is empty"
        elif len(kinds) > 1:
            problem = f"expected a single statement, got {len(kinds)}: {query}"
        else:
            problem = f"expected a SELECT statement, got a statement of type {kinds[0]}: {query}"
        raise QueryError(problem, sql=query, hint=f"start with select or from; {VIEWS_HINT}")
    tree = parse(connection, query[explain.end() :] if explain else query)
    if tree["error"]:
        raise QueryError(
            f"expected a single SELECT statement: {tree['error_message']}: {query}",
            sql=query,
            hint="start with select or from; for PIVOT, write `from runs pivot (...)`",
        )
    check_reads_views_only(connection, tree, query)
    refuse_duckdb_names(tree, query)


def _statement_types(connection: DuckDBPyConnection, query: str) -> list[str]:
    import duckdb

    try:
        return [statement.type.name for statement in connection.extract_statements(query)]
    except duckdb.Error as error:
        raise _as_query_error(connection, query, error) from None


def _fetch(cursor: DuckDBPyConnection, query: str, limit: int | None) -> Rows:
    columns = [name for name, *_ in cursor.description or ()]
    try:
        rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit + 1)
    except (OverflowError, ValueError) as error:
        raise QueryError(
            f"Python cannot represent a value of the result: {error}\n  query: {query}",
            sql=query,
            hint="convert it to text: value::varchar",
        ) from None
    return Rows(columns, rows[:limit], limit is not None and len(rows) > limit)


def _as_query_error(connection: DuckDBPyConnection, sql: str, error: Exception) -> QueryError:
    message = duckdb_message(error)
    hint = None
    name = type(error).__name__
    if name == "OutOfMemoryException":
        hint = "narrow the query (day >= '2026-11-24'), or aggregate before sorting and collecting values"
    elif name in ("BinderException", "CatalogException"):
        cursor = connection.cursor()  # the error has aborted the transaction of the connection
        known = {field for view in ("runs", "stages") for field in fields_of(cursor, view)}
        hint = hint_for_text(cursor, error, sql, known) or FIELDS_HINT
    return QueryError(f"{message}\n  query: {sql}", sql=sql, hint=hint)


_Event = tuple[str, dict[str, Any]]


def load_run(
    queries: Queries, journal: str | None, run_id: str, find: Callable[[], str | None] | None = None
) -> RunRecord:
    """Return everything that is known about the run with this id or prefix.

    Args:
        queries: The queries.
        journal: Directory of the journal; None for the archive alone.
        run_id: The id, or a prefix of it.
        find: Returns the id of the run if no id has the prefix `run_id`; default None, for an error.

    Raises:
        RunNotFoundError: There is no such run, or there are several.
    """
    runs = _events_by_run(queries, run_id)
    if run_id in runs:
        runs = {run_id: runs[run_id]}
    if len(runs) > 1:
        where = f"archive {queries.address}" if journal is None else f"journal {journal!r}"
        raise several_runs(where, run_id, sorted(runs))
    for events in runs.values():
        ended = [data for type, data in events if type == "pipeline.wide"]
        if ended:
            children = _children(queries, journal, ended[-1])
            return RunRecord(ended[-1], _stages(events), _custom_events(events), children)
    if not runs and find is not None and (known := find()) not in (None, run_id):
        return load_run(queries, journal, known)
    if journal is None:
        raise no_run(f"archive {queries.address}", run_id)
    # The run is in progress, or unknown: only the journal has its start.
    record = Journal(journal).run(next(iter(runs), run_id))
    events = next(iter(runs.values()), [])
    children = _children(queries, journal, record.run)
    return RunRecord(record.run, _stages(events), _custom_events(events), children)


def _events_by_run(queries: Queries, run_id: str) -> dict[str, list[_Event]]:
    # Every id with this prefix is in the range from `first` to `last`. DuckDB prunes row groups by a range,
    # but not by `starts_with`.
    first, last = text(run_id), text(run_id + "\U0010ffff")
    query = f"""select * from events
        where event_id >= {first} and event_id < {last}
            and pipeline_run_id >= {first} and pipeline_run_id < {last}
        order by coalesce(ended_at, emitted_at), type = 'pipeline.wide', started_at, attempt, event_id"""

    def fetch(cursor: DuckDBPyConnection) -> dict[str, list[_Event]]:
        runs: dict[str, list[_Event]] = {}
        for type, data in events_of(cursor.execute(query)):
            runs.setdefault(str(data["correlation_ids"]["pipeline_run_id"]), []).append((type, data))
        return runs

    return queries.run(fetch, query)


def _stages(events: list[_Event]) -> list[dict[str, Any]]:
    return [data for type, data in events if type == "stage.wide"]


def _custom_events(events: list[_Event]) -> list[_Event]:
    return [(type, data) for type, data in events if type not in ("stage.wide", "pipeline.wide")]


def _children(queries: Queries, journal: str | None, run: dict[str, Any]) -> list[dict[str, Any]]:
    ended = _ended_children(queries, run)
    if journal is None:
        return ended
    known = {child["event_id"] for child in ended}
    in_progress = [
        child
        for child in Journal(journal).in_progress()
        if child.get("parent_run_id") == run["event_id"] and child["event_id"] not in known
    ]
    return ended + sorted(in_progress, key=lambda child: str(child["started_at"]))


def _ended_children(queries: Queries, run: dict[str, Any]) -> list[dict[str, Any]]:
    # A child starts while its parent runs, or a little later if a stage does not stop. The condition on
    # `started_at` lets DuckDB prune row groups.
    until = ""
    if run["ended_at"] is not None:
        until = f"and started_at <= {text(run['ended_at'])}::timestamptz + interval 1 hour"
    query = f"""select 'pipeline.wide' as type, * from runs
        where parent_run_id = {text(run["event_id"])}
            and started_at >= {text(run["started_at"])}::timestamptz
            {until}
        order by started_at"""
    return queries.run(lambda cursor: [data for _, data in events_of(cursor.execute(query))], query)
