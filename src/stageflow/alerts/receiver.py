"""`Receiver`: whom a notice is sent to, and how one says that it did not arrive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from .notice import Notice

__all__ = ["NotDelivered", "Receiver", "of_environment"]


class NotDelivered(Exception):
    """A receiver did not take a notice.

    Attributes:
        why: In one line, without any secret.
        retry_after: Seconds that the receiver asks for before it is tried again; None where it does not.
        final: True where it need not be tried again.
    """

    def __init__(self, why: str, *, retry_after: float | None = None, final: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after = retry_after
        self.final = final


class Receiver(Protocol):
    """Takes notices, one at a time. `Webhook`, `Apprise` and `Call` are receivers."""

    @property
    def name(self) -> str:
        """By which rules name it, and its counters are kept."""
        ...

    def send(self, notice: Notice, *, in_doubt: bool = False) -> None:
        """Return when the notice has arrived.

        Args:
            notice: What to tell.
            in_doubt: True where it may have arrived before: the process that sent it died meanwhile.

        Raises:
            NotDelivered: It has not; any other exception counts as that too.
        """
        ...

    def missing(self) -> Sequence[str]:
        """Return what it lacks before it can send, a sentence each: a variable that is not set."""
        ...


def of_environment(name: str) -> str:
    """Return the value of an environment variable.

    Raises:
        NotDelivered: It is not set, or empty.
    """
    if not (value := os.environ.get(name)):
        raise NotDelivered(f"the environment variable {name} is not set")
    return value
