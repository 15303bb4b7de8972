"""Makes a stage the current one for the code that runs in its context variables."""

from __future__ import annotations

from collections.abc import Callable

from .context import StageContext, current_stage

__all__ = ["ACTIVATION", "activate"]


class Activation:
    """What else happens when a stage becomes the current one.

    Attributes:
        listener: Called in the context variables of the attempt, before its code runs; or None. It must not
            raise.
    """

    __slots__ = ("listener",)

    def __init__(self) -> None:
        self.listener: Callable[[StageContext], object] | None = None


ACTIVATION = Activation()


def activate(ctx: StageContext) -> None:
    """Make a stage the current one in the current context variables, which are those of the attempt."""
    current_stage.set(ctx)
    if ACTIVATION.listener is not None:
        ACTIVATION.listener(ctx)
