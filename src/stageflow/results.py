"""The results of one run."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

from .context import PipelineContext
from .errors import RunFailedError, StageFailedError, StageNotFinishedError, did_you_mean, type_name
from .render import as_html
from .schema import Outcome
from .stages import StageRef, StageResult, StageStatus, is_missing

__all__ = ["PipelineResults"]

T = TypeVar("T")


class PipelineResults(dict[str, StageResult]):
    """The result of `graph.run()`: one `StageResult` for every stage, in the order of the pipeline.

    Attributes:
        pipeline_name: Name of the pipeline.
        context: The `PipelineContext` of the run, with its `pipeline_run_id`.
        outcome: `ok`, `degraded`, `stopped`, `failed`, `timeout` or `cancelled`.
        error: Why the run failed, or None.
        exception: The exception behind `error`, or None.
        reason: Why the run ended early, or None if it did not.
        first_failed_stage: Name of the first stage that failed and is not optional, or None.
        abandoned: Names of the stages that did not end within the grace period and were left running.
        started_ns: Start of the run, nanoseconds since the Unix epoch.
        ended_ns: End of the run, nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        results: Mapping[str, StageResult] | Iterable[tuple[str, StageResult]] = (),
        *,
        pipeline_name: str,
        context: PipelineContext,
        outcome: Outcome,
        error: str | None = None,
        exception: BaseException | None = None,
        reason: str | None = None,
        first_failed_stage: str | None = None,
        started_ns: int = 0,
        ended_ns: int = 0,
    ) -> None:
        super().__init__(results)
        self.pipeline_name = pipeline_name
        self.context = context
        self.outcome: Outcome = outcome
        self.error = error
        self.exception = exception
        self.reason = reason
        self.first_failed_stage = first_failed_stage
        self.started_ns = started_ns
        self.ended_ns = ended_ns

    @property
    def status(self) -> StageStatus:
        """OK, or FAIL for the outcomes `failed`, `timeout` and `cancelled`."""
        good = self.outcome in ("ok", "degraded", "stopped")
        return StageStatus.OK if good else StageStatus.FAIL

    @property
    def ok(self) -> bool:
        """True if `status` is OK, which includes runs that were degraded or stopped gracefully."""
        return self.status is StageStatus.OK

    @property
    def duration_ms(self) -> float:
        """Duration of the run in milliseconds."""
        return (self.ended_ns // 1000 - self.started_ns // 1000) / 1000

    @property
    def abandoned(self) -> tuple[str, ...]:
        """Names of the stages that did not end within the grace period and were left running."""
        return tuple(name for name, result in self.items() if result.abandoned)

    def __missing__(self, stage: str) -> StageResult:
        raise KeyError(f"no stage {stage!r} in this run{did_you_mean(str(stage), self)}")

    def data(self, stage: str) -> dict[str, Any]:
        """Return a copy of the data that `stage` returned.

        Raises:
            KeyError: There is no such stage; the message suggests the closest match.
        """
        return dict(self[stage].data)

    @overload
    def value(self, stage: StageRef[T]) -> T: ...

    @overload
    def value(self, stage: str) -> Any: ...

    def value(self, stage: StageRef[T] | str) -> T | Any:
        """Return the value that a stage returned.

        Args:
            stage: A reference from `Flow.add`, or the name of the stage.

        Raises:
            KeyError: There is no such stage; the message suggests the closest match.
            StageNotFinishedError: The status of the stage is not OK, and the reference has no default.

        Example:
            answer = results.value(reply)
        """
        ref = StageRef[Any](stage) if isinstance(stage, str) else stage
        result = self[ref.name]
        if result.status is StageStatus.OK:
            return result.value
        if ref.if_missing == "default" and is_missing(result):
            return ref.default
        raise StageNotFinishedError(
            f"stage {ref.name!r} has no value: it ended with {result.status}"
            f" ({result.error or result.reason})",
            pipeline=self.pipeline_name,
            run_id=str(self.context.pipeline_run_id),
            hint="results.raise_on_failure() raises the error of a failed run",
        )

    def raise_on_failure(self) -> PipelineResults:
        """Return these results if the run is ok.

        Raises:
            RunFailedError: The run is not ok. The error contains these results; its `__cause__` is the
                exception of the failed stage.
        """
        if self.ok:
            return self
        stage = self.first_failed_stage
        cause = self.exception
        if cause is None and stage is not None:
            cause = StageFailedError(self[stage].error or "failed", stage=stage)
        raise RunFailedError(
            f"the run ended with outcome {self.outcome!r}: {self.error}",
            results=self,
            pipeline=self.pipeline_name,
            stage=stage,
            run_id=str(self.context.pipeline_run_id),
        ) from cause

    def _repr_html_(self) -> str | None:
        rows = [
            (
                name,
                result.status.value,
                result.attempts,
                result.duration_ms,
                result.error or result.reason or _short(result.value),
            )
            for name, result in self.items()
        ]
        title = f"{self.pipeline_name}  {self.outcome}  {self.duration_ms:.2f} ms"
        columns = ("stage", "status", "attempts", "ms", "error, reason or value")
        return as_html("draw_rows", columns, rows, title=title)

    def __repr__(self) -> str:
        ends = ", ".join(f"{name}={result.status}" for name, result in self.items())
        return f"<PipelineResults {self.pipeline_name!r} {self.outcome}: {ends}>"


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 100


def _short(value: object) -> str:
    """Return the beginning of the representation of a value; the name of its type if it has none."""
    try:
        return _BRIEF.repr(value)
    except Exception:
        return type_name(value)
