"""`Silence`: until when a rule is not told, and why; and the file that holds those of the command line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from ..errors import AlertStateError
from ..journal.disk import only_one, replace_file
from ..journal.stored import StateFile, read_state

__all__ = ["SILENCES_FILE", "Silence", "add_silence", "is_silenced", "read_silences", "silences_path"]

_LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.05


class Silence(Struct, frozen=True, kw_only=True):
    """Holds back the notices of an alert for a while; it is evaluated all the same.

    Attributes:
        until: The moment at which it ends. Without a zone it is UTC.
        reason: Why; whoever wonders about the quiet reads it.
        since: When it begins; default None, for at once.
        rule: Name of the rule; None where the silence stands in a rule.
    """

    until: datetime
    reason: str
    since: datetime | None = None
    rule: str | None = None

    def holds(self, rule: str, now: datetime) -> bool:
        """Tell whether it keeps a rule quiet now."""
        begun = self.since is None or aware(self.since) <= now
        return begun and now < aware(self.until) and self.rule in (None, rule)


def aware(moment: datetime) -> datetime:
    """Return a moment with a zone: TOML knows moments without one, and those are UTC here."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_silenced(rule: str, silences: Iterable[Silence], now: datetime) -> Silence | None:
    """Return the silence that keeps a rule quiet now, the one that ends last."""
    held = [silence for silence in silences if silence.holds(rule, now)]
    return max(held, key=lambda silence: aware(silence.until), default=None)


# Evaluators hold the lock on the state while they send. Whoever silences an alert must not wait for a
# receiver that is slow, so silences have a file of their own, which evaluators only read.


SILENCES_FILE = StateFile(
    "alerts.silences.json",
    tuple[Silence, ...],
    "move the file away, and add the silences again with `stageflow alerts silence`",
    after="add the silences again with `stageflow alerts silence`",
)


def silences_path(state: str) -> str:
    """Return where the silences beside a state are kept.

    Example:
        >>> silences_path("journal/alerts.json")
        'journal/alerts.silences.json'
    """
    return os.path.splitext(state)[0] + ".silences.json"


def read_silences(state: str) -> tuple[Silence, ...]:
    """Return the silences beside a state.

    Raises:
        DamagedFileError: The file is damaged.
        OSError: It cannot be read.
    """
    return read_state(silences_path(state), tuple[Silence, ...], SILENCES_FILE.remedy) or ()


def add_silence(state: str, silence: Silence, now: datetime, *, lift: bool = False) -> Sequence[Silence]:
    """Add a silence beside a state, in place of the one that its rule had; return all of now.

    Those that are over are taken out.

    Args:
        state: Path of the state.
        silence: With the name of a rule.
        now: The present.
        lift: Take the rule's silence away instead.

    Raises:
        AlertStateError: Another process holds the lock.
        DamagedFileError: The file is damaged.
        OSError: It cannot be written.
    """
    path = silences_path(state)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        with only_one(path + ".lock") as mine:
            if mine:
                kept = [
                    each
                    for each in read_silences(state)
                    if each.rule != silence.rule and now < aware(each.until)
                ]
                kept += [] if lift else [silence]
                replace_file(os.path.abspath(path), msgspec.json.encode(kept))
                return kept
        if time.monotonic() > deadline:
            raise AlertStateError(path, "another process keeps it locked")
        time.sleep(_LOOK_SECONDS)
