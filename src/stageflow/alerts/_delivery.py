"""The outbox: delivers notifications with retries, and stores the state before and after each attempt."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from ._evaluation import why
from ._history import count_delivery
from ._notice import Notice
from ._receivers import NotDelivered, Receiver
from ._state import AlertState, Delivery, ReceiverState

__all__ = ["Sent", "backoff", "post", "send_due"]


_FIRST_SECONDS = 5.0
_MAX_SECONDS = 3600.0
_GIVE_UP_AFTER = timedelta(days=3)
_MAX_PENDING = 1000


class Sent(Struct, frozen=True, kw_only=True):
    """The result of one attempt to deliver a notification.

    Attributes:
        receiver: Name of the receiver.
        notice: The notification.
        attempt: Number of the attempt, from 1.
        error: Why the attempt failed; None if it succeeded.
    """

    receiver: str
    notice: Notice
    attempt: int
    error: str | None


def backoff(failures: int) -> float:
    """Return the delay in seconds after a number of consecutive failures: 5, 10, 20, ..., at most one hour.

    Example:
        >>> [backoff(failures) for failures in (1, 2, 3, 99)]
        [5.0, 10.0, 20.0, 3600.0]
    """
    return min(_MAX_SECONDS, _FIRST_SECONDS * 2.0 ** min(failures - 1, 20))


def post(state: AlertState, notices: Iterable[Notice], receivers: Sequence[Receiver]) -> AlertState:
    """Return the state with a delivery of each notification to each of its receivers in the outbox.

    Deliveries to receivers that no longer exist, and the oldest of too many, are dropped and counted.
    """
    names = {receiver.name for receiver in receivers}
    outbox = [
        *state.outbox,
        *(
            Delivery(receiver=receiver.name, notice=notice)
            for notice in notices
            for receiver in receivers
            if not notice.receivers or receiver.name in notice.receivers
        ),
    ]
    for name in {delivery.receiver for delivery in outbox}:
        waiting = [delivery for delivery in outbox if delivery.receiver == name]
        dropped = waiting if name not in names else waiting[: max(0, len(waiting) - _MAX_PENDING)]
        for delivery in dropped:
            state = count_delivery(state, name, delivery.notice.incident, _given_up)
        if dropped:
            outbox = [delivery for delivery in outbox if delivery not in dropped]
    return replace(state, outbox=tuple(outbox))


def send_due(
    state: AlertState, receivers: Iterable[Receiver], now: datetime, save: Callable[[AlertState], None]
) -> tuple[AlertState, list[Sent]]:
    """Send due notifications, to each receiver in order, and return the new state.

    The state is saved before and after each attempt. If the process dies during an attempt, the
    notification is therefore known to be in doubt, and is sent again with the same id.

    Args:
        state: The state with the outbox.
        receivers: All receivers.
        now: The current time.
        save: Called with the state before and after each attempt.
    """
    sent: list[Sent] = []
    for receiver in receivers:
        for delivery in [each for each in state.outbox if each.receiver == receiver.name]:
            if delivery.next_at is not None and delivery.next_at > now:
                # Later notifications wait as well: a resolve notification must follow the firing one.
                break
            trying = replace(
                delivery,
                attempts=delivery.attempts + 1,
                sending=True,
                in_doubt=delivery.in_doubt or delivery.sending,
            )
            state = _put(state, delivery, trying, functools.partial(_attempted, delivery.sending))
            save(state)
            failure = _try(receiver, trying)
            sent.append(
                Sent(
                    receiver=receiver.name,
                    notice=trying.notice,
                    attempt=trying.attempts,
                    error=None if failure is None else failure.reason,
                )
            )
            state = _after(state, trying, failure, now)
            save(state)
            if failure is not None and not failure.final:
                break
    return state, sent


def _try(receiver: Receiver, delivery: Delivery) -> NotDelivered | None:
    try:
        receiver.send(delivery.notice, in_doubt=delivery.in_doubt)
    except NotDelivered as failure:
        return failure
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a custom receiver may raise anything, and must not stop the others
        return NotDelivered(why(error))
    return None


def _after(state: AlertState, tried: Delivery, failure: NotDelivered | None, now: datetime) -> AlertState:
    if failure is None:
        return _put(state, tried, None, _accepted)
    reason = failure.reason

    def failed(count: ReceiverState) -> ReceiverState:
        return replace(count, failures=count.failures + 1, last_error=reason)

    if failure.final or now - tried.notice.at > _GIVE_UP_AFTER:
        return _put(state, tried, None, lambda count: _given_up(failed(count)))
    wait = max(backoff(tried.attempts), min(failure.retry_after or 0.0, _MAX_SECONDS))
    later = replace(tried, sending=False, next_at=now + timedelta(seconds=wait))
    return _put(state, tried, later, failed)


def _attempted(interrupted: bool, count: ReceiverState) -> ReceiverState:
    return replace(count, attempts=count.attempts + 1, in_doubt=count.in_doubt + int(interrupted))


def _accepted(count: ReceiverState) -> ReceiverState:
    return replace(count, sent=count.sent + 1, last_error=None)


def _given_up(count: ReceiverState) -> ReceiverState:
    return replace(count, given_up=count.given_up + 1)


def _put(
    state: AlertState, old: Delivery, new: Delivery | None, change: Callable[[ReceiverState], ReceiverState]
) -> AlertState:
    """Return the state with a delivery replaced, and the counters of its receiver changed."""
    outbox = [new if each is old else each for each in state.outbox]
    state = count_delivery(state, old.receiver, old.notice.incident, change)
    return replace(state, outbox=tuple(each for each in outbox if each is not None))
