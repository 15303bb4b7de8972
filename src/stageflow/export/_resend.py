"""Resends rejected events after the target or its configuration has been corrected."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence

from msgspec import Struct

from .._files import absolute_path, make_private_below, try_lock
from .._time import get_clock, rfc3339
from ..errors import JournalNotFoundError
from ._batch import Batch
from ._dead_letters import DeadLetter, DeadLetterFile, DeadLetters
from ._exporter import Exporter, Sent
from ._retries import ExportSettings
from ._runner import attempt
from ._state import EXPORT, directory_of, rejected_directory

__all__ = ["Resent", "resend"]


class Resent(Struct, frozen=True):
    """The result of `resend`.

    Attributes:
        sent: Events that the target accepted; they are no longer kept.
        rejected: Events that it rejected again; they are kept, with the new reason.
        left: Events that were not sent, because of `error`; they are kept.
        error: Why a batch could not be sent; None if there was no such error.
        busy: True if another process is resending the events of this exporter, so that nothing was sent.
    """

    sent: int = 0
    rejected: int = 0
    left: int = 0
    error: str | None = None
    busy: bool = False


def resend(
    journal: str | os.PathLike[str], exporter: Exporter, *, settings: ExportSettings | None = None
) -> Resent:
    """Resend the rejected events of an exporter, oldest first, even while a runner exports other events.

    Call it from synchronous code. If the process dies, events that were sent just before are sent again.

    Args:
        journal: Directory of the journal.
        exporter: The target. Its name determines which rejected events are sent.
        settings: Limits of a batch and of an attempt; default `ExportSettings()`.

    Raises:
        JournalNotFoundError: The directory does not exist.
        OSError: The dead-letter files cannot be read or written.

    Example:
        resend("journal", HttpExporter("https://collector.example/events"))
    """
    path, limits = absolute_path(journal), settings or ExportSettings()
    if not os.path.isdir(path):
        raise JournalNotFoundError(path)
    directory = directory_of(path, exporter.name)
    make_private_below(os.path.join(path, EXPORT))
    make_private_below(directory)
    letters = DeadLetters(rejected_directory(path, exporter.name))
    with try_lock(os.path.join(directory, "resend.lock")) as alone:
        if not alone:
            return Resent(busy=True)
        with asyncio.Runner() as runner:
            try:
                return _resend(runner, letters, exporter, limits)
            finally:
                runner.run(exporter.close())


def _resend(
    runner: asyncio.Runner, letters: DeadLetters, exporter: Exporter, limits: ExportSettings
) -> Resent:
    sent = rejected = left = 0
    error: str | None = None
    for file in letters.files():
        kept: list[DeadLetter] = []
        try:
            known = file.read()
        except FileNotFoundError:  # expired in the meantime
            continue
        for part in _parts(known, limits.batch_bytes):
            if error is not None:
                kept += part
                left += len(part)
                continue
            remaining, refused, error = _send(runner, exporter, part, limits.send_seconds)
            kept += [*refused, *remaining]
            sent += len(part) - len(refused) - len(remaining)
            rejected += len(refused)
            left += len(remaining)
        _keep(letters, file, known, kept)
    return Resent(sent, rejected, left, error)


def _send(
    runner: asyncio.Runner, exporter: Exporter, letters: Sequence[DeadLetter], seconds: float
) -> tuple[list[DeadLetter], list[DeadLetter], str | None]:
    """Send dead letters; return those not sent, those rejected again, and why sending failed."""
    outcome = runner.run(attempt(exporter, Batch.of(letter.event() for letter in letters), seconds))
    now = rfc3339(get_clock().wall_ns() // 1000)
    if isinstance(outcome, Sent):
        reasons = {each.index: each.reason for each in outcome.rejected}
        refused = [
            DeadLetter.of(letter.event(), reasons[index], now)
            for index, letter in enumerate(letters)
            if index in reasons
        ]
        return [], refused, None
    if outcome.problem in ("unavailable", "failed"):
        return [*letters], [], outcome.reason
    if len(letters) == 1:
        return [], [DeadLetter.of(letters[0].event(), outcome.reason, now)], None
    middle = len(letters) // 2
    left, refused, error = _send(runner, exporter, letters[:middle], seconds)
    if error is not None:
        return [*left, *letters[middle:]], refused, error
    more_left, more_refused, error = _send(runner, exporter, letters[middle:], seconds)
    return more_left, [*refused, *more_refused], error


def _parts(letters: Sequence[DeadLetter], max_bytes: int) -> Iterator[list[DeadLetter]]:
    """Yield the dead letters in batches of limited size; a larger dead letter is a separate batch."""
    part: list[DeadLetter] = []
    size = 0
    for letter in letters:
        length = len(bytes(letter.data))
        if part and size + length > max_bytes:
            yield part
            part, size = [], 0
        part.append(letter)
        size += length
    if part:
        yield part


def _keep(
    letters: DeadLetters, file: DeadLetterFile, known: Sequence[DeadLetter], kept: Sequence[DeadLetter]
) -> None:
    if kept != known:
        letters.write(file.first, kept)
