"""`run_alerts`: one evaluation from end to end, by one evaluator at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from ..clock import get_clock
from ..errors import AlertStateError
from ..journal.disk import absolute_path, make_private, only_one
from .delivery import Sent, post, send_due
from .evaluation import Finding, evaluate
from .receiver import Receiver
from .rule import Rule
from .silence import Silence, read_silences
from .state import Delivery, ReceiverState, read_state, write_state

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = ["AlertRules", "AlertRun", "present", "run_alerts", "state_path"]

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
