"""`EventStore`: everything that a journal and its archive have, as SQL and as questions with names."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .._failures import FailureOutcomes
from ..errors import (
    ArchiveDamagedError,
    DamagedFileError,
    JournalNotFoundError,
    RunNotFoundError,
    SettingsError,
)
from ..journal import Journal, RunFilter, RunStory
from ..journal.disk import absolute_path
from ..journal.failure_file import read_failures
from .address import absolute_address, default_address, read_address, same_address
from .archive import Archive
from .columns import FAILURE, text
from .compactor import Compactor, Progress, closed_segments, must_be_there
from .explanation import explain
from .explanation.difference import Explanation
from .figures import Figures
from .predicate import parenthesised
from .queries import Queries, Rows
from .record import events_of
from .selection import Over, condition
from .snapshot import Scope
from .story import tell_story
from .weights import percentiles, ranked

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["EventStore"]


class EventStore(Figures):
    """Asks a journal and its archive, at any moment, while others write both.

    Each event is in an answer exactly once, with what amended it later. Counts, rates and percentiles
    are weighted by `sample_rate`. It is plain and blocks, like DuckDB: from asynchronous code call it
    with `asyncio.to_thread`. Threads may share it; one of them asks at a time.

    Args:
        journal: Directory of the journal; None to ask an archive alone.
        archive: Address of the archive: a directory, or "s3://bucket/events"; default the one that
            the journal has.
        storage_options: How to get at object storage, as `deltalake` takes it (`AWS_REGION`,
            `AWS_ENDPOINT_URL`, ...); what is missing is taken from the environment. `max_retries` is the
            number of retries of a failed request; default 4, about one second.
        memory: Memory limit of DuckDB; default "2GB". DuckDB spills larger data to a temporary directory.
        disk: Size limit of that directory; default "10GB".
        timeout: Seconds for one question; default 60.
        compact_beyond: Bytes of closed segments from which on a reader takes them into the archive
            before it asks; default 256 MiB, None for never.
        progress: Called with the bytes done and all there are, while it does that.
        verify: Verify the checksum of each archive file once, before reading it for the first time; default
            False. Files written by older versions have no checksum.
        failure_outcomes: The outcomes of runs that count as failures; default those that the journal states
            (see `stageflow.configure`), or `failed`, `timeout` and `crashed`.

    Raises:
        ArchiveDamagedError: A file of the archive is damaged or missing; queries raise it too.
        JournalNotFoundError: There is no such directory.
        MissingExtraError: The packages of `stageflow[store]` are not installed.

    Example:
        with EventStore("journal") as store:
            print(store.sql("select status, count(*) from runs group by 1").rows)
    """

    def __init__(
        self,
        journal: str | os.PathLike[str] | None = None,
        archive: str | os.PathLike[str] | None = None,
        *,
        storage_options: Mapping[str, str] | None = None,
        memory: str = "2GB",
        disk: str = "10GB",
        timeout: float = 60.0,
        compact_beyond: int | None = 256 << 20,
        progress: Progress | None = None,
        verify: bool = False,
        failure_outcomes: Sequence[str] | None = None,
    ) -> None:
        self.path = absolute_path(journal) if journal is not None else None
        if self.path is not None and not os.path.isdir(self.path):
            raise JournalNotFoundError(self.path)
        if self.path is None and archive is None:
            raise ValueError("EventStore() has nothing to ask; give a journal, or archive=...")
        self._given = absolute_address(archive) if archive is not None else None
        self._failures = None if failure_outcomes is None else FailureOutcomes.of(failure_outcomes)
        self._storage_options = storage_options
        self._compact_beyond = compact_beyond
        self._progress = progress
        self._opening = threading.RLock()
        self._open_queries = functools.partial(
            Queries, self.path, memory=memory, disk=disk, timeout=timeout, verify=verify
        )
        self._use(self._address())

    def _use(self, address: str) -> None:
        self.archive = Archive(address, self._storage_options)
        self._current = self._open_queries(
            self.archive, before=self.maintain, failures=self._failure_outcomes
        )

    @property
    def _queries(self) -> Queries:
        """The queries over the archive that the journal has now: another process may have moved it."""
        with self._opening:
            if not self._current.is_closed:
                address = self._address()
                if not same_address(address, self.archive.address):
                    self._use(address)
            return self._current

    def _address(self) -> str:
        if self._given is not None:
            return self._given
        try:
            return read_address(self.path or "")
        except DamagedFileError:  # each question reports it, unless the journal alone has the answer
            return default_address(self.path or "")

    def _failure_outcomes(self) -> FailureOutcomes:
        return self._failures or read_failures(self.path)

    # ------------------------------------------------------------ SQL

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        limit: int | None = 10_000,
        timeout: float | None = None,
        since: datetime | None = None,
    ) -> Rows:
        """Answer one query over the views `runs`, `stages` and `events`.

        It can read and nothing else: no file, no setting, no network. The column `failure` is true for runs
        and stages that count as failures, null for those that failure rates leave out, else false.

        Args:
            query: In DuckDB's SQL.
            parameters: For `?` or `$name` in it.
            limit: How many rows at most; None for all.
            timeout: Seconds; default that of the store.
            since: With a zone; the query only needs rows that ended then or later, and that began at most
                seven days earlier. It is then also answered while other parts of the archive cannot be read:
                see `archive_error`. It does not filter rows. Default None: it needs all rows.

        Raises:
            ArchiveDamagedError: A file of the archive that it needs is damaged or missing.
            QueryError: The query is wrong, takes too long, needs too much memory or is no query.
        """
        return self._queries.sql(query, parameters, limit, timeout, since)

    @property
    def archive_error(self) -> OSError | None:
        """Why the last answer was given without the archive, or a part of it; None if all of it was read.

        An archive that is damaged or cannot be reached is left out only if the answer is complete without it:
        the journal, or intact files of the archive, have all events since the moment that a question states.
        """
        return self._queries.left_out

    # ------------------------------------------------------------ what there is now

    def refresh(self) -> None:
        """Look at journal and archive as they are now; each question does it by itself.

        Raises:
            ArchiveDamagedError: Files of events in the archive are damaged or missing, and the journal no
                longer has these events.
            OSError: The journal or the archive cannot be read.
        """
        self._queries.refresh(Scope(counts=False))

    def maintain(self) -> None:
        """Recover the archive after a crash of the machine, and archive a backlog; each query does this.

        Raises:
            ArchiveDamagedError: A file of the archive is damaged.
            SettingsError: There is no journal, and no archive at this address.
            OSError: Journal or archive cannot be read, or not be written.
        """
        if self.path is None:
            self.archive.refresh()
            if self.archive.version < 0:
                raise SettingsError(
                    f"there is no archive at {self.archive.address}", "the address of the archive"
                )
            return
        is_own = same_address(read_address(self.path), self.archive.address)
        may_write = is_own and os.access(self.path, os.W_OK)
        try:
            self.archive.refresh()
        except ArchiveDamagedError:
            # Any process with write access recovers the archive after a crash of the machine.
            if not may_write or not Compactor(self.path, storage_options=self._storage_options).recover():
                raise
            self.archive.refresh()
        must_be_there(self.archive, self.path)
        if self._given is not None and self.archive.version < 0:
            raise ArchiveDamagedError(
                f"there is no archive at {self.archive.address}",
                files=[self.archive.address],
                hint="correct the address; `stageflow compact` creates an archive",
            )
        if may_write:
            self._compact_if_much(self.path)

    def _compact_if_much(self, journal: str) -> None:
        if self._compact_beyond is None:
            return
        size = 0
        for segment in closed_segments(journal, self.archive):
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(segment.path).st_size
        if size > self._compact_beyond:
            Compactor(journal, storage_options=self._storage_options).compact(self._progress)

    # ------------------------------------------------------------ runs

    def runs(
        self,
        where: RunFilter | None = None,
        *,
        predicate: str | None = None,
        limit: int | None = 20,
        before: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Return runs, those that began last first; also those under way.

        Args:
            where: Which; default all.
            predicate: SQL over the columns of `runs` on top of it; then those under way are left out.
            limit: How many at most; None for all.
            before: The last run of the page before; default None, for the first page.

        Returns:
            The data of a `pipeline.wide` for each; for one under way what `RunStory.run` says.

        Raises:
            QueryError: The predicate is wrong.
            ValueError: `limit` is no whole number, 1 or more.
        """
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"runs(limit={limit!r}); give a whole number, 1 or more, or None for all")
        condition_ = condition("runs", where, predicate)
        if before is not None:
            last = text(before["started_at"], before["event_id"])
            condition_ += f" and (started_at, event_id) < ({last.replace(',', '::timestamptz,', 1)})"
        query = f"""select 'pipeline.wide' as type, * from runs where {condition_}
            order by started_at desc, event_id desc {f"limit {limit}" if limit is not None else ""}"""
        ended = self._queries.ask(
            lambda cursor: _data(cursor.execute(query)),
            query,
            predicates=[predicate],
            scope=Scope.began_since(where.since if where is not None else None),
        )
        under_way = []
        if self.path is not None and predicate is None:
            known = {run["event_id"] for run in ended}
            under_way = [
                run
                for run in Journal(self.path).under_way(where)
                if run["event_id"] not in known and (before is None or _place(run) < _place(before))
            ]
        return sorted([*ended, *under_way], key=_place, reverse=True)[:limit]

    def run(self, run_id: str = "last") -> RunStory:
        """Return the whole story of one run.

        Args:
            run_id: Its `pipeline_run_id`, or a beginning of it that no other run shares; "last" for the
                run that began last.

        Raises:
            RunNotFoundError: There is no such run, or there are several.
        """
        if run_id != "last":
            return tell_story(self._queries, self.path, run_id)
        error = RunNotFoundError("there are no runs yet")
        for run in self.runs(limit=20):
            try:
                return tell_story(self._queries, self.path, str(run["event_id"]))
            except RunNotFoundError as not_found:  # its id is damaged in one of its events
                error = not_found
        raise error

    # ------------------------------------------------------------ what is different

    def explain(
        self,
        where: str | None = None,
        *,
        against: str | None = None,
        over: Over = "runs",
        among: RunFilter | None = None,
        most: int = 20,
        alpha: float = 0.05,
    ) -> Explanation:
        """Return what is different about a selection of runs, or stages, against the rest; see `explain`.

        Args:
            where: SQL that selects; default the failures, compared with the runs or stages that are neither
                failures nor cancelled.
            against: SQL that says what the rest is; default everything else.
            over: "runs" or "stages".
            among: What both are chosen from: a pipeline, a stretch of time; default all.
            most: How many differences at most.
            alpha: Up to which q-value a difference is told.

        Raises:
            QueryError: A predicate is none, or names a field that there is not.

        Example:
            print(store.explain("duration_ms > 2000").differences)
        """
        if where is None:
            where, against = FAILURE, against if against is not None else f"not {FAILURE}"
        given = [where, against]
        if among is not None and among != RunFilter():
            common = condition(over, among, None)
            where = f"{parenthesised(where)} and {common}"
            against = f"{parenthesised(against)} and {common}" if against is not None else common
        return self._queries.ask(
            lambda cursor: explain(cursor, where, against=against, over=over, most=most, alpha=alpha),
            where,
            predicates=given,
            scope=Scope.began_since(among.since if among is not None else None),
        )

    def explain_slow(
        self,
        over: Over = "runs",
        among: RunFilter | None = None,
        *,
        slowest: float = 0.05,
        most: int = 20,
    ) -> Explanation:
        """Return what is different about the slowest runs, or stages, of those that are alike.

        Args:
            over: "runs" or "stages".
            among: Which are looked at; name a pipeline or a stage where they differ in kind.
            slowest: Which share of them counts as slow; default 0.05, the slowest 5 %.
            most: How many differences at most.

        Raises:
            ValueError: `slowest` is no share.
        """
        if not 0 < slowest < 1:
            raise ValueError(f"explain_slow(slowest={slowest!r}); give a share between 0 and 1")
        wanted = condition(over, among, None)
        rows, queries = f"select * from {over} where {wanted}", self._queries

        def limit_ms(cursor: DuckDBPyConnection) -> float:
            weighted = queries.weighted
            found = cursor.execute(
                f"select {percentiles((1 - slowest,), weighted=weighted)}[1]"
                f" from {ranked(rows, 'duration_ms', (), weighted=weighted)}"
            ).fetchone()
            return float(found[0]) if found and found[0] is not None else 0.0  # of nothing, nothing is slow

        limit = queries.ask(
            limit_ms, rows, scope=Scope.began_since(among.since if among is not None else None)
        )
        return self.explain(f"duration_ms > {limit!r}", over=over, among=among, most=most)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Give free what the database holds."""
        with self._opening:
            self._current.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventStore {self.path or self.archive.address!r}>"


def _data(cursor: DuckDBPyConnection) -> list[dict[str, Any]]:
    return [data for _, data in events_of(cursor)]


def _place(run: Mapping[str, Any]) -> tuple[str, str]:
    return run["started_at"], run["event_id"]
