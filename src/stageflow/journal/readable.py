"""Skips an unreadable file without affecting other files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from .._safe_log import log_safely

__all__ = ["readable"]

log = logging.getLogger("stageflow.journal")

T = TypeVar("T")


def readable(found: Iterable[T]) -> Iterator[T]:
    """Yield items until the operating system reports an error, and log that error with the name of the file.

    A file deleted in the meantime is not an error; it counts as empty.
    """
    try:
        yield from found
    except FileNotFoundError:
        return
    except OSError as error:
        log_safely(log, "a part of the journal cannot be read, and is skipped: %s", error)
