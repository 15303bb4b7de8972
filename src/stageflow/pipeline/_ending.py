"""How a run ends: the cause, and its effect on stages that are still running."""

from __future__ import annotations

from asyncio import CancelledError

from msgspec import Struct

from .._interrupts import INTERRUPTS, is_a
from ..errors import DeadlineExceededError, describe
from ..schema import Outcome
from ..stages import StageOutput, StageResult, StageStatus

__all__ = ["Ending", "cancelled_output"]


class Ending(Struct, frozen=True):
    """Why a run ends before all of its stages have. The first cause counts."""

    outcome: Outcome
    reason: str
    error: str | None = None
    exception: BaseException | None = None

    @staticmethod
    def cancelled(reason: str) -> Ending:
        """The run was cancelled."""
        return Ending("cancelled", reason, reason)

    @staticmethod
    def deadline_exceeded(seconds: float, pipeline: str, run_id: str) -> Ending:
        """The run took longer than its deadline."""
        message = f"the run exceeded its deadline of {seconds:g} s"
        error = DeadlineExceededError(message, pipeline=pipeline, run_id=run_id)
        return Ending("timeout", message, f"DeadlineExceededError: {message}", error)

    @staticmethod
    def failed_at(result: StageResult) -> Ending:
        """A stage failed."""
        text = f"stage {result.name!r} failed: {result.error}"
        return Ending("failed", f"stage {result.name!r} failed", text, result.exception)


def cancelled_output(output: StageOutput, raised: BaseException | None, why: str) -> StageOutput:
    """Return the outcome of an attempt that was cancelled because the run ended.

    A value that it still returned is used. An exception that it raised results from the cancellation: the
    output keeps it, but the stage does not count as failed.
    """
    if raised is None and output.status is not StageStatus.RETRY:
        return output
    exception = None if is_a(raised, CancelledError) else raised
    with INTERRUPTS:
        error = describe(exception) if exception is not None else None
    return StageOutput(StageStatus.CANCEL, {}, error=error, exception=exception, reason=f"cancelled: {why}")
