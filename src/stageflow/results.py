"""How one run ended: the result of every stage, and of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .context import PipelineContext
from .errors import RunFailedError, StageFailedError, did_you_mean
from .schema import Outcome
from .stages import StageResult, StageStatus

__all__ = ["PipelineResults"]


class PipelineResults(dict[str, StageResult]):
    """What `graph.run()` returns: one `StageResult` for every stage, in the order of the pipeline.

    Attributes:
        pipeline_name: Name of the pipeline.
        context: The run's own `PipelineContext`, with its `pipeline_run_id`.
        outcome: `ok`, `degraded`, `stopped`, `failed`, `timeout` or `cancelled`.
        error: Why the run failed, or None.
        exception: The live exception behind `error`, where there was one.
        reason: Why the run ended early, or None where it did not.
        first_failed_stage: The first stage to fail that was not optional, or None.
        abandoned: Names of the stages that refused to end and were left running.
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
        """OK, or FAIL for the outcomes `failed`, `timeout`, `cancelled`."""
        good = self.outcome in ("ok", "degraded", "stopped")
        return StageStatus.OK if good else StageStatus.FAIL

    @property
    def ok(self) -> bool:
        """True where `status` is OK: also for a run that was degraded or stopped gracefully."""
        return self.status is StageStatus.OK

    @property
    def duration_ms(self) -> float:
        """Milliseconds the run took, to the microsecond."""
        return (self.ended_ns // 1000 - self.started_ns // 1000) / 1000

    @property
    def abandoned(self) -> tuple[str, ...]:
        """Names of the stages that did not end when they were told to, and were left running."""
        return tuple(name for name, result in self.items() if result.abandoned)

    def __missing__(self, stage: str) -> StageResult:
        raise KeyError(f"no stage {stage!r} in this run{did_you_mean(str(stage), self)}")

    def data(self, stage: str) -> dict[str, Any]:
        """Return what `stage` gave, empty where it gave nothing.

        Raises:
            KeyError: There is no such stage; the message names the nearest one.
        """
        return dict(self[stage].data)

    def raise_on_failure(self) -> PipelineResults:
        """Return these results where the run is ok.

        Raises:
            RunFailedError: The run is not ok. It carries these results, and the exception of the
                stage that failed is its `__cause__`.
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

    def __repr__(self) -> str:
        ends = ", ".join(f"{name}={result.status}" for name, result in self.items())
        return f"<PipelineResults {self.pipeline_name!r} {self.outcome}: {ends}>"
