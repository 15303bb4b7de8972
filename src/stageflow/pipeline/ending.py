"""Why a run ends, and what it comes to."""

from __future__ import annotations

from msgspec import Struct

from ..context import PipelineContext, PipelineResults
from ..context.results import Outcome
from ..errors import DeadlineExceededError, describe
from ..stages import StageResult, StageStatus
from .ledger import Ledger

__all__ = ["Ending", "cancelled_because", "conclude", "failed_at", "out_of_time", "scheduler_failed"]


class Ending(Struct, frozen=True):
    """Why a run ends before all of its stages have. The first cause counts."""

    outcome: Outcome
    reason: str
    error: str | None = None
    exception: BaseException | None = None


def cancelled_because(reason: str) -> Ending:
    """Return the end of a run that was cancelled from outside."""
    return Ending("cancelled", reason, reason)


def failed_at(result: StageResult) -> Ending:
    """Return the end of a run in which a stage failed."""
    text = f"stage {result.name!r} failed: {result.error}"
    return Ending("failed", f"stage {result.name!r} failed", text, result.exception)


def scheduler_failed(error: BaseException) -> Ending:
    """Return the end of a run over a fault of the library's own."""
    text = f"the scheduler itself failed: {describe(error)}"
    return Ending("failed", text, text, error)


def out_of_time(deadline: float | None, pipeline: str, run_id: str) -> Ending:
    """Return the end of a run that took longer than its deadline."""
    error = DeadlineExceededError(
        f"the run took longer than its deadline of {deadline:g} s", pipeline=pipeline, run_id=run_id
    )
    return Ending("timeout", error.message, f"DeadlineExceededError: {error.message}", error)


def conclude(
    ledger: Ledger, ending: Ending | None, context: PipelineContext, began: int, ended: int
) -> PipelineResults:
    """Return the results of a run, every stage of which is settled; times are monotonic nanoseconds."""
    results = ledger.results()
    failed = ledger.first_failed
    if failed is not None and (ending is None or ending.outcome == "stopped"):
        # It failed first, and the run went on for the stages that did not need it.
        ending = failed_at(failed)
    if ending is None:
        degraded = any(result.status is StageStatus.FAIL for result in results)
        ending = Ending("degraded" if degraded else "ok", "")
    origin = context._record.origin_ns
    return PipelineResults(
        ((result.name, result) for result in results),
        pipeline_name=ledger.pipeline_name,
        context=context,
        outcome=ending.outcome,
        error=ending.error,
        exception=ending.exception,
        reason=ending.reason or None,
        first_failed_stage=failed.name if failed else None,
        started_ns=began + origin,
        ended_ns=ended + origin,
    )
