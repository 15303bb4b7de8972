"""Evaluates alert rules once: for real, without side effects, or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from .._files import absolute_path, make_private, only_one
from .._time import get_clock
from ..errors import AlertStateError, QueryError
from ._delivery import Sent, post, send_due
from ._evaluation import Finding, evaluate, why
from ._notice import sample_notice
from ._receivers import NotDelivered, Receiver
from ._rule import Rule, Silence, Window, aware, is_silenced, read_silences
from ._rules import SqlRows
from ._state import Delivery, ReceiverState, RuleState, read_state, write_state

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = [
    "AlertRules",
    "AlertRun",
    "AlertStatus",
    "RuleStatus",
    "alert_status",
    "check_rules",
    "present",
    "run_alerts",
    "state_path",
    "try_receivers",
]


STATE = "alerts.json"


class AlertRules(Struct, frozen=True, kw_only=True):
    """What is watched, and whom it is told.

    Attributes:
        rules: Each with a name of its own.
        receivers: Each with a name of its own.
        silences: With the name of a rule each.

    Raises:
        ValueError: Two have the same name, or a rule or silence names what there is not.
    """

    rules: tuple[Rule, ...]
    receivers: tuple[Receiver, ...] = ()
    silences: tuple[Silence, ...] = ()

    def __post_init__(self) -> None:
        for kind, names in (
            ("rule", [rule.name for rule in self.rules]),
            ("receiver", [receiver.name for receiver in self.receivers]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"more than one {kind} is named {twice[0]!r}")
        receivers = {receiver.name for receiver in self.receivers}
        for rule in self.rules:
            if unknown := set(rule.receivers) - receivers:
                raise ValueError(f"rule {rule.name!r} names an unknown receiver {sorted(unknown)[0]!r}")
        for silence in self.silences:
            if silence.rule not in {rule.name for rule in self.rules}:
                raise ValueError(f"a silence names an unknown rule {silence.rule!r}")


class AlertRun(Struct, frozen=True, kw_only=True):
    """What one evaluation did.

    Attributes:
        at: The moment that it was for.
        busy: True where another evaluator was at work, and this one did nothing.
        findings: What became of each rule.
        sent: Each attempt to send a notice.
        waiting: Notices that still have to go out.
        receivers: Counters by the name of the receiver.
    """

    at: datetime
    busy: bool = False
    findings: tuple[Finding, ...] = ()
    sent: tuple[Sent, ...] = ()
    waiting: tuple[Delivery, ...] = ()
    receivers: dict[str, ReceiverState] = {}

    @property
    def well(self) -> bool:
        """True where every rule could be evaluated, and no notice waits for a receiver that is down."""
        return not self.waiting and all(finding.error is None for finding in self.findings)


def run_alerts(
    store: EventStore,
    rules: AlertRules,
    *,
    state: str | os.PathLike[str] | None = None,
    now: datetime | None = None,
) -> AlertRun:
    """Evaluate every rule, keep the state, and send what is due.

    Args:
        store: That is asked.
        rules: What is watched, and whom it is told.
        state: File of the state; default `alerts.json` in the directory of the journal.
        now: The present, with a zone; default that of the clock.

    Returns:
        What it did. Where another process has the same state at work it did nothing.

    Raises:
        AlertStateError: The state cannot be read, or there is no place for it.
        OSError: It cannot be written; then nothing was sent.

    Example:
        with EventStore("journal") as store:
            run_alerts(store, read_rules("alerts.toml"))
    """
    path = state_path(store.path, state)
    moment = present() if now is None else now
    make_private(os.path.dirname(path))
    with only_one(path + ".lock") as mine:
        if not mine:
            return AlertRun(at=moment, busy=True)
        before = read_state(path)
        silences: Sequence[Silence] = (*rules.silences, *read_silences(path))
        evaluation = evaluate(store, rules.rules, before, moment, silences)
        after = post(evaluation.state, evaluation.notices, rules.receivers)
        # What fires is on the disk before anybody hears of it: whoever comes after a crash knows it.
        write_state(path, after)
        after, sent = send_due(after, rules.receivers, moment, lambda now: write_state(path, now))
    return AlertRun(
        at=moment,
        findings=evaluation.findings,
        sent=tuple(sent),
        waiting=after.outbox,
        receivers=after.receivers,
    )


def present() -> datetime:
    """Return the present, as the clock of the library has it."""
    return datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)


def state_path(journal: str | None, named: str | os.PathLike[str] | None = None) -> str:
    """Return where the state is kept: where it is said, or beside the journal.

    Raises:
        AlertStateError: Neither is there.
    """
    if named is not None:
        return absolute_path(named)
    if journal is None:
        raise AlertStateError("", "a store without a journal has no place for it; give state=...")
    return os.path.join(journal, STATE)


def try_receivers(rules: AlertRules, now: datetime, *, only: str | None = None) -> Sequence[dict[str, Any]]:
    """Send a sample to each receiver, and return `receiver`, `kind` and `error` of each.

    Args:
        rules: That have the receivers.
        now: The present.
        only: Name of the one; default all.
    """
    found = []
    for receiver in rules.receivers:
        if only is None or receiver.name == only:
            error = None
            try:
                receiver.send(sample_notice(now))
            except NotDelivered as failure:
                error = failure.why
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as failure:  # a custom receiver may raise anything
                error = why(failure)
            kind = type(receiver).__name__.lower()
            found.append({"receiver": receiver.name, "kind": kind, "error": error})
    return found


def check_rules(store: EventStore, rules: AlertRules) -> Sequence[str]:
    """Evaluate each rule without side effects, and return the problems, each with its path.

    The query of a `SqlRows` is planned but not executed; the other rules are measured.

    Args:
        store: The store that they are evaluated on.
        rules: The rules to evaluate.
    """
    found = []
    for number, rule in enumerate(rules.rules):
        place = f"at $.rules[{number}]"
        try:
            if isinstance(rule, SqlRows):
                parameters = rule.parameters(Window.ending(present(), rule.window))
                store.sql(f"explain {rule.sql}", parameters or None)
            else:
                rule.measure(store, present())
        except QueryError as error:
            place += ".sql" if isinstance(rule, SqlRows) else ""
            found.append(f"{place}: {error.message.splitlines()[0]}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a custom rule may raise anything
            found.append(f"{place}: rule {rule.name!r} cannot be evaluated: {why(error)}")
    return found


class RuleStatus(Struct, frozen=True, kw_only=True):
    """A rule, and what is known of it.

    Attributes:
        rule: Its name.
        kind: Its kind.
        severity: As it has it.
        status: "inactive", "pending" or "firing", as of the last evaluation.
        evaluated_at: When that was; None before the first.
        began: When it was first found bad; None where it is not.
        summary: The measured value as text.
        silenced: The silence that holds it back; None where none does.
        error: Why it could not be evaluated; None where it could.
    """

    rule: str
    kind: str
    severity: str
    status: str
    evaluated_at: datetime | None
    began: datetime | None
    summary: str
    silenced: Silence | None
    error: str | None


class AlertStatus(Struct, frozen=True, kw_only=True):
    """All of them.

    Attributes:
        rules: In the order of the file.
        silences: Those that are not over.
        receivers: Counters by the name of the receiver.
        waiting: Notices that still have to go out.
    """

    rules: tuple[RuleStatus, ...]
    silences: tuple[Silence, ...]
    receivers: dict[str, ReceiverState]
    waiting: tuple[Delivery, ...]


def alert_status(rules: AlertRules, state: str, now: datetime) -> AlertStatus:
    """Return rules beside what is known of them.

    Args:
        rules: The rules.
        state: File of the state.
        now: The present, by which silences are over.

    Raises:
        AlertStateError: The state cannot be read.
    """
    known = read_state(state)
    silences = (
        *(
            Silence(rule=rule.name, since=silence.since, until=silence.until, reason=silence.reason)
            for rule in rules.rules
            for silence in rule.silences
        ),
        *rules.silences,
        *read_silences(state),
    )
    found = []
    for rule in rules.rules:
        last = known.rules.get(rule.name, RuleState())
        found.append(
            RuleStatus(
                rule=rule.name,
                kind=rule.kind,
                severity=rule.severity,
                status=last.status,
                evaluated_at=last.evaluated_at,
                began=last.began,
                summary=last.summary,
                silenced=is_silenced(rule.name, silences, now),
                error=last.error,
            )
        )
    counters = {one.name: known.receivers.get(one.name, ReceiverState()) for one in rules.receivers}
    return AlertStatus(
        rules=tuple(found),
        silences=tuple(silence for silence in silences if now < aware(silence.until)),
        receivers=counters,
        waiting=known.outbox,
    )
