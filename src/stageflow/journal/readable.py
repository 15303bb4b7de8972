"""Lets one file that cannot be read hide nothing but itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..telling import tell

__all__ = ["readable"]

log = logging.getLogger("stageflow.journal")

T = TypeVar("T")


def readable(found: Iterable[T]) -> Iterator[T]:
    """Return what is found up to an error of the operating system, which is logged with the name of the file.

    A file that was deleted meanwhile is no error: nothing is in it.
    """
    try:
        yield from found
    except FileNotFoundError:
        return
    except OSError as error:
        tell(log, "a part of the journal cannot be read, and is left out: %s", error)
