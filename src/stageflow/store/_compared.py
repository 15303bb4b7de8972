"""The statistics of a time range, and of the baseline with which it is compared: the time before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from .._time import epoch_us, get_clock, rfc3339
from ..journal import RunFilter
from ._columns import text
from ._merge import count_if, percentiles, ranked
from ._queries import Queries
from ._selection import condition, parenthesized
from ._snapshot import Scope

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "Compared",
    "Matches",
    "Rates",
    "Selected",
    "compare",
    "matches",
    "pipelines_that_match",
    "rates_around",
    "start_of_baseline",
    "time_range",
]


_MIN_BEFORE_US = 2 * 86_400 * 1_000_000
"""Minimum time from the start of the baseline until the end of the range: two days."""

_FIRST_US = epoch_us("0001-01-01T00:00:00Z")
"""The first time that a filter accepts."""

_MIN_RECENT = 20
"""Minimum number of runs in the last quarter; with fewer, the whole range is compared."""


class Rates(Struct, frozen=True):
    """Statistics of the runs in a time range.

    Attributes:
        count: Number of runs.
        failed: Number of failures.
        rated: Number of runs that failure rates include.
        p95_ms: The 95th percentile of the duration in milliseconds; None without runs.
        crashed: Number of crashed runs.
    """

    count: float
    failed: float
    rated: float
    p95_ms: float | None
    crashed: float

    @property
    def rate(self) -> float | None:
        return self.failed / self.rated if self.rated else None


class Selected(Struct, frozen=True):
    """The runs of an overview."""

    filter: RunFilter
    where: str | None

    def condition(self, *, since: str | None = None, until: str | None = None) -> str:
        """Return the SQL condition of the runs, or of those that started between two times."""
        found = condition("runs", self.filter, self.where)
        found += f" and started_at >= {text(since)}::timestamptz" if since is not None else ""
        return found + (f" and started_at < {text(until)}::timestamptz" if until is not None else "")

    def with_baseline(self, since: str) -> Selected:
        """Return these runs and those of the baseline, which starts at a time."""
        if self.filter.since is None:
            return self
        return structs.replace(self, filter=structs.replace(self.filter, since=since))


class Compared(Struct, frozen=True):
    """A time range, compared with its baseline.

    Attributes:
        first: When its first run started, RFC 3339; None without runs.
        last: When its last run started; None without runs.
        since: Start of the range.
        until: End of the range.
        before: Start of the baseline; the start of the range if there is no baseline.
        recent_since: Start of the recent part of the range: its last quarter after the first run, or all of
            it.
        shown: The runs of the range.
        earlier: The runs from `before` to `recent_since`.
        recent: The runs after `recent_since`.
    """

    first: str | None
    last: str | None
    since: str
    until: str
    before: str
    recent_since: str
    shown: Rates
    earlier: Rates
    recent: Rates

    @property
    def recent_text(self) -> str:
        """The recent part of the range in words."""
        return (
            "in this time range"
            if self.recent_since == self.since
            else "in the last quarter of the time range"
        )


def compare(cursor: DuckDBPyConnection, weighted: bool, selected: Selected) -> Compared:
    """Return the statistics of a time range, of its recent part, and of its baseline.

    The baseline is at least as long as the range, and starts at least two days before the end of the range. A
    short range that lies entirely within an incident is therefore compared with the time before the incident.
    """
    ((first, last),) = cursor.execute(
        f"select epoch_us(min(started_at)), epoch_us(max(started_at)) from runs where {selected.condition()}"
    ).fetchall()
    times = selected.filter
    since_us, until_us = time_range(
        (first, last),
        epoch_us(times.since) if times.since else None,
        epoch_us(times.until) if times.until else None,
    )
    since, until = rfc3339(since_us), rfc3339(until_us)
    before = start_of_baseline(times) or since
    all_rows = selected.with_baseline(before)
    shown = _rates(cursor, weighted, selected.condition(since=since, until=until))
    # The time without runs before the first one does not count.
    start_us = max(since_us, first) if first is not None else since_us
    recent_since = rfc3339(start_us + (until_us - start_us) * 3 // 4)
    recent = _rates(cursor, weighted, selected.condition(since=recent_since))
    if recent.count < _MIN_RECENT and times.since:
        recent_since, recent = since, shown
    return Compared(
        first=None if first is None else rfc3339(first),
        last=None if last is None else rfc3339(last),
        since=since,
        until=until,
        before=before,
        recent_since=recent_since,
        shown=shown,
        earlier=_rates(cursor, weighted, all_rows.condition(since=before, until=recent_since)),
        recent=recent,
    )


def start_of_baseline(filter: RunFilter) -> str | None:
    """Return the start of the baseline of a filter; None if the time range of the filter has no start."""
    if not filter.since:
        return None
    since_us, until_us = time_range(
        (None, None), epoch_us(filter.since), epoch_us(filter.until) if filter.until else None
    )
    return rfc3339(max(_FIRST_US, until_us - max(2 * (until_us - since_us), _MIN_BEFORE_US)))


def time_range(
    rows: tuple[int | None, int | None], since_us: int | None, until_us: int | None
) -> tuple[int, int]:
    """Return the start and the end of a time range, in microseconds since the epoch.

    Args:
        rows: When the first and the last row started; None without rows.
        since_us: The start; None for that of the rows.
        until_us: The end; None for now or, without a start, for the end of the rows.
    """
    first, last = rows
    now_us = get_clock().wall_ns() // 1000
    if until_us is None:
        # A range that starts at a relative time ends now, so that a period without runs is visible.
        until_us = now_us if since_us is not None or last is None else last + 1
    if since_us is None:
        since_us = first if first is not None else until_us - 3_600_000_000
    return since_us, max(until_us, since_us + 1)


def rates_around(queries: Queries, selected: Selected, compared: Compared, onset: str) -> tuple[Rates, Rates]:
    """Return the statistics before a time, and those of the runs of the range after it."""
    all_rows = selected.with_baseline(compared.before)

    def read(cursor: DuckDBPyConnection) -> tuple[Rates, Rates]:
        before, after = (
            _rates(cursor, queries.weighted, condition)
            for condition in (
                all_rows.condition(since=compared.before, until=onset),
                selected.condition(since=onset),
            )
        )
        return before, after

    return queries.run(
        read,
        "rates",
        predicates=[selected.where],
        over=["runs"],
        scope=Scope.began_since(all_rows.filter.since),
    )


def _rates(cursor: DuckDBPyConnection, weighted: bool, condition: str) -> Rates:
    rows = f"select * from runs where {condition}"
    found = cursor.execute(f"""
        select {count_if()}, {count_if("failed")}, {count_if("failed is not null")},
            {percentiles((0.95,), weighted=weighted)}[1], {count_if("outcome = 'crashed'")}
        from {ranked(rows, "duration_ms", [], weighted=weighted)}""").fetchone()
    assert found is not None
    count, failed, rated, p95, crashed = found
    return Rates(float(count), float(failed), float(rated), p95, float(crashed))


class Matches(Struct, frozen=True):
    """How many runs of a time range match a condition.

    Attributes:
        count: Number of runs.
        affected: Number of them that fail, or are slow.
        matching: Number of runs that match the condition.
        both: Number of affected runs that match it.
        users: Number of different users of the recorded rows of these; 0 if no row names its user.
    """

    count: float
    affected: float
    matching: float
    both: float
    users: int

    @property
    def share(self) -> float:
        """The share of the affected runs that match."""
        return self.both / self.affected if self.affected else 0.0

    @property
    def rate(self) -> float:
        """The share of the matching runs that are affected."""
        return self.both / self.matching if self.matching else 0.0

    @property
    def other_rate(self) -> float | None:
        """The share of the other runs that are affected; None without other runs."""
        others = self.count - self.matching
        return (self.affected - self.both) / others if others > 0 else None

    @property
    def deviance(self) -> float:
        """The deviance (G²) that the condition explains."""
        cells = (
            (self.both, self.affected, self.matching),
            (self.matching - self.both, self.count - self.affected, self.matching),
            (self.affected - self.both, self.affected, self.count - self.matching),
            (
                self.count - self.affected - self.matching + self.both,
                self.count - self.affected,
                self.count - self.matching,
            ),
        )
        return 2 * sum(n * math.log(n * self.count / (row * column)) for n, row, column in cells if n > 0)


def matches(
    queries: Queries, selected: Selected, since: str, affected: str, conditions: Sequence[str]
) -> list[Matches]:
    """Return how many runs since a time match each condition.

    Args:
        queries: The queries of the store.
        selected: The runs.
        since: The time.
        affected: The condition of the runs that fail, or are slow; the runs for which it is null are not
            counted.
        conditions: The conditions.
    """
    is_affected, *others = (parenthesized(each) for each in (affected, *conditions))
    counted = [count_if(), count_if(is_affected)]
    for each in others:
        both = f"{each} and {is_affected}"
        counted += [count_if(each), count_if(both), f"count(distinct user_id) filter ({both})"]
    ((count, of_affected, *rest),) = _counted(queries, selected, since, affected, ", ".join(counted))
    return [
        Matches(float(count), float(of_affected), float(matching), float(both), users)
        for matching, both, users in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    ]


def pipelines_that_match(
    queries: Queries, selected: Selected, since: str, affected: str, condition: str
) -> list[tuple[str, float, float]]:
    """Return the pipelines of the runs since a time that match a condition, highest rate first.

    Args:
        queries: The queries of the store.
        selected: The runs.
        since: The time.
        affected: See `matches`.
        condition: The condition.

    Returns:
        For each pipeline its name, the number of its runs, and that of its affected runs.
    """
    columns = f"pipeline_name, {count_if()}, {count_if(parenthesized(affected))}"
    rest = f" and {parenthesized(condition)} and pipeline_name is not null group by 1"
    found = _counted(queries, selected, since, affected, columns, rest)
    rows = [(name, float(runs), float(both)) for name, runs, both in found]
    return sorted(rows, key=lambda row: (-row[2] / row[1], row[0]))


def _counted(
    queries: Queries, selected: Selected, since: str, affected: str, columns: str, rest: str = ""
) -> list[tuple[Any, ...]]:
    query = (
        f"select {columns} from runs"
        f" where {selected.condition(since=since)} and {parenthesized(affected)} is not null{rest}"
    )
    return queries.run(
        lambda cursor: cursor.execute(query).fetchall(),
        "matches",
        predicates=[selected.where],
        over=["runs"],
        scope=Scope.began_since(since),
    )
