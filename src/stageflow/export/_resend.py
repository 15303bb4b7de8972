"""Resends rejected events after the target or its configuration has been corrected."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from .._files import absolute_path, make_private_below, try_lock
from .._time import get_clock, rfc3339
from ..errors import JournalNotFoundError
from ._batch import Batch
from ._dead_letters import DeadLetter, DeadLetterFile, DeadLetters
from ._exporter import Exporter, NotSent, Sent
from ._isolation import Isolation
from ._retries import ExportSettings
from ._runner import attempt
from ._state import EXPORT, directory_of, rejected_directory

__all__ = ["Resent", "resend"]


_MAX_OTHERS = 10
"""Maximum number of other events that are sent to find out whether the target is available."""


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


class _Part(Struct, frozen=True):
    """The dead letters of a batch that were rejected again, those that were not sent, and why not."""

    refused: list[DeadLetter]
    remaining: list[DeadLetter] = []
    error: str | None = None


def resend(
    journal: str | os.PathLike[str], exporter: Exporter, *, settings: ExportSettings | None = None
) -> Resent:
    """Resend the rejected events of an exporter, oldest first, even while a runner exports other events.

    An event that causes failures is rejected again if the target accepts another one meanwhile. If the target
    is unavailable, the remaining events are left.

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


class _Resender:
    """Sends dead letters in order, and isolates those that cause failures.

    Args:
        runner: Runs the exporter.
        exporter: The target.
        seconds: Maximum duration of an attempt.
    """

    def __init__(self, runner: asyncio.Runner, exporter: Exporter, seconds: float) -> None:
        self._runner = runner
        self._exporter = exporter
        self._seconds = seconds
        self._isolation = Isolation(_MAX_OTHERS)

    def send(self, letters: Sequence[DeadLetter], later: Iterable[DeadLetter]) -> _Part:
        """Send dead letters until the target is unavailable.

        Args:
            letters: The dead letters; at least one.
            later: Those that follow.
        """
        parts, refused = deque([letters]), list[DeadLetter]()
        while parts:
            part = parts.popleft()
            batch = Batch.of(letter.event() for letter in part)
            outcome = self._attempt(batch)
            if isinstance(outcome, NotSent) and outcome.problem == "unavailable":
                return _Part(refused, _joined(part, *parts), outcome.reason)
            if len(part) > 1 and (isinstance(outcome, NotSent) or outcome.rejected_unnamed):
                # Also to find out which events were rejected; the accepted ones are sent again.
                middle = len(part) // 2
                parts.extendleft((part[middle:], part[:middle]))
            elif isinstance(outcome, Sent):
                self._isolation.accept(batch, outcome)
                reasons = {each.index: each.reason for each in outcome.rejected}
                if outcome.rejected_unnamed:
                    reasons[0] = outcome.message
                refused += [DeadLetter.of(batch.events[at], reason, _now()) for at, reason in reasons.items()]
            elif outcome.problem == "failed" and not self._isolation.fails_alone(
                batch.events[0],
                (letter.event() for letter in itertools.chain(_joined(*parts), later)),
                self._attempt,
            ):
                return _Part(refused, _joined(part, *parts), outcome.reason)
            else:
                refused.append(DeadLetter.of(batch.events[0], outcome.reason, _now()))
        return _Part(refused)

    def _attempt(self, batch: Batch) -> Sent | NotSent:
        return self._runner.run(attempt(self._exporter, batch, self._seconds))


def _resend(
    runner: asyncio.Runner, letters: DeadLetters, exporter: Exporter, limits: ExportSettings
) -> Resent:
    sent = rejected = left = 0
    error: str | None = None
    resender = _Resender(runner, exporter, limits.send_seconds)
    files = list(letters.files())
    for number, file in enumerate(files):
        kept: list[DeadLetter] = []
        try:
            known = file.read()
        except FileNotFoundError:  # expired in the meantime
            continue
        end = 0
        for part in _parts(known, limits.batch_bytes):
            end += len(part)
            if error is not None:
                kept += part
                left += len(part)
                continue
            result = resender.send(part, itertools.chain(known[end:], _in(files[number + 1 :])))
            error = result.error
            kept += [*result.refused, *result.remaining]
            sent += len(part) - len(result.refused) - len(result.remaining)
            rejected += len(result.refused)
            left += len(result.remaining)
        _keep(letters, file, known, kept)
    return Resent(sent, rejected, left, error)


def _in(files: Iterable[DeadLetterFile]) -> Iterator[DeadLetter]:
    """Yield the dead letters in files that have not expired."""
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            yield from file.read()


def _joined(*parts: Sequence[DeadLetter]) -> list[DeadLetter]:
    return [letter for part in parts for letter in part]


def _now() -> str:
    return rfc3339(get_clock().wall_ns() // 1000)


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
