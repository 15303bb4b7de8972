"""What a running stage may say to the record of its run; the bridge implements it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["Recorder"]


class Recorder(Protocol):
    """Takes what stages say beyond their result."""

    def custom_event(self, stage: str, attempt: int, number: int, type: str, data: Any) -> None:
        """Send an event of the stage's own, the `number`th of this attempt, correlated with its run."""
        ...

    def annotate_run(self, fields: Mapping[str, Any]) -> None:
        """Set fields of the run; after its end, amend its event."""
        ...

    def add_to_run(self, amounts: Mapping[str, float]) -> None:
        """Add to numbers of the run; after its end, amend its event."""
        ...

    def no_amount(self, stage: str, name: str, value: Any) -> None:
        """Note that something was to be added up that is no number."""
        ...

    def amend_stage(self, stage: str, attempt: int, fields: Mapping[str, Any]) -> None:
        """Send what an attempt said after its end."""
        ...

    def traceparent(self, sequence: int, attempt: int) -> str:
        """Return the W3C `traceparent` of an attempt."""
        ...
