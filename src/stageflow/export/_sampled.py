"""`EventReader`: reads the events to export; `SampledReader`: only those of runs that a sampler keeps."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec
from msgspec import Raw, Struct

from .._state_file import decoder
from ..errors import CursorInUseError, invalid_argument
from ..journal import Entry, JournalReader, Position
from ._batch import ExportEvent, event_of
from ._settling import Settling

if TYPE_CHECKING:
    from ..store import Decider, Decision, Decisions, TailSampler

__all__ = ["EventReader", "Read", "SampledReader", "sampler_of"]


_DECIDE_SECONDS = 1.0
"""Minimum interval at which runs are decided."""

_DECIDE_SHARE = 0.1
"""Maximum share of the time that is spent on decisions."""

_decode_fields = decoder(dict[str, Raw])
_decode_number = decoder(float)


def sampler_of(setting: object) -> TailSampler | None:
    """Return the sampler of a setting: None, a `TailSampler`, or the path of a TOML file.

    Raises:
        InvalidArgumentError: The value or the content of the file is invalid.
        OSError: The file cannot be read.
    """
    if setting is None:
        return None
    from ..store import TailSampler, read_sampler

    if isinstance(setting, TailSampler):
        return setting
    if isinstance(setting, (str, os.PathLike)):
        return read_sampler(setting)
    raise invalid_argument("configure", "sampler", setting, "a TailSampler or the path of a TOML file")


class Read(Struct, frozen=True):
    """The result of a read.

    Attributes:
        events: The events to export, in the order of the journal.
        sampled_out: Number of events that were read and are not exported.
        merged: Number of amendments that were read and are part of an exported event.
    """

    events: list[ExportEvent]
    sampled_out: int = 0
    merged: int = 0

    @property
    def count(self) -> int:
        """Number of events that were read."""
        return len(self.events) + self.sampled_out + self.merged

    def __add__(self, other: Read) -> Read:
        return Read(
            self.events + other.events, self.sampled_out + other.sampled_out, self.merged + other.merged
        )


class EventReader:
    """Reads the events of a journal that have settled.

    Args:
        reader: The reader of the journal.
        settle_seconds: Time that an event waits for amendments; see `Exporter.settle_seconds`.

    Attributes:
        settling: Merges the amendments.
    """

    def __init__(self, reader: JournalReader, settle_seconds: float) -> None:
        self.reader = reader
        self.settling = Settling(reader, settle_seconds)

    def advance(self, *, now: bool = False) -> bool:
        """Decide runs, if that is due.

        Args:
            now: Whether to decide even if it is not due.

        Returns:
            False if there are more events to read for the decisions.
        """
        return True

    def read(self, limit: int, max_bytes: int, *, larger_alone: bool = True) -> Read:
        """Return the next events; see `JournalReader.read`."""
        until = _earlier(self._decided_until(), self.settling.until(max_bytes))
        entries = self.reader.read(limit, max_bytes=max_bytes, larger_alone=larger_alone, until=until)
        remaining, merged = self.settling.merge(entries)
        read, amendments = self.select(remaining), self.select(merged)
        return read + Read([], amendments.sampled_out, len(amendments.events))

    def _decided_until(self) -> Mapping[str, Position] | None:
        """Return the position of each writer before which all runs are decided; None for no limit."""
        return None

    def select(self, entries: Iterable[Entry]) -> Read:
        """Return the events to export."""
        return Read([event_of(entry) for entry in entries])

    def close(self) -> None:
        """Release the resources other than the reader."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SampledReader(EventReader):
    """Reads the events of kept runs, with the rate in `sample_rate` and the reason in `sample_reason`.

    The decisions apply to all exporters and the archive. The process that holds the cursor of the decider
    decides; this object tries to acquire it. Events of undecided runs, and those after them in the segments
    of the same process, remain in the journal.

    Args:
        reader: The reader of the journal.
        settle_seconds: See `EventReader`.
        sampler: The rules.
    """

    def __init__(self, reader: JournalReader, settle_seconds: float, sampler: TailSampler) -> None:
        from ..store import Decisions

        super().__init__(reader, settle_seconds)
        self._sampler = sampler
        self._decider: Decider | None = None
        self._due_at = 0.0
        self._decisions: Decisions = Decisions(reader.path)

    def advance(self, *, now: bool = False) -> bool:
        """Decide runs for up to a second, if that is due and no other process does it."""
        from ..store import Decider

        started = time.monotonic()
        if not now and started < self._due_at:
            return True
        if self._decider is None:
            with contextlib.suppress(CursorInUseError):
                self._decider = Decider(self.reader.path, self._sampler)
        is_complete = True
        if self._decider is not None:
            try:
                # Export what was decided, and react to a stop, before the rest of a large journal is decided.
                is_complete = self._decider.decide(_DECIDE_SECONDS)
            except BaseException:
                self._release()
                raise
        ended = time.monotonic()
        pause = max(_DECIDE_SECONDS, (ended - started) / _DECIDE_SHARE)
        self._due_at = ended + pause if is_complete else ended
        return is_complete

    def _decided_until(self) -> Mapping[str, Position]:
        return self._decisions.decided_until()

    def select(self, entries: Iterable[Entry]) -> Read:
        """Return the events of runs that are kept, with their rate, and of those without a decision."""
        events = [event_of(entry) for entry in entries]
        decided = self._decisions.find({event.run_id for event in events if event.run_id is not None})
        found: list[ExportEvent] = []
        for event in events:
            decision = decided.get(event.run_id or "")
            if decision is None:  # it belongs to no run
                found.append(event)
            elif decision.kept:
                found.append(_weighted(event, decision))
        return Read(found, len(events) - len(found))

    def _release(self) -> None:
        decider, self._decider = self._decider, None
        if decider is not None:
            decider.close()

    def close(self) -> None:
        """Let another process decide."""
        try:
            self._release()
        finally:
            self._decisions.close()


def _earlier(
    first: Mapping[str, Position] | None, second: Mapping[str, Position] | None
) -> Mapping[str, Position] | None:
    """Return the earlier position of each writer; nothing is read of a writer that one limit omits."""
    if first is None or second is None:
        return second if first is None else first
    return {writer: min(first[writer], second[writer]) for writer in first.keys() & second.keys()}


def _weighted(event: ExportEvent, decision: Decision) -> ExportEvent:
    """Return an event with the rate and the reason of a decision; an amendment has those of its event."""
    fields = _decode_fields(event.json)
    if event.revision or fields is None or "sample_reason" in fields:  # the archive has the rate already
        return event
    before = _decode_number(fields["sample_rate"]) if "sample_rate" in fields else None
    rate = (before if before is not None and before >= 1 else 1.0) * decision.rate
    encoded = msgspec.json.encode(int(rate) if rate.is_integer() else rate)
    fields["sample_rate"] = Raw(encoded)
    fields["sample_reason"] = Raw(msgspec.json.encode(decision.reason))
    return msgspec.structs.replace(event, json=msgspec.json.encode(fields))
