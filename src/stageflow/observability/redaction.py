"""What must not be stored, and what stands in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from msgspec import Struct

from .detectors import DETECTORS, Detector

__all__ = ["REDACTED", "REDACTION_FAILED", "Redact", "Redactor", "is_secret_name"]

REDACTED = "[redacted]"
REDACTION_FAILED = "[redaction failed]"

_SECRET = frozenset(
    {"auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "cvc", "cvv"}
    | {"jwt", "otp", "passcode", "passphrase", "passwd", "password", "passwords", "pin", "pwd"}
    | {"secret", "secrets", "ssn", "token"}
)
"""A name whose last word is one of these holds a secret."""

_SECRET_KEYS = frozenset(
    {"access", "account", "api", "auth", "client", "encryption", "master", "private", "secret", "signing"}
)
"""So does one that ends in "key" after one of these."""

_JOINED = frozenset(
    {"accesskey", "accesstoken", "apikey", "authtoken", "privatekey", "refreshtoken", "secretkey"}
)

_SAME_THING = frozenset({"b64", "base64", "encoded", "hash", "header", "plain", "raw", "text", "value"})
"""Words that may follow without changing what it is: `password_hash`, `authorization_header`."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Redact(Struct, frozen=True, kw_only=True):
    """What is taken out of events before any sink has them.

    Attributes:
        names: Names of fields that hold secrets, besides those known by their words ("password",
            "api_key", ...; the list is in docs/redaction.md). `*` stands for anything.
        detect: What to look for in every text: "credentials" (tokens, keys and passwords as they
            stand in messages and addresses; the default), "email", "card", "iban", "ip", "jwt",
            "bearer".
        patterns: Regular expressions of your own, by name; what they match is taken out.
        allow: The only attributes and payload keys that may be kept, all others being redacted;
            None for all. `*` stands for anything.

    Raises:
        ValueError: A detector has no such name, or a pattern is no regular expression.

    Example:
        >>> Redact(detect=("credentials", "email"), patterns={"order": r"ORD-[0-9]{6}"}).detect
        ('credentials', 'email')
    """

    names: tuple[str, ...] = ()
    detect: tuple[str, ...] = ("credentials",)
    patterns: Mapping[str, str] = {}
    allow: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.detect if name not in DETECTORS]
        if unknown:
            raise ValueError(
                f"Redact(detect=...): there is no detector {unknown[0]!r}; there are {', '.join(DETECTORS)}"
            )
        for name, pattern in self.patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"Redact(patterns=...): {name!r} is no regular expression: {error}"
                ) from None


class Redactor:
    """Takes secrets out, as one `Redact` says. Made once; it remembers what it has looked at.

    Attributes:
        clean: Short texts in which there was nothing to take out.
        renamed: Names of fields that hold a secret themselves, and what to call them.
    """

    def __init__(self, rules: Redact) -> None:
        self._rules = rules
        self._withheld: dict[str, bool] = {}
        self.renamed: dict[str, str] = {}
        self.clean: dict[str, None] = {}
        self._detectors: list[Detector] = [DETECTORS[name] for name in rules.detect]
        self._detectors += [
            _by_pattern(name, re.compile(pattern)) for name, pattern in rules.patterns.items()
        ]

    def withholds(self, name: str) -> bool:
        """Tell whether the value of a top-level field of this name is not for keeping."""
        known = self._withheld.get(name)
        if known is None:
            allow = self._rules.allow
            allowed = allow is None or any(fnmatchcase(name, pattern) for pattern in allow)
            known = not allowed or self.is_secret(name)
            try:
                clean, found = self.text(name)
            except Exception:
                return True  # closed: whatever this field is, it is not for keeping
            if found:
                self.renamed[name] = clean
            if len(self._withheld) < _REMEMBERED:
                self._withheld[name] = known
        return known

    def is_secret(self, name: str) -> bool:
        """Tell whether a field of this name holds a secret, wherever it stands."""
        return is_secret_name(name) or any(fnmatchcase(name, pattern) for pattern in self._rules.names)

    def text(self, text: str) -> tuple[str, int]:
        """Return a text without the secrets in it, and how many there were."""
        if text in self.clean:
            return text, 0
        found = 0
        clean = text
        for detector in self._detectors:
            clean, count = detector(clean)
            found += count
        if not found and len(text) <= _SHORT and len(self.clean) < _REMEMBERED:
            self.clean[text] = None
        return clean, found


_REMEMBERED = 10_000
_SHORT = 100


def is_secret_name(name: str) -> bool:
    """Tell by its words whether a field of this name holds a secret.

    Example:
        >>> [is_secret_name(name) for name in ("db.password", "apiKey", "input_tokens", "token_count")]
        [True, True, False, False]
    """
    words = [word.lower() for word in _WORD.findall(name)]
    while words and (words[-1] in _SAME_THING or words[-1].isdigit()):
        words.pop()
    if not words:
        return False
    last = words[-1]
    if last == "key" and len(words) > 1:
        return words[-2] in _SECRET_KEYS
    return last in _SECRET or last in _JOINED


def _by_pattern(name: str, pattern: re.Pattern[str]) -> Detector:
    def detect(text: str) -> tuple[str, int]:
        return pattern.subn(f"[redacted:{name}]", text)

    return detect
