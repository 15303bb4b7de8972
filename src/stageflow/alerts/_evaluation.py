"""`evaluate`: calculates the new state and the due notifications from the rules and the previous state."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from .._decodable import decodable
from .._interrupts import is_a
from .._log import log_safely
from ..errors import StageflowError, describe
from ._history import bounded, close, follow
from ._notice import Notice
from ._rule import Measurement, Rule, Silence, how_many, is_silenced, percent, rfc3339_of
from ._state import AlertState, Incident, IncidentRecord, RuleState

if TYPE_CHECKING:
    from ..store import Difference, EventStore

__all__ = ["Evaluation", "Finding", "evaluate", "why"]


log = logging.getLogger("stageflow.alerts")

_MAX_LINES = 3
"""Maximum number of runs, and of lines of an explanation, in one notification."""


class Finding(Struct, frozen=True, kw_only=True):
    """The result of the evaluation of one rule.

    Attributes:
        rule: Name of the rule.
        kind: Kind of the rule.
        severity: Severity of the rule.
        status: "inactive", "pending" or "firing", after the evaluation.
        summary: The measured value as text.
        threshold: The threshold as text.
        events: Number of events that the value is based on, as text.
        began: Time of the first evaluation in which the condition of the rule was met; None if it is not met.
        silenced: The silence that applies; None if there is none.
        error: Why the evaluation failed; None if it succeeded.
        archive_error: Why the archive, or a part of it, could not be read; the evaluation did not depend on
            that part. None if all of it was read.
    """

    rule: str
    kind: str
    severity: str
    status: str
    summary: str
    threshold: str
    events: str
    began: datetime | None
    silenced: Silence | None
    error: str | None
    archive_error: str | None = None


class Evaluation(Struct, frozen=True, kw_only=True):
    """The result of one evaluation of all rules.

    Attributes:
        state: The new state; store it before you send a notification.
        notices: The due notifications.
        findings: The result of each rule.
    """

    state: AlertState
    notices: tuple[Notice, ...]
    findings: tuple[Finding, ...]


def evaluate(
    store: EventStore,
    rules: Sequence[Rule],
    state: AlertState,
    now: datetime,
    silences: Iterable[Silence] = (),
) -> Evaluation:
    """Evaluate rules against a store, without sending or writing anything.

    A rule that cannot be evaluated keeps its status: if it raises an exception, of any class except
    `KeyboardInterrupt` and `SystemExit`, the finding contains the error, the error is logged whenever it
    changes, and the other rules are evaluated. An alert whose rule was removed resolves.

    Args:
        store: The store.
        rules: The rules.
        state: The state after the previous evaluation; `AlertState()` for the first.
        now: The current time, timezone-aware; all windows end at it.
        silences: Silences in addition to those of the rules.

    Example:
        evaluation = evaluate(store, rules, AlertState(), datetime.now(UTC))
    """
    silences = tuple(silences)
    known: dict[str, RuleState] = {}
    notices: list[Notice] = []
    findings: list[Finding] = []
    records = {record.id: record for record in state.history}
    for rule in rules:
        before = state.rules.get(rule.name, RuleState())
        try:
            after, notice, finding, record = _evaluate(store, rule, before, records, silences, now)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a custom rule may raise anything, and must not stop the others
            after = replace(before, evaluated_at=now, error=why(error), errors=before.errors + 1)
            notice = record = None
            finding = _finding(rule, after, None, None)
            if after.error != before.error:
                log_safely(log, "cannot evaluate alert rule %r: %s", rule.name, after.error)
        known[rule.name] = after
        notices += [notice] if notice is not None else []
        records |= {record.id: record} if record is not None else {}
        findings.append(finding)
    for name, gone in state.rules.items():
        if name not in known and gone.incident is not None:
            if gone.incident.notices:
                notices.append(_close_orphaned(name, gone, now))
            if (orphaned := records.get(gone.incident.id)) is not None:
                records[orphaned.id] = close(orphaned, now)
    after_all = replace(state, rules=known, history=bounded(records.values(), now))
    return Evaluation(state=after_all, notices=tuple(notices), findings=tuple(findings))


def why(error: BaseException) -> str:
    """Format an error and its hint as text that can be stored in a file."""
    text = describe(error)
    if is_a(error, StageflowError) and isinstance(hint := getattr(error, "hint", None), str):
        text += f"; {hint}"
    return text.encode(errors="backslashreplace").decode()


def _evaluate(
    store: EventStore,
    rule: Rule,
    before: RuleState,
    records: Mapping[str, IncidentRecord],
    silences: tuple[Silence, ...],
    now: datetime,
) -> tuple[RuleState, Notice | None, Finding, IncidentRecord | None]:
    """Evaluate one rule; raise whatever it raises, or an error for a value that the state cannot store."""
    silence = is_silenced(rule.name, (*rule.silences, *silences), now)
    measured = rule.measure(store, now)
    left_out = None if store.archive_error is None else why(store.archive_error)
    after, kind = _step(rule, before, measured, now, quiet=silence is not None)
    notice = None if kind is None else _notice(store, rule, before, after, measured, kind, now)
    incident = after.incident or before.incident
    known = records.get(incident.id) if incident is not None else None
    record = follow(known, rule, before, after, measured, silence, notified=notice is not None, now=now)
    for value in filter(None, (after, notice, record)):
        # A value that cannot be encoded and decoded would make the state of all rules unusable.
        msgspec.json.decode(msgspec.json.encode(value), type=decodable(type(value)))
    return after, notice, _finding(rule, after, measured, silence, left_out), record


def _step(
    rule: Rule, before: RuleState, measured: Measurement, now: datetime, *, quiet: bool
) -> tuple[RuleState, Literal["firing", "repeated", "resolved"] | None]:
    """Return the state after a measurement, and the kind of notification that is due."""
    seen = RuleState(evaluated_at=now, value=measured.value, summary=measured.summary, errors=before.errors)
    incident = before.incident
    if incident is None:
        if not measured.bad:
            return seen, None
        bad, began = before.bad + 1, before.began or now
        if bad < rule.for_:
            return replace(seen, status="pending", bad=bad, began=began), None
        incident = Incident(id=_id(rule.name, began), receivers=rule.receivers)
        before = replace(before, bad=bad, began=began)
    elif measured.good:
        # A silence does not suppress a resolve notification: someone may still be handling the incident.
        return seen, "resolved" if incident.notices else None
    kind: Literal["firing", "repeated"] | None = None
    known = set(incident.subjects)
    if not quiet:
        if incident.notified_at is None or not known.issuperset(measured.subjects):
            kind = "firing"
        elif rule.repeat_every is not None and now >= incident.notified_at + timedelta(
            seconds=rule.repeat_every
        ):
            kind = "repeated"
    if kind is not None:
        incident = replace(incident, notified_at=now, notices=incident.notices + 1)
        known.update(measured.subjects)
    incident = replace(incident, subjects=tuple(each for each in measured.subjects if each in known))
    return replace(seen, status="firing", bad=before.bad, began=before.began, incident=incident), kind


def _notice(
    store: EventStore,
    rule: Rule,
    before: RuleState,
    after: RuleState,
    measured: Measurement,
    kind: Literal["firing", "repeated", "resolved"],
    now: datetime,
) -> Notice:
    over = kind == "resolved"
    incident = before.incident if over else after.incident
    began = before.began if over else after.began
    assert incident is not None and began is not None  # noqa: PT018 - either both are None or neither is
    runs = () if over else measured.runs[:_MAX_LINES] or _runs(store, measured)
    commands = _commands(rule, measured)
    commands += [f"stageflow show {shlex.quote(run)}" for run in runs[:1]]
    return Notice(
        id=_notice_id(incident, kind),
        kind=kind,
        rule=rule.name,
        rule_kind=rule.kind,
        severity=rule.severity,
        incident=incident.id,
        at=now,
        began=began,
        summary=measured.summary,
        value=measured.value,
        threshold=measured.threshold,
        window_since=measured.window.since,
        window_until=measured.window.until,
        events=how_many(measured.events, measured.rows, measured.noun),
        pipeline=rule.pipeline,
        stage=rule.stage,
        notes=measured.notes,
        explained=() if over else _explained(store, measured),
        runs=runs,
        commands=tuple(_in_journal(command, store.path) for command in commands),
        receivers=incident.receivers,
    )


def _close_orphaned(name: str, gone: RuleState, now: datetime) -> Notice:
    """Return the resolve notification of an orphaned alert: its rule was removed."""
    assert gone.incident is not None
    return Notice(
        id=_notice_id(gone.incident, "resolved"),
        kind="resolved",
        rule=name,
        rule_kind="",
        severity="info",
        incident=gone.incident.id,
        at=now,
        began=gone.began or now,
        summary="the rule was removed; alert closed",
        receivers=gone.incident.receivers,
    )


def _finding(
    rule: Rule,
    after: RuleState,
    measured: Measurement | None,
    silence: Silence | None,
    archive_error: str | None = None,
) -> Finding:
    return Finding(
        rule=rule.name,
        kind=rule.kind,
        severity=rule.severity,
        status=after.status,
        summary=after.summary if measured is None else measured.summary,
        threshold="" if measured is None else measured.threshold,
        events="" if measured is None else how_many(measured.events, measured.rows, measured.noun),
        began=after.began,
        silenced=silence,
        error=after.error,
        archive_error=archive_error,
    )


def _commands(rule: Rule, measured: Measurement) -> list[str]:
    try:
        return [str(command) for command in rule.commands(measured.window)]
    except Exception as error:
        log_safely(
            log, "cannot determine the suggested commands for alert rule %r: %s", rule.name, describe(error)
        )
        return []


def _runs(store: EventStore, measured: Measurement) -> tuple[str, ...]:
    """Return ids of affected runs, newest first."""
    if measured.selection is None:
        return ()
    query = (
        f"select pipeline_run_id from runs where {measured.selection}"
        f" order by ended_at desc limit {_MAX_LINES}"
    )
    try:
        return tuple(str(run) for (run,) in store.sql(query, since=measured.window.since).rows)
    except Exception as error:
        log_safely(log, "cannot list the affected runs of an alert: %s", describe(error))
        return ()


def _explained(store: EventStore, measured: Measurement) -> tuple[str, ...]:
    """Return the differences between the affected runs and the others."""
    if measured.selection is None:
        return ()
    try:
        found = store.explain(measured.selection, against=measured.rest, limit=_MAX_LINES)
        return tuple(map(_as_text, found.differences))
    except Exception as error:
        # The explanation is optional: its failure must not suppress the notification.
        log_safely(log, "cannot explain an alert: %s", describe(error))
        return ()


def _as_text(difference: Difference) -> str:
    rates = (
        f"{percent(difference.rate)} of these are affected, {percent(difference.other_rate)} of the others"
    )
    return f"{difference} ({rates})"


def _in_journal(command: str, journal: str | None) -> str:
    if journal is None or os.path.normpath(journal) == "journal":  # the default of the commands
        return command
    before, comment, after = command.partition("  # ")
    return f"{before} --journal {shlex.quote(journal)}{comment}{after}"


# Ids are hashes of what they identify: if an evaluation is interrupted and repeated, they are the same.


def _id(*parts: str | datetime | int) -> str:
    text = "\n".join(rfc3339_of(part) if isinstance(part, datetime) else str(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _notice_id(incident: Incident, kind: str) -> str:
    return f"msg_{_id(incident.id, kind, incident.notices)}"
