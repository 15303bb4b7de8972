"""Which fields say the same thing about a run, and which of them a run only came to.

A selection of failed runs is not explained by their errors: those are the failure. What a run was
given (ids, versions, hosts, attributes, when it began) may be a cause. What it came to (how it ended,
how long it took) is its course.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["COURSE", "DOCUMENTS", "IDS", "OF_STAGES", "PROCESS", "implied", "is_measured_time"]

_ENDING = frozenset(
    {
        "status",
        "outcome",
        "outcome_by",
        "reason",
        "error",
        "error_type",
        "exception",
        "first_failed_stage",
        "abandoned",
        "retry_after_ms",
        "stage_summaries",
        "stages_abandoned",
        "stages_cancelled",
        "stages_completed",
        "stages_failed",
        "stages_skipped",
    }
)
_TIMES = frozenset({"duration_ms", "total_ms", "queue_ms", "critical_path", "critical_path_ms", "ended_at"})
_WHEN = frozenset({"started_at", "ended_at", "day"})

COURSE = (
    _ENDING
    | _TIMES
    | {"attempt", "attempts", "artifacts_count", "data_keys", "events_count", "missing_inputs"}
)
"""What a run or a stage came to."""

PROCESS = frozenset({"uptime_s", "memory_peak_bytes", "cpu_percent", "loop_lag_ms"})
"""How the process was when a run ended: nothing that the run was given."""

_MEASURED = re.compile(r"(^|[._])(time_to_\w+|duration|latency|elapsed)([._]\w+)?$|_(ms|us|ns|seconds)$")


def is_measured_time(name: str) -> bool:
    """Tell by its name whether a field is a time that was measured, as timers and `record_llm` leave them.

    Example:
        >>> is_measured_time("attributes.db_ms"), is_measured_time("attributes.model")
        (True, False)
        >>> is_measured_time("attributes.gen_ai.response.time_to_first_chunk")
        True
    """
    return _MEASURED.search(name) is not None


DOCUMENTS = frozenset({"exception", "rest", "stage_summaries"})
"""JSON whole, which is compared field by field or not at all."""

IDS = frozenset(
    {"event_id", "pipeline_run_id", "trace_id", "span_id", "parent_span_id", "segment", "sample_reason"}
)
"""Names of one run or one attempt, and how it came to be stored."""

OF_STAGES = ("status", "error_type", "duration_ms", "queue_ms", "attempts")
"""What of each stage of a run is compared, beside its attributes."""


def implied(named: Iterable[str]) -> frozenset[str]:
    """Return the fields that say what a predicate says, by the fields that it names.

    Example:
        >>> "error_type" in implied(["status"]), "error_type" in implied(["org_id"])
        (True, False)
    """
    named = frozenset(named)
    return named.union(*(family for family in (_ENDING, _TIMES, _WHEN) if family & named))
