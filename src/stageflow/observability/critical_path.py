"""Which stages a run waited for."""

from __future__ import annotations

from collections.abc import Mapping

from ..stages import StageResult

__all__ = ["critical_path"]


def critical_path(results: Mapping[str, StageResult]) -> tuple[list[str], float]:
    """Return the chain of stages with the largest sum of `total_ms`, first to last, and that sum.

    A stage is ready the moment its last dependency has ended. So the chain is found backwards: from
    the stage that ended last to the dependency that it waited for, and on to the start.
    """
    started = [result for result in results.values() if result.attempts]
    if not started:
        return [], 0.0
    at = max(started, key=lambda result: result.ended_ns)
    path = [at]
    while before := [results[name] for name in at.dependencies if name in results and results[name].ended_ns]:
        at = max(before, key=lambda result: result.ended_ns)
        path.append(at)
    path.reverse()
    # A skipped stage stands on the chain in time, but nobody waited for it.
    waited = [result for result in path if result.attempts]
    return [result.name for result in waited], round(sum(result.total_ms for result in waited), 3)
