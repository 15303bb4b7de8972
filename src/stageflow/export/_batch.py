"""Batches of events, each event with an id and a revision that stay the same when it is sent again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from .._state_file import decode_stored, decoder
from .._time import epoch_us
from ..journal import Entry, is_timestamp

__all__ = ["Batch", "ExportEvent", "event_of"]


class ExportEvent(Struct, frozen=True, gc=False):
    """One event to export. Its `id` and `revision` identify it, so a receiver can drop duplicates.

    Attributes:
        type: "stage.wide", "pipeline.wide", "stage.wide.amend", "pipeline.wide.amend", or the type of a
            custom event.
        id: The `event_id`. For an event without one, such as `stageflow.health`, its position in the journal.
        revision: 0; for an amendment, its time in microseconds since the Unix epoch. An amendment has the
            `id` of the event that it amends.
        run_id: The `pipeline_run_id` of the event, or None.
        json: The data of the event, as JSON.
    """

    type: str
    id: str
    revision: int
    run_id: str | None
    json: bytes

    def data(self) -> Any:
        """Return the data of the event.

        Raises:
            ValueError: The data is invalid JSON.
        """
        return decode_stored(self.json)


class Batch(Struct, frozen=True):
    """Events that are sent together, in the order of the journal.

    Attributes:
        id: Id derived from the events; batches with the same events have the same id.
        events: The events; at least one.
    """

    id: str
    events: tuple[ExportEvent, ...]

    @classmethod
    def of(cls, events: Iterable[ExportEvent]) -> Batch:
        """Return a batch of the given events.

        Example:
            >>> event = ExportEvent("stage.wide", "r1/a/1", 0, "r1", b"{}")
            >>> Batch.of([event]).id == Batch.of([event]).id
            True
        """
        found = tuple(events)
        digest = hashlib.sha256("\n".join(f"{event.id} {event.revision}" for event in found).encode())
        return cls(f"batch_{digest.hexdigest()[:32]}", found)

    def halves(self) -> Sequence[Batch]:
        """Return two batches that contain the events of this one, which has at least two."""
        middle = len(self.events) // 2
        return (Batch.of(self.events[:middle]), Batch.of(self.events[middle:]))


class _Head(Struct, gc=False):
    event_id: object = None
    amended_at: object = None
    correlation_ids: Any = None


_decode_head = decoder(_Head)


def event_of(entry: Entry) -> ExportEvent:
    """Return the event for an entry of the journal."""
    head = _decode_head(entry.json) or _Head()  # data that is not an object has no ids
    event_id, ids = head.event_id, head.correlation_ids
    if not isinstance(event_id, str) or not event_id:
        event_id = f"{entry.writer}/{entry.segment}/{entry.offset}"
    run_id = ids.get("pipeline_run_id") if isinstance(ids, dict) else None
    revision = 0
    if entry.type.endswith(".amend"):
        at = head.amended_at
        revision = max(1, epoch_us(at)) if isinstance(at, str) and is_timestamp(at) else 1
    return ExportEvent(
        entry.type, event_id, revision, run_id if isinstance(run_id, str) else None, entry.json
    )
