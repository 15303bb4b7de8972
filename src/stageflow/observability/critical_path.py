"""Which stages a run waited for."""

from __future__ import annotations

from collections.abc import Mapping

from ..stages import StageResult, StageStatus

__all__ = ["critical_path"]


def critical_path(results: Mapping[str, StageResult]) -> tuple[list[str], float]:
    """Return the chain of stages with the largest sum of `total_ms`, first to last, and that sum.

    A stage is ready the moment its last dependency has ended. So the chain is found backwards: from
    the stage that ended last to the dependency that it waited for, and on to the start.
    """
    at: StageResult | None = None
    for result in results.values():
        if result.attempts and (at is None or result.ended_ns > at.ended_ns):
            at = result
    names: list[str] = []
    total_us = 0
    while at is not None:
        # A skipped stage is on the chain in time, but nothing waited for it.
        if at.attempts:
            names.append(at.name)
            total_us += at.ended_ns // 1000 - (at.ready_ns or at.started_ns) // 1000
        before: StageResult | None = None
        for name in at.dependencies:
            result = results.get(name) or _NONE
            if result.ended_ns and (before is None or result.ended_ns > before.ended_ns):
                before = result
        at = before
    names.reverse()
    return names, total_us / 1000


_NONE = StageResult("", StageStatus.CANCEL)
"""Substitute for a missing result: manually emitted results may be incomplete."""
