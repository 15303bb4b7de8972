"""Escapes text from records for a terminal."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["format_pairs", "format_value", "on_one_line", "visible"]


# C0 except the line feed, DEL and C1: they move the cursor, set titles and start escape sequences.
# Bidirectional and zero-width characters can make a text look like a different one.
_CONTROLS = (
    {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x0A}
    | {0x09: "    "}
    | {code: f"\\u{code:04x}" for code in (0x061C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF)}
    | {code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}
    | {code: f"\\U{code:08x}" for code in range(0xE0000, 0xE0080)}
)


def visible(text: Any) -> str:
    r"""Return `text` with all control characters escaped, except line feeds.

    Example:
        >>> print(visible("\x1b[2Jgone?"))
        \x1b[2Jgone?
    """
    return str(text).translate(_CONTROLS)


def on_one_line(text: Any) -> str:
    r"""Return `text` escaped as by `visible`, with line feeds replaced by spaces.

    Example:
        >>> on_one_line("two\nlines")
        'two lines'
    """
    return visible(text).replace("\n", " ")


def format_value(value: Any) -> str:
    """Return a value of a record on one line: single words unchanged, everything else as JSON.

    Example:
        >>> format_value("yield"), format_value("two words"), format_value([1, None])
        ('yield', '"two words"', '[1, null]')
    """
    if isinstance(value, str) and value.isprintable() and value and " " not in value:
        return value
    return visible(json.dumps(value, ensure_ascii=False, default=repr))


def format_pairs(values: dict[str, Any]) -> str:
    """Return the entries of a mapping that are not None as `key=value`, on one line.

    Example:
        >>> format_pairs({"hits": 3, "topic": None, "query": "two words"})
        'hits=3  query="two words"'
    """
    return "  ".join(
        f"{visible(key)}={format_value(value)}" for key, value in values.items() if value is not None
    )
