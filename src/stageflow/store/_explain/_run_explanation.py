"""The result of `explain_run`: how one run differs from its peers."""

from __future__ import annotations

from ..._explained import RunExplanationRecord
from ...render import as_html

__all__ = ["RunExplanation"]


class RunExplanation(RunExplanationRecord, frozen=True, kw_only=True):
    """One run, compared with its peers: other runs of the same pipeline with the outcome `ok`.

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
        unusual: The values that few peers have, or that are much more frequent in runs with the same problem.
            First those that distinguish the runs with the same problem best, then the rarest; those that are
            due to the time of the run last.
        similar_are: Which runs have the same problem, such as "runs with the same error"; None if the run has
            no problem.
        same_error: The failures with the same error; None if the run has no `error_fingerprint`.
        limitations: What restricts the result, in sentences.
    """

    def _repr_html_(self) -> str | None:
        return as_html("draw_run_explanation", self)
