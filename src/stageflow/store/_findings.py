"""The findings of an overview: whether runs fail or are slow, since when, and what they have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct, structs

from .._explained import Difference
from .._quantities import duration, onset_text, percent
from .._time import epoch_us, get_clock, rfc3339
from ..journal import RunFilter
from ._columns import text
from ._explain._explanation import Explanation
from ._merge import count_if, percentiles, ranked
from ._queries import Queries
from ._selection import Over, condition
from ._snapshot import Scope
from ._statistics import Stat

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "Compared",
    "OverviewFinding",
    "Selected",
    "Statistics",
    "compare_parts",
    "find",
    "findings_of",
    "time_range",
]


_MIN_FAILURES = 3
"""Minimum number of failures for a finding about failures."""

_MIN_RUNS = 20
"""Minimum number of recent runs for a finding about durations."""

_NOTABLE = 1.5
"""A failure rate or a duration is notable if it is at least this multiple of the earlier one."""

_MOST = 0.5
"""Minimum share of the additional time of a stage to name it."""

_HIGH_RATE = 0.05
"""A failure rate that is notable even if it has not changed."""


class OverviewFinding(Struct, frozen=True, kw_only=True):
    """A sentence about the runs of an overview.

    Attributes:
        kind: What it is about: "failures", "crashes" or "durations"; "none" if nothing is unusual.
        level: Its severity; "ok" if nothing is unusual.
        text: The sentence.
        where: The predicate that selects the affected runs, to compare them with the rest; or None.
        cause: The predicate of the runs that are affected more often than others; None if it is unknown.
        since: When it started, RFC 3339; None if unknown. Findings about the same incident agree.
        since_range: The earliest and the latest time at which it can have started; None if unknown.
    """

    kind: Literal["failures", "crashes", "durations", "none"]
    level: Literal["bad", "warning", "info", "ok"]
    text: str
    where: str | None = None
    cause: str | None = None
    since: str | None = None
    since_range: tuple[str, str] | None = None


class Statistics(Protocol):
    """The methods of `EventStore` on which the overview is based."""

    def stats(self, over: Over, filter: RunFilter, *, where: str | None) -> list[Stat]: ...

    def explain(self, *, filter: RunFilter, within: str | None) -> Explanation: ...

    def explain_slow(self, over: Over, filter: RunFilter, *, within: str | None) -> Explanation: ...


class _Rates(Struct, frozen=True):
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


class Compared(Struct, frozen=True):
    """The last quarter of a time range, compared with the time before."""

    first: str | None
    last: str | None
    since: str
    until: str
    middle: str
    earlier: _Rates
    recent: _Rates

    @property
    def can_judge_failures(self) -> bool:
        """Whether there are enough failures for a finding."""
        return self.earlier.failed + self.recent.failed >= _MIN_FAILURES

    @property
    def can_judge_durations(self) -> bool:
        """Whether there are enough runs for a finding about durations."""
        known = self.earlier.p95_ms is not None and self.recent.p95_ms is not None
        return known and self.recent.count >= _MIN_RUNS


def find(
    store: Statistics, queries: Queries, filter: RunFilter, where: str | None, *, explain: bool
) -> tuple[OverviewFinding, ...]:
    """Return what is unusual; see `EventStore.findings`.

    Raises:
        QueryError: The predicate is invalid.
    """
    selected = Selected(filter, where)
    compared = queries.run(
        lambda cursor: compare_parts(cursor, queries.weighted, selected),
        "findings",
        predicates=[where],
        over=["runs"],
        scope=Scope.began_since(filter.since),
    )
    return findings_of(store, queries, selected, compared, explain=explain)


def time_range(
    rows: tuple[int | None, int | None], since_us: int | None, until_us: int | None
) -> tuple[int, int]:
    """Return the start and the end of a time range, in microseconds since the epoch.

    Args:
        rows: When the first and the last row started; None without rows.
        since_us: The start; None for that of the rows.
        until_us: The end; None for now, or without a start for that of the rows.
    """
    first, last = rows
    now_us = get_clock().wall_ns() // 1000
    if until_us is None:
        # A range that starts at a relative time ends now, so that a period without runs is visible.
        until_us = now_us if since_us is not None or last is None else last + 1
    if since_us is None:
        since_us = first if first is not None else until_us - 3_600_000_000
    return since_us, max(until_us, since_us + 1)


def compare_parts(cursor: DuckDBPyConnection, weighted: bool, selected: Selected) -> Compared:
    """Return the statistics of the runs, and of the last quarter of the time range."""
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
    middle = rfc3339(since_us + (until_us - since_us) * 3 // 4)
    return Compared(
        first=None if first is None else rfc3339(first),
        last=None if last is None else rfc3339(last),
        since=since,
        until=until,
        middle=middle,
        earlier=_rates(cursor, weighted, selected.condition(since=since, until=middle)),
        recent=_rates(cursor, weighted, selected.condition(since=middle)),
    )


def _rates(cursor: DuckDBPyConnection, weighted: bool, condition: str) -> _Rates:
    rows = f"select * from runs where {condition}"
    found = cursor.execute(f"""
        select {count_if()}, {count_if("failed")}, {count_if("failed is not null")},
            {percentiles((0.95,), weighted=weighted)}[1], {count_if("outcome = 'crashed'")}
        from {ranked(rows, "duration_ms", [], weighted=weighted)}""").fetchone()
    assert found is not None
    count, failed, rated, p95, crashed = found
    return _Rates(float(count), float(failed), float(rated), p95, float(crashed))


class _Onset(Struct, frozen=True):
    """When something started, and the range of this time."""

    at: str
    within: tuple[str, str] | None

    @classmethod
    def of(cls, explanation: Explanation | None) -> _Onset | None:
        if explanation is None or explanation.onset is None:
            return None
        return cls(explanation.onset, explanation.onset_range)

    @property
    def range_us(self) -> tuple[int, int]:
        earliest, latest = self.within or (self.at, self.at)
        return epoch_us(earliest), epoch_us(latest)

    def __str__(self) -> str:
        return onset_text(self.at, self.within)


class _Explained(Struct, frozen=True):
    """Why runs fail, or are slow.

    Attributes:
        explanation: The explanation; None if it was not requested.
        cause: The first difference that is not only a time, if there is one.
        onset: When the runs became more frequent, if it is known.
    """

    explanation: Explanation | None = None
    cause: Difference | None = None
    onset: _Onset | None = None

    @classmethod
    def of(cls, explanation: Explanation) -> _Explained:
        return cls(explanation, _cause(explanation), _Onset.of(explanation))


def findings_of(
    store: Statistics, queries: Queries, selected: Selected, compared: Compared, *, explain: bool
) -> tuple[OverviewFinding, ...]:
    """Return what is unusual, worst first; at least one finding."""
    failures = slow = _Explained()
    if explain and compared.can_judge_failures:
        failures = _Explained.of(store.explain(filter=selected.filter, within=selected.where))
    if explain and compared.can_judge_durations:
        slow = _Explained.of(store.explain_slow("runs", selected.filter, within=selected.where))
    failures, slow = _agreed(failures, slow)
    found = [
        *_failures(queries, selected, compared, failures),
        *_durations(queries, selected, compared, slow, failures.onset),
    ]
    order = ("bad", "warning", "info", "ok")
    found.sort(key=lambda finding: (order.index(finding.level), finding.cause is None))
    return tuple(found) or (_nothing_unusual(compared),)


def _agreed(one: _Explained, other: _Explained) -> tuple[_Explained, _Explained]:
    """Return both with the more accurate onset, if they are about the same incident.

    They are if their causes have a value in common, and their onsets can be the same.
    """
    if one.cause is None or other.cause is None or not _values(one.cause) & _values(other.cause):
        return one, other
    known = [each.onset for each in (one, other) if each.onset is not None]
    if not known or max(each.range_us[0] for each in known) > min(each.range_us[1] for each in known):
        return one, other
    best = min(known, key=lambda each: each.range_us[1] - each.range_us[0])
    return structs.replace(one, onset=best), structs.replace(other, onset=best)


def _values(difference: Difference) -> set[tuple[str, str]]:
    """Return the values of the fields of a difference, without times."""
    is_combination = difference.shape == "combination"
    values = difference.value if is_combination else [difference.value]
    return {
        (field, repr(each))
        for field, value in zip(difference.fields, values, strict=True)
        if field != "started_at"
        for each in (value if isinstance(value, list | tuple) else [value])
    }


def _cause(explanation: Explanation) -> Difference | None:
    for difference in explanation.differences:
        is_time = difference.shape in ("date", "hour", "weekday") or difference.fields == ("started_at",)
        if not is_time and difference.verdict != "explained":
            return difference
    return None


def _failures(
    queries: Queries, selected: Selected, compared: Compared, explained: _Explained
) -> list[OverviewFinding]:
    if not compared.can_judge_failures:
        return []
    earlier, recent = compared.earlier, compared.recent
    failed = earlier.failed + recent.failed
    rate = failed / (earlier.rated + recent.rated)
    onset, cause = explained.onset, explained.cause
    before = after = None
    if onset is not None:
        before, after = (each.rate for each in _rates_around(queries, selected, compared.since, onset.at))
    if before is not None and after is not None and after > 0 and after >= _NOTABLE * before:
        sentence = f"The failure rate is {percent(after)}, up from {percent(before)}, {onset}"
        now, level_rate = after, after / before if before else _NOTABLE
    else:
        onset = None
        sentence = f"{percent(rate)} of the runs fail ({failed:,.0f} of {earlier.count + recent.count:,.0f})"
        now, level_rate = rate, _ratio(recent.rate, earlier.rate)
        if level_rate >= _NOTABLE and recent.rate is not None and recent.failed >= _MIN_FAILURES:
            sentence += f", and {percent(recent.rate)} in the last quarter of the time range"
            now = recent.rate
    if cause is not None:
        sentence += (
            f". {percent(cause.selection.share)} of the failures match {cause}: {percent(cause.rate)} of"
            f" these runs fail, {percent(cause.other_rate)} of the others"
        )
    is_bad = now >= _HIGH_RATE or level_rate >= _NOTABLE
    found = [
        OverviewFinding(
            kind="failures",
            level="bad" if is_bad else "info",
            text=f"{sentence}.",
            where="failed",
            cause=cause.condition if cause is not None else None,
            since=onset.at if onset is not None else None,
            since_range=onset.within if onset is not None else None,
        )
    ]
    if crashed := earlier.crashed + recent.crashed:
        noun = "run was" if crashed == 1 else "runs were"
        found.append(
            OverviewFinding(
                kind="crashes",
                level="warning",
                text=f"{crashed:,.0f} {noun} interrupted because the process died.",
                where="outcome = 'crashed'",
            )
        )
    return found


def _rates_around(queries: Queries, selected: Selected, since: str, onset: str) -> tuple[_Rates, _Rates]:
    """Return the statistics of the runs before and after a time."""

    def read(cursor: DuckDBPyConnection) -> tuple[_Rates, _Rates]:
        before, after = (
            _rates(cursor, queries.weighted, condition)
            for condition in (
                selected.condition(since=since, until=onset),
                selected.condition(since=onset),
            )
        )
        return before, after

    scope = Scope.began_since(selected.filter.since)
    return queries.run(read, "rates", predicates=[selected.where], over=["runs"], scope=scope)


def _durations(
    queries: Queries,
    selected: Selected,
    compared: Compared,
    explained: _Explained,
    of_failures: _Onset | None,
) -> list[OverviewFinding]:
    if not compared.can_judge_durations:
        return []
    before, after = compared.earlier.p95_ms, compared.recent.p95_ms
    onset, explanation = explained.onset, explained.explanation
    time = "in the last quarter of the time range"
    if (possible := onset or of_failures) is not None:
        around = _rates_around(queries, selected, compared.since, possible.at)
        # If the onset of slow runs is unknown, the durations may have increased when the failures did.
        if onset is not None or _ratio(around[1].p95_ms, around[0].p95_ms) >= _ratio(after, before):
            onset, time = possible, str(possible)
            before, after = (each.p95_ms for each in around)
    sentences, cause = [], explained.cause
    if is_bad := _ratio(after, before) >= _NOTABLE:
        sentences.append(f"The p95 duration is {duration(after)}, up from {duration(before)}, {time}.")
    where = f"duration_ms > {compared.earlier.p95_ms!r}"
    if explanation is not None and cause is not None:
        of = explanation.described or "the slowest 5% of the runs"
        sentences.append(
            f"{percent(cause.selection.share)} of {of} match {cause}: {percent(cause.rate)} of these runs are"
            f" that slow, {percent(cause.other_rate)} of the others."
        )
        stage = max(explanation.locations, key=lambda each: each.cause_share or 0.0, default=None)
        if stage is not None and (stage.cause_share or 0.0) >= _MOST:
            sentences.append(
                f"{percent(stage.cause_share or 0.0)} of their additional time is in {stage.stage}."
            )
        if onset is not None and not is_bad:
            sentences.append(f"They are more frequent {onset}.")
        where = explanation.where
    if not sentences:
        return []
    return [
        OverviewFinding(
            kind="durations",
            level="bad" if is_bad else "warning",
            text=" ".join(sentences),
            where=where,
            cause=cause.condition if cause is not None else None,
            since=onset.at if onset is not None else None,
            since_range=onset.within if onset is not None else None,
        )
    ]


def _ratio(recent: float | None, earlier: float | None) -> float:
    if recent is None or earlier is None:
        return 1.0
    return recent / earlier if earlier else (_NOTABLE if recent else 1.0)


def _nothing_unusual(compared: Compared) -> OverviewFinding:
    earlier, recent = compared.earlier, compared.recent
    count = earlier.count + recent.count
    if not count:
        sentence = "There are no runs in this time range."
    else:
        failed = earlier.failed + recent.failed
        failures = "no run failed" if not failed else f"{failed:,.0f} failed"
        p95 = recent.p95_ms if recent.p95_ms is not None else earlier.p95_ms
        sentence = f"Nothing unusual: {count:,.0f} runs, {failures}, p95 {duration(p95)}."
    return OverviewFinding(kind="none", level="ok", text=sentence)
