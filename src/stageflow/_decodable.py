"""Makes classes decodable by several threads at the same time.

msgspec inspects a class when it first decodes or converts a value to it. Another thread that does the same
meanwhile reads an unfinished result, and the process dies of a segmentation fault (seen with msgspec 0.20 and
0.22). Encoding is not affected. All code in this library that decodes or converts values to a class therefore
passes it through `decodable`.
"""

from __future__ import annotations

import os
import threading
from typing import TypeVar

import msgspec

__all__ = ["decodable"]

T = TypeVar("T")

_inspected: set[object] = set()
_inspecting = threading.RLock()  # a signal handler can decode or fork while its thread inspects a class

# A forked child must not inherit a class that a thread of its parent is inspecting.
os.register_at_fork(
    before=_inspecting.acquire, after_in_parent=_inspecting.release, after_in_child=_inspecting.release
)


def decodable(kind: type[T]) -> type[T]:
    """Return the class, after msgspec has inspected it and the classes of its fields.

    Example:
        run = msgspec.convert(data, decodable(RunHeader))
    """
    if kind not in _inspected:
        with _inspecting:
            msgspec.json.Decoder(kind)
            _inspected.add(kind)
    return kind
