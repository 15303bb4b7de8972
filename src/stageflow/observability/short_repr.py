"""The `repr` of any value, bounded before it is made: what nobody will read costs nothing."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

from ..errors import type_name
from ..events.counters import TALLY
from ..interrupts import INTERRUPTS

__all__ = ["safe_text", "short_repr"]

_PARTS = 200
"""Parts that are looked at, over all levels."""

_CHARS = 2_000
"""Characters that are returned at most: more than are shown, so that what is redacted is seen whole."""


class _Bounded(reprlib.Repr):
    """`reprlib` with one bound on everything, and no cut in the middle, where it would halve a secret."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 6
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = _PARTS
        self.maxdeque = self.maxarray = self.maxlong = _PARTS
        self._left = _PARTS

    def repr1(self, x: Any, level: int) -> str:
        self._left -= 1
        return super().repr1(x, level) if self._left > 0 else "..."

    def repr_set(self, x: Iterable[Any], level: int) -> str:
        return super().repr_set(set(islice(x, _PARTS + 1)), level)  # it sorts all that it is given

    def repr_frozenset(self, x: Iterable[Any], level: int) -> str:
        return super().repr_frozenset(frozenset(islice(x, _PARTS + 1)), level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        return super().repr_dict(dict(islice(x.items(), _PARTS + 1)), level)

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[:_CHARS])

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:_CHARS])

    repr_bytearray = repr_bytes

    def repr_int(self, x: int, level: int) -> str:
        return repr(x)  # one of too many digits raises

    def repr_instance(self, x: Any, level: int) -> str:
        return repr(x)


def short_repr(value: Any) -> str:
    """Return the beginning of the `repr` of a value, also of one whose `__repr__` raises; and count it."""
    TALLY.coerced_values += 1
    try:
        return safe_text(str.__str__(_Bounded().repr(value))[:_CHARS])
    except BaseException as error:
        INTERRUPTS.contain(error)
        return f"<repr() of {type_name(value)} failed: {type_name(error)}>"


def safe_text(text: str) -> str:
    """Return `text` without what UTF-8 cannot carry (lone surrogates become `?`)."""
    if text.isascii():
        return str(text)
    return text.encode("utf-8", "replace").decode()
