"""Recognizes names and values of secrets."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

__all__ = [
    "VALUE",
    "Detector",
    "closing_bracket",
    "is_empty",
    "is_long",
    "is_measure",
    "is_secret_name",
    "is_secret_number",
    "named_value_detector",
    "value_at",
]


_SECRET_NUMBER_WORDS = frozenset(
    {"cvc", "cvv", "otp", "passcode", "passphrase", "passwd", "password", "passwords", "pin", "pwd", "ssn"}
)
"""A field whose name ends with one of these words contains a secret, which may be a number of any length."""

_SECRET_WORDS = frozenset(
    {"auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "jwt"}
    | {"csrf", "pass", "pw", "secret", "secrets", "token", "xsrf"}
    | {"accesskey", "accesstoken", "apikey", "authtoken", "privatekey", "refreshtoken", "secretkey"}
)
"""Like `_SECRET_NUMBER_WORDS`, but a short number is a measurement: `time_to_first_token`."""

_KEY_PREFIXES = frozenset(
    {"access", "account", "api", "app", "auth", "client", "encryption", "license", "master", "private"}
    | {"secret", "signing", "ssh", "subscription"}
)
"""Words before "key" or "keys" that make it the name of a secret."""

_TOKEN_PREFIXES = frozenset({"access", "api", "auth", "bearer", "csrf", "id", "refresh", "session"})
"""Words before "tokens" that make it the name of secrets. Other tokens are counts, or parts of a prompt."""

_MODEL_TOKEN_PREFIXES = frozenset(
    {"bos", "cls", "end", "eos", "mask", "pad", "sep", "special", "start", "stop", "unk"}
)
"""Words before "token" that make it a token of a language model: `stop_token`."""

_PAGE_TOKEN_PREFIXES = frozenset({"continuation", "cursor", "next", "page", "pagination", "resume", "sync"})
"""Words before "token" that make it a position in a list: `nextPageToken`."""

_SECRET_SUFFIXES = (
    "accesskey", "apikey", "cookie", "cookies", "credential", "credentials", "passcode", "passphrase",
    "passwd", "password", "passwords", "privatekey", "privkey", "pwd", "secret", "secretkey",
    "secrets", "token",
)  # fmt: skip
"""A word with one of these suffixes counts as the suffix: `dbpassword`, `CLIENTSECRET`."""

_NEUTRAL_SUFFIXES = frozenset(
    {"b64", "base64", "code", "confirm", "confirmation", "encoded", "hash", "header", "plain", "raw"}
    | {"string", "text", "value"}
)
"""Words at the end of a name that do not change its meaning: `password_hash`, `authorization_header`."""

_LONG_NUMBER = 10**9

_MAX_NAME_CHARS = 256
"""Number of characters at the end of a name that are examined."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


Detector = Callable[[str], tuple[str, int]]
"""Returns a text with its secrets redacted, and their number."""

VALUE = re.compile(
    r"(?P<scheme>(?:(?:bearer|basic|token|digest|apikey)\s+)?)(?!\[redacted)"
    # A list, an object or the arguments of a call. `closing_bracket` finds their end.
    r"(?:(?:[A-Za-z_][\w.]{0,60}(?=\())?(?P<open>[\[{(])|(?:[bruf]{1,2}(?=\\*[\"'])|)"
    # A quoted value ends at the same quotes (\" for JSON in JSON), or at the end of the text.
    r"(?:(?P<quote>\\*(?:\"\"\"|'''|[\"']))(?P<quoted>(?:(?!(?P=quote))(?:\\+[\"']?|[^\\])|(?P=quote){2})+)"
    # Any other value ends at the first whitespace character, or at a delimiter that is not followed by
    # more of the value.
    r"|(?P<bare>(?:[^\s\"'&,;)}\]\\]|[,;&](?![\s\"']|\Z|[\w.\[\]-]++[=:])|[)}\]\"'](?=\w)|\\(?=\w)(?![nrt]))+)))",
    re.IGNORECASE | re.DOTALL,
)
_EMPTY = frozenset({"true", "false", "null", "none", "undefined", "..."})

_BRACKET = re.compile(r"[\[\]{}()]|\"(?:\\.|[^\"\\])*+\"|'(?:\\.|[^'\\])*+'", re.DOTALL)
"""A bracket, or a quoted string, whose brackets are ignored."""

_MEASURE = re.compile(
    r"[-+]?\d{1,9}(?:[.,]\d{1,9})?(?:[numµμ]?s|sec|secs|min|mins|hr?|hrs|days?|d|%|x|[kKMGT]?i?[bB](?:/s)?|[kKMG]?Hz|/\d{1,9})[.!?]*"
    r"|[-+]?\d{1,9}\.\d{1,9}[.!?]*"
)


def is_secret_name(name: str) -> bool:
    """Return whether a field with this name contains a secret, according to the words of the name.

    Example:
        >>> [is_secret_name(name) for name in ("db.password", "apiKey", "input_tokens", "token_count")]
        [True, True, False, False]
    """
    last = _last_word(name[-_MAX_NAME_CHARS:])
    return last in _SECRET_NUMBER_WORDS or last in _SECRET_WORDS


def is_secret_number(name: str, number: float) -> bool:
    """Return whether a number in a field with the name of a secret is a secret and not a measurement.

    Example:
        >>> is_secret_number("ms_per_token", 12), is_secret_number("token", 12345678901)
        (False, True)
        >>> is_secret_number("pin", 12)
        True
    """
    if _last_word(name[-_MAX_NAME_CHARS:]) in _SECRET_NUMBER_WORDS:
        return True
    return isinstance(number, int) and abs(number) >= _LONG_NUMBER


@functools.lru_cache(maxsize=10_000)
def _last_word(name: str) -> str:
    """Return the last significant word of a name, or "secretkey" for a secret key."""
    words = [word.lower() for word in _WORD.findall(name if name.isascii() else _in_latin(name))]
    while words and (words[-1] in _NEUTRAL_SUFFIXES or words[-1].isdigit()):
        words.pop()
    if not words:
        return ""
    last: str = words[-1]
    before: str = "".join(words[-2:-1])
    if last in ("key", "keys"):
        return "secretkey" if before in _KEY_PREFIXES else "key"
    if last == "tokens":
        return "token" if before in _TOKEN_PREFIXES else last
    if last == "token" and (before in _MODEL_TOKEN_PREFIXES or before in _PAGE_TOKEN_PREFIXES):
        return "tokens"
    if last in _SECRET_NUMBER_WORDS or last in _SECRET_WORDS:
        return last
    if before == "pass" and before + last in _SECRET_NUMBER_WORDS:  # "pass_phrase", "PassWord"
        return before + last
    return next((ending for ending in _SECRET_SUFFIXES if last.endswith(ending)), last)


_CYRILLIC_TO_LATIN = str.maketrans("авсеорхуѕіјкАВСЕНІКМОРЅТХУ", "abceopxysijkABCEHIKMOPSTXY")
"""Cyrillic letters that look like Latin ones."""


def _in_latin(name: str) -> str:
    """Return a name as a person reads it: without accents, full-width and zero-width characters."""
    letters = unicodedata.normalize("NFKD", name.translate(_CYRILLIC_TO_LATIN))
    return "".join(letter for letter in letters if unicodedata.category(letter) not in ("Mn", "Cf"))


def closing_bracket(text: str, start: int) -> int:
    """Return the end of the list or object that starts at `start`, or `start` if it is empty."""
    level = 0
    for bracket in _BRACKET.finditer(text, start):
        level += {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(
            bracket[0], 0
        )  # 0 for a quoted string
        if level == 0:
            return bracket.end() if text[start + 1 : bracket.start()].strip() else start
    return len(text)


def is_empty(word: str) -> bool:
    """Return whether a value contains nothing to redact, because it is missing or already masked."""
    return not word.strip("*") or word.lower() in _EMPTY


def is_long(word: str) -> bool:
    """Return whether a value is unlikely to be a word of a sentence: it is long, or contains a digit."""
    return len(word) >= 12 or (len(word) >= 4 and any(map(str.isdecimal, word)))


def is_measure(word: str) -> bool:
    """Return whether a word is a duration, a size, a ratio or a decimal fraction.

    Example:
        >>> [is_measure(word) for word in ("200ms", "2.5", "3/10", "12", "a200ms")]
        [True, True, True, False, False]
    """
    return _MEASURE.fullmatch(word) is not None


def value_at(text: str, start: int) -> tuple[int, int]:
    """Return the start and the end of the value at `start`, without its quotes."""
    value = VALUE.match(text, start)
    if value is None:
        return start, start
    if value["open"]:
        return value.start("open"), closing_bracket(text, value.start("open"))
    return value.span("bare" if value["quoted"] is None else "quoted")


def named_value_detector(
    pattern: re.Pattern[str], is_secret: Callable[[str], bool] = is_secret_name
) -> Detector:
    """Return a detector for values that a pattern matches together with their names.

    Args:
        pattern: A pattern with the groups `name` and `value`. An empty group `value` marks the start of the
            value. If that group did not match, the group `text` is the value.
        is_secret: Returns whether the value of a name is a secret.
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
