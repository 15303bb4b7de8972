"""The files of a journal: names, listing, reading of segments, and quarantine of damaged parts."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from msgspec import Struct

from .._files import make_private_below, open_regular, replace_file, sync_directory
from .._log import log_safely
from ._format import PRUNED, PrunedHeader, decode, decode_pruned_header

__all__ = [
    "BROKEN",
    "CURSORS",
    "DELETED",
    "FAILURES",
    "LOCK",
    "TEMPORARY",
    "Chunk",
    "LineAt",
    "Segment",
    "Writers",
    "find_lines",
    "free_sequence",
    "has_intact_header",
    "is_line_start",
    "is_temporary",
    "last_line_starts_with",
    "lines_containing",
    "list_writers",
    "misplaced",
    "new_writer",
    "open_segment",
    "original_size",
    "pruned_header",
    "quarantine_file",
    "quarantine_line",
    "read_after",
    "read_chunk",
    "read_lines",
    "readable",
    "reason_not_journal",
    "segment_name",
    "split_pruned",
]


log = logging.getLogger("stageflow.journal")

T = TypeVar("T")


CURSORS = "cursors"
BROKEN = "broken"
DELETED = "deleted.json"
FAILURES = "failures.json"
LOCK = "lock"
TEMPORARY = ".new-"
"""Prefix of temporary files. A temporary segment is named `.` and the name of the segment instead."""

_CHUNK = 4 << 20
_TAIL = 4096

_UNKNOWN_OFFSET = 1 << 40
"""Assumed original offset of the lines of a pruned segment with a damaged header: after any segment's end."""


_SEGMENT = re.compile(r"(\d{8}T\d{6}Z-p(\d{1,10})-[0-9a-f]{8})-(\d{6,12})(\.kept)?\.ndjson", re.ASCII)


class Segment(Struct, frozen=True):
    """One file of a writer.

    Attributes:
        path: Path of the file.
        writer: Name of the writer.
        pid: Process id of the writer.
        sequence: Sequence number of the segment, starting with 1. The events of a run are in this order.
        pruned: True if retention kept only the records of failed runs.
    """

    path: str
    writer: str
    pid: int
    sequence: int
    pruned: bool

    @property
    def name(self) -> str:
        """The original name of the file, before it was pruned."""
        return segment_name(self.writer, self.sequence)


Writers = dict[str, list[Segment]]
"""The segments of each writer, in order, oldest writer first."""


def new_writer() -> str:
    """Return the name of a new writer in this process."""
    started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return f"{started}-p{os.getpid()}-{os.urandom(4).hex()}"


def segment_name(writer: str, sequence: int, *, pruned: bool = False) -> str:
    """Return the name of a segment's file.

    Example:
        >>> segment_name("20261123T160028Z-p4711-9f3a61c2", 2)
        '20261123T160028Z-p4711-9f3a61c2-000002.ndjson'
    """
    return f"{writer}-{sequence:06d}{'.kept' if pruned else ''}.ndjson"


def free_sequence(directory: str, writer: str, sequence: int, *, hidden: bool = True) -> int:
    """Return the first sequence number, starting with the given one, whose file name is unused.

    Another process that completed the record of this writer may have used the next number, or an attacker may
    have placed a link there. A hidden file is incomplete: its writer is creating it, or died and left it
    behind. `hidden=False` ignores hidden files, so that the sequence has no gap.
    """
    while True:
        name = segment_name(writer, sequence)
        kept = segment_name(writer, sequence, pruned=True)
        names = (name, f".{name}", kept) if hidden else (name, kept)
        if not any(os.path.lexists(os.path.join(directory, taken)) for taken in names):
            return sequence
        sequence += 1


def is_temporary(name: str) -> bool:
    """Return whether this is the name of a temporary file of a journal."""
    return name.startswith(TEMPORARY) or (name.startswith(".") and _SEGMENT.fullmatch(name[1:]) is not None)


def misplaced(directory: str) -> list[str]:
    """Return the entries whose name belongs to the journal but whose type does not, such as symbolic links.

    Raises:
        OSError: The directory cannot be read.
    """
    found = []
    for folder in (directory, os.path.join(directory, CURSORS)):
        if folder != directory and os.path.islink(folder):
            continue  # `cursors` itself is misplaced, and its target is not part of the journal
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if folder == directory and entry.name in (CURSORS, BROKEN):
                if not entry.is_dir(follow_symlinks=False):
                    found.append(entry.path)
            elif folder == directory and not _is_name(entry.name):
                continue
            elif not entry.is_file(follow_symlinks=False):
                found.append(entry.path)
    return sorted(found)


def _is_name(name: str) -> bool:
    """Return whether a journal, its archive or its alerts use file names like this one."""
    return (
        name == LOCK
        or name.endswith((".json", ".lock"))
        or is_temporary(name)
        or _SEGMENT.fullmatch(name) is not None
    )


def list_writers(directory: str) -> Writers:
    """Return all segments in a directory, by writer.

    Symbolic links and directories with the name of a segment are excluded; `misplaced` finds them.

    Raises:
        OSError: The directory cannot be read.
    """
    found = _by_writer(directory, _files_in(directory))
    if not any(len(segments) < segments[-1].sequence for segments in found.values()):
        return found
    # A listing may omit a file that is created while it is read, but contain a later one. A second listing
    # contains every predecessor of a listed file that still exists.
    again = _by_writer(directory, _files_in(directory))
    return {
        writer: [segment for segment in again[writer] if segment.sequence <= segments[-1].sequence]
        for writer, segments in found.items()
        if writer in again and again[writer][0].sequence <= segments[-1].sequence
    }


def _files_in(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                yield entry.name


def _by_writer(directory: str, names: Iterable[str]) -> Writers:
    found: dict[tuple[str, int], Segment] = {}
    for name in names:
        match = _SEGMENT.fullmatch(name)
        if match is None:
            continue
        writer, pid, sequence, kept = match.groups()
        segment = Segment(os.path.join(directory, name), writer, int(pid), int(sequence), bool(kept))
        # Both files exist for a short time: the pruned one is created before the original is removed.
        if segment.pruned or (writer, segment.sequence) not in found:
            found[writer, segment.sequence] = segment
    writers: Writers = {}
    for key in sorted(found):
        writers.setdefault(key[0], []).append(found[key])
    return writers


def reason_not_journal(directory: str) -> str | None:
    """Return why a path is not a journal, "" if it does not exist, or None if it is a journal or empty.

    Raises:
        OSError: The directory cannot be read.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        return "it is a file"
    known = {CURSORS, BROKEN, DELETED, FAILURES, LOCK}
    if names and not any(name in known or _SEGMENT.fullmatch(name.lstrip(".")) for name in names):
        return "the directory contains files, but none of them belong to a journal"
    return None


def readable(found: Iterable[T]) -> Iterator[T]:
    """Yield items until an `OSError` occurs, and log that error with the name of the file.

    A file that was deleted in the meantime is not an error; it counts as empty.
    """
    try:
        yield from found
    except FileNotFoundError:
        return
    except OSError as error:
        log_safely(log, "skipping an unreadable part of the journal: %s", error)


def quarantine_line(directory: str, segment: str, offset: int, text: bytes) -> None:
    """Copy a damaged line to `broken/`, unless it has already been copied.

    Args:
        directory: Directory of the journal.
        segment: Name of the segment that contains the line.
        offset: Offset of the line in the segment, in bytes.
        text: The line, without its newline.

    Raises:
        OSError: The copy could not be written.
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
        OSError: The entry could not be moved.
    """
    folder = os.path.join(directory, BROKEN)
    if path == folder:  # `broken` itself is a link or a file
        target = _unused_path(os.path.join(directory, "broken-"))
    else:
        make_private_below(folder)
        name = os.path.relpath(path, directory).replace(os.sep, "-").lstrip(".")
        target = _unused_path(os.path.join(folder, f"{name}-"))
    os.rename(path, target)
    sync_directory(directory)
    return target


def _unused_path(prefix: str) -> str:
    number = 1
    while os.path.lexists(f"{prefix}{number}"):
        number += 1
    return f"{prefix}{number}"


class LineAt(Struct, frozen=True, gc=False):
    """One line, without its newline, and its offset in bytes."""

    offset: int
    text: bytes


class Chunk(Struct, frozen=True):
    """The lines that were read from a segment in one step.

    Attributes:
        lines: Complete lines, in order.
        end: Offset of the next chunk.
        torn: Number of bytes after the last newline of the file. Its writer is still writing the line, or
            died.
        sequence: Sequence number of the segment.
    """

    lines: list[LineAt]
    end: int
    torn: int
    sequence: int


def read_chunk(segment: Segment, offset: int) -> Chunk:
    """Return complete lines, starting at `offset`.

    The chunk has a few megabytes, and at least one line if there is one. Offsets are those of the original
    segment, even if it was pruned.

    Raises:
        FileNotFoundError: The segment was deleted.
        OSError: The segment cannot be read.
    """
    fd = open_regular(segment.path)
    try:
        if segment.pruned:
            return _read_pruned_chunk(fd, segment.sequence, offset)
        max_bytes = _CHUNK
        data = os.pread(fd, max_bytes, offset)
        end = data.rfind(b"\n") + 1
        while not end and len(data) >= max_bytes:  # the line is longer than a chunk
            max_bytes *= 2
            data = os.pread(fd, max_bytes, offset)
            end = data.rfind(b"\n") + 1
    finally:
        os.close(fd)
    torn = len(data) - end if len(data) < max_bytes else 0
    return Chunk(_split(data[:end], offset), offset + end, torn, segment.sequence)


def _split(data: bytes, offset: int) -> list[LineAt]:
    lines = []
    for text in data.split(b"\n"):
        if text:
            lines.append(LineAt(offset, text))
        offset += len(text) + 1
    return lines


def _read_pruned_chunk(fd: int, sequence: int, offset: int) -> Chunk:
    with open(fd, "rb", closefd=False) as file:
        content = file.read()
    header = pruned_header(content)
    *texts, torn = split_pruned(content)[1].split(b"\n")
    lines = [
        LineAt(at, text) for at, text in zip(header.offsets, texts, strict=True) if at >= offset and text
    ]
    return Chunk(lines, header.size, len(torn), sequence)


def split_pruned(content: bytes) -> tuple[bytes, bytes]:
    """Return the header of a pruned segment, which may be damaged, and the lines after it.

    An intact line of another type is not a header; the file was replaced by another one.
    """
    first, _, rest = content.partition(b"\n")
    line = decode(first)
    return (b"", content) if line is not None and line.type != PRUNED else (first, rest)


def pruned_header(content: bytes) -> PrunedHeader:
    """Return the header of a pruned segment, or a substitute if it is damaged.

    Without the header, the original offsets of the lines are unknown. The substitute places them after every
    position that a reader can have stored, so a reader that had read some of them reads these lines again,
    but misses none.
    """
    header, rest = split_pruned(content)
    texts = rest.split(b"\n")[:-1]
    decoded = decode_pruned_header(header)
    if decoded is not None and len(decoded.offsets) == len(texts):
        return decoded
    offsets, at = [], _UNKNOWN_OFFSET
    for text in texts:
        offsets.append(at)
        at += len(text) + 1
    return PrunedHeader(at, offsets)


def has_intact_header(segment: Segment) -> bool:
    """Return whether the header of a pruned segment is intact; only then can the original be removed."""
    with open_segment(segment) as file:
        content = file.readall()
    header = decode_pruned_header(content.partition(b"\n")[0])
    return header is not None and header == pruned_header(content)


def original_size(segment: Segment) -> int:
    """Return the size of a segment in bytes; for a pruned segment, its original size.

    Raises:
        OSError: The segment cannot be read.
    """
    fd = open_regular(segment.path)
    with open(fd, "rb") as file:
        return pruned_header(file.read()).size if segment.pruned else os.fstat(fd).st_size


def is_line_start(segment: Segment, offset: int) -> bool:
    """Return whether an offset is the start of a line or the end of the segment."""
    if segment.pruned or not offset:
        return True
    fd = open_regular(segment.path)
    try:
        return os.pread(fd, 1, offset - 1) == b"\n"
    finally:
        os.close(fd)


def read_lines(segment: Segment) -> Iterator[LineAt]:
    """Yield every complete line of a segment."""
    offset = 0
    while True:
        chunk = read_chunk(segment, offset)
        if chunk.end == offset:
            return
        yield from chunk.lines
        offset = chunk.end


def read_after(segments: Iterable[Segment], position: tuple[int, int]) -> Chunk | None:
    """Return the next lines of a writer after a position in its segments; None if there are none yet.

    List the segments before each call: a segment with a successor in the list is complete.

    Args:
        segments: The segments of the writer.
        position: The sequence number of a segment, and an offset in it.

    Raises:
        FileNotFoundError: A segment was deleted since it was listed.
        OSError: A segment cannot be read.
    """
    at, offset = position
    for segment in segments:
        if segment.sequence >= at:
            start = offset if segment.sequence == at else 0
            chunk = read_chunk(segment, start)
            if chunk.end > start:
                return chunk
    return None


def find_lines(segment: Segment, *prefixes: bytes) -> Iterator[bytes]:
    """Yield the complete lines that start with one of the prefixes, in file order.

    The search works on bytes, which is much faster than decoding every line.
    """
    wanted = [b"\n" + prefix for prefix in prefixes]
    for data, end in _line_buffers(segment):
        for at in sorted(at for prefix in wanted for at in _find_all(data, prefix, end)):
            yield bytes(data[at + 1 : data.index(b"\n", at + 1)])


def lines_containing(segment: Segment, part: bytes) -> Iterator[bytes]:
    """Yield the complete lines that contain the given bytes, in file order."""
    for data, end in _line_buffers(segment):
        after = 0
        for at in _find_all(data, part, end):
            if at >= after:
                after = data.index(b"\n", at)
                yield bytes(data[data.rindex(b"\n", 0, at) + 1 : after])


def _line_buffers(segment: Segment) -> Iterator[tuple[bytearray, int]]:
    """Yield a buffer with a newline and as many complete lines as fit, and the offset of their end.

    The buffer is reused, because allocating a new one each time would take as long as the search.
    """
    try:
        file = open_segment(segment)
    except FileNotFoundError:  # deleted since it was listed
        return
    with file:
        buffer = bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size + 2))
        buffer[0:1] = b"\n"
        filled = 1
        while True:
            if filled == len(buffer):
                buffer.extend(bytes(len(buffer)))  # the line is longer than the buffer, or the file grew
            with memoryview(buffer) as view:
                read = file.readinto(view[filled:])
            if not read:
                return
            last = buffer.rfind(b"\n", filled, filled + read)
            filled += read
            if last >= 0:
                yield buffer, last + 1
                rest = filled - last
                buffer[:rest] = buffer[last:filled]
                filled = rest


def open_segment(segment: Segment) -> io.FileIO:
    """Open a segment; if it was pruned since it was listed, open the pruned file.

    Raises:
        FileNotFoundError: The segment was deleted.
    """
    try:
        return io.FileIO(open_regular(segment.path))
    except FileNotFoundError:
        if segment.pruned:
            raise
        return io.FileIO(open_regular(segment.path.removesuffix(".ndjson") + ".kept.ndjson"))


def _find_all(data: bytearray, wanted: bytes, end: int) -> Iterator[int]:
    at = data.find(wanted, 0, end)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1, end)


def last_line_starts_with(segment: Segment, prefix: bytes) -> bool:
    """Return whether the last line of a segment is complete and starts with `prefix`."""
    with open_segment(segment) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    if not tail.endswith(b"\n"):
        return False
    return tail[tail.rfind(b"\n", 0, -1) + 1 :].startswith(prefix)
