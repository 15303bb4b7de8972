"""The state of the alerts, the writers, the readers and the archive."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from .._time import get_clock
from ..alerts import (
    STATE_FILE,
    EventsDropped,
    IncidentRecord,
    Silence,
    add_silence,
    alert_history,
    read_silences,
    read_state,
    silences_path,
)
from ..errors import DamagedFileError, InvalidArgumentError, StageflowError, did_you_mean
from ..journal import cursor_names, cursor_state, list_writers, writer_is_alive
from ..store import PinnedStore
from ._api import CursorStatus, SilenceRequest, WriterStatus

__all__ = [
    "alerts_of",
    "alerts_version",
    "archive_of",
    "cursors_of",
    "damage_of",
    "dropped_of",
    "incidents_of",
    "is_writing",
    "silence",
    "writers_of",
]

_STATE = STATE_FILE.name
_MAX_INCIDENTS = 50
_LOSSES_S = 7 * 86_400.0


def alerts_of(journal: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """Return the state of each alert rule, and why it is unavailable."""
    if journal is None:
        return [], "An archive without its journal has no alerts."
    path = os.path.join(journal, _STATE)
    if not os.path.exists(path):
        return [], "No alert rule has been evaluated yet. `stageflow alerts run` evaluates alerts.toml."
    try:
        state = read_state(path)
    except (DamagedFileError, OSError) as error:
        return [], str(error)
    now = datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)
    silences: dict[str | None, Silence] = {}
    with contextlib.suppress(DamagedFileError, OSError):  # `damage_of` reports it
        silences = {silence.rule: silence for silence in read_silences(path) if silence.until > now}
    return [
        {
            "name": name,
            **msgspec.to_builtins(rule),
            "silence": msgspec.to_builtins(silences.get(name)),
        }
        for name, rule in sorted(state.rules.items())
    ], None


def incidents_of(journal: str | None, *, since: str | None = None) -> tuple[IncidentRecord, ...]:
    """Return the newest incidents, newest first; none if they are unavailable: see `alerts_of`.

    Args:
        journal: Directory of the journal.
        since: Only incidents that had not ended before this time, RFC 3339.
    """
    if journal is None:
        return ()
    moment = msgspec.convert(since, datetime) if since is not None else None
    with contextlib.suppress(StageflowError, OSError):
        return tuple(alert_history(journal, since=moment, limit=_MAX_INCIDENTS))
    return ()


def is_writing(journal: str | None) -> bool:
    """Return whether a process has the journal open for writing; False if that is unknown."""
    if journal is None:
        return False
    with contextlib.suppress(OSError):
        for segments in reversed(list_writers(journal).values()):
            with contextlib.suppress(OSError):  # deleted or archived in the meantime
                if writer_is_alive(segments):
                    return True
    return False


def alerts_version(journal: str) -> tuple[int, ...]:
    """Return numbers that change when the state of the alerts, or a silence, changes."""
    path = os.path.join(journal, _STATE)
    found: list[int] = []
    for file in (path, silences_path(path)):
        with contextlib.suppress(OSError):
            status = os.stat(file)
            found += [status.st_mtime_ns, status.st_ino]
    return tuple(found)


def silence(journal: str, request: SilenceRequest, by: str) -> None:
    """Suppress the notifications of an alert, or end its silence.

    Args:
        journal: Directory of the journal.
        request: The rule, the time and the reason.
        by: The user who requests it.

    Raises:
        AlertStateError: Another process holds the lock.
        InvalidArgumentError: The rule does not exist.
        OSError: The file cannot be written.
    """
    path = os.path.join(journal, _STATE)
    known = read_state(path).rules
    if request.rule not in known:
        raise InvalidArgumentError(f"unknown rule {request.rule!r}{did_you_mean(request.rule, known)}")
    now = datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)
    until = now + timedelta(hours=request.hours)
    added = Silence(rule=request.rule, until=until, reason=request.reason, by=by)
    add_silence(path, added, now, lift=request.hours == 0)


def writers_of(journal: str | None) -> tuple[WriterStatus, ...]:
    """Return the writers with segments in the journal, newest first.

    Raises:
        OSError: The journal cannot be read.
    """
    if journal is None:
        return ()
    found = []
    for name, segments in list_writers(journal).items():
        size = 0
        is_open = False
        with contextlib.suppress(OSError):  # deleted or archived in the meantime
            size = sum(os.stat(segment.path).st_size for segment in segments)
            is_open = writer_is_alive(segments)
        found.append(WriterStatus(name=name, open=is_open, segments=len(segments), bytes=size))
    return tuple(sorted(found, key=lambda writer: (not writer.open, writer.name)))


def cursors_of(journal: str | None) -> tuple[CursorStatus, ...]:
    """Return the named readers of the journal.

    Raises:
        OSError: The journal cannot be read.
    """
    if journal is None:
        return ()
    writers = list_writers(journal)
    states = [cursor_state(journal, name, writers) for name in cursor_names(journal)]
    return tuple(
        CursorStatus(
            name=state.name,
            lag_bytes=state.behind_bytes,
            error=f"{state.missed} segments were deleted before it read them" if state.missed else None,
        )
        for state in states
    )


def damage_of(store: PinnedStore, journal: str | None) -> tuple[str, ...]:
    """Return what could not be read of the archive and of the silences, in sentences."""
    found = [str(store.archive_error)] if store.archive_error is not None else []
    if journal is not None:
        try:
            read_silences(os.path.join(journal, _STATE))
        except (DamagedFileError, OSError) as error:
            found.append(str(error))
    return tuple(found)


def archive_of(store: PinnedStore) -> tuple[tuple[str, str], ...]:
    """Return facts about the archive, as pairs of a name and a value."""
    facts = [("address", store.archive.address)]
    with contextlib.suppress(StageflowError, OSError):
        volume = store.volume()
        facts += [
            ("events", f"{volume.events:,}"),
            ("bytes", f"{volume.bytes:,}"),
            ("bytes in the journal", f"{volume.journal_bytes:,}"),
        ]
    return tuple(facts)


def dropped_of(store: PinnedStore) -> int:
    """Return the number of events that were lost in the last seven days, as `stageflow.health` reports it."""
    now = datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)
    return int(EventsDropped(name="events lost", window=_LOSSES_S).measure(store, now).value or 0)
