"""What a running stage may say to the record of its run; the bridge implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .stage_context import StageContext

__all__ = ["Recorder"]


class Recorder(Protocol):
    """Takes what stages say beyond their result."""

    def custom_event(self, ctx: StageContext, type: str, data: dict[str, Any] | None) -> None:
        """Send an event of the stage's own, correlated with its run."""
        ...
