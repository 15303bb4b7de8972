"""What a stage is for, and how one ended."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["StageKind", "StageStatus"]


class StageKind(StrEnum):
    """What a stage is for. Only ROUTE changes how it runs: it may return `StageOutput.route`."""

    TRANSFORM = "transform"
    ENRICH = "enrich"
    ROUTE = "route"
    GUARD = "guard"
    WORK = "work"
    AGENT = "agent"


class StageStatus(StrEnum):
    """How an attempt ended. All but RETRY are terminal: a stage has exactly one of those."""

    OK = "OK"
    SKIP = "SKIP"
    RETRY = "RETRY"
    FAIL = "FAIL"
    CANCEL = "CANCEL"
