"""The counters of an exporter, in a state file that is consistent with the stored position of its cursor."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from .._files import make_private_below, replace_file
from .._state_file import StateFile, encode_state, read_state
from ..journal import Position
from ._retries import Circuit

__all__ = [
    "EXPORT",
    "Backfill",
    "ExportCounters",
    "ExportState",
    "cursor_name",
    "directory_of",
    "exporter_names",
    "has_pin",
    "has_state",
    "load_state",
    "rejected_directory",
    "state_files",
    "store_state",
]


EXPORT = "export"
"""Name of the directory of all exporters in a journal."""

_STATE = "state.json"
_PINS = "pins"
_REJECTED = "rejected"
_REMEDY = (
    "`stageflow doctor --repair` moves it to broken/; the counters of this exporter restart at zero, and no"
    " event is sent again, except for archived events of an unfinished backfill"
)

Count = Annotated[int, Meta(ge=0)]

Merged = dict[str, list[Position]]


class ExportCounters(Struct, frozen=True, kw_only=True):
    """The number of events that an exporter read, sent, rejected and sampled out.

    `read` is the sum of `sent`, `rejected` and `sampled_out`.

    Attributes:
        read: Events read from the journal and processed.
        sent: Events that the target accepted, and amendments that were sent as part of their events.
        duplicates: Number of sent events that the target already had, if it reports them.
        rejected: Events that the target does not accept.
        sampled_out: Events of runs that the sampler does not keep.
        batches: Number of batches.
        bytes: Size of the JSON of the events that were sent, in bytes.
    """

    read: Count = 0
    sent: Count = 0
    duplicates: Count = 0
    rejected: Count = 0
    sampled_out: Count = 0
    batches: Count = 0
    bytes: Count = 0


class Backfill(Struct, frozen=True, kw_only=True):
    """The position in the archive of an exporter that sends the archived events first.

    Attributes:
        total: Number of archived events.
        read: Number of these that were read.
        day: The UTC day up to which they were read.
        rows: Number of events of this day that were read.
    """

    total: Count = 0
    read: Count = 0
    day: str = ""
    rows: Count = 0


class ExportState(Struct, frozen=True, kw_only=True):
    """The state of an exporter.

    The state is stored before the position of the cursor. If the process dies in between, the batch is sent
    again, and `previous` contains the counters without it.

    Attributes:
        version: Version of this format.
        target: Description of the target, without secrets.
        counters: The counters.
        previous: The counters before the last batch.
        position: Number of events that the cursor had read when `counters` were stored.
        previous_position: The same for `previous`.
        skipped: Events that were archived or deleted before the exporter first started.
        attempts: Attempts to send a batch.
        failures: Failed attempts.
        consecutive_failures: Failed attempts since the last successful one.
        circuit: "open" if attempts are limited because of consecutive failures.
        last_error: Why the last failed attempt failed; None if there was none.
        failed_at: Time of the last failed attempt.
        sent_at: Time of the last successful attempt.
        retry_at: Time of the next attempt after a failure; None if the last attempt succeeded.
        expired: Rejected events that were deleted because of their age or size.
        backfill: The position in the archive; None if the exporter did not start with the archived events.
        previous_backfill: The same before the last batch.
        settle_seconds: Maximum time that an event waits for amendments, in seconds.
        merged: Positions of the amendments after the cursor that were sent as part of their events.
        previous_merged: The same before the last batch.
    """

    version: Literal[1] = 1
    target: str = ""
    counters: ExportCounters = ExportCounters()
    previous: ExportCounters = ExportCounters()
    position: Count = 0
    previous_position: Count = 0
    skipped: Count = 0
    attempts: Count = 0
    failures: Count = 0
    consecutive_failures: Count = 0
    circuit: Circuit = "closed"
    last_error: str | None = None
    failed_at: datetime | None = None
    sent_at: datetime | None = None
    retry_at: datetime | None = None
    expired: Count = 0
    backfill: Backfill | None = None
    previous_backfill: Backfill | None = None
    settle_seconds: float = 0.0
    merged: Merged = {}
    previous_merged: Merged = {}

    def counters_at(self, position: int) -> ExportCounters:
        """Return the counters that belong to a stored position of the cursor."""
        return self.previous if self._is_previous(position) else self.counters

    def backfill_at(self, position: int) -> Backfill | None:
        """Return the position in the archive that belongs to a stored position of the cursor."""
        return self.previous_backfill if self._is_previous(position) else self.backfill

    def merged_at(self, position: int) -> Merged:
        """Return the merged amendments that belong to a stored position of the cursor."""
        return self.previous_merged if self._is_previous(position) else self.merged

    def _is_previous(self, position: int) -> bool:
        return position == self.previous_position < self.position


def cursor_name(exporter: str) -> str:
    """Return the name of the cursor of an exporter."""
    return f"export.{exporter}"


def directory_of(journal: str, exporter: str) -> str:
    """Return the directory of an exporter in a journal."""
    return os.path.join(journal, EXPORT, exporter)


def rejected_directory(journal: str, exporter: str) -> str:
    """Return the directory of the dead-letter files of an exporter."""
    return os.path.join(directory_of(journal, exporter), _REJECTED)


def exporter_names(journal: str) -> list[str]:
    """Return the names of all exporters that have a state in a journal."""
    try:
        found = os.listdir(os.path.join(journal, EXPORT))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        name for name in found if os.path.lexists(os.path.join(directory_of(journal, name), _STATE))
    )


def state_files(journal: str) -> list[StateFile]:
    """Return the state files of all exporters of a journal, for `stageflow doctor`."""
    names = exporter_names(journal)
    return [StateFile(os.path.join(EXPORT, name, _STATE), ExportState, _REMEDY) for name in names]


def has_state(journal: str, exporter: str) -> bool:
    """Return whether an exporter has started before."""
    return os.path.lexists(os.path.join(directory_of(journal, exporter), _STATE))


def has_pin(journal: str, exporter: str) -> bool:
    """Return whether an exporter has archived events to send, without importing `stageflow.store`."""
    return os.path.lexists(os.path.join(journal, _PINS, f"{cursor_name(exporter)}.json"))


def load_state(journal: str, exporter: str) -> ExportState:
    """Return the stored state of an exporter, or a new one.

    Raises:
        DamagedFileError: The file is damaged.
        OSError: It cannot be read.
    """
    path = os.path.join(directory_of(journal, exporter), _STATE)
    return read_state(path, ExportState, _REMEDY) or ExportState()


def store_state(journal: str, exporter: str, state: ExportState) -> None:
    """Store the state durably.

    Raises:
        OSError: It cannot be written; the file still contains the previous state.
    """
    make_private_below(os.path.join(journal, EXPORT))
    directory = directory_of(journal, exporter)
    make_private_below(directory)
    replace_file(os.path.join(directory, _STATE), encode_state(state))
