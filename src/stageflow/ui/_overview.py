"""The landing page: whether runs are failing or slow, since when, and which runs are affected."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from .._quantities import duration, percent
from .._time import epoch_us, rfc3339
from ..alerts import IncidentRecord
from ..store import Explanation, PinnedStore, count_if, percentiles, ranked
from ._api import Finding, Mark, Overview, RunRow, Series
from ._question import Question
from ._rows import COLUMNS, run_row
from ._series import series

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["overview"]

_FEW = 5
"""Number of runs in the lists."""

_MIN_FAILURES = 3
"""Minimum number of failures for a finding about failures."""

_NOTABLE = 1.5
"""A failure rate or a duration is notable if it is at least this multiple of the earlier one."""

_HIGH_RATE = 0.05
"""A failure rate that is notable even if it has not changed."""


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


def overview(
    store: PinnedStore,
    question: Question,
    snapshot: int,
    alerts: list[dict[str, object]],
    incidents: Sequence[IncidentRecord],
) -> Overview:
    """Return the landing page; see `Overview`.

    Args:
        store: The store.
        question: The time range and the predicate. With `explain`, findings state what the affected runs have
            in common, which takes longer.
        snapshot: Number of the snapshot.
        alerts: The states of the alert rules.
        incidents: The incidents that had not ended when the time range started.

    Raises:
        QueryError: The predicate is invalid.
    """
    charts = series(store, structs.replace(question, over="runs", by=None, previous=True), snapshot)
    marks = sorted((*charts.marks, *_alert_marks(incidents, charts)), key=lambda mark: mark.at)
    charts = structs.replace(charts, marks=tuple(marks))
    middle = rfc3339(epoch_us(charts.since) + int(charts.step_s * charts.steps * 1e6) * 3 // 4)

    def read(cursor: DuckDBPyConnection) -> tuple[_Rates, _Rates, list[RunRow], list[RunRow]]:
        earlier = _rates(cursor, store.weighted, structs.replace(question, since=charts.since, until=middle))
        recent = _rates(cursor, store.weighted, structs.replace(question, since=middle))
        slowest = _runs(cursor, question, "duration_ms is not null", "duration_ms desc")
        failing = _runs(cursor, question, "failed", "started_at desc")
        return earlier, recent, slowest, failing

    earlier, recent, slowest, failing = store.query(
        read, "overview", predicates=[question.where], over=["runs"]
    )
    findings = [
        *_alert_findings(alerts),
        *_failure_findings(store, question, charts, earlier, recent),
        *_slow_findings(store, question, earlier, recent, middle),
    ]
    order = ("bad", "warning", "info", "ok")
    findings.sort(key=lambda finding: order.index(finding.level))
    return Overview(
        snapshot=snapshot,
        findings=tuple(findings) or (_all_well(earlier, recent),),
        series=charts,
        changes=tuple(mark for mark in reversed(charts.marks) if mark.at >= charts.since),
        slowest=tuple(slowest),
        failing=tuple(failing),
    )


def _rates(cursor: DuckDBPyConnection, weighted: bool, question: Question) -> _Rates:
    rows = f"select * from runs where {question.condition}"
    found = cursor.execute(f"""
        select {count_if()}, {count_if("failed")}, {count_if("failed is not null")},
            {percentiles((0.95,), weighted=weighted)}[1], {count_if("outcome = 'crashed'")}
        from {ranked(rows, "duration_ms", [], weighted=weighted)}""").fetchone()
    assert found is not None
    count, failed, rated, p95, crashed = found
    return _Rates(float(count), float(failed), float(rated), p95, float(crashed))


def _runs(cursor: DuckDBPyConnection, question: Question, condition: str, order: str) -> list[RunRow]:
    found = cursor.execute(
        f"select {COLUMNS} from runs where {question.condition} and {condition} order by {order} limit {_FEW}"
    ).fetchall()
    return [run_row(row) for row in found]


def _alert_marks(incidents: Sequence[IncidentRecord], charts: Series) -> list[Mark]:
    """Return the incidents in the time range of the charts."""
    since_us = epoch_us(charts.since)
    until_us = since_us + int(charts.step_s * charts.steps * 1e6)
    found = []
    for incident in incidents:
        at = _rfc3339(incident.began)
        until = _rfc3339(incident.ended_at) if incident.ended_at is not None else None
        if epoch_us(at) < until_us and (until is None or epoch_us(until) >= since_us):
            found.append(Mark(at=at, until=until, kind="alert", label=incident.rule, where=None))
    return found


def _rfc3339(time: datetime) -> str:
    return rfc3339(round(time.timestamp() * 1e6))


def _alert_findings(alerts: list[dict[str, object]]) -> list[Finding]:
    found = []
    for alert in alerts:
        if alert.get("status") == "firing":
            since = alert.get("began")
            found.append(
                Finding(
                    level="bad",
                    text=f"The alert {alert['name']!r} is firing: {alert.get('summary')}.",
                    where=None,
                    since=str(since) if since is not None else None,
                    view="status",
                )
            )
    return found


def _failure_findings(
    store: PinnedStore, question: Question, charts: Series, earlier: _Rates, recent: _Rates
) -> list[Finding]:
    failed = earlier.failed + recent.failed
    if failed < _MIN_FAILURES:
        return []
    rate = failed / (earlier.rated + recent.rated)
    explanation = None
    if question.explain:
        explanation = store.explain(filter=question.filter, within=question.where)
    onset = explanation.onset if explanation is not None else None
    before = after = None
    if onset is not None:
        before = _rate_of(store, structs.replace(question, since=charts.since, until=onset))
        after = _rate_of(store, structs.replace(question, since=onset))
    if before is not None and after is not None and after > before:
        sentence = f"The failure rate is {percent(after)}, up from {percent(before)}, since {_clock(onset)}"
        now, level_rate = after, after / before if before else _NOTABLE
    else:
        sentence = f"{percent(rate)} of the runs fail ({failed:,.0f} of {earlier.count + recent.count:,.0f})"
        now, level_rate = rate, _ratio(recent.rate, earlier.rate)
        if level_rate >= _NOTABLE and recent.rate is not None and recent.failed >= _MIN_FAILURES:
            sentence += f", and {percent(recent.rate)} in the last quarter of the time range"
            now = recent.rate
    if explanation is not None and (cause := _cause(explanation)) is not None:
        sentence += f", mostly where {cause}"
    is_bad = now >= _HIGH_RATE or level_rate >= _NOTABLE
    found = [
        Finding(
            level="bad" if is_bad else "info",
            text=f"{sentence}.",
            where="failed",
            since=onset,
            view="explore",
        )
    ]
    if crashed := earlier.crashed + recent.crashed:
        noun = "run was" if crashed == 1 else "runs were"
        found.append(
            Finding(
                level="warning",
                text=f"{crashed:,.0f} {noun} interrupted because the process died.",
                where="outcome = 'crashed'",
                since=None,
                view="runs",
            )
        )
    return found


def _slow_findings(
    store: PinnedStore, question: Question, earlier: _Rates, recent: _Rates, middle: str
) -> list[Finding]:
    if recent.p95_ms is None or earlier.p95_ms is None or recent.count < 20:
        return []
    is_bad = _ratio(recent.p95_ms, earlier.p95_ms) >= _NOTABLE
    sentence = ""
    where = f"duration_ms >= {earlier.p95_ms!r}"
    if is_bad:
        sentence = (
            f"The p95 duration is {duration(recent.p95_ms)} in the last quarter of the time range,"
            f" up from {duration(earlier.p95_ms)}"
        )
    if question.explain:
        explanation = store.explain_slow("runs", question.filter, within=question.where)
        if (cause := _cause(explanation)) is not None:
            sentence = f"{sentence or 'The slowest 5% of the runs differ'}, mostly where {cause}"
            where = explanation.where
    if not sentence:
        return []
    return [
        Finding(
            level="bad" if is_bad else "warning",
            text=f"{sentence}.",
            where=where,
            since=middle if is_bad else None,
            view="explore",
        )
    ]


def _cause(explanation: Explanation) -> str | None:
    """Return the description of the first difference that is not only a time."""
    for difference in explanation.differences:
        if difference.shape not in ("date", "hour", "weekday") and difference.fields != ("started_at",):
            return difference.description
    return None


def _rate_of(store: PinnedStore, question: Question) -> float | None:
    def read(cursor: DuckDBPyConnection) -> float | None:
        return _rates(cursor, store.weighted, question).rate

    return store.query(read, "failure rate", predicates=[question.where], over=["runs"])


def _ratio(recent: float | None, earlier: float | None) -> float:
    if recent is None or earlier is None:
        return 1.0
    return recent / earlier if earlier else (_NOTABLE if recent else 1.0)


def _clock(time: str | None) -> str:
    return f"{time[11:16]} UTC on {time[:10]}" if time else ""


def _all_well(earlier: _Rates, recent: _Rates) -> Finding:
    count = earlier.count + recent.count
    if not count:
        sentence = "There are no runs in this time range."
    else:
        failed = earlier.failed + recent.failed
        failures = "no run failed" if not failed else f"{failed:,.0f} failed"
        p95 = recent.p95_ms if recent.p95_ms is not None else earlier.p95_ms
        sentence = f"Nothing unusual: {count:,.0f} runs, {failures}, p95 {duration(p95)}."
    return Finding(level="ok", text=sentence, where=None, since=None, view="runs")
