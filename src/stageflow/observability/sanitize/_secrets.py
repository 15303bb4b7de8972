"""Recognizes names of secrets, and distinguishes secrets from other values."""

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
"""A name whose last word is one of these holds a secret, which may be a number of any length."""

_SECRET_WORDS = frozenset(
    {"auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "jwt"}
    | {"csrf", "pass", "pw", "secret", "secrets", "token", "xsrf"}
    | {"accesskey", "accesstoken", "apikey", "authtoken", "privatekey", "refreshtoken", "secretkey"}
)
"""So does one that ends in these; a short number behind them is a measure: `time_to_first_token`."""

_KEY_PREFIXES = frozenset(
    {"access", "account", "api", "app", "auth", "client", "encryption", "license", "master", "private"}
    | {"secret", "signing", "ssh", "subscription"}
)
"""So does one that ends in "key" or "keys" after one of these."""

_TOKEN_PREFIXES = frozenset({"access", "api", "auth", "bearer", "csrf", "id", "refresh", "session"})
"""So does one that ends in "tokens" after one of these; other tokens are counted, or are words."""

_MODEL_TOKEN_PREFIXES = frozenset(
    {"bos", "cls", "end", "eos", "mask", "pad", "sep", "special", "start", "stop", "unk"}
)
"""But a "token" after one of these is a piece of text that a language model knows: `stop_token`."""

_PAGE_TOKEN_PREFIXES = frozenset({"continuation", "cursor", "next", "page", "pagination", "resume", "sync"})
"""After one of these, a `token` is a position in a list: `nextPageToken`."""

_SECRET_SUFFIXES = (
    "accesskey", "apikey", "cookie", "cookies", "credential", "credentials", "passcode", "passphrase",
    "passwd", "password", "passwords", "privatekey", "privkey", "pwd", "secret", "secretkey",
    "secrets", "token",
)  # fmt: skip
"""A word that ends in one of these is that one: `dbpassword`, `CLIENTSECRET`."""

_NEUTRAL_SUFFIXES = frozenset(
    {"b64", "base64", "code", "confirm", "confirmation", "encoded", "hash", "header", "plain", "raw"}
    | {"string", "text", "value"}
)
"""Words that may follow without changing what it is: `password_hash`, `authorization_header`."""

_LONG_NUMBER = 10**9

_MAX_NAME_CHARS = 256
"""Characters at the end of a name that are looked at."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def is_secret_name(name: str) -> bool:
    """Tell by its words whether a field of this name holds a secret.

    Example:
        >>> [is_secret_name(name) for name in ("db.password", "apiKey", "input_tokens", "token_count")]
        [True, True, False, False]
    """
    last = _last_word(name[-_MAX_NAME_CHARS:])
    return last in _SECRET_NUMBER_WORDS or last in _SECRET_WORDS


def is_secret_number(name: str, number: float) -> bool:
    """Tell whether a number under a name that holds a secret is one, and no measure.

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
    """Return the word that says what a name stands for; "secretkey" for a key that is secret."""
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
"""Cyrillic letters that nobody can tell from Latin ones, not even who typed them."""


def _in_latin(name: str) -> str:
    """Return a name as who reads it sees it: without accents, wide letters and what has no width."""
    letters = unicodedata.normalize("NFKD", name.translate(_CYRILLIC_TO_LATIN))
    return "".join(letter for letter in letters if unicodedata.category(letter) not in ("Mn", "Cf"))


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


def closing_bracket(text: str, start: int) -> int:
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
        return value.start("open"), closing_bracket(text, value.start("open"))
    return value.span("bare" if value["quoted"] is None else "quoted")


def named_value_detector(
    pattern: re.Pattern[str], is_secret: Callable[[str], bool] = is_secret_name
) -> Detector:
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
