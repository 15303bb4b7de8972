"""The result of `explain_run`: how one run differs from its peers."""

from __future__ import annotations

from msgspec import Struct

from ...render import as_html
from ._explanation import Part

__all__ = ["Measured", "RunExplanation", "SameError", "StageMeasured", "UnusualValue"]


class Measured(Struct, frozen=True, kw_only=True, gc=False):
    """A duration or a number of a run, compared with its peers.

    Attributes:
        value: The value of the run; None if it is unknown.
        p50: The median of the peers; None without peers.
        p95: Their 95th percentile.
        percentile: The share of the peers with a lower value, 0 to 1; None if either is unknown.
    """

    value: float | None
    p50: float | None = None
    p95: float | None = None
    percentile: float | None = None

    @property
    def excess(self) -> float:
        """The difference to the median, or the value if no peer has one; 0 if the value is unknown."""
        return (self.value or 0.0) - (self.p50 or 0.0) if self.value is not None else 0.0


class StageMeasured(Struct, frozen=True, kw_only=True):
    """A stage of a run, compared with the same stage of the peers.

    Attributes:
        stage: Name of the stage.
        status: Its status; "OPEN" if it has not ended.
        attempts: Number of its attempts; None if it has not ended.
        critical: Whether it is on the critical path; False if the path is unknown.
        peers: Number of peers in which the stage ran.
        ran_ms: The duration of the last attempt in milliseconds.
        waited_ms: The time from when the stage was ready until it started, in milliseconds.
        retried_ms: The time of earlier attempts, and between attempts, in milliseconds.
    """

    stage: str
    status: str
    attempts: int | None
    critical: bool
    peers: int
    ran_ms: Measured
    waited_ms: Measured
    retried_ms: Measured


class UnusualValue(Struct, frozen=True, kw_only=True):
    """A value of a run that few of its peers have.

    Attributes:
        field: The field: a column of the runs, or "stage/column" for a field of a stage.
        value: The value of the run.
        share: The share of the peers with this value, for a number with a value at least as extreme; 0 to 1.
        typical: The most frequent value of the peers, or their median.
        typical_share: The share of the peers with the most frequent value; None for a number.
        low: The 0.5th percentile of the peers; None unless the value is a number.
        high: The 99.5th percentile.
    """

    field: str
    value: str | float | bool
    share: float
    typical: str | float
    typical_share: float | None = None
    low: float | None = None
    high: float | None = None


class SameError(Struct, frozen=True, kw_only=True):
    """The failures with the error of a run, among all runs.

    Attributes:
        fingerprint: The `error_fingerprint`.
        failures: The failed runs with this fingerprint, including the run; `share` is their share of all
            failures.
        first_at: When the first of them started, RFC 3339.
        last_at: When the last of them started.
    """

    fingerprint: str
    failures: Part
    first_at: str
    last_at: str


class RunExplanation(Struct, frozen=True, kw_only=True):
    """One run, compared with its peers: other runs of the same pipeline that ended OK.

    Attributes:
        run_id: Its `pipeline_run_id`.
        pipeline: Name of the pipeline.
        outcome: Its outcome: "open" for a run in progress, "closed" for a run without an end whose process
            has closed the journal.
        started_at: When it started, RFC 3339.
        summary: The result in one sentence.
        error: The error; None if it has none.
        peers: The peers, and the number that they represent.
        duration_ms: The duration in milliseconds; for a run in progress, so far.
        stages: The stages that ran, in the order of their records.
        unusual: The values that few peers have, rarest first.
        same_error: The failures with the same error; None if the run has no `error_fingerprint`.
        limitations: What restricts the result, in sentences.
    """

    run_id: str
    pipeline: str
    outcome: str
    started_at: str
    summary: str
    error: str | None
    peers: Part
    duration_ms: Measured
    stages: tuple[StageMeasured, ...] = ()
    unusual: tuple[UnusualValue, ...] = ()
    same_error: SameError | None = None
    limitations: tuple[str, ...] = ()

    def _repr_html_(self) -> str | None:
        return as_html("draw_run_explanation", self)
