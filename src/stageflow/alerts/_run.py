"""Evaluates alert rules once: for real, without side effects, or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from .._files import make_private, try_lock
from .._time import get_clock
from ..errors import InvalidArgumentError, QueryError
from ._delivery import Sent, post, send_due
from ._evaluation import Finding, evaluate, why
from ._notice import sample_notice
from ._receivers import NotDelivered, Receiver
from ._rule import Rule, Silence, Window, aware, is_silenced, read_silences
from ._rules import SqlRows
from ._state import Delivery, ReceiverState, RuleState, read_state, state_path, write_state

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
    "try_receivers",
]


class AlertRules(Struct, frozen=True, kw_only=True):
    """Rules, receivers and silences.

    Attributes:
        rules: Rules with unique names.
        receivers: Receivers with unique names.
        silences: Silences, each with the name of a rule.

    Raises:
        InvalidArgumentError: A name is not unique, or a rule or silence refers to an unknown name.
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
                raise InvalidArgumentError(f"AlertRules: more than one {kind} is named {twice[0]!r}")
        receivers = {receiver.name for receiver in self.receivers}
        for rule in self.rules:
            if unknown := set(rule.receivers) - receivers:
                raise InvalidArgumentError(
                    f"AlertRules: rule {rule.name!r} names an unknown receiver {sorted(unknown)[0]!r}"
                )
        for silence in self.silences:
            if silence.rule not in {rule.name for rule in self.rules}:
                raise InvalidArgumentError(f"AlertRules: a silence names an unknown rule {silence.rule!r}")


class AlertRun(Struct, frozen=True, kw_only=True):
    """The result of one evaluation.

    Attributes:
        at: Time of the evaluation.
        busy: True if another process was evaluating, so that this evaluation was skipped.
        findings: The result of each rule.
        sent: Attempts to send notifications.
        waiting: Pending deliveries.
        receivers: Counters by receiver name.
    """

    at: datetime
    busy: bool = False
    findings: tuple[Finding, ...] = ()
    sent: tuple[Sent, ...] = ()
    waiting: tuple[Delivery, ...] = ()
    receivers: dict[str, ReceiverState] = {}

    @property
    def well(self) -> bool:
        """True if every rule was evaluated, and no delivery is pending."""
        return not self.waiting and all(finding.error is None for finding in self.findings)


def run_alerts(
    store: EventStore,
    rules: AlertRules,
    *,
    state: str | os.PathLike[str] | None = None,
    now: datetime | None = None,
) -> AlertRun:
    """Evaluate every rule, store the state, and send due notifications.

    Args:
        store: The store.
        rules: The rules and receivers.
        state: File for the state; default `alerts.json` in the journal directory.
        now: The current time, timezone-aware; default that of the clock.

    Returns:
        The result. If another process is evaluating with the same state, `busy` is True.

    Raises:
        AlertStateError: The state cannot be read, or `state` is required.
        OSError: The state cannot be written; nothing was sent.

    Example:
        with EventStore("journal") as store:
            run_alerts(store, read_rules("alerts.toml"))
    """
    path = state_path(store.path, state)
    moment = present() if now is None else now
    make_private(os.path.dirname(path))
    with try_lock(path + ".lock") as mine:
        if not mine:
            return AlertRun(at=moment, busy=True)
        before = read_state(path)
        silences: Sequence[Silence] = (*rules.silences, *read_silences(path))
        evaluation = evaluate(store, rules.rules, before, moment, silences)
        after = post(evaluation.state, evaluation.notices, rules.receivers)
        # Store the state before anything is sent, so that it is known after a crash.
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
    """Return the current time of the clock of the library."""
    return datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)


def try_receivers(rules: AlertRules, now: datetime, *, only: str | None = None) -> Sequence[dict[str, Any]]:
    """Send a sample notification to each receiver, and return `receiver`, `kind` and `error` of each.

    Args:
        rules: The rules with the receivers.
        now: The current time.
        only: Name of one receiver; default all.
    """
    found = []
    for receiver in rules.receivers:
        if only is None or receiver.name == only:
            error = None
            try:
                receiver.send(sample_notice(now))
            except NotDelivered as failure:
                error = failure.reason
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
        path = f"at $.rules[{number}]"
        try:
            if isinstance(rule, SqlRows):
                parameters = rule.parameters(Window.ending(present(), rule.window))
                store.sql(f"explain {rule.sql}", parameters or None)
            else:
                rule.measure(store, present())
        except QueryError as error:
            path += ".sql" if isinstance(rule, SqlRows) else ""
            found.append(f"{path}: {error.message.splitlines()[0]}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a custom rule may raise anything
            found.append(f"{path}: rule {rule.name!r} cannot be evaluated: {why(error)}")
    return found


class RuleStatus(Struct, frozen=True, kw_only=True):
    """The status of one rule.

    Attributes:
        rule: Name of the rule.
        kind: Kind of the rule.
        severity: Severity of the rule.
        status: "inactive", "pending" or "firing", as of the last evaluation.
        evaluated_at: Time of the last evaluation; None before the first.
        began: Time at which the rule was first found bad; None if it is not.
        summary: The measured value as text.
        silenced: The silence that applies; None if there is none.
        error: Why the last evaluation failed; None if it succeeded.
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
    """The status of all rules and receivers.

    Attributes:
        rules: In the order of the file.
        silences: Silences that have not expired.
        receivers: Counters by receiver name.
        waiting: Pending deliveries.
    """

    rules: tuple[RuleStatus, ...]
    silences: tuple[Silence, ...]
    receivers: dict[str, ReceiverState]
    waiting: tuple[Delivery, ...]


def alert_status(rules: AlertRules, state: str, now: datetime) -> AlertStatus:
    """Return the status of all rules and receivers.

    Args:
        rules: The rules.
        state: Path of the state file.
        now: The current time, which determines which silences have expired.

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
