"""What a running stage may say to the record of its run; the bridge implements it."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Recorder"]


class Recorder(Protocol):
    """Takes what stages say beyond their result."""

    def custom_event(self, stage: str, attempt: int, number: int, type: str, data: Any) -> None:
        """Send an event of the stage's own, the `number`th of this attempt, correlated with its run."""
        ...
