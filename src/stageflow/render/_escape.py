"""Escapes text from records for a terminal."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["on_one_line", "pairs", "shown", "visible"]


# C0 without the line feed, DEL and C1: what moves cursors, sets titles and starts escape sequences.
# Characters that change the direction of text or have no width could make a text look like another one.
_CONTROLS = (
    {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x0A}
    | {0x09: "    "}
    | {code: f"\\u{code:04x}" for code in (0x061C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF)}
    | {code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}
    | {code: f"\\U{code:08x}" for code in range(0xE0000, 0xE0080)}
)


def visible(text: Any) -> str:
    r"""Return `text` with each control character but the line feed spelled out.

    Example:
        >>> print(visible("\x1b[2Jgone?"))
        \x1b[2Jgone?
    """
    return str(text).translate(_CONTROLS)


def on_one_line(text: Any) -> str:
    r"""Return `text` as `visible` does, with a blank for each line feed.

    Example:
        >>> on_one_line("two\nlines")
        'two lines'
    """
    return visible(text).replace("\n", " ")


def shown(value: Any) -> str:
    """Return a value of a record on one line: short words as they are, everything else as JSON.

    Example:
        >>> shown("yield"), shown("two words"), shown([1, None])
        ('yield', '"two words"', '[1, null]')
    """
    if isinstance(value, str) and value.isprintable() and value and " " not in value:
        return value
    return visible(json.dumps(value, ensure_ascii=False, default=repr))


def pairs(values: dict[str, Any]) -> str:
    """Return what a mapping of a record has, but for the values that are null.

    Example:
        >>> pairs({"hits": 3, "topic": None, "query": "two words"})
        'hits=3  query="two words"'
    """
    return "  ".join(f"{visible(key)}={shown(value)}" for key, value in values.items() if value is not None)
