"""The interface between the runner and a target: send a batch, and report which events were rejected."""

from __future__ import annotations

import abc
import math
import re
from typing import Literal

from msgspec import Struct

from ..errors import invalid_argument
from ._batch import Batch

__all__ = ["Exporter", "NotSent", "Rejected", "Sent", "check_name", "check_settle_seconds"]


Problem = Literal["unavailable", "failed", "rejected", "too_large"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class Rejected(Struct, frozen=True):
    """An event that the target does not accept.

    Attributes:
        index: Its position in the batch, starting at 0.
        reason: Why the target rejected it, in one line.
    """

    index: int
    reason: str


class Sent(Struct, frozen=True):
    """The result of sending a batch that reached the target.

    Attributes:
        rejected: The events that the target does not accept; by default none.
        duplicates: Number of events that the target already had, if it reports them.
        rejected_unnamed: Number of events that the target rejected without identifying them. They are
            counted, but cannot be sent again.
        message: Why the target rejected these events.
    """

    rejected: tuple[Rejected, ...] = ()
    duplicates: int = 0
    rejected_unnamed: int = 0
    message: str = ""


class NotSent(Exception):
    """A batch did not reach the target, or the target rejected the whole batch.

    Attributes:
        reason: What happened, in one line, without secrets.
        problem: "unavailable": the runner sends the batch again later. "failed": the same, but an event may
            cause the failure; if the target accepts other events meanwhile, the runner finds and rejects the
            event, see `isolate_attempts` of `ExportSettings`. "rejected": the target does not accept
            at least one of the events; the runner sends the batch in halves to find it. "too_large": the
            runner sends the batch in halves.
        retry_after: Minimum delay in seconds that the target requests; None if it does not request one.

    Example:
        raise NotSent("HTTP status 429", retry_after=30)
    """

    def __init__(
        self, reason: str, *, problem: Problem = "unavailable", retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.problem: Problem = problem
        self.retry_after = retry_after


class Exporter(abc.ABC):
    """Sends batches of events to one target. Subclass it for a custom target.

    All methods run on one event loop, one call at a time. The loop runs on a separate thread, so `send` can
    also block; but then its time limit does not apply.

    Attributes:
        name: Name of the cursor, the counters and the rejected events of this exporter: at most 80 letters,
            digits, ".", "_" and "-". If several processes run exporters with the same name, only one of them
            exports.
        settle_seconds: Number of seconds after which an event is sent; default 0, for immediately. Amendments
            that are recorded within this time are part of the event, and are not sent. For targets that
            cannot change an event later, such as OpenTelemetry.

    Example:
        class Print(Exporter):
            name = "print"

            async def send(self, batch):
                for event in batch.events:
                    print(event.type, event.id)
                return Sent()
    """

    name: str
    settle_seconds: float = 0.0

    @property
    def target(self) -> str:
        """Description of the target for logs and `stageflow export status`, without secrets."""
        return type(self).__name__

    def open(self, journal: str) -> None:
        """Prepare to send the events of a journal. Called before the first batch; does nothing by default.

        Args:
            journal: Path of the directory.
        """
        return

    @abc.abstractmethod
    async def send(self, batch: Batch) -> Sent:
        """Send a batch, and return once the target has stored it.

        A batch is sent again if the process dies before the position in the journal is stored. Its events
        then have the same ids and revisions, but they can be in another batch.

        Args:
            batch: The events.

        Raises:
            NotSent: The batch was not sent. Any other exception has the effect of `problem="failed"`.
        """

    async def close(self) -> None:
        """Release connections. Called once, after the last batch; does nothing by default."""
        return


def check_settle_seconds(seconds: object) -> float:
    """Return the validated `settle_seconds` of an exporter.

    Raises:
        InvalidArgumentError: The value is invalid.
    """
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
        raise invalid_argument("Exporter", "settle_seconds", seconds, "a finite number, 0 or more")
    return seconds


def check_name(name: object) -> str:
    """Return the validated name of an exporter.

    Raises:
        InvalidArgumentError: The name is invalid.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid_argument(
            "Exporter",
            "name",
            name,
            "at most 80 letters, digits, '.', '_' and '-', starting with a letter or a digit",
        )
    return name
