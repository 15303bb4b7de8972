"""Keeps damaged data in `broken/`: copies of lines, and moved files."""

from __future__ import annotations

import contextlib
import os

from .disk import make_private_below, replace_file, sync_directory
from .layout import BROKEN

__all__ = ["quarantine_file", "quarantine_line"]


def quarantine_line(directory: str, segment: str, offset: int, text: bytes) -> None:
    """Copy a damaged line to `broken/`, unless it has already been copied.

    Args:
        directory: Of the journal.
        segment: Name of the segment that contains it.
        offset: Offset of the line in the segment.
        text: The line, without its newline.

    Raises:
        OSError: It could not be written.
    """
    folder = os.path.join(directory, BROKEN)
    make_private_below(folder)
    path = os.path.join(folder, f"{segment}-{offset}")
    content = text + b"\n"
    with contextlib.suppress(OSError):
        if os.lstat(path).st_size == len(content):
            return
    replace_file(path, content)


def quarantine_file(directory: str, path: str) -> str:
    """Move a damaged file, directory or symbolic link to `broken/`, and return its new path.

    Raises:
        OSError: It could not be moved.
    """
    folder = os.path.join(directory, BROKEN)
    if path == folder:  # a link or a file in place of `broken/` itself
        target = _free(os.path.join(directory, "broken-"))
    else:
        make_private_below(folder)
        name = os.path.relpath(path, directory).replace(os.sep, "-").lstrip(".")
        target = _free(os.path.join(folder, f"{name}-"))
    os.rename(path, target)
    sync_directory(directory)
    return target


def _free(beginning: str) -> str:
    number = 1
    while os.path.lexists(f"{beginning}{number}"):
        number += 1
    return f"{beginning}{number}"
