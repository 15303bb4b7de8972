"""Decodes stored bytes, and reports every kind of damage in the same way: as one exception type or as None.

A disk error, an editor or a crash can leave arbitrary content in a file. `msgspec` raises several exceptions
for that: `DecodeError` for invalid JSON and wrong types, `UnicodeDecodeError` for invalid UTF-8, `ValueError`
for numbers with too many digits, `RecursionError` for nesting that is too deep. It does not validate the
parts that it skips (`Raw`, unknown keys). All code in this library that decodes stored bytes therefore uses
this module.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from ._decodable import decodable
from ._files import open_regular
from .errors import DamagedFileError

__all__ = ["StateFile", "decode_stored", "decoder", "encode_state", "is_json", "read_state"]


T = TypeVar("T")

_ERRORS = (msgspec.DecodeError, ValueError, OverflowError, RecursionError)
"""Exceptions of `msgspec` for bytes that it cannot decode; `UnicodeDecodeError` is a `ValueError`."""

_CHECKSUM = re.compile(rb'\{"crc32":"([0-9a-f]{8})",')

_decode_any = msgspec.json.Decoder().decode


class StateFile(Struct, frozen=True):
    """A small file of a journal that is replaced as a whole.

    Attributes:
        name: Path relative to the journal directory.
        kind: Type of its content.
        remedy: How to fix the file if it is damaged.
        after: What to do after a repair has moved the file away.
    """

    name: str
    kind: Any
    remedy: str
    after: str = ""


def decode_stored(content: bytes | Raw, kind: Any = Any) -> Any:
    """Decode stored JSON.

    Raises:
        ValueError: The content is invalid JSON or UTF-8, or does not match the type.
    """
    try:
        if isinstance(content, bytes) and not content.isascii():
            content.decode()
        return msgspec.json.decode(content, type=decodable(kind))
    except _ERRORS as error:
        raise ValueError(str(error)) from None


def decoder(kind: type[T]) -> Callable[[bytes | Raw], T | None]:
    """Return a function that decodes stored JSON, and returns None if it is damaged."""
    decode = msgspec.json.Decoder(decodable(kind)).decode

    def try_to_decode(content: bytes | Raw) -> T | None:
        try:
            if isinstance(content, bytes) and not content.isascii():
                content.decode()
            return decode(content)
        except _ERRORS:
            return None

    return try_to_decode


def is_json(content: bytes) -> bool:
    """Return whether the whole content is valid, including parts that a decoder of a narrower type skips."""
    try:
        _decode_any(content)
    except _ERRORS:
        return False
    return True


# ------------------------------------------------------------ state files


def encode_state(state: Struct) -> bytes:
    """Encode the content of a state file, with a checksum as its first key.

    Without the checksum, a changed digit would be read as another position or address.
    """
    content = msgspec.json.encode(state)
    return b'{"crc32":"%08x",%b' % (zlib.crc32(content), content[1:])


def read_state(path: str, kind: type[T], remedy: str) -> T | None:
    """Read a state file.

    A file without a checksum is accepted: it was edited manually, or an earlier version wrote it.

    Args:
        path: Path of the file.
        kind: Type of its content.
        remedy: How to fix the file if it is damaged; the error includes this hint.

    Returns:
        None if the file does not exist.

    Raises:
        DamagedFileError: The content is damaged, or it is not a regular file.
        OSError: It cannot be read.
    """
    try:
        with open(open_regular(path), "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedFileError as error:
        raise DamagedFileError(path, error.reason, hint=remedy) from None
    try:
        if found := _CHECKSUM.match(content):
            content = b"{" + content[found.end() :]
            if zlib.crc32(content) != int(found[1], 16):
                raise ValueError("its checksum does not match its content")
        state: T = decode_stored(content, kind)
        return state
    except ValueError as error:
        raise DamagedFileError(path, str(error), hint=remedy) from None
