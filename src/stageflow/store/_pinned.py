"""`PinnedStore`: a snapshot of the records for concurrent queries."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from ._event_store import EventStore
from ._queries import Queries
from ._selection import Over

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["PinnedStore"]


_Result = TypeVar("_Result")


class PinnedStore(EventStore):
    """An `EventStore` that reads the journal and the archive once, when it is created.

    Its queries run concurrently, one per thread, and all of them see the same state. Runs in progress are
    read at the time of the query.

    Args:
        journal: See `EventStore`.
        archive: See `EventStore`.
        storage_options: See `EventStore`.
        memory: See `EventStore`.
        timeout: See `EventStore`.

    Raises:
        ArchiveDamagedError: A file of the archive is damaged or missing.
        JournalNotFoundError: The directory does not exist.
        MissingExtraError: The packages of `stageflow[store]` are not installed.
        OSError: The journal or the archive cannot be read.
        QueryError: An `Interruption` interrupted it.
    """

    def __init__(
        self,
        journal: str | os.PathLike[str] | None = None,
        archive: str | os.PathLike[str] | None = None,
        *,
        storage_options: Mapping[str, str] | None = None,
        memory: str = "2GB",
        timeout: float = 60.0,
    ) -> None:
        super().__init__(journal, archive, storage_options=storage_options, memory=memory, timeout=timeout)
        try:
            self._current.pin()
        except BaseException:
            self.close()
            raise

    @property
    def _queries(self) -> Queries:
        return self._current

    def is_current(self) -> bool:
        """Return whether the journal and the archive are unchanged since they were read.

        It is False too if a query found a file of the archive damaged or missing.

        Raises:
            OSError: The journal or the archive cannot be read.
        """
        return self._current.is_current()

    @property
    def weighted(self) -> bool:
        """Whether any row has a weight other than 1, so that counts are estimates."""
        return self._current.weighted

    def query(
        self,
        execute: Callable[[DuckDBPyConnection], _Result],
        description: str,
        *,
        predicates: Sequence[str | None] = (),
        over: Sequence[Over] = (),
    ) -> _Result:
        """Run a function with a cursor over the views.

        Args:
            execute: Executes statements with the cursor, and returns the result.
            description: The query, for error messages.
            predicates: Predicates of a user; they are validated before `execute` is called.
            over: The views that must have every field of these predicates.

        Raises:
            ArchiveDamagedError: A file of the archive was damaged after the store was created.
            OSError: A file of the archive was moved or deleted after the store was created.
            QueryError: The query fails or exceeds the timeout, or a predicate is invalid.
        """
        return self._current.run(execute, description, predicates=predicates, over=over)
