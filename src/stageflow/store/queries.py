"""Answers queries on the newest snapshot: they read and do nothing else, within bounds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from ..errors import QueryError
from .archive import Archive
from .columns import text
from .database import open_database
from .questions import Volume
from .rows import as_pattern
from .snapshot import RETRIES, Snapshot, gone

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Queries", "Rows"]

_Answer = TypeVar("_Answer")


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
        timeout: Seconds for one question, where it is not told otherwise.
        before: Called before each look at what there is now.
    """

    def __init__(
        self,
        journal: str | None,
        archive: Archive,
        *,
        memory: str,
        timeout: float,
        before: Callable[[], None],
    ) -> None:
        self.timeout = timeout
        self._before = before
        self._lock = threading.RLock()
        self._database = open_database(memory)
        self._snapshot = Snapshot(self._database, journal, archive, most_attributes=256)
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
    def weighted(self) -> bool:
        """True where a row of the snapshot stands for more than one."""
        return self._snapshot.weighted

    def refresh(self) -> None:
        """Look at journal and archive as they are now.

        Raises:
            OSError: One of them cannot be read.
        """
        with self._lock:
            self._before()
            self._snapshot.refresh()

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None,
        limit: int | None,
        timeout: float | None,
    ) -> Rows:
        """Answer one query; see `EventStore.sql`."""
        self._must_be_query(query)
        return self.ask(lambda cursor: _fetch(cursor.execute(query, parameters), limit), query, timeout)

    def _must_be_query(self, query: str) -> None:
        import duckdb

        try:
            kinds = [statement.type.name for statement in self._database.extract_statements(query)]
        except duckdb.Error as error:
            raise _unanswered(query, error) from None
        if len(kinds) != 1 or kinds[0] not in ("SELECT", "EXPLAIN"):
            raise QueryError(
                f"the store answers one query at a time, and this is {', '.join(kinds) or 'none'}: {query}",
                sql=query,
                hint="begin with select or from; the views are runs, stages and events",
            )

    def ask(
        self, question: Callable[[DuckDBPyConnection], _Answer], asked: str, timeout: float | None = None
    ) -> _Answer:
        """Ask on the snapshot of now, in a transaction that can only read, for so many seconds at most."""
        import duckdb

        seconds = self.timeout if timeout is None else timeout
        with self._lock:
            for attempt in range(RETRIES):
                self.refresh()
                cursor = self._database.cursor()
                alarm = threading.Timer(seconds, cursor.interrupt)
                alarm.daemon = True
                alarm.start()
                try:
                    # `with x as (insert ...)` is a query by its looks.
                    cursor.execute("begin transaction read only")
                    return question(cursor)
                except duckdb.InterruptException:
                    raise QueryError(
                        f"no answer within {seconds:g} s: {asked}",
                        sql=asked,
                        hint="narrow it down (day >= '2026-11-24'), or give more time: timeout=...",
                    ) from None
                except duckdb.Error as error:
                    if attempt == RETRIES - 1 or not gone(error):
                        raise _unanswered(asked, error) from None
                    self._snapshot.forget()
                finally:
                    alarm.cancel()
                    cursor.close()
        raise AssertionError("the last attempt has raised")

    def volume(self) -> Volume:
        """Return how much is stored; see `EventStore.volume`."""
        return self.ask(self._snapshot.volume, "volume")

    def close(self) -> None:
        """Give free what the database holds."""
        with self._lock:
            self._database.close()


def _fetch(cursor: DuckDBPyConnection, limit: int | None) -> Rows:
    columns = [name for name, *_ in cursor.description or ()]
    if limit is None:
        return Rows(columns, cursor.fetchall())
    rows = cursor.fetchmany(limit + 1)
    return Rows(columns, rows[:limit], len(rows) > limit)


def _unanswered(asked: str, error: Exception) -> QueryError:
    said = str(error).strip()
    hint = (
        '`select * from runs limit 1` shows the columns; an attribute is "attributes.NAME", with the quotes'
    )
    return QueryError(f"{said}\n  asked: {asked}", sql=asked, hint=hint)
