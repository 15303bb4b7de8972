"""The words by which a name holds a secret: of a field, and of what is assigned in a text."""

from __future__ import annotations

import functools
import re
import unicodedata

__all__ = ["is_secret_name", "is_secret_number"]

_NUMBERS = frozenset(
    {"cvc", "cvv", "otp", "passcode", "passphrase", "passwd", "password", "passwords", "pin", "pwd", "ssn"}
)
"""A name whose last word is one of these holds a secret, which may be a number of any length."""

_TEXTS = frozenset(
    {"auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "jwt"}
    | {"csrf", "pass", "pw", "secret", "secrets", "token", "xsrf"}
    | {"accesskey", "accesstoken", "apikey", "authtoken", "privatekey", "refreshtoken", "secretkey"}
)
"""So does one that ends in these; a short number behind them is a measure: `time_to_first_token`."""

_KEYS = frozenset(
    {"access", "account", "api", "app", "auth", "client", "encryption", "license", "master", "private"}
    | {"secret", "signing", "ssh", "subscription"}
)
"""So does one that ends in "key" or "keys" after one of these."""

_TOKENS = frozenset({"access", "api", "auth", "bearer", "csrf", "id", "refresh", "session"})
"""So does one that ends in "tokens" after one of these; other tokens are counted, or are words."""

_OF_MODELS = frozenset({"bos", "cls", "end", "eos", "mask", "pad", "sep", "special", "start", "stop", "unk"})
"""But a "token" after one of these is a piece of text that a language model knows: `stop_token`."""

_OF_PAGES = frozenset({"continuation", "cursor", "next", "page", "pagination", "resume", "sync"})
"""After one of these, a `token` is a position in a list: `nextPageToken`."""

_ENDINGS = (
    "accesskey", "apikey", "cookie", "cookies", "credential", "credentials", "passcode", "passphrase",
    "passwd", "password", "passwords", "privatekey", "privkey", "pwd", "secret", "secretkey",
    "secrets", "token",
)  # fmt: skip
"""A word that ends in one of these is that one: `dbpassword`, `CLIENTSECRET`."""

_SAME_THING = frozenset(
    {"b64", "base64", "code", "confirm", "confirmation", "encoded", "hash", "header", "plain", "raw"}
    | {"string", "text", "value"}
)
"""Words that may follow without changing what it is: `password_hash`, `authorization_header`."""

_LONG_NUMBER = 10**9

_LONGEST = 256
"""Characters at the end of a name that are looked at."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def is_secret_name(name: str) -> bool:
    """Tell by its words whether a field of this name holds a secret.

    Example:
        >>> [is_secret_name(name) for name in ("db.password", "apiKey", "input_tokens", "token_count")]
        [True, True, False, False]
    """
    last = _last_word(name[-_LONGEST:])
    return last in _NUMBERS or last in _TEXTS


def is_secret_number(name: str, number: float) -> bool:
    """Tell whether a number under a name that holds a secret is one, and no measure.

    Example:
        >>> is_secret_number("ms_per_token", 12), is_secret_number("token", 12345678901)
        (False, True)
        >>> is_secret_number("pin", 12)
        True
    """
    if _last_word(name[-_LONGEST:]) in _NUMBERS:
        return True
    return isinstance(number, int) and abs(number) >= _LONG_NUMBER


@functools.lru_cache(maxsize=10_000)
def _last_word(name: str) -> str:
    """Return the word that says what a name stands for; "secretkey" for a key that is secret."""
    words = [word.lower() for word in _WORD.findall(name if name.isascii() else _in_latin(name))]
    while words and (words[-1] in _SAME_THING or words[-1].isdigit()):
        words.pop()
    if not words:
        return ""
    last: str = words[-1]
    before: str = "".join(words[-2:-1])
    if last in ("key", "keys"):
        return "secretkey" if before in _KEYS else "key"
    if last == "tokens":
        return "token" if before in _TOKENS else last
    if last == "token" and (before in _OF_MODELS or before in _OF_PAGES):
        return "tokens"
    if last in _NUMBERS or last in _TEXTS:
        return last
    if before == "pass" and before + last in _NUMBERS:  # "pass_phrase", "PassWord"
        return before + last
    return next((ending for ending in _ENDINGS if last.endswith(ending)), last)


_LIKE_LATIN = str.maketrans("авсеорхуѕіјкАВСЕНІКМОРЅТХУ", "abceopxysijkABCEHIKMOPSTXY")
"""Cyrillic letters that nobody can tell from Latin ones, not even who typed them."""


def _in_latin(name: str) -> str:
    """Return a name as who reads it sees it: without accents, wide letters and what has no width."""
    letters = unicodedata.normalize("NFKD", name.translate(_LIKE_LATIN))
    return "".join(letter for letter in letters if unicodedata.category(letter) not in ("Mn", "Cf"))
