"""The questions to a store whose answers are figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..journal import RunFilter
from .counts import NO_KINDS
from .queries import Queries
from .questions import (
    Comparison,
    ErrorGroup,
    Slow,
    Stat,
    Total,
    Volume,
    compare,
    errors,
    slowest,
    stats,
    totals,
)
from .sampler import TailSampler
from .sampling import Sampled, decide, report
from .selection import Over, condition
from .snapshot import Scope

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Figures"]


class Figures:
    """What `EventStore` answers with figures."""

    @property
    def _queries(self) -> Queries:
        raise NotImplementedError

    def stats(
        self,
        over: Over = "stages",
        where: RunFilter | None = None,
        *,
        predicate: str | None = None,
        bucket: float | None = None,
    ) -> list[Stat]:
        """Return counts, rates and percentiles of each stage, or of each pipeline.

        Args:
            over: "stages", or "runs" for whole pipelines.
            where: Which; default all.
            predicate: SQL on top of it.
            bucket: Seconds; then there is one row for each stretch of so many. Default None.

        Raises:
            QueryError: The predicate is wrong.
        """
        wanted, queries = condition(over, where, predicate), self._queries
        return queries.ask(
            lambda cursor: stats(cursor, wanted, over, bucket_s=bucket, weighted=queries.weighted),
            wanted,
            predicates=[predicate],
            scope=_scope(where),
        )

    def totals(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        pipeline: str | None = None,
        stage: str | None = None,
    ) -> list[Total]:
        """Return how often pipelines and stages ended, exactly, also where events were sampled or dropped.

        Args:
            since: RFC 3339: from the whole hour of this moment on; default None, for all.
            until: RFC 3339: hours that began before.
            pipeline: Only this pipeline.
            stage: Only this stage.

        Raises:
            QueryError: A moment is none.
        """
        return self._queries.ask(
            lambda cursor: totals(cursor, since=since, until=until, pipeline=pipeline, stage=stage),
            f"totals since {since} until {until}",
            scope=Scope.began_since(since and f"{since[:13]}:00:00.000000Z", counts=True),
        )

    def volume(self) -> Volume:
        """Return how much is stored: events and bytes by day, by type and by field."""
        return self._queries.volume()

    def dry_run(self, sampler: TailSampler, where: RunFilter | None = None) -> list[Sampled]:
        """Return what a sampler would have made of the runs that are there. Nothing is changed.

        Args:
            sampler: What decides.
            where: Of which runs; default all. Those that were sampled already are taken as they are.

        Raises:
            QueryError: A rule of the sampler, or its key, is none.
        """
        runs = f"select * from runs where {condition('runs', where, None)}"

        def try_it(cursor: DuckDBPyConnection) -> list[Sampled]:
            decide(cursor, "decided", sampler, runs, NO_KINDS)
            return report(cursor, "decided", runs)

        return self._queries.ask(try_it, runs, scope=_scope(where))

    def errors(
        self, where: RunFilter | None = None, *, predicate: str | None = None, limit: int = 20
    ) -> list[ErrorGroup]:
        """Return what fails, alike failures together, the most frequent first.

        Args:
            where: Which stages and runs; default all.
            predicate: SQL on top of it, over columns that `stages` and `runs` both have.
            limit: How many groups at most.

        Raises:
            QueryError: The predicate is wrong.
        """
        of_stages, of_runs = (condition(over, where, predicate) for over in ("stages", "runs"))
        return self._queries.ask(
            lambda cursor: errors(cursor, of_stages, of_runs, limit=limit),
            of_stages,
            predicates=[predicate],
            scope=_scope(where),
        )

    def slowest(
        self,
        over: Over = "runs",
        where: RunFilter | None = None,
        *,
        predicate: str | None = None,
        limit: int = 20,
    ) -> list[Slow]:
        """Return the runs, or the stages, that took longest.

        Args:
            over: "runs" or "stages".
            where: Which; default all.
            predicate: SQL on top of it.
            limit: How many at most.

        Raises:
            QueryError: The predicate is wrong.
        """
        wanted = condition(over, where, predicate)
        return self._queries.ask(
            lambda cursor: slowest(cursor, wanted, over, limit=limit),
            wanted,
            predicates=[predicate],
            scope=_scope(where),
        )

    def compare(
        self,
        before: str,
        after: str,
        over: Over = "stages",
        where: RunFilter | None = None,
    ) -> list[Comparison]:
        """Return each stage, or pipeline, on two sides, what changed most surely first.

        Args:
            before: SQL that says what the one side is: "service_version = '1.4'".
            after: SQL that says what the other is.
            over: "stages" or "runs".
            where: What both have in common; default nothing.

        Raises:
            QueryError: One of the predicates is wrong.

        Example:
            store.compare("started_at < '2026-11-24 12:00'", "started_at >= '2026-11-24 12:00'")
        """
        one, other = (condition(over, where, side) for side in (before, after))
        queries = self._queries
        return queries.ask(
            lambda cursor: compare(cursor, one, other, over, weighted=queries.weighted),
            f"{before} / {after}",
            predicates=[before, after],
            scope=_scope(where),
        )


def _scope(where: RunFilter | None) -> Scope:
    return Scope.began_since(where.since if where is not None else None)
