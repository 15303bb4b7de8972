"""The history of alerts: what happened during each incident.

It is part of the alert state, which the evaluating process replaces atomically while it holds the lock. So an
incident is recorded exactly once, and it is consistent with the status of its rule after a crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from msgspec.structs import replace

from ..errors import JournalNotFoundError, invalid_argument
from ._rule import Measurement, Rule, Silence
from ._state import AlertState, IncidentRecord, ReceiverState, RuleState, read_state, state_path

__all__ = ["alert_history", "bounded", "close", "count_delivery", "follow"]


_MAX_AGE = timedelta(days=90)
_MAX_COUNT = 500
"""The limits for past incidents. An incident has about 500 bytes, and each evaluation writes all of them."""

_MAX_SUBJECTS = 20
_MAX_SILENCES = 5


def alert_history(
    journal: str | os.PathLike[str] | None = None,
    *,
    state: str | os.PathLike[str] | None = None,
    rule: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = None,
) -> list[IncidentRecord]:
    """Return current and past incidents, newest first.

    The history contains at most 500 past incidents from the last 90 days.

    Args:
        journal: Directory of the journal.
        state: File of the alert state; default `alerts.json` in the journal directory.
        rule: Only incidents of the rule with this name; default all.
        since: Timezone-aware; only incidents that had not ended before this time. Default all.
        until: Timezone-aware; only incidents that fired before this time. Default all.
        limit: Maximum number of incidents; default None, for all.

    Raises:
        AlertStateError: There is neither a journal nor a state file.
        DamagedFileError: The state is damaged.
        InvalidArgumentError: `limit` is not positive.
        JournalNotFoundError: The directory does not exist.
        OSError: The state cannot be read.

    Example:
        for incident in alert_history("journal", rule="checkout fails", limit=10):
            print(incident.fired_at, incident.status, incident.summary)
    """
    if limit is not None and limit < 1:
        raise invalid_argument("alert_history()", "limit", limit, "a positive integer or None")
    path = state_path(None if journal is None else os.fspath(journal), state)
    if state is None and not os.path.isdir(os.path.dirname(path)):
        raise JournalNotFoundError(os.path.dirname(path))
    found = [
        record
        for record in read_state(path).history
        if (rule is None or record.rule == rule)
        and (since is None or record.ended_at is None or record.ended_at >= since)
        and (until is None or record.fired_at < until)
    ]
    return sorted(found, key=lambda record: record.fired_at, reverse=True)[:limit]


def follow(
    known: IncidentRecord | None,
    rule: Rule,
    before: RuleState,
    after: RuleState,
    measured: Measurement,
    silence: Silence | None,
    *,
    notified: bool,
    now: datetime,
) -> IncidentRecord | None:
    """Return the record of the incident after an evaluation of its rule; None if there is no incident.

    Args:
        known: The record after the previous evaluation; None for a new incident.
        rule: The rule.
        before: The state of the rule before the evaluation.
        after: The state after it.
        measured: The measurement.
        silence: The silence that applies.
        notified: Whether a notification is due.
        now: The time of the evaluation.
    """
    incident = after.incident or before.incident
    if incident is None:
        return None
    if known is None:
        began = after.began or before.began or now
        known = IncidentRecord(
            id=incident.id,
            rule=rule.name,
            kind=rule.kind,
            severity=rule.severity,
            pipeline=rule.pipeline,
            stage=rule.stage,
            began=began,
            # An earlier version, which kept no history, has stored the incident.
            fired_at=now if before.incident is None else began,
            worst_at=now,
            summary=measured.summary,
            notices=before.incident.notices if before.incident is not None else 0,
        )
    record = replace(
        known, severity=rule.severity, threshold=measured.threshold, notices=known.notices + int(notified)
    )
    if after.incident is None:
        return replace(record, status="resolved", ended_at=now)
    if measured.value is not None and (known.worst is None or rule.is_worse(measured.value, known.worst)):
        record = replace(record, worst=measured.value, worst_at=now, summary=measured.summary)
    if silence is not None and silence not in record.silences:
        record = replace(record, silences=(*record.silences, silence)[-_MAX_SILENCES:])
    subjects = tuple(dict.fromkeys((*record.subjects, *measured.subjects)))
    return replace(record, subjects=subjects[:_MAX_SUBJECTS])


def close(record: IncidentRecord, now: datetime) -> IncidentRecord:
    """Return the record of an incident whose rule was removed."""
    notified = int(record.notices > 0)
    return replace(record, status="removed", ended_at=now, notices=record.notices + notified)


def bounded(records: Collection[IncidentRecord], now: datetime) -> tuple[IncidentRecord, ...]:
    """Return the records without the oldest ended ones, oldest first."""
    ended = [each for each in records if each.ended_at is not None and now - each.ended_at <= _MAX_AGE]
    ended.sort(key=lambda record: record.ended_at or now)
    kept = {record.id for record in ended[-_MAX_COUNT:]}
    return tuple(each for each in records if each.ended_at is None or each.id in kept)


def count_delivery(
    state: AlertState, receiver: str, incident: str, change: Callable[[ReceiverState], ReceiverState]
) -> AlertState:
    """Return the state with changed counters of a receiver, in total and for one incident.

    Args:
        state: The state.
        receiver: Name of the receiver.
        incident: Id of the incident.
        change: Returns the counters after an attempt.
    """

    def changed(counters: dict[str, ReceiverState]) -> dict[str, ReceiverState]:
        return {**counters, receiver: change(counters.get(receiver, ReceiverState()))}

    history = tuple(
        replace(record, receivers=changed(record.receivers)) if record.id == incident else record
        for record in state.history
    )
    return replace(state, receivers=changed(state.receivers), history=history)
