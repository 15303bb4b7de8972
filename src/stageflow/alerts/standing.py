"""`standing`: rules beside what the last evaluation found, without evaluating anything."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from .run_alerts import AlertRules
from .silence import Silence, aware, is_silenced, read_silences
from .state import Delivery, ReceiverState, RuleState, read_state

__all__ = ["Standing", "StandingRule", "standing"]


class StandingRule(Struct, frozen=True, kw_only=True):
    """A rule, and what is known of it.

    Attributes:
        rule: Its name.
        kind: Its kind.
        severity: As it has it.
        status: "inactive", "pending" or "firing", as of the last evaluation.
        evaluated_at: When that was; None before the first.
        began: When it was first found bad; None where it is not.
        says: The figure in words.
        silenced: The silence that holds it back; None where none does.
        error: Why it could not be evaluated; None where it could.
    """

    rule: str
    kind: str
    severity: str
    status: str
    evaluated_at: datetime | None
    began: datetime | None
    says: str
    silenced: Silence | None
    error: str | None


class Standing(Struct, frozen=True, kw_only=True):
    """All of them.

    Attributes:
        rules: In the order of the file.
        silences: Those that are not over.
        receivers: Counters by the name of the receiver.
        waiting: Notices that still have to go out.
    """

    rules: tuple[StandingRule, ...]
    silences: tuple[Silence, ...]
    receivers: dict[str, ReceiverState]
    waiting: tuple[Delivery, ...]


def standing(rules: AlertRules, state: str, now: datetime) -> Standing:
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
            StandingRule(
                rule=rule.name,
                kind=rule.kind,
                severity=rule.severity,
                status=last.status,
                evaluated_at=last.evaluated_at,
                began=last.began,
                says=last.says,
                silenced=is_silenced(rule.name, silences, now),
                error=last.error,
            )
        )
    counters = {one.name: known.receivers.get(one.name, ReceiverState()) for one in rules.receivers}
    return Standing(
        rules=tuple(found),
        silences=tuple(silence for silence in silences if now < aware(silence.until)),
        receivers=counters,
        waiting=known.outbox,
    )
