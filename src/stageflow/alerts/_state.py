"""What is known between two evaluations: which alerts fire, and which notices still have to go out."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Literal

from msgspec import Struct

from .._files import make_private, replace_file
from .._state_file import StateFile, encode_state, read_state as read_stored
from ._notice import Notice

__all__ = [
    "STATE_FILE",
    "AlertState",
    "Delivery",
    "Incident",
    "ReceiverState",
    "RuleState",
    "read_state",
    "write_state",
]


Status = Literal["inactive", "pending", "firing"]


class Incident(Struct, frozen=True, kw_only=True):
    """One stretch of time in which an alert fires.

    Attributes:
        id: What all its notices have in common.
        notified_at: When it was last told; None where a silence held that back.
        notices: How many notices there were.
        receivers: Names of those that are told; none for all.
    """

    id: str
    notified_at: datetime | None = None
    notices: int = 0
    receivers: tuple[str, ...] = ()


class RuleState(Struct, frozen=True, kw_only=True):
    """What is known of one rule.

    Attributes:
        status: "inactive", "pending" (bad, but not yet in as many evaluations as `for` says) or "firing".
        evaluated_at: When it was last evaluated.
        bad: In how many evaluations in a row it was bad.
        began: When the first of these was; None where it is inactive.
        incident: What fires; None where nothing does.
        value: The figure of the last evaluation.
        summary: The measured value as text.
        error: Why it could not be evaluated; None where it could.
        errors: How often it could not.
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
    """A notice on its way to one receiver.

    Attributes:
        receiver: Name of the receiver.
        notice: What it is told.
        attempts: How often it was tried.
        next_at: Before that it is not tried again; None for at once.
        sending: True while it is tried. One that is found so was cut off, and may have arrived.
        in_doubt: True once that happened.
    """

    receiver: str
    notice: Notice
    attempts: int = 0
    next_at: datetime | None = None
    sending: bool = False
    in_doubt: bool = False


class ReceiverState(Struct, frozen=True, kw_only=True):
    """What became of the notices to one receiver, counted.

    Attributes:
        sent: Notices that it took.
        attempts: How often one was tried.
        failures: How often that failed.
        in_doubt: How often the process died while one was tried.
        given_up: Notices that are tried no more.
        last_error: Why the last one failed; None where it did not.
    """

    sent: int = 0
    attempts: int = 0
    failures: int = 0
    in_doubt: int = 0
    given_up: int = 0
    last_error: str | None = None


class AlertState(Struct, frozen=True, kw_only=True):
    """All that is known between two evaluations.

    Attributes:
        version: Of this layout.
        rules: By the name of the rule.
        outbox: Notices that still have to go out, the oldest first.
        receivers: By the name of the receiver.
    """

    version: Literal[1] = 1
    rules: dict[str, RuleState] = {}
    outbox: tuple[Delivery, ...] = ()
    receivers: dict[str, ReceiverState] = {}


STATE_FILE = StateFile(
    "alerts.json",
    AlertState,
    "the state records which notifications were sent; to reset it, move the file away: firing alerts are then"
    " sent again, and pending notifications are lost",
    after="firing alerts are sent again, and pending notifications are lost",
)


def read_state(path: str) -> AlertState:
    """Return the state that was written last; a new one where there is none.

    Raises:
        DamagedFileError: The file is damaged. Resetting it would repeat the notifications of firing alerts.
        OSError: It cannot be read.
    """
    return read_stored(path, AlertState, STATE_FILE.remedy) or AlertState()


def write_state(path: str, state: AlertState) -> None:
    """Write the state, synced: after a crash either the old one is there or the new one, whole.

    Raises:
        OSError: It cannot be written; the old one stands.
    """
    path = os.path.abspath(path)
    make_private(os.path.dirname(path))
    replace_file(path, encode_state(state))
