"""Reads one segment: whole lines from any point of it, those that are broken apart from the rest."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

from msgspec import Struct

from .disk import open_regular
from .layout import Segment
from .line import KEPT, Kept, decode, decode_kept

__all__ = [
    "LineAt",
    "Piece",
    "begins_line",
    "ends_with",
    "find_lines",
    "has_header",
    "kept_header",
    "lines_with",
    "open_segment",
    "read_lines",
    "read_piece",
    "size_when_whole",
    "split_kept",
]

_CHUNK = 4 << 20
_TAIL = 4096

_UNKNOWN = 1 << 40
"""Assumed original offset of the lines of a kept segment with a damaged header: past any segment's end."""


class LineAt(Struct, frozen=True, gc=False):
    """One line, without its newline, and where it began."""

    offset: int
    text: bytes


class Piece(Struct, frozen=True):
    """What was read of a segment at once.

    Attributes:
        lines: Whole lines, in order.
        end: Where the next piece begins.
        torn: Bytes after the last newline of the file. Its writer may be about to write the rest,
            or it died.
    """

    lines: list[LineAt]
    end: int
    torn: int


def read_piece(segment: Segment, offset: int) -> Piece:
    """Return whole lines from `offset` on: some megabytes, and at least one line where there is one.

    Offsets are those of the segment as it was written, also where little of it was kept.

    Raises:
        FileNotFoundError: The segment was deleted.
        OSError: It cannot be read.
    """
    fd = open_regular(segment.path)
    try:
        if segment.kept:
            return _read_kept_piece(fd, offset)
        most_bytes = _CHUNK
        data = os.pread(fd, most_bytes, offset)
        end = data.rfind(b"\n") + 1
        while not end and len(data) >= most_bytes:  # a line that is longer than that
            most_bytes *= 2
            data = os.pread(fd, most_bytes, offset)
            end = data.rfind(b"\n") + 1
    finally:
        os.close(fd)
    torn = len(data) - end if len(data) < most_bytes else 0
    return Piece(_split(data[:end], offset), offset + end, torn)


def _split(data: bytes, offset: int) -> list[LineAt]:
    lines = []
    for text in data.split(b"\n"):
        if text:
            lines.append(LineAt(offset, text))
        offset += len(text) + 1
    return lines


def _read_kept_piece(fd: int, offset: int) -> Piece:
    with open(fd, "rb", closefd=False) as file:
        content = file.read()
    kept = kept_header(content)
    *texts, torn = split_kept(content)[1].split(b"\n")
    places = zip(kept.offsets, texts, strict=True)
    return Piece([LineAt(at, text) for at, text in places if at >= offset and text], kept.size, len(torn))


def split_kept(content: bytes) -> tuple[bytes, bytes]:
    """Return the header of a kept segment, which may be damaged, and the lines after it.

    An intact line of another type is not a header: the file was replaced by another one.
    """
    first, _, rest = content.partition(b"\n")
    line = decode(first)
    return (b"", content) if line is not None and line.type != KEPT else (first, rest)


def kept_header(content: bytes) -> Kept:
    """Return the header of a kept segment, or a substitute if it is damaged.

    The original offset of the lines is unknown without the header. The substitute places them after every
    position that a reader may have stored, so a reader that was in the middle of them reads some lines twice,
    but misses none.
    """
    header, rest = split_kept(content)
    texts = rest.split(b"\n")[:-1]
    kept = decode_kept(header)
    if kept is not None and len(kept.offsets) == len(texts):
        return kept
    offsets, at = [], _UNKNOWN
    for text in texts:
        offsets.append(at)
        at += len(text) + 1
    return Kept(at, offsets)


def has_header(segment: Segment) -> bool:
    """Return whether the header of a kept segment is intact: only then may the original be removed."""
    with open_segment(segment) as file:
        content = file.readall()
    kept = decode_kept(content.partition(b"\n")[0])
    return kept is not None and kept == kept_header(content)


def size_when_whole(segment: Segment) -> int:
    """Return the original size of a segment, even if only a part of it was kept.

    Raises:
        OSError: It cannot be read.
    """
    fd = open_regular(segment.path)
    with open(fd, "rb") as file:
        return kept_header(file.read()).size if segment.kept else os.fstat(fd).st_size


def begins_line(segment: Segment, offset: int) -> bool:
    """Return whether an offset is the beginning of a line or the end of the segment."""
    if segment.kept or not offset:
        return True
    fd = open_regular(segment.path)
    try:
        return os.pread(fd, 1, offset - 1) == b"\n"
    finally:
        os.close(fd)


def read_lines(segment: Segment) -> Iterator[LineAt]:
    """Return every whole line of a segment."""
    offset = 0
    while True:
        piece = read_piece(segment, offset)
        if piece.end == offset:
            return
        yield from piece.lines
        offset = piece.end


def find_lines(segment: Segment, *beginnings: bytes) -> Iterator[bytes]:
    """Return the whole lines that begin so, in the order of the file; the others are not looked at.

    The file is searched as bytes, which costs a small part of going through it line by line.
    """
    wanted = [b"\n" + beginning for beginning in beginnings]
    for data, end in _whole_lines(segment):
        for at in sorted(at for beginning in wanted for at in _places(data, beginning, end)):
            yield bytes(data[at + 1 : data.index(b"\n", at + 1)])


def lines_with(segment: Segment, part: bytes) -> Iterator[bytes]:
    """Return the whole lines in which these bytes stand, in the order of the file."""
    for data, end in _whole_lines(segment):
        after = 0
        for at in _places(data, part, end):
            if at >= after:
                after = data.index(b"\n", at)
                yield bytes(data[data.rindex(b"\n", 0, at) + 1 : after])


def _whole_lines(segment: Segment) -> Iterator[tuple[bytearray, int]]:
    """Return a newline and as many whole lines as there is room for, and where they end, again and again.

    One buffer serves for all of them: to have a new one each time would take as long as the search.
    """
    try:
        file = open_segment(segment)
    except FileNotFoundError:  # deleted since it was listed: then nothing is in it
        return
    with file:
        buffer = bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size + 2))
        buffer[0:1] = b"\n"
        filled = 1
        while True:
            if filled == len(buffer):
                buffer.extend(bytes(len(buffer)))  # a line that is longer than that, or a file that grew
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
    """Open a segment as it is now: of one that was reduced since it was listed, what was kept.

    Raises:
        FileNotFoundError: It was deleted.
    """
    try:
        return io.FileIO(open_regular(segment.path))
    except FileNotFoundError:
        if segment.kept:
            raise
        return io.FileIO(open_regular(segment.path.removesuffix(".ndjson") + ".kept.ndjson"))


def _places(data: bytearray, wanted: bytes, end: int) -> Iterator[int]:
    at = data.find(wanted, 0, end)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1, end)


def ends_with(segment: Segment, beginning: bytes) -> bool:
    """Tell whether the last line of a segment is whole and begins so."""
    with open_segment(segment) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    if not tail.endswith(b"\n"):
        return False
    return tail[tail.rfind(b"\n", 0, -1) + 1 :].startswith(beginning)
