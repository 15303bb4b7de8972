"""The status of every exporter of a journal, even while no exporter is running."""

from __future__ import annotations

import contextlib
import os
from datetime import datetime

from msgspec import Struct

from .._files import is_locked
from .._time import epoch_us, get_clock
from ..errors import JournalNotFoundError
from ..journal import cursor_lock, read_deletion_counts, unread
from ._dead_letters import DeadLetters
from ._retries import Circuit
from ._state import cursor_name, exporter_names, load_state, rejected_directory

__all__ = ["ExportStatus", "export_status"]


class ExportStatus(Struct, frozen=True, kw_only=True):
    """The status of one exporter.

    Attributes:
        name: Name of the exporter.
        target: Description of the target, without secrets.
        active: True while a process exports.
        lag_events: Events in the journal that have not been exported yet.
        lag_bytes: Size of these events and of the marks between them, in bytes.
        lag_seconds: Age of the oldest of these events, in seconds, minus the time that the exporter waits for
            amendments; 0 if there are none.
        sent: Events that the target accepted, and amendments that were sent as part of their events.
        duplicates: Number of sent events that the target already had, if it reports them.
        rejected: Events that the target rejected.
        sampled_out: Events of runs that the sampler does not keep. They are not lost: nothing else counts
            them.
        waiting: Rejected events that `stageflow export retry` can send.
        expired: Rejected events that were deleted because of their age or size.
        missed: Events that retention deleted before they were exported. Up to one batch can also be counted
            as sent, if it was being sent when retention deleted it.
        skipped: Events that were archived or deleted before the exporter first started.
        backfill_left: Archived events that the exporter has not read yet, if it started with `backfill`.
        attempts: Attempts to send a batch.
        failures: Failed attempts.
        circuit: "open" if attempts are limited because of consecutive failures.
        last_error: Why the last failed attempt failed; None if there was none.
        failed_at: Time of the last failed attempt.
        sent_at: Time of the last successful attempt.
        retry_at: Time of the next attempt after a failure; None if the last attempt succeeded.
    """

    name: str
    target: str
    active: bool
    lag_events: int
    lag_bytes: int
    lag_seconds: float
    sent: int
    duplicates: int
    rejected: int
    sampled_out: int
    waiting: int
    expired: int
    missed: int
    skipped: int
    backfill_left: int
    attempts: int
    failures: int
    circuit: Circuit
    last_error: str | None
    failed_at: datetime | None
    sent_at: datetime | None
    retry_at: datetime | None


def export_status(journal: str | os.PathLike[str]) -> list[ExportStatus]:
    """Return the status of every exporter that has run for a journal, by name.

    Args:
        journal: Directory of the journal.

    Raises:
        JournalNotFoundError: The directory does not exist.
        DamagedFileError: A state file is damaged.
        OSError: A file cannot be read.

    Example:
        for exporter in export_status("journal"):
            print(exporter.name, exporter.lag_events, exporter.last_error)
    """
    path = os.path.abspath(os.fspath(journal))
    if not os.path.isdir(path):
        raise JournalNotFoundError(path)
    return [_status_of(path, name) for name in exporter_names(path)]


def _status_of(journal: str, name: str) -> ExportStatus:
    state, cursor = load_state(journal, name), cursor_name(name)
    lag = unread(journal, cursor)
    age_us = get_clock().wall_ns() // 1000 - epoch_us(lag.oldest) if lag.oldest is not None else 0
    active = False
    with contextlib.suppress(FileNotFoundError):
        active = is_locked(cursor_lock(journal, cursor))
    return ExportStatus(
        name=name,
        target=state.target,
        active=active,
        lag_events=lag.events,
        lag_bytes=lag.bytes,
        lag_seconds=max(0.0, age_us / 1_000_000 - state.settle_seconds),
        sent=state.counters.sent,
        duplicates=state.counters.duplicates,
        rejected=state.counters.rejected,
        sampled_out=state.counters.sampled_out,
        waiting=sum(1 for _ in DeadLetters(rejected_directory(journal, name))),
        expired=state.expired,
        missed=read_deletion_counts(journal).missed.get(cursor, 0),
        skipped=state.skipped,
        backfill_left=state.backfill.total - state.backfill.read if state.backfill is not None else 0,
        attempts=state.attempts,
        failures=state.failures,
        circuit=state.circuit,
        last_error=state.last_error,
        failed_at=state.failed_at,
        sent_at=state.sent_at,
        retry_at=state.retry_at,
    )
