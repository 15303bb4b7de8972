"""The landing page: whether runs are failing or slow, when this started, and which runs are affected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

from msgspec import structs

from .._time import epoch_us, rfc3339
from ..alerts import IncidentRecord
from ..store import OverviewFinding, PinnedStore
from ._api import Causes, Finding, Mark, Overview, Series
from ._question import Question
from ._series import series

__all__ = ["causes", "overview"]

_VIEWS: dict[str, Literal["explore", "runs"]] = {
    "failures": "explore",
    "crashes": "runs",
    "durations": "explore",
    "none": "runs",
}


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
        question: The time range and the predicate.
        snapshot: Number of the snapshot.
        alerts: The states of the alert rules.
        incidents: The incidents that had not ended when the time range started.

    Raises:
        QueryError: The predicate is invalid.
    """
    found = store.overview(question.filter, where=question.where, details=False)
    charts = series(
        store,
        structs.replace(question, over="runs", by=None, previous=True),
        snapshot,
        sightings=found.changes,
    )
    marks = sorted((*charts.marks, *_alert_marks(incidents, charts)), key=lambda mark: mark.at)
    return Overview(
        snapshot=snapshot,
        findings=_findings(alerts, found.findings),
        series=structs.replace(charts, marks=tuple(marks)),
        changes=tuple(mark for mark in reversed(marks) if mark.at >= charts.since),
        slowest=found.slowest,
        failing=found.failing,
    )


def causes(store: PinnedStore, question: Question, snapshot: int, alerts: list[dict[str, object]]) -> Causes:
    """Return the findings of the landing page with what the affected runs have in common; see `Causes`.

    Raises:
        QueryError: The predicate is invalid.
    """
    found = store.findings(question.filter, where=question.where, explain=True)
    return Causes(snapshot=snapshot, findings=_findings(alerts, found), onsets=_onsets(found))


_INCREASED = {"failures": "more failures", "durations": "more slow runs"}


def _onsets(found: Sequence[OverviewFinding]) -> tuple[Mark, ...]:
    """Return a mark for each onset; findings about the same incident have the same onset."""
    by_onset: dict[str, list[OverviewFinding]] = {}
    for finding in found:
        if finding.since is not None and finding.kind in _INCREASED:
            by_onset.setdefault(finding.since, []).append(finding)
    return tuple(
        Mark(
            at=since,
            kind="onset",
            label=", ".join(_INCREASED[finding.kind] for finding in of_onset),
            where=of_onset[0].where,
        )
        for since, of_onset in sorted(by_onset.items())
    )


def _findings(alerts: Iterable[dict[str, object]], found: Sequence[OverviewFinding]) -> tuple[Finding, ...]:
    """Return the firing alerts and the findings, worst first."""
    firing = tuple(
        Finding(
            kind="alert",
            level="bad",
            text=f"The alert {alert['name']!r} is firing: {alert.get('summary')}.",
            where=None,
            cause=None,
            condition=None,
            stage=None,
            since=str(since) if (since := alert.get("began")) is not None else None,
            since_range=None,
            view="status",
        )
        for alert in alerts
        if alert.get("status") == "firing"
    )
    return firing + tuple(
        Finding(
            kind=finding.kind,
            level=finding.level,
            text=finding.text,
            where=finding.where,
            cause=finding.cause,
            condition=finding.condition,
            stage=finding.stage,
            since=finding.since,
            since_range=finding.since_range,
            view=_VIEWS[finding.kind],
        )
        for finding in found
        if finding.kind != "none" or not firing
    )


def _alert_marks(incidents: Iterable[IncidentRecord], charts: Series) -> list[Mark]:
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
