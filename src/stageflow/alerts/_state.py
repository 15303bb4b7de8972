"""The persistent state of alerts: firing alerts and pending notifications."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Literal

from msgspec import Struct

from .._files import absolute_path, make_private, replace_file
from .._state_file import StateFile, encode_state, read_state as read_stored
from ..errors import AlertStateError
from ._notice import Notice
from ._rule import Silence

__all__ = [
    "STATE_FILE",
    "AlertState",
    "Delivery",
    "Incident",
    "IncidentRecord",
    "ReceiverState",
    "RuleState",
    "read_state",
    "state_path",
    "write_state",
]


Status = Literal["inactive", "pending", "firing"]


class Incident(Struct, frozen=True, kw_only=True):
    """A period in which an alert fires.

    Attributes:
        id: The id that all its notifications share.
        notified_at: Time of the last notification; None if a silence suppressed it.
        notices: Number of notifications.
        receivers: Names of the receivers; empty for all.
        subjects: The subjects of the last measurement that were in a notification; see `Measurement`.
    """

    id: str
    notified_at: datetime | None = None
    notices: int = 0
    receivers: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()


class RuleState(Struct, frozen=True, kw_only=True):
    """The state of one rule.

    Attributes:
        status: "inactive", "pending" (bad, but in fewer evaluations than `for` requires) or "firing".
        evaluated_at: Time of the last evaluation.
        bad: Number of consecutive evaluations in which it was bad.
        began: Time of the first of these; None if it is inactive.
        incident: The current incident; None if the alert does not fire.
        value: The value measured in the last evaluation.
        summary: The measured value as text.
        error: Why the last evaluation failed; None if it succeeded.
        errors: Number of failed evaluations.
    """

    status: Status = "inactive"
    evaluated_at: datetime | None = None
    bad: int = 0
    began: datetime | None = None
    incident: Incident | None = None
    value: float | None = None
    summary: str = ""
    error: str | None = None
    errors: int = 0


class Delivery(Struct, frozen=True, kw_only=True):
    """A notification that is being delivered to one receiver.

    Attributes:
        receiver: Name of the receiver.
        notice: The notification.
        attempts: Number of attempts.
        next_at: Earliest time of the next attempt; None for immediately.
        sending: True during an attempt. If it is true at the start of an evaluation, the process died during
            the attempt, and the notification may have arrived.
        in_doubt: True if that has happened.
    """

    receiver: str
    notice: Notice
    attempts: int = 0
    next_at: datetime | None = None
    sending: bool = False
    in_doubt: bool = False


class ReceiverState(Struct, frozen=True, kw_only=True):
    """Counters of the deliveries to one receiver.

    Attributes:
        sent: Notifications that it accepted.
        attempts: Attempts to deliver a notification.
        failures: Failed attempts.
        in_doubt: Attempts during which the process died.
        given_up: Notifications that are no longer retried.
        last_error: Why the last attempt failed; None if it succeeded.
    """

    sent: int = 0
    attempts: int = 0
    failures: int = 0
    in_doubt: int = 0
    given_up: int = 0
    last_error: str | None = None


class IncidentRecord(Struct, frozen=True, kw_only=True):
    """One incident in the history of alerts: a period in which an alert fired.

    Attributes:
        id: The id that all its notifications share.
        rule: Name of the rule.
        kind: Kind of the rule: "failure_rate".
        severity: Severity of the rule.
        pipeline: The pipeline of the rule; None for all.
        stage: The stage of the rule; None for whole runs.
        status: "firing"; "resolved"; or "removed" if the rule was removed while the alert fired.
        began: Time of the first evaluation in which the condition of the rule was met.
        fired_at: Time of the evaluation from which on the alert fired; later than `began` if the rule
            requires several evaluations.
        ended_at: Time of the evaluation in which it ended; None while it fires.
        worst: The worst measured value; None if no evaluation measured one.
        worst_at: Time of the evaluation that measured it.
        summary: That value as text.
        threshold: The threshold as text.
        subjects: What the rule fired about, for rules that distinguish it: errors. At most 20.
        notices: Number of notifications that were due; 0 if silences suppressed all of them.
        silences: The last silences that applied during the incident, at most 5.
        receivers: Counters of the deliveries of its notifications, by receiver name.
    """

    id: str
    rule: str
    kind: str
    severity: str
    pipeline: str | None = None
    stage: str | None = None
    status: Literal["firing", "resolved", "removed"] = "firing"
    began: datetime
    fired_at: datetime
    ended_at: datetime | None = None
    worst: float | None = None
    worst_at: datetime
    summary: str = ""
    threshold: str = ""
    subjects: tuple[str, ...] = ()
    notices: int = 0
    silences: tuple[Silence, ...] = ()
    receivers: dict[str, ReceiverState] = {}


class AlertState(Struct, frozen=True, kw_only=True):
    """The state of all rules and receivers between two evaluations.

    Attributes:
        version: Version of this format.
        rules: States by rule name.
        outbox: Pending deliveries, oldest first.
        receivers: Counters by receiver name.
        history: Current and past incidents, oldest first; see `alert_history`.
    """

    version: Literal[1] = 1
    rules: dict[str, RuleState] = {}
    outbox: tuple[Delivery, ...] = ()
    receivers: dict[str, ReceiverState] = {}
    history: tuple[IncidentRecord, ...] = ()


STATE_FILE = StateFile(
    "alerts.json",
    AlertState,
    "the state records which notifications were sent; to reset it, move the file away: firing alerts are then"
    " sent again, and pending notifications and the history are lost",
    after="firing alerts are sent again, and pending notifications and the history are lost",
)


def state_path(journal: str | None, named: str | os.PathLike[str] | None = None) -> str:
    """Return the path of the state file: the given one, or the default in the journal.

    Raises:
        AlertStateError: There is neither a path nor a journal.
    """
    if named is not None:
        return absolute_path(named)
    if journal is None:
        raise AlertStateError(
            "", "a store without a journal has no default path for the alert state; pass state=..."
        )
    return os.path.join(absolute_path(journal), STATE_FILE.name)


def read_state(path: str) -> AlertState:
    """Return the stored state, or a new one if there is none.

    Raises:
        DamagedFileError: The file is damaged. Resetting it would repeat the notifications of firing alerts.
        OSError: The file cannot be read.
    """
    return read_stored(path, AlertState, STATE_FILE.remedy) or AlertState()


def write_state(path: str, state: AlertState) -> None:
    """Write and sync the state atomically: after a crash, the file contains either the old or the new state.

    Raises:
        OSError: The file cannot be written; it still contains the old state.
    """
    path = os.path.abspath(path)
    make_private(os.path.dirname(path))
    replace_file(path, encode_state(state))
