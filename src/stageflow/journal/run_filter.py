"""Which runs are wanted, and the few fields by which they are chosen."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import force_setattr

from .._value import ValueType
from ..schema import CorrelationIds
from ..timestamps import epoch_us, rfc3339
from .line import decode
from .stored import decoder

__all__ = ["Headline", "RunFilter", "as_json", "headline"]

_STARTED_AT = b'"started_at":"'
_NEAR_THE_FRONT = 200


class RunFilter(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """Which runs are wanted; what is None leaves the choice open.

    Attributes:
        status: A status ("OK", "FAIL", "OPEN") or an outcome ("failed", "crashed", ...), in any case.
        pipeline: Name of the pipeline.
        stage: Name of a stage; with a status behind a colon ("search:FAIL"), one that ended so.
        id: One of the five ids, or the beginning of a run's.
        slower_than: Seconds; runs that took longer.
        since: RFC 3339: runs that began then or later.
        until: RFC 3339: runs that began before.
        roots: If True, only root runs: those that were not started inside a stage of another run.

    Raises:
        ValueError: A moment is none, or a name or id is empty.
    """

    status: str | None = None
    pipeline: str | None = None
    stage: str | None = None
    id: str | None = None
    slower_than: float | None = None
    since: str | None = None
    until: str | None = None
    roots: bool = False

    def __post_init__(self) -> None:
        for name in ("status", "pipeline", "stage", "id"):
            # An empty one is a variable that was not set: it must not stand for everybody.
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"RunFilter({name}={value!r}); give text, or leave it out")
        # Six digits, as events have them: then the order of the texts is that of the moments.
        for name in ("since", "until"):
            if (moment := getattr(self, name)) is not None:
                try:
                    force_setattr(self, name, rfc3339(epoch_us(moment)))
                except (TypeError, ValueError):
                    raise ValueError(
                        f"RunFilter({name}={moment!r}); give RFC 3339: '2026-11-23T16:00:00Z'"
                    ) from None

    def parts(self) -> list[bytes]:
        """Return what must stand in the line of a run that is wanted: most others need not be decoded."""
        stage = self.stage.partition(":")[0] if self.stage else None
        return [as_json(text) for text in (self.pipeline, self.id, stage) if text]

    def takes(self, run: Headline) -> bool:
        """Tell whether a run is wanted."""
        return (
            (self.status is None or self.status.lower() in (run.status.lower(), run.outcome))
            and (self.pipeline is None or self.pipeline == run.pipeline_name)
            and (self.slower_than is None or run.duration_ms > self.slower_than * 1000)
            and (self.since is None or run.started_at >= self.since)
            and (self.until is None or run.started_at < self.until)
            and (self.id is None or run.has_id(self.id))
            and (self.stage is None or run.has_stage(self.stage))
            and (not self.roots or run.parent_run_id is None)
        )


class _Summary(Struct, frozen=True, gc=False):
    stage_name: str
    status: str


class Headline(Struct, frozen=True):
    """As much of a `pipeline.wide` as runs are chosen by."""

    status: str = ""
    outcome: str = ""
    started_at: str = ""
    duration_ms: float = 0.0
    event_id: str = ""
    pipeline_name: str = ""
    parent_run_id: str | None = None
    correlation_ids: CorrelationIds = CorrelationIds()
    stage_summaries: list[_Summary] = []

    def has_id(self, wanted: str) -> bool:
        ids = self.correlation_ids
        return self.event_id.startswith(wanted) or wanted in (
            ids.request_id,
            ids.session_id,
            ids.user_id,
            ids.org_id,
        )

    def has_stage(self, wanted: str) -> bool:
        name, _, status = wanted.partition(":")
        return any(
            summary.stage_name == name and status.upper() in ("", summary.status)
            for summary in self.stage_summaries
        )


_decode_headline = decoder(Headline)


def headline(text: bytes, floor: str) -> Headline | None:
    """Return the headline of a run; None for one that began before `floor`, and for a broken line."""
    if floor:
        # It stands near the front; most lines need not be decoded to see that they are too old.
        at = text.find(_STARTED_AT, 0, _NEAR_THE_FRONT) + len(_STARTED_AT)
        if len(_STARTED_AT) <= at and text[at : at + len(floor)] < floor.encode():
            return None
    line = decode(text)
    head = _decode_headline(line.data) if line is not None and isinstance(line.data, Raw) else None
    # A custom event that has this name but not the fields of a wide event is not a run.
    return head if head and head.event_id and head.started_at and head.status else None


def as_json(text: str) -> bytes:
    """Return text as it stands in a line."""
    return msgspec.json.encode(text)[1:-1]
