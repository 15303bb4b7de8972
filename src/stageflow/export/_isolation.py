"""`Isolation`: finds out whether one event causes the failures of a target, or the target is out of order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from ._batch import Batch, ExportEvent
from ._exporter import NotSent, Sent

__all__ = ["Isolation"]


_CANDIDATES = 10
"""Number of later events that are sent as evidence."""

_CONSIDERED = 1_000
"""Number of later events among which those of other runs are preferred."""


class Isolation:
    """Collects evidence that a target is available, for the runner and `resend`.

    An event that fails when it is sent alone is rejected if the target accepts another event, and the first
    one then fails again. The other event is one that the target accepted before, so that the order does not
    change. If there is none, it is one of the events that follow, preferably of another run. Several events
    can cause failures, so calls try different ones. Without another event, an outage cannot be excluded.

    Args:
        others: Maximum number of other events that one call of `fails_alone` sends.

    Attributes:
        accepted: An event that the target accepted; None if there was none.
    """

    def __init__(self, others: int) -> None:
        self.accepted: ExportEvent | None = None
        self._others = others
        self._sent = 0

    def accept(self, batch: Batch, sent: Sent) -> None:
        """Remember an event that the target accepted, if the result identifies one."""
        rejected = {each.index for each in sent.rejected}
        if not sent.rejected_unnamed:
            accepted = [event for index, event in enumerate(batch.events) if index not in rejected]
            self.accepted = accepted[-1] if accepted else self.accepted

    def fails_alone(
        self,
        event: ExportEvent,
        following: Iterable[ExportEvent],
        attempt: Callable[[Batch], Sent | NotSent | None],
    ) -> bool:
        """Return whether the target accepts another event, and then still fails for this one.

        Args:
            event: The event that fails.
            following: The events after it.
            attempt: Sends a batch once, and returns the result; None if it was interrupted.
        """
        for other in self._next_others(event, following):
            outcome = attempt(Batch.of([other]))
            if outcome is None or (isinstance(outcome, NotSent) and outcome.problem == "unavailable"):
                return False
            if isinstance(outcome, NotSent) or outcome.rejected or outcome.rejected_unnamed:
                continue
            self.accepted = other
            again = attempt(Batch.of([event]))
            return isinstance(again, NotSent) and again.problem == "failed"
        return False

    def _next_others(self, event: ExportEvent, following: Iterable[ExportEvent]) -> Iterable[ExportEvent]:
        if self.accepted is not None:
            return [self.accepted]
        considered = itertools.islice(following, _CONSIDERED)
        by_run = sorted(
            considered, key=lambda other: other.run_id is not None and other.run_id == event.run_id
        )
        candidates = by_run[:_CANDIDATES]
        first = self._sent % max(1, len(candidates))
        others = [*candidates[first:], *candidates[:first]][: self._others]
        self._sent += len(others)
        return others
