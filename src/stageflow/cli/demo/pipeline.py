"""The description of the reference desk: which stage waits for which, and what a failure of it means.

guard ─┬─ search ───────┬─ route ─┬─ quote ──────────────┬─ answer
       ├─ match_titles ─┘         └─ compare ── contrast ┤
       ├─ look_up (may fail) ────────────────────────────┤
       └─ tally (retried, may fail) ─────────────────────┘
"""

from __future__ import annotations

import sqlite3

from ...pipeline import Pipeline
from ...stages import Exponential, Retry, StageKind
from .stages import (
    answer,
    compare,
    contrast,
    guard,
    look_up,
    match_titles,
    names_an_object,
    quote,
    route,
    search,
    tally,
)

__all__ = ["reference_desk"]


def reference_desk() -> Pipeline:
    """Return the pipeline that `stageflow demo` runs."""
    locked = Retry(attempts=8, wait=Exponential(0.05, maximum=0.5), on=sqlite3.OperationalError)
    return (
        Pipeline("reference-desk")
        .with_stage("guard", guard, StageKind.GUARD)
        .with_stage(
            "look_up",
            look_up,
            StageKind.ENRICH,
            ("guard",),
            optional=True,
            when=names_an_object,
        )
        .with_stage("tally", tally, StageKind.WORK, ("guard",), optional=True, retry=locked, limit="writers")
        .with_stage("match_titles", match_titles, StageKind.WORK, ("guard",))
        .with_stage("search", search, StageKind.WORK, ("guard",))
        .with_stage("route", route, StageKind.ROUTE, ("match_titles", "search"))
        .with_stage("quote", quote, StageKind.TRANSFORM, ("route",), route="quote")
        .with_stage("compare", compare, StageKind.WORK, ("route",), route="compare")
        .with_stage("contrast", contrast, StageKind.TRANSFORM, ("compare",), conditional=True)
        .with_stage("answer", answer, StageKind.TRANSFORM, ("quote", "contrast", "look_up", "tally"))
    )
