"""How a run ends: the cause, and its effect on stages that are still running."""

from __future__ import annotations

from asyncio import CancelledError

from msgspec import Struct

from .._interrupts import INTERRUPTS, is_a
from ..errors import BudgetExceededError, DeadlineExceededError, describe
from ..schema import Outcome
from ..stages import StageOutput, StageResult, StageStatus

__all__ = ["Ending", "cancelled_output", "over_budget_output"]


class Ending(Struct, frozen=True):
    """Why a run ends before all of its stages have. The first cause counts.

    Attributes:
        outcome: The outcome of the run.
        reason: The reason for which stages are cancelled.
        error: The error of the run as text.
        exception: The exception of the run.
        over_budget: The number of the stage with which the run exceeded its budget: it fails with
            `exception`. -1 for other endings, and if that stage has already ended.
    """

    outcome: Outcome
    reason: str
    error: str | None = None
    exception: BaseException | None = None
    over_budget: int = -1

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
    def budget_exceeded(index: int, stage: str, error: BudgetExceededError, *, has_ended: bool) -> Ending:
        """The run, or an outer run, exceeded its budget with the usage of a stage.

        Args:
            index: The number of the stage.
            stage: Its name.
            error: The error that describes the amounts.
            has_ended: Whether the stage has already ended, and keeps its status.
        """
        whose = "the run" if error.budget_run_id == error.run_id else "an outer run"
        reason = f"the budget of {whose} was exceeded"
        if has_ended:
            return Ending("failed", reason, describe(error), error)
        return Ending("failed", reason, f"stage {stage!r} failed: {describe(error)}", error, index)

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


def over_budget_output(
    ending: Ending, raised: BaseException | None, reason: str | None = None
) -> StageOutput:
    """Return the outcome of the stage with which the run exceeded its budget, whatever it raised.

    If it raised the error of `record_llm`, that one counts, because its traceback shows the call.
    """
    error = ending.exception
    assert isinstance(error, BudgetExceededError)
    if type(raised) is BudgetExceededError and (raised.stage, raised.run_id) == (error.stage, error.run_id):
        error = raised
    elif raised is not None and not is_a(raised, CancelledError):
        error.__cause__ = raised
    return StageOutput(StageStatus.FAIL, {}, describe(error), error, reason)
