"""Results of tools: limited in size, with the complete result in a private file."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..render import visible

__all__ = ["MAX_BYTES", "MAX_TEXT", "Results", "Sql", "limit_text"]


MAX_BYTES = 6_000
"""Maximum size of a result in bytes: about 1,500 tokens."""

MAX_TEXT = 240
"""Maximum length of a text in a result, in characters."""

_MAX_KEY = 80
"""Maximum length of a name in a result, in characters: applications choose the names of attributes."""

_MAX_SQL = 1_200
"""Maximum length of generated SQL in a result, in characters."""

_LEVELS = ((MAX_TEXT, 60, 5), (80, 20, 0))
"""Maximum length of a text, maximum number of keys of an object, and minimum length of a shortened list. The
second line applies if a result is too long with the limits of the first line."""

_DIGITS = 6
"""Significant digits of non-integer numbers."""


class Sql(str):
    """Generated SQL, which a client can use in a query; it is either complete or omitted, never shortened."""


class Results:
    """Encodes results as JSON of limited size, and stores longer ones in a private directory.

    Recorded strings come from users of the application. They are encoded as JSON values of limited length,
    without control characters and invisible characters.
    """

    def __init__(self) -> None:
        self._directory: str | None = None
        self._creating = threading.Lock()
        self._numbers = itertools.count(1)

    def encode(self, tool: str, result: Mapping[str, Any]) -> str:
        """Return a result as JSON of at most `MAX_BYTES`.

        Args:
            tool: Name of the tool, for the name of the file.
            result: The result. If it is too long, the last items of its longest lists are omitted. If
                anything is omitted or shortened, "complete" is the path of a file with the complete result.
        """
        encoded = _encode(limit_text(result))
        if len(encoded) <= MAX_BYTES and not _is_longer(result, *_LEVELS[0][:2]):
            return encoded.decode()
        file = {"complete": self._store(tool, result)}
        for length, keys, keep in _LEVELS:
            shortened = limit_text(result, length, keys) | file
            encoded = _encode(shortened)
            omitted: dict[str, int] = {}
            while len(encoded) > MAX_BYTES:
                lists = [
                    (len(_encode(each)), name, each) for name, each in _lists(shortened) if len(each) > keep
                ]
                if not lists:
                    break
                _, name, longest = max(lists, key=lambda one: one[0])
                dropped = max(1, min(len(longest) // 4, len(longest) - keep))
                del longest[-dropped:]
                omitted[name] = omitted.get(name, 0) + dropped
                encoded = _encode(shortened | {"omitted": omitted})
            else:
                return encoded.decode()
        return _encode(file | {"omitted": "everything"}).decode()

    def _store(self, tool: str, result: Any) -> str:
        """Write a result to a new file that only this user can read; return its path."""
        with self._creating:
            if self._directory is None:
                self._directory = tempfile.mkdtemp(prefix="stageflow-mcp-")  # mode 0700
            directory = self._directory
        path = os.path.join(directory, f"{tool}-{next(self._numbers)}.json")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.format(_encode(result), indent=1))
        return path

    def close(self) -> None:
        """Delete the files: they can contain personal data."""
        with self._creating:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None


def limit_text(value: Any, length: int = MAX_TEXT, keys: int = _LEVELS[0][1]) -> Any:
    r"""Return a value with short strings, without control and invisible characters, and with rounded numbers.

    Args:
        value: A JSON-compatible value.
        length: Maximum length of a text.
        keys: Maximum number of keys of an object.

    Example:
        >>> limit_text({"error": "\x1b[2Jgone", "ms": 12.3456789, "runs": 3.0})
        {'error': '\\x1b[2Jgone', 'ms': 12.3457, 'runs': 3}
    """
    if isinstance(value, Sql):
        return visible(value) if len(value) <= _MAX_SQL else f"omitted ({len(value)} characters)"
    if isinstance(value, str):
        return _shorten(value, length)
    if isinstance(value, float):
        rounded = float(f"{value:.{_DIGITS}g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
    if isinstance(value, dict):
        limited = {
            _shorten(str(key), _MAX_KEY): limit_text(value[key], length, keys)
            for key in itertools.islice(value, keys)
        }
        return limited | ({"…": f"{len(value) - keys} more"} if len(value) > keys else {})
    if isinstance(value, list | tuple):
        return [limit_text(each, length, keys) for each in value]
    return value


def _shorten(text: str, length: int) -> str:
    if len(text) > length:
        text = f"{text[:length]}… ({len(text)} characters)"
    return visible(text)


def _is_longer(value: Any, length: int, keys: int) -> bool:
    """Return whether `limit_text` omits a part of a value."""
    if isinstance(value, str):
        return len(value) > (_MAX_SQL if isinstance(value, Sql) else length)
    if isinstance(value, dict):
        return len(value) > keys or any(
            len(str(key)) > _MAX_KEY or _is_longer(each, length, keys) for key, each in value.items()
        )
    return isinstance(value, list | tuple) and any(_is_longer(each, length, keys) for each in value)


def _lists(value: Any, name: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists in a value by name: "stages", or "differences.runs" for all of these lists."""
    if isinstance(value, list):
        yield name, value
        for each in value:
            yield from _lists(each, name)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _lists(each, f"{name}.{key}" if name else key)


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)
