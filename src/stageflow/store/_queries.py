"""The whole story of one run, out of the archive and the journal."""

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
from ..errors import ArchiveDamagedError, QueryError
from ..journal import Journal, RunRecord, no_run, several_runs
from ._archive import Archive
from ._columns import text
from ._database import as_os_errors, interruptible, open_database, without_advice
from ._parquet import may_be_damage
from ._rows import as_pattern, events_of
from ._sandbox import VIEWS_HINT, must_read_views_only, parse
from ._selection import (
    FIELDS_HINT,
    Over,
    fields_of,
    hint_for_text,
    must_be_predicate,
    must_be_text,
    must_bind,
    must_not_use_names_of_duckdb,
)
from ._snapshot import EVERYTHING, RETRIES, Scope, Snapshot, gone
from ._statistics import Volume

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Queries", "Rows", "tell_story"]


_Answer = TypeVar("_Answer")

_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?(\(\s*(analyze|format)\b[^)]*\)\s*)?", re.IGNORECASE)


class Rows(Struct, frozen=True):
    """The answer to a query.

    Attributes:
        columns: Names of the columns.
        rows: Their values; a moment is a `datetime` in UTC.
        more: True where there are more rows than were asked for.
    """

    columns: list[str]
    rows: list[tuple[Any, ...]]
    more: bool = False

    def dicts(self) -> list[dict[str, Any]]:
        """Return each row as a dict."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Queries:
    """A database over journal and archive that threads may share; one of them asks at a time.

    Args:
        journal: Directory of the journal; None for the archive alone.
        archive: The archive.
        memory: That DuckDB may use.
        disk: Size limit of DuckDB's temporary directory.
        timeout: Seconds for one question, where it is not told otherwise.
        before: Called before each look at what there is now.
        failures: The same; returns which outcomes count as failures.
        verify: Whether to verify the checksum of each archive file before reading it.

    Attributes:
        left_out: Why the last answer does not include the archive, or parts of it that were not needed; None
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
        self._lock = threading.RLock()
        self._database = open_database(memory, disk=disk)
        self._snapshot = Snapshot(
            self._database, journal, archive, failures, max_attributes=256, verify=verify
        )
        self.left_out: OSError | None = None
        self._close_doors()

    def _close_doors(self) -> None:
        """Have DuckDB read the folders of the snapshot alone, and nobody change that."""
        # Paths of files are given to it as patterns, and it compares them as they are written.
        plain = [os.path.join(folder, "") for folder in self._snapshot.folders]
        folders = text(*plain, *map(as_pattern, plain))
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
        """True where a row of the snapshot stands for more than one."""
        return self._snapshot.weighted

    def refresh(self, scope: Scope) -> None:
        """Look at journal and archive as they are now.

        Args:
            scope: What the question needs. If the archive cannot be read, and what can be read suffices,
                `left_out` is set, and nothing is raised.

        Raises:
            ArchiveDamagedError: A file of the archive is damaged or missing.
            OSError: One of them cannot be read.
        """
        self._must_be_open()
        with self._lock, as_os_errors(self._archive.address):
            try:
                self._look()
                self.left_out = None
            except OSError as error:
                if not self._snapshot.refresh_within(scope):
                    raise
                self.left_out = error

    def _look(self) -> None:
        with as_os_errors(self._archive.address):
            self._before()
            try:
                self._snapshot.refresh()
            except Exception as error:
                if may_be_damage(error):
                    self._snapshot.must_be_intact()
                raise

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None,
        limit: int | None,
        timeout: float | None,
        since: datetime | None = None,
    ) -> Rows:
        """Answer one query; see `EventStore.sql`."""
        must_be_text(query)
        counts = "counts" in query.lower()
        scope = Scope(counts=counts) if since is None else Scope.ended_since(since, counts=counts)

        def question(cursor: DuckDBPyConnection) -> Rows:
            _must_be_query(cursor, query)  # the names that it must not use depend on the snapshot
            return _fetch(cursor.execute(query, parameters), limit)

        return self.ask(question, query, timeout, scope=scope)

    def ask(
        self,
        question: Callable[[DuckDBPyConnection], _Answer],
        asked: str,
        timeout: float | None = None,
        *,
        predicates: Sequence[str | None] = (),
        over: Sequence[Over] = (),
        scope: Scope = EVERYTHING,
    ) -> _Answer:
        """Ask on the snapshot of now, in a transaction that can only read, for so many seconds at most.

        Args:
            question: What asks.
            asked: What an error says was asked.
            timeout: Seconds; default that of the store.
            predicates: What is part of the question and came from outside.
            over: The views that have every field of these predicates.
            scope: What it needs; see `refresh`.

        Raises:
            QueryError: There is no answer, or a predicate is none.
        """
        import duckdb

        seconds = self.timeout if timeout is None else check_timeout(timeout)
        self._must_be_open()
        with self._lock:
            lost: object = None
            for attempt in range(RETRIES):
                self.refresh(scope)
                seen = self._snapshot.seen
                cursor = self._database.cursor()
                alarm = threading.Timer(seconds, _interrupt, [cursor])
                alarm.daemon = True
                alarm.start()
                try:
                    with interruptible():
                        # In addition to the sandbox: a query cannot write.
                        cursor.execute("begin transaction read only")
                        for predicate in filter(None, predicates):
                            must_be_predicate(cursor, predicate)
                            for view in over:
                                must_bind(cursor, view, predicate)
                        return question(cursor)
                except duckdb.InterruptException:
                    raise QueryError(
                        f"no answer within {seconds:g} s: {asked}",
                        sql=asked,
                        hint="narrow it down (day >= '2026-11-24'), or allow more time: timeout=...",
                    ) from None
                except duckdb.Error as error:
                    if attempt < RETRIES - 1 and seen != lost and gone(error):
                        lost = seen
                        self._snapshot.forget()
                    elif not may_be_damage(error) or not self._is_answerable_without_damage():
                        raise _unanswered(cursor, asked, error) from None
                finally:
                    alarm.cancel()
                    cursor.interrupt()  # what nobody will fetch need not be found
                    cursor.close()
        raise AssertionError("the last attempt has raised")

    def _is_answerable_without_damage(self) -> bool:
        """Verify the archive, and return whether another attempt may leave out damaged files.

        Raises:
            ArchiveDamagedError: A file is damaged, and no other attempt can do without it.
        """
        try:
            self._snapshot.must_be_intact()
        except ArchiveDamagedError:
            if self.left_out is not None:
                raise
            return True
        return False

    def volume(self) -> Volume:
        """Return how much is stored; see `EventStore.volume`."""
        return self.ask(self._snapshot.volume, "volume")

    def close(self) -> None:
        """Give free what the database holds."""
        if self._pid == os.getpid():  # a forked child has none of its threads
            with self._lock:
                self._closed = True
                self._database.close()

    def _must_be_open(self) -> None:
        if self.is_closed:
            raise ValueError("this EventStore is closed (a fork closes it for the child); make another one")


def check_timeout(seconds: float) -> float:
    """Return a number of seconds, if one can wait for so long.

    Raises:
        ValueError: One cannot.
    """
    if not (isinstance(seconds, int | float) and 0 < seconds <= threading.TIMEOUT_MAX):
        raise ValueError(f"timeout={seconds!r}; give seconds, more than 0")
    return seconds


def _interrupt(cursor: DuckDBPyConnection) -> None:
    import duckdb

    with contextlib.suppress(duckdb.ConnectionException):  # the answer came just now
        cursor.interrupt()


def _must_be_query(connection: DuckDBPyConnection, query: str) -> None:
    kinds = _kinds_of(connection, query)
    # What `explain analyze` explains it carries out as well: that may be to write a file.
    explain = _EXPLAIN.match(query) if kinds == ["EXPLAIN"] else None
    if explain:
        kinds = _kinds_of(connection, query[explain.end() :])
    if kinds != ["SELECT"]:
        if not kinds:
            why = "the query is empty"
        elif len(kinds) > 1:
            why = f"the store answers one query at a time, and these are {len(kinds)} statements: {query}"
        else:
            why = f"the store answers queries alone, and this is a statement of kind {kinds[0]}: {query}"
        raise QueryError(why, sql=query, hint=f"begin with select or from; {VIEWS_HINT}")
    tree = parse(connection, query[explain.end() :] if explain else query)
    if tree["error"]:
        raise QueryError(
            f"expected a single SELECT statement: {tree['error_message']}: {query}",
            sql=query,
            hint="start with select or from; for PIVOT, write `from runs pivot (...)`",
        )
    must_read_views_only(connection, tree, query)
    must_not_use_names_of_duckdb(tree, query)


def _kinds_of(connection: DuckDBPyConnection, query: str) -> list[str]:
    import duckdb

    try:
        return [statement.type.name for statement in connection.extract_statements(query)]
    except duckdb.Error as error:
        raise _unanswered(connection, query, error) from None


def _fetch(cursor: DuckDBPyConnection, limit: int | None) -> Rows:
    columns = [name for name, *_ in cursor.description or ()]
    if limit is None:
        return Rows(columns, cursor.fetchall())
    rows = cursor.fetchmany(limit + 1)
    return Rows(columns, rows[:limit], len(rows) > limit)


def _unanswered(connection: DuckDBPyConnection, asked: str, error: Exception) -> QueryError:
    said = without_advice(error)
    hint = None
    name = type(error).__name__
    if name == "OutOfMemoryException":
        hint = "narrow it down (day >= '2026-11-24'), or aggregate before sorting and collecting values"
    elif name in ("BinderException", "CatalogException"):
        cursor = connection.cursor()  # the error has aborted the transaction of the connection
        known = {field for view in ("runs", "stages") for field in fields_of(cursor, view)}
        hint = hint_for_text(cursor, error, asked, known) or FIELDS_HINT
    return QueryError(f"{said}\n  asked: {asked}", sql=asked, hint=hint)


_Told = tuple[str, dict[str, Any]]


def tell_story(
    queries: Queries, journal: str | None, run_id: str, find: Callable[[], str | None] | None = None
) -> RunRecord:
    """Return everything that is known about the run with this id or prefix.

    Args:
        queries: The queries.
        journal: Directory of the journal; None for the archive alone.
        run_id: The id or a prefix of it.
        find: Returns the id of the run if no id begins with `run_id`; default None, for an error.

    Raises:
        RunNotFoundError: There is no such run, or there are several.
    """
    runs = _gather(queries, run_id)
    if run_id in runs:
        runs = {run_id: runs[run_id]}
    if len(runs) > 1:
        where = f"archive {queries.address}" if journal is None else f"journal {journal!r}"
        raise several_runs(where, run_id, sorted(runs))
    for told in runs.values():
        ended = [data for type, data in told if type == "pipeline.wide"]
        if ended:
            return RunRecord(ended[-1], _stages(told), _own(told), _children(queries, journal, ended[-1]))
    if not runs and find is not None and (known := find()) not in (None, run_id):
        return tell_story(queries, journal, known)
    if journal is None:
        raise no_run(f"archive {queries.address}", run_id)
    # The run is in progress, or unknown: only the journal has its start.
    story = Journal(journal).run(next(iter(runs), run_id))
    told = next(iter(runs.values()), [])
    return RunRecord(story.run, _stages(told), _own(told), _children(queries, journal, story.run))


def _gather(queries: Queries, run_id: str) -> dict[str, list[_Told]]:
    # Between these two lies every id that begins so: by that, and not by `starts_with`, whole parts of
    # files are passed over.
    first, last = text(run_id), text(run_id + "\U0010ffff")
    query = f"""select * from events
        where event_id >= {first} and event_id < {last}
            and pipeline_run_id >= {first} and pipeline_run_id < {last}
        order by coalesce(ended_at, emitted_at), type = 'pipeline.wide', started_at, attempt, event_id"""

    def gather(cursor: DuckDBPyConnection) -> dict[str, list[_Told]]:
        runs: dict[str, list[_Told]] = {}
        for type, data in events_of(cursor.execute(query)):
            runs.setdefault(str(data["correlation_ids"]["pipeline_run_id"]), []).append((type, data))
        return runs

    return queries.ask(gather, query)


def _stages(told: list[_Told]) -> list[dict[str, Any]]:
    return [data for type, data in told if type == "stage.wide"]


def _own(told: list[_Told]) -> list[_Told]:
    return [(type, data) for type, data in told if type not in ("stage.wide", "pipeline.wide")]


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
    # They began while it was under way, or a little later, out of a stage that refused to end: with
    # that said, whole parts of files are passed over.
    until = ""
    if run["ended_at"] is not None:
        until = f"and started_at <= {text(run['ended_at'])}::timestamptz + interval 1 hour"
    query = f"""select 'pipeline.wide' as type, * from runs
        where parent_run_id = {text(run["event_id"])}
            and started_at >= {text(run["started_at"])}::timestamptz
            {until}
        order by started_at"""
    return queries.ask(lambda cursor: [data for _, data in events_of(cursor.execute(query))], query)
