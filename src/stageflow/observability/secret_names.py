"""The words by which a name holds a secret: of a field, and of what is assigned in a text."""

from __future__ import annotations

import functools
import re

__all__ = ["is_secret_name", "is_secret_number"]

_NUMBERS = frozenset(
    {"cvc", "cvv", "otp", "passcode", "passphrase", "passwd", "password", "passwords", "pin", "pwd", "ssn"}
)
"""A name whose last word is one of these holds a secret, which may be a number of any length."""

_TEXTS = frozenset(
    {"auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "jwt"}
    | {"secret", "secrets", "token"}
    | {"accesskey", "accesstoken", "apikey", "authtoken", "privatekey", "refreshtoken", "secretkey"}
)
"""So does one that ends in these; a short number behind them is a measure: `time_to_first_token`."""

_KEYS = frozenset(
    {"access", "account", "api", "auth", "client", "encryption", "master", "private", "secret", "signing"}
)
"""So does one that ends in "key" after one of these."""

_SAME_THING = frozenset({"b64", "base64", "encoded", "hash", "header", "plain", "raw", "text", "value"})
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
    words = [word.lower() for word in _WORD.findall(name)]
    while words and (words[-1] in _SAME_THING or words[-1].isdigit()):
        words.pop()
    if words[-1:] == ["key"] and len(words) > 1:
        return "secretkey" if words[-2] in _KEYS else "key"
    return words[-1] if words else ""
