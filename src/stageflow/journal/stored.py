"""Decodes bytes that an earlier call stored, so that every kind of damage becomes one error or one None.

A disk, an editor or a crash can leave anything in a file. `msgspec` reports that by several exceptions:
`DecodeError` for invalid JSON and wrong types, `UnicodeDecodeError` for text that is not UTF-8, `ValueError`
for numbers without end, `RecursionError` for nesting without end. And what it skips (`Raw`, unknown keys) it
does not check at all. So nothing in this library decodes stored bytes by itself; it calls this module.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from ..errors import DamagedFileError
from .disk import open_regular

__all__ = ["StateFile", "decode_stored", "decoder", "encode_state", "is_json", "read_state"]

T = TypeVar("T")

_ERRORS = (msgspec.DecodeError, ValueError, OverflowError, RecursionError)
"""What `msgspec` raises for bytes that it cannot decode; `UnicodeDecodeError` is a `ValueError`."""

_CHECKSUM = re.compile(rb'\{"crc32":"([0-9a-f]{8})",')

_decode_any = msgspec.json.Decoder().decode


class StateFile(Struct, frozen=True):
    """A small file of a journal that is replaced as a whole.

    Attributes:
        name: Path below the directory of the journal.
        kind: What it holds, as a type.
        remedy: What to do when it is damaged.
        after: What is to be done after a repair has moved it away.
    """

    name: str
    kind: Any
    remedy: str
    after: str = ""


def decode_stored(content: bytes | Raw, kind: Any = Any) -> Any:
    """Decode stored JSON.

    Raises:
        ValueError: It is not JSON, not UTF-8, or not of this type.
    """
    try:
        if isinstance(content, bytes) and not content.isascii():
            content.decode()
        return msgspec.json.decode(content, type=kind)
    except _ERRORS as error:
        raise ValueError(str(error)) from None


def decoder(kind: type[T]) -> Callable[[bytes | Raw], T | None]:
    """Return a function that decodes stored JSON, and returns None for what is damaged."""
    decode = msgspec.json.Decoder(kind).decode

    def try_to_decode(content: bytes | Raw) -> T | None:
        try:
            if isinstance(content, bytes) and not content.isascii():
                content.decode()
            return decode(content)
        except _ERRORS:
            return None

    return try_to_decode


def is_json(content: bytes) -> bool:
    """Return whether all of it can be decoded: also what a decoder of a narrower type would skip."""
    try:
        _decode_any(content)
    except _ERRORS:
        return False
    return True


# ------------------------------------------------------------ state files


def encode_state(state: Struct) -> bytes:
    """Encode the content of a state file, with a checksum as its first key.

    Without it, a digit that changed would be read as another position or address.
    """
    content = msgspec.json.encode(state)
    return b'{"crc32":"%08x",%b' % (zlib.crc32(content), content[1:])


def read_state(path: str, kind: type[T], remedy: str) -> T | None:
    """Read a state file.

    A file without a checksum is accepted: somebody wrote it by hand, or an earlier version did.

    Args:
        path: Of the file.
        kind: What it holds.
        remedy: What to do when it is damaged; the error ends with it.

    Returns:
        None where there is no such file.

    Raises:
        DamagedFileError: It does not hold what was stored, or is not a regular file.
        OSError: It cannot be read.
    """
    try:
        with open(open_regular(path), "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedFileError as error:
        raise DamagedFileError(path, error.why, hint=remedy) from None
    try:
        if found := _CHECKSUM.match(content):
            content = b"{" + content[found.end() :]
            if zlib.crc32(content) != int(found[1], 16):
                raise ValueError("its checksum does not match its content")
        state: T = decode_stored(content, kind)
        return state
    except ValueError as error:
        raise DamagedFileError(path, str(error), hint=remedy) from None
