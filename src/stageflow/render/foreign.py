"""Text out of a record on its way to a terminal, which would obey the control characters in it."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["shown", "visible"]

# C0 without the line feed, DEL and C1: what moves cursors, sets titles and starts escape sequences.
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)
} | {0x09: "    "}


def visible(text: Any) -> str:
    r"""Return `text` with each control character but the line feed spelled out.

    Example:
        >>> print(visible("\x1b[2Jgone?"))
        \x1b[2Jgone?
    """
    return str(text).translate(_CONTROLS)


def shown(value: Any) -> str:
    """Return a value of a record on one line: short words as they are, everything else as JSON.

    Example:
        >>> shown("yield"), shown("two words"), shown([1, None])
        ('yield', '"two words"', '[1, null]')
    """
    if isinstance(value, str) and value.isprintable() and value and " " not in value:
        return value
    return visible(json.dumps(value, ensure_ascii=False, default=repr))
