"""How one stage ended, as the caller of a run sees it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, field

from .kind import StageKind, StageStatus

__all__ = ["Artifact", "StageResult"]


class Artifact(Struct, frozen=True):
    """Something a stage made that is worth keeping beside its data: a file, an image, a prompt."""

    type: str
    payload: Any = None


class StageResult(Struct, frozen=True, eq=False):
    """The result of a stage: its terminal status, its data, its times, and what it said.

    The record of a run keeps type, message and stack of an exception; the result keeps the live
    `exception` itself. Times are whole nanoseconds since the Unix epoch; the properties give them
    as the events do.

    Example:
        >>> result = StageResult("search", StageStatus.OK, {"hits": 3}, ended_ns=1_500_000)
        >>> result.ok, result.duration_ms
        (True, 1.5)
    """

    name: str
    status: StageStatus
    data: Mapping[str, Any] = {}
    error: str | None = None
    exception: BaseException | None = None
    reason: str | None = None
    attempt: int = 1
    """Number of the attempt this tells of: the last one, or the next one of a stage that was waiting
    for it when the run ended. 0 for a stage that never started."""
    attempts: int = 1
    """How many attempts there were."""
    ready_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    kind: StageKind | None = None
    dependencies: tuple[str, ...] = ()
    optional: bool = False
    attributes: Mapping[str, Any] = {}
    artifacts: tuple[Artifact, ...] = ()
    events_count: int = 0
    missing_inputs: tuple[str, ...] = ()
    retry_after: float | None = None
    abandoned: bool = False
    outcome_by: str | None = None
    """Name of the interceptor that made the outcome, where one did."""
    sequence: int = field(default=0)
    """Place of the stage in its pipeline, counted from 0."""
    loop_blocked_ms: float | None = None
    """Milliseconds of the longest step of the last attempt on the event loop; None for at most 50."""

    @property
    def ok(self) -> bool:
        """True for a stage that did its work (status OK)."""
        return self.status is StageStatus.OK

    @property
    def duration_ms(self) -> float:
        """Milliseconds of the last attempt, to the microsecond; 0 for a stage that never started."""
        return (self.ended_ns // 1000 - self.started_ns // 1000) / 1000

    @property
    def queue_ms(self) -> float:
        """Milliseconds from ready to the start of the last attempt, waits between attempts included."""
        return (self.started_ns // 1000 - (self.ready_ns or self.started_ns) // 1000) / 1000

    @property
    def total_ms(self) -> float:
        """Milliseconds from ready to ended: all attempts and all waits."""
        return (self.ended_ns // 1000 - (self.ready_ns or self.started_ns) // 1000) / 1000

    @property
    def started_at(self) -> datetime:
        """Start of the last attempt, UTC."""
        return datetime.fromtimestamp(self.started_ns / 1e9, UTC)

    @property
    def ended_at(self) -> datetime:
        """End of the last attempt, UTC."""
        return datetime.fromtimestamp(self.ended_ns / 1e9, UTC)
