"""`EventStore`: queries over all runs of a journal and its archive."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from .._failures import FailureOutcomes
from .._files import absolute_path
from ..errors import (
    ArchiveDamagedError,
    DamagedFileError,
    InvalidArgumentError,
    JournalNotFoundError,
    RunNotFoundError,
    invalid_argument,
)
from ..journal import Journal, Names, RunFilter, RunRecord, find_run, read_failures
from ._address import absolute_address, check_exists, default_address, read_address, same_address
from ._archive import Archive
from ._columns import text
from ._compactor import Compactor, Progress, closed_segments, sampler_of_archive
from ._comparison import Comparison, SlowRecord, compare, slowest
from ._error_groups import ErrorGroup, baseline, errors
from ._explain import answer, compare_run
from ._explain._by_pipeline import explain_by_pipeline
from ._explain._explanation import Explanation
from ._explain._request import ExplainOptions, Request, check_share, request_of, restriction
from ._explain._run_explanation import RunExplanation
from ._explain._slow import select_slow
from ._findings import OverviewFinding, find
from ._overview import Overview, look
from ._queries import Queries, Rows, load_run
from ._result_list import ResultList
from ._rows import events_of
from ._sampling import NO_KINDS, SamplingResult, TailSampler, decide, report
from ._selection import Over, condition
from ._snapshot import Scope
from ._statistics import Stat, Total, Volume, stats, totals

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["EventStore"]


_Explained = TypeVar("_Explained")


class EventStore:
    """Queries over a journal and its archive, while other processes write to both.

    Each event occurs exactly once in a result, with its later amendments. Counts, rates and percentiles are
    weighted by `sample_rate`. All methods block, as those of DuckDB do: call them with `asyncio.to_thread`
    from asynchronous code. Threads can share a store; it executes one query at a time.

    Args:
        journal: Directory of the journal; None to query an archive without its journal.
        archive: Address of the archive: a directory, or "s3://bucket/events"; default the one that
            the journal has.
        storage_options: Options for object storage, as `deltalake` accepts them (`AWS_REGION`,
            `AWS_ENDPOINT_URL`, ...); missing options are read from the environment. `max_retries` is the
            number of retries of a failed request; default 4, about one second.
        memory: Memory limit of DuckDB; default "2GB". DuckDB spills larger data to a temporary directory.
        disk: Size limit of that directory; default "10GB".
        timeout: Seconds for one query; default 60.
        compact_beyond: Size of the closed segments in bytes from which on a query archives them first;
            default 256 MiB; None to disable this.
        progress: Called with the number of bytes archived so far and in total, while a query archives
            segments.
        verify: Verify the checksum of each archive file once, before reading it for the first time; default
            False. Files written by older versions have no checksum.
        failure_outcomes: The outcomes of runs that count as failures; default those that the journal states
            (see `stageflow.configure`), or `failed`, `timeout` and `crashed`.

    Raises:
        ArchiveDamagedError: A file of the archive is damaged or missing; queries raise it too.
        JournalNotFoundError: The directory does not exist.
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
            raise InvalidArgumentError("EventStore: a journal or an archive is required")
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
        """The queries over the current archive of the journal, which another process may have moved."""
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
        except DamagedFileError:  # each query reports it, unless the journal alone has the result
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
        """Execute one query over the `runs`, `stages` and `events` views.

        The query can read only these views: no files, settings or network. The `failed` column is true for
        runs and stages that count as failures, null for those that failure rates exclude, otherwise false.

        Args:
            query: A SELECT statement of DuckDB's SQL.
            parameters: Values for `?` or `$name` in the query.
            limit: Maximum number of rows; None for all.
            timeout: Seconds; default that of the store.
            since: With a time zone; the query needs only rows that ended then or later, and that began at
                most seven days earlier. It is then also executed while other parts of the archive cannot be
                read: see `archive_error`. It does not filter rows. Default None: it needs all rows.

        Raises:
            ArchiveDamagedError: A file of the archive that it needs is damaged or missing.
            QueryError: The query is invalid, takes too long or needs too much memory.
        """
        return self._queries.sql(query, parameters, limit, timeout, since)

    @property
    def archive_error(self) -> OSError | None:
        """The reason why the last query did not read all of the archive; None if it did.

        An archive that is damaged or cannot be reached is left out only if the result is complete without it:
        the journal, or intact files of the archive, contain all events since the time that the query states.
        """
        return self._queries.excluded

    # ------------------------------------------------------------ current state

    def refresh(self) -> None:
        """Read the current state of the journal and the archive; each query does this.

        Raises:
            ArchiveDamagedError: Files with events are damaged or missing, and the journal no longer has these
                events.
            OSError: The journal or the archive cannot be read.
        """
        self._queries.refresh(Scope(counts=False))

    def maintain(self) -> None:
        """Recover the archive after a machine crash, and archive a backlog; each query does this.

        Raises:
            ArchiveDamagedError: A file of the archive is damaged.
            InvalidArgumentError: There is no journal, and no archive at this address.
            OSError: The journal or the archive cannot be read or written.
        """
        if self.path is None:
            self.archive.refresh()
            if self.archive.version < 0:
                raise InvalidArgumentError(f"there is no archive at {self.archive.address}")
            return
        is_own = same_address(read_address(self.path), self.archive.address)
        may_write = is_own and os.access(self.path, os.W_OK)
        try:
            self.archive.refresh()
        except ArchiveDamagedError:
            # Any process with write access recovers the archive after a machine crash.
            if not may_write or not Compactor(self.path, storage_options=self._storage_options).recover():
                raise
            self.archive.refresh()
        check_exists(self.archive, self.path)
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
            # The archive keeps the sampler of the other compactions.
            sampler = sampler_of_archive(journal)
            options = self._storage_options
            Compactor(journal, storage_options=options, sampler=sampler).compact(self._progress)

    # ------------------------------------------------------------ runs

    def runs(
        self,
        filter: RunFilter | None = None,
        *,
        where: str | None = None,
        limit: int | None = 20,
        before: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Return runs, newest first, including runs in progress.

        Args:
            filter: The runs to return; default all.
            where: SQL predicate over the columns of `runs`, in addition to the filter. Runs in progress
                are then excluded.
            limit: Maximum number of runs; None for all.
            before: The last run of the previous page; default None, for the first page.

        Returns:
            The data of the `pipeline.wide` event of each run; for a run in progress, see `RunRecord.run`.

        Raises:
            QueryError: The predicate is invalid.
            InvalidArgumentError: `limit` is not a positive integer.
        """
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise invalid_argument("runs()", "limit", limit, "a positive integer or None")
        condition_ = condition("runs", filter, where)
        if before is not None:
            last = text(before["started_at"], before["event_id"])
            condition_ += f" and (started_at, event_id) < ({last.replace(',', '::timestamptz,', 1)})"
        query = f"""select 'pipeline.wide' as type, * from runs where {condition_}
            order by started_at desc, event_id desc {f"limit {limit}" if limit is not None else ""}"""
        ended = self._queries.run(
            lambda cursor: _data(cursor.execute(query)),
            query,
            predicates=[where],
            over=["runs"],
            scope=_scope(filter),
        )
        in_progress = []
        if self.path is not None and where is None:
            known = {run["event_id"] for run in ended}
            in_progress = [
                run
                for run in Journal(self.path).in_progress(filter)
                if run["event_id"] not in known and (before is None or _sort_key(run) < _sort_key(before))
            ]
        found = sorted([*ended, *in_progress], key=_sort_key, reverse=True)[:limit]
        return ResultList(found, "draw_runs")

    def run(self, run_id: str = "last") -> RunRecord:
        """Return all stored information about one run.

        Args:
            run_id: Its `pipeline_run_id`; a request, session, user or org id that belongs to one root run;
                a prefix of one of these that no other run shares; or "last" for the newest root run.

        Raises:
            RunNotFoundError: No run, or more than one, has this id.
        """
        if run_id != "last":
            where = f"journal {self.path!r}" if self.path is not None else f"archive {self.archive.address}"
            return load_run(self._queries, self.path, run_id, lambda: find_run(self.runs, run_id, where))
        error = RunNotFoundError("there are no runs yet")
        for run in self.runs(RunFilter(roots=True), limit=20) or self.runs(limit=20):
            try:
                return load_run(self._queries, self.path, str(run["event_id"]))
            except RunNotFoundError as not_found:  # its id is damaged in one of its events
                error = not_found
        raise error

    def names(self) -> Names:
        """Return the names of all pipelines and stages, even if their events were dropped."""
        query = """select distinct pipeline_name, null from runs
            union select distinct topology, stage_name from stages
            union select distinct coalesce(pipeline_name, topology), stage_name from counts"""
        found = self._queries.run(
            lambda cursor: cursor.execute(query).fetchall(), "names", scope=Scope(counts=True)
        )
        pipelines = {pipeline for pipeline, _ in found if pipeline is not None}
        stages = {stage for _, stage in found if stage is not None}
        if self.path is not None:
            in_progress = Journal(self.path).in_progress()
            pipelines |= {str(run.get("pipeline_name")) for run in in_progress}
            stages |= {stage["stage_name"] for run in in_progress for stage in run["stage_summaries"]}
        return Names(frozenset(pipelines), frozenset(stages))

    # ------------------------------------------------------------ overview

    def overview(
        self,
        filter: RunFilter | None = None,
        *,
        where: str | None = None,
        explain: bool = False,
        details: bool = True,
    ) -> Overview:
        """Return what is unusual and what is new in a time range, with the pipelines and their statistics.

        Args:
            filter: The runs to include, for example those of the last 24 hours; default all.
            where: SQL predicate over the columns of `runs`, in addition to the filter.
            explain: Whether the findings state what the affected runs have in common, which takes longer.
            details: Whether to include the pipelines and the versions; default True.

        Raises:
            QueryError: The predicate is invalid.

        Example:
            print([finding.text for finding in store.overview().findings])
        """
        return look(self, self._queries, filter or RunFilter(), where, explain=explain, details=details)

    def findings(
        self, filter: RunFilter | None = None, *, where: str | None = None, explain: bool = False
    ) -> tuple[OverviewFinding, ...]:
        """Return only the findings of the overview.

        Args:
            filter: See `overview`.
            where: See `overview`.
            explain: See `overview`.

        Raises:
            QueryError: The predicate is invalid.
        """
        return find(self, self._queries, filter or RunFilter(), where, explain=explain)

    # ------------------------------------------------------------ statistics

    def stats(
        self,
        over: Over = "stages",
        filter: RunFilter | None = None,
        *,
        where: str | None = None,
        by: str | None = None,
        bucket: float | None = None,
    ) -> list[Stat]:
        """Return counts, rates and percentiles of durations, for each stage or each pipeline.

        Args:
            over: "stages", or "runs" for pipelines.
            filter: The stages or runs to include; default all.
            where: SQL predicate over the columns of the view, in addition to the filter.
            by: Name of a field or an attribute ("org_id", "model", "attributes.model"); there is then one row
                per value: see `Stat.group`. Default None.
            bucket: Length of a time bucket in seconds; there is then one row per bucket. Default None.

        Raises:
            QueryError: The predicate is invalid, or `by` is not a field.

        Example:
            store.stats("runs", by="org_id")
        """
        selected, queries = condition(over, filter, where), self._queries
        return queries.run(
            lambda cursor: stats(cursor, selected, over, by=by, bucket_s=bucket, weighted=queries.weighted),
            selected,
            predicates=[where],
            over=[over],
            scope=_scope(filter),
        )

    def totals(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        pipeline: str | None = None,
        stage: str | None = None,
    ) -> list[Total]:
        """Return exact numbers of runs and stages by outcome, even if events were sampled or dropped.

        Args:
            since: RFC 3339; rounded down to the hour. Default None, for all.
            until: RFC 3339; hours that started earlier are included.
            pipeline: Only this pipeline.
            stage: Only this stage.

        Raises:
            QueryError: A time is invalid.
        """
        return self._queries.run(
            lambda cursor: totals(cursor, since=since, until=until, pipeline=pipeline, stage=stage),
            f"totals since {since} until {until}",
            scope=Scope.began_since(since and f"{since[:13]}:00:00.000000Z", counts=True),
        )

    def volume(self) -> Volume:
        """Return the number and size of stored events by day, type and field."""
        return self._queries.volume()

    def dry_run(self, sampler: TailSampler, filter: RunFilter | None = None) -> list[SamplingResult]:
        """Return which stored runs a sampler would have kept. Nothing is changed.

        Args:
            sampler: The sampler.
            filter: The runs to include; default all. Runs that were sampled before keep their weights.

        Raises:
            QueryError: A rule of the sampler, or its key, is invalid.
        """
        runs = f"select * from runs where {condition('runs', filter, None)}"

        def apply(cursor: DuckDBPyConnection) -> list[SamplingResult]:
            decide(cursor, "decided", sampler, runs, NO_KINDS)
            return report(cursor, "decided", runs)

        return self._queries.run(apply, runs, scope=_scope(filter))

    def errors(
        self, filter: RunFilter | None = None, *, where: str | None = None, limit: int = 20
    ) -> list[ErrorGroup]:
        """Return groups of failures with the same error, most frequent first.

        Args:
            filter: The stages and runs to include; default all.
            where: SQL predicate in addition to the filter, over columns that `stages` and `runs` both have.
            limit: Maximum number of groups.

        Raises:
            QueryError: The predicate is invalid.
        """
        of_stages, of_runs = (condition(over, filter, where) for over in ("stages", "runs"))
        since, until = (None, None) if filter is None else (filter.since, filter.until)
        return self._queries.run(
            lambda cursor: errors(cursor, of_stages, of_runs, since=since, until=until, limit=limit),
            of_stages,
            predicates=[where],
            over=["stages", "runs"],
            scope=Scope.began_since(baseline(since)),
        )

    def slowest(
        self,
        over: Over = "runs",
        filter: RunFilter | None = None,
        *,
        where: str | None = None,
        limit: int = 20,
    ) -> list[SlowRecord]:
        """Return the runs, or stages, with the longest durations.

        Args:
            over: "runs" or "stages".
            filter: The runs or stages to include; default all.
            where: SQL predicate over the columns of the view, in addition to the filter.
            limit: Maximum number of runs or stages.

        Raises:
            QueryError: The predicate is invalid.
        """
        selected = condition(over, filter, where)
        return self._queries.run(
            lambda cursor: slowest(cursor, selected, over, limit=limit),
            selected,
            predicates=[where],
            over=[over],
            scope=_scope(filter),
        )

    def compare(
        self,
        before: str,
        after: str,
        over: Over = "stages",
        filter: RunFilter | None = None,
    ) -> list[Comparison]:
        """Compare each stage, or pipeline, between two selections; most significant changes first.

        Args:
            before: SQL predicate of one selection: "service_version = '1.4'".
            after: SQL predicate of the other.
            over: "stages" or "runs".
            filter: Restricts both selections; default None.

        Raises:
            QueryError: A predicate is invalid.

        Example:
            store.compare("started_at < '2026-11-24 12:00'", "started_at >= '2026-11-24 12:00'")
        """
        first, second = (condition(over, filter, where) for where in (before, after))
        queries = self._queries
        return queries.run(
            lambda cursor: compare(cursor, first, second, over, weighted=queries.weighted),
            f"{before} / {after}",
            predicates=[before, after],
            over=[over],
            scope=_scope(filter),
        )

    # ------------------------------------------------------------ explanations

    def explain(
        self,
        where: str | None = None,
        *,
        against: str | None = None,
        within: str | None = None,
        over: Over = "runs",
        filter: RunFilter | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Explanation:
        """Return how selected runs, or stages, differ from the others; see `stageflow.store.explain`.

        Args:
            where: SQL predicate of the selection; default the failures, compared with the runs or stages that
                are neither failures nor cancelled.
            against: SQL predicate of the rows to compare with; default all other rows.
            within: SQL predicate that restricts both sides, in addition to the filter; default None. Unlike
                the fields of `where`, its fields are compared.
            over: "runs" or "stages".
            filter: Restricts both sides, for example to a pipeline or a time window; default None.
            options: How they are compared: `cluster`, `sort`, `limit`, `alpha` and `changed`; see
                `ExplainOptions`.

        Raises:
            QueryError: A predicate is invalid, or refers to an unknown field.

        Example:
            print(store.explain("duration_ms > 2000").differences)
        """
        request = request_of(where, against=against, within=within, over=over, filter=filter, **options)
        return self._explain(request, filter, lambda cursor: answer(cursor, request), within)

    def explain_slow(
        self,
        over: Over = "runs",
        filter: RunFilter | None = None,
        *,
        slowest: float = 0.05,
        per: str | None = None,
        within: str | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Explanation:
        """Return how slow runs, or stages, differ from the others.

        A run is slow if it is among the slowest of those with the same value of the field `per`. Values
        with too few runs to determine this are left out, and `Explanation.limitations` states it.

        Args:
            over: "runs" or "stages".
            filter: The runs or stages to compare; default all.
            slowest: The share that counts as slow; default 0.05, the slowest 5%.
            per: The field that runs of the same kind have in common: "model", "attributes.route". Default
                `pipeline_name` for runs and `stage_name` for stages, if they have several values.
            within: See `explain`.
            options: See `ExplainOptions`.

        Raises:
            InvalidArgumentError: `slowest` is not between 0 and 1.
            QueryError: `per` is not a field, or the predicate is invalid.

        Example:
            print(store.explain_slow(per="model").summary)
        """
        check_share("explain_slow()", slowest)
        request = request_of(None, within=within, over=over, filter=filter, per=per, **options)
        queries = self._queries
        return self._explain(
            request,
            filter,
            lambda cursor: answer(
                cursor, select_slow(cursor, request, slowest=slowest, weighted=queries.weighted)
            ),
            within,
            f"the slowest {over} of {request.within or 'all'}",
        )

    def explain_by_pipeline(
        self,
        where: str | None = None,
        *,
        against: str | None = None,
        within: str | None = None,
        slowest: float | None = None,
        per: str | None = None,
        filter: RunFilter | None = None,
        pipelines: int = 3,
        **options: Unpack[ExplainOptions],
    ) -> tuple[Explanation, ...]:
        """Return how selected runs differ from the other runs of the same pipeline.

        The runs of different pipelines differ in kind, so each pipeline with selected runs is explained
        separately. If a predicate or the filter refers to the pipeline, the result is one explanation.

        Args:
            where: See `explain`.
            against: See `explain`.
            within: See `explain`.
            slowest: The share that counts as slow, instead of `where`; see `explain_slow`. Default None.
            per: The field that runs of the same kind have in common; see `explain_slow`. Default None.
            filter: See `explain`.
            pipelines: Maximum number of pipelines to explain; default 3. For the others, `selection` and
                `rest` contain the numbers of runs, and `fields` is 0.
            options: See `ExplainOptions`; `limit` is the maximum of each pipeline.

        Returns:
            One explanation per pipeline with selected runs, most selected runs first.

        Raises:
            InvalidArgumentError: `slowest` is not between 0 and 1, or `pipelines` is not positive.
            QueryError: A predicate is invalid, or refers to an unknown field.

        Example:
            for explanation in store.explain_by_pipeline():
                print(explanation.pipeline, explanation.summary)
        """
        if not isinstance(pipelines, int) or pipelines < 1:
            raise invalid_argument("explain_by_pipeline()", "pipelines", pipelines, "a positive integer")
        if slowest is not None:
            check_share("explain_by_pipeline()", slowest)
        elif per is not None:
            raise invalid_argument("explain_by_pipeline()", "per", per, "None, unless slowest= is given")
        request = request_of(where, against=against, within=within, filter=filter, per=per, **options)
        queries = self._queries

        def explain_each(cursor: DuckDBPyConnection) -> tuple[Explanation, ...]:
            def select(one: Request) -> Request:
                if slowest is None:
                    return one
                return select_slow(cursor, one, slowest=slowest, weighted=queries.weighted)

            return explain_by_pipeline(
                cursor, request, select, lambda one: answer(cursor, one), pipelines=pipelines
            )

        return self._explain(request, filter, explain_each, within)

    def _explain(
        self,
        request: Request,
        filter: RunFilter | None,
        explain: Callable[[DuckDBPyConnection], _Explained],
        within: str | None,
        description: str | None = None,
    ) -> _Explained:
        return self._queries.run(
            explain,
            description or str(request.where),
            predicates=[request.where, request.against, within],
            over=[request.over],
            scope=_scope(None if request.changed else filter),
        )

    def explain_run(self, run: str | RunRecord = "last", filter: RunFilter | None = None) -> RunExplanation:
        """Return how one run differs from its peers: runs of the same pipeline with the outcome `ok`.

        The peers are the newest 25,000. The run itself can have any outcome, and need not have ended.

        Args:
            run: The run, or its id; see `run`.
            filter: Restricts the peers, and the failures that are counted; default None.

        Raises:
            RunNotFoundError: No run, or more than one, has this id.

        Example:
            print(store.explain_run("last").summary)
        """
        record = self.run(run) if isinstance(run, str) else run
        within = restriction("runs", filter)
        return self._queries.run(
            lambda cursor: compare_run(cursor, record, within), "explain_run", scope=_scope(filter)
        )

    # ------------------------------------------------------------ closing

    def close(self) -> None:
        """Close the database, and release its memory."""
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


def _scope(filter: RunFilter | None) -> Scope:
    return Scope.began_since(filter.since if filter is not None else None)


def _sort_key(run: Mapping[str, Any]) -> tuple[str, str]:
    return run["started_at"], run["event_id"]
