"""What may stand as a stage: anything with `execute(ctx)`."""

from __future__ import annotations

from typing import Any, Protocol

from .stage_context import StageContext

__all__ = ["Stage"]


class Stage(Protocol):
    """A unit of work: `execute` returns a `StageOutput`, a mapping or None, or a coroutine of one.

    `name` and `kind` on the class are welcome and not needed: `with_stage` names both.
    """

    def execute(self, ctx: StageContext) -> Any:
        """Do the work. A coroutine runs on the loop, a plain method in a thread."""
        ...
