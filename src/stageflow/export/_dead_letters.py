"""The dead-letter files: events that a target rejected, with the reason, until they are resent or expire."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Raw, Struct

from .._files import make_private_below, open_regular, replace_file
from .._state_file import decoder
from ._batch import ExportEvent

__all__ = ["DeadLetter", "DeadLetterFile", "DeadLetters"]


_FILE = re.compile(r"(\d{20})\.ndjson")


class DeadLetter(Struct, frozen=True):
    """A rejected event.

    Attributes:
        reason: Why the target rejected it.
        rejected_at: RFC 3339 time of the rejection.
        type: Type of the event.
        event_id: Id of the event.
        revision: Revision of the event.
        run_id: Id of its run, or None.
        data: The data of the event, as JSON.
    """

    reason: str
    rejected_at: str
    type: str
    event_id: str
    revision: int
    run_id: str | None
    data: Raw

    @classmethod
    def of(cls, event: ExportEvent, reason: str, rejected_at: str) -> DeadLetter:
        """Return the dead letter of an event."""
        return cls(reason, rejected_at, event.type, event.id, event.revision, event.run_id, Raw(event.json))

    def event(self) -> ExportEvent:
        """Return the event."""
        return ExportEvent(self.type, self.event_id, self.revision, self.run_id, bytes(self.data))


class DeadLetterFile(Struct, frozen=True):
    """The rejected events of one batch.

    Attributes:
        path: Path of the file.
        first: Number of the first event of the batch, counted from the creation of the cursor.
    """

    path: str
    first: int

    def read(self) -> list[DeadLetter]:
        """Return the dead letters; damaged lines are skipped.

        Raises:
            OSError: The file cannot be read.
        """
        with open(open_regular(self.path), "rb") as file:
            return [letter for line in file if (letter := _decode(line)) is not None]


_decode = decoder(DeadLetter)
_encoder = msgspec.json.Encoder()


class DeadLetters:
    """The directory of the rejected events of an exporter, with one file per batch that contained any.

    Args:
        path: The directory.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def files(self) -> list[DeadLetterFile]:
        """Return the files, oldest first."""
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []
        found = ((name, _FILE.fullmatch(name)) for name in names)
        return [
            DeadLetterFile(os.path.join(self.path, name), int(match[1])) for name, match in found if match
        ]

    def __iter__(self) -> Iterator[DeadLetter]:
        for file in self.files():
            with contextlib.suppress(FileNotFoundError):  # resent or expired in the meantime
                yield from file.read()

    def write(self, first: int, letters: Sequence[DeadLetter]) -> None:
        """Store the dead letters of a batch durably, or remove its file if the batch has none.

        Args:
            first: Number of the first event of the batch. A batch that is sent again after a crash replaces
                its file.
            letters: The dead letters.

        Raises:
            OSError: The file cannot be written.
        """
        path = os.path.join(self.path, f"{first:020d}.ndjson")
        if letters:
            make_private_below(self.path)
            # A list: see pyproject.toml.
            replace_file(path, _encoder.encode_lines([*letters]))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def remove_from(self, first: int) -> None:
        """Remove the files of batches whose position was not stored, because these batches are sent again."""
        for file in self.files():
            if file.first >= first:
                os.unlink(file.path)

    def expire(self, max_age: float, max_bytes: int) -> int:
        """Delete the oldest files, and return the number of dead letters in them.

        Args:
            max_age: Seconds after which a file is deleted.
            max_bytes: Maximum total size of the files, in bytes.

        Raises:
            OSError: The directory cannot be written.
        """
        found = []
        for file in self.files():
            with contextlib.suppress(FileNotFoundError):  # resent in the meantime
                found.append((file, os.stat(file.path)))
        size, expired = sum(status.st_size for _, status in found), 0
        for file, status in found:
            if size > max_bytes or time.time() - status.st_mtime > max_age:
                with contextlib.suppress(FileNotFoundError):
                    expired += len(file.read())
                    os.unlink(file.path)
                size -= status.st_size
        return expired
