"""Finds where a value begins and ends in a text, and distinguishes secrets from words and measurements."""

from __future__ import annotations

import re
from collections.abc import Callable

from .secret_names import is_secret_name

__all__ = ["VALUE", "Detector", "beside", "closing", "is_empty", "is_long", "is_measure", "value_at"]

Detector = Callable[[str], tuple[str, int]]
"""Returns a text without the secrets in it, and how many there were."""

VALUE = re.compile(
    r"(?P<scheme>(?:(?:bearer|basic|token|digest|apikey)\s+)?)(?!\[redacted)"
    # A list, an object, the arguments of a call go to their end, which is looked for below.
    r"(?:(?:[A-Za-z_][\w.]{0,60}(?=\())?(?P<open>[\[{(])|(?:[bruf]{1,2}(?=\\*[\"'])|)"
    # What is quoted goes to the same quotes (JSON in JSON has \" for them), or to the end of the text.
    r"(?:(?P<quote>\\*(?:\"\"\"|'''|[\"']))(?P<quoted>(?:(?!(?P=quote))(?:\\+[\"']?|[^\\])|(?P=quote){2})+)"
    # Else it goes to the first blank, and to what may end it, where nothing goes on behind that.
    r"|(?P<bare>(?:[^\s\"'&,;)}\]\\]|[,;&](?![\s\"']|\Z|[\w.\[\]-]++[=:])|[)}\]\"'](?=\w)|\\(?=\w)(?![nrt]))+)))",
    re.IGNORECASE | re.DOTALL,
)
_EMPTY = frozenset({"true", "false", "null", "none", "undefined", "..."})

_BRACKET = re.compile(r"[\[\]{}()]|\"(?:\\.|[^\"\\])*+\"|'(?:\\.|[^'\\])*+'", re.DOTALL)


_MEASURE = re.compile(
    r"[-+]?\d{1,9}(?:[.,]\d{1,9})?(?:[numµμ]?s|sec|secs|min|mins|hr?|hrs|days?|d|%|x|[kKMGT]?i?[bB](?:/s)?|[kKMG]?Hz|/\d{1,9})[.!?]*"
    r"|[-+]?\d{1,9}\.\d{1,9}[.!?]*"
)


def closing(text: str, start: int) -> int:
    """Return where the list or the object that begins at `start` ends; the same for one that is empty."""
    level = 0
    for bracket in _BRACKET.finditer(text, start):
        level += {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(
            bracket[0], 0
        )  # none of those within quotes
        if level == 0:
            return bracket.end() if text[start + 1 : bracket.start()].strip() else start
    return len(text)


def is_empty(word: str) -> bool:
    """Return whether there is nothing to redact: no value, or one that is already masked."""
    return not word.strip("*") or word.lower() in _EMPTY


def is_long(word: str) -> bool:
    """Return whether a value cannot be a word of a sentence: it is long, or contains a digit."""
    return len(word) >= 12 or (len(word) >= 4 and any(map(str.isdecimal, word)))


def is_measure(word: str) -> bool:
    """Return whether a word is a duration, a size, a ratio or a decimal fraction.

    Example:
        >>> [is_measure(word) for word in ("200ms", "2.5", "3/10", "12", "a200ms")]
        [True, True, True, False, False]
    """
    return _MEASURE.fullmatch(word) is not None


def value_at(text: str, start: int) -> tuple[int, int]:
    """Return where the value that begins at `start` begins without its quotes, and where it ends."""
    value = VALUE.match(text, start)
    if value is None:
        return start, start
    if value["open"]:
        return value.start("open"), closing(text, value.start("open"))
    return value.span("bare" if value["quoted"] is None else "quoted")


def beside(pattern: re.Pattern[str], is_secret: Callable[[str], bool] = is_secret_name) -> Detector:
    """Return a detector for values that a pattern matches together with their names.

    Args:
        pattern: With the groups `name` and `value`. An empty group `value` marks where the value begins. If
            that group did not match, the group `text` is the value.
        is_secret: Whether a value of this name is a secret.
    """

    def detect(text: str) -> tuple[str, int]:
        parts: list[str] = []
        at = 0
        for match in pattern.finditer(text):
            if match.start() < at or not is_secret(match["name"]):
                continue
            start, end = match.span("value" if match["value"] is not None else "text")
            if start == end:
                start, end = value_at(text, start)
            value = text[start:end].strip()
            if not is_empty(value) and not value.startswith("[redacted"):
                parts += (text[at:start], "[redacted]")
                at = end
        return ("".join([*parts, text[at:]]), len(parts) // 2) if parts else (text, 0)

    return detect
