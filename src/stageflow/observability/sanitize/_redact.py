"""`Redact`, the redaction settings, and the `Redactor` that applies them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from msgspec import Struct

from ..._interrupts import INTERRUPTS
from ..._value import ValueType
from ...errors import InvalidArgumentError, invalid_argument
from ._coerce import safe_text
from ._detectors import DETECTORS
from ._secrets import Detector, is_secret_name, is_secret_number

__all__ = ["REDACTED", "REDACTION_FAILED", "Redact", "Redactor"]


REDACTED = "[redacted]"
REDACTION_FAILED = "[redaction failed]"

_MAX_CACHED = 10_000

_MAX_CACHED_CHARS = 100
"""Maximum length of a text in the cache."""

_MAX_NAME_CHARS = 256
"""Number of characters at the start of a name that are compared with patterns."""


class Redact(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """Settings for the redaction of events, which is applied before any sink receives them.

    Attributes:
        names: Additional names of fields with secrets. Common names ("password", "api_key", ...; the list is
            in docs/redaction.md) are always redacted. `*` matches any characters.
        detect: Detectors that are applied to every text: "credentials" (tokens, keys and passwords in
            messages and URLs; the default), "email", "card", "iban", "ip", "jwt", "bearer".
        patterns: Custom regular expressions, by name. Matches are redacted.
        allow: The only attributes and payload keys that are recorded; all others are redacted. None (the
            default) to record all. `*` matches any characters.

    Raises:
        InvalidArgumentError: An option has the wrong type, a detector is unknown, or a pattern is not a
            valid regular expression.

    Example:
        >>> Redact(detect=("credentials", "email"), patterns={"order": r"ORD-[0-9]{6}"}).detect
        ('credentials', 'email')
    """

    names: tuple[str, ...] = ()
    detect: tuple[str, ...] = ("credentials",)
    patterns: Mapping[str, str] = {}
    allow: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for option in ("names", "detect", "allow"):
            given = getattr(self, option)
            if isinstance(given, str):  # a string is a collection of its characters
                raise invalid_argument("Redact", option, given, "a tuple", hint=f"use ({given!r},)")
            if given is not None and not (
                isinstance(given, Collection) and all(isinstance(name, str) for name in given)
            ):
                raise invalid_argument(
                    "Redact", option, given, "a tuple of str", hint=f'use Redact({option}=("...",))'
                )
        if not isinstance(self.patterns, Mapping):
            raise invalid_argument(
                "Redact",
                "patterns",
                self.patterns,
                "a mapping",
                hint='use Redact(patterns={"order": r"ORD-[0-9]{6}"})',
            )
        unknown = [name for name in self.detect if name not in DETECTORS]
        if unknown:
            raise invalid_argument(
                "Redact", "detect", unknown[0], f"one of {', '.join(DETECTORS)}", known=DETECTORS
            )
        for name, pattern in self.patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise InvalidArgumentError(
                    f"Redact: pattern {name!r} is not a valid regular expression: {error}"
                ) from None


class Redactor:
    """Redacts text and fields according to a `Redact`, and caches its results.

    Attributes:
        clean: Cache of short strings without secrets.
        known: Cache of the results of `is_withheld`, for names that do not contain secrets themselves.
    """

    def __init__(self, rules: Redact) -> None:
        self._rules = rules
        self.known: dict[str, bool] = {}
        self.clean: dict[str, None] = {}
        self._detectors: list[Detector] = [DETECTORS[name] for name in rules.detect]
        self._detectors += [
            _by_pattern(name, re.compile(pattern)) for name, pattern in rules.patterns.items()
        ]

    def is_withheld(self, name: str) -> bool:
        """Return whether the value of a top-level field with this name must be redacted."""
        withheld = not self._allows(name) or self.is_secret(name)
        try:
            # Cached strings are recorded unchanged, so check the name in the form in which it is recorded.
            _, found = self.text(safe_text(name[:_MAX_NAME_CHARS]))
        except BaseException as error:
            INTERRUPTS.contain(error)
            return True  # fail closed
        if not found and name in self.clean and len(self.known) < _MAX_CACHED:
            self.known[name] = withheld
        return withheld

    def _allows(self, name: str) -> bool:
        allow = self._rules.allow
        return allow is None or any(fnmatchcase(name[:_MAX_NAME_CHARS], pattern) for pattern in allow)

    def is_secret(self, name: str) -> bool:
        """Return whether a field with this name contains a secret, at any nesting level."""
        return is_secret_name(name) or self._is_named(name)

    def _is_named(self, name: str) -> bool:
        return any(fnmatchcase(name[:_MAX_NAME_CHARS], pattern) for pattern in self._rules.names)

    def is_measure(self, name: str, value: Any) -> bool:
        """Return whether a withheld value is a measurement, such as `ms_per_token`, and not a secret."""
        return (
            type(value) in (int, float)
            and is_secret_name(name)
            and not is_secret_number(name, value)
            and self._allows(name)
            and not self._is_named(name)
        )

    def text(self, text: str, is_unique: bool = False) -> tuple[str, int]:
        """Return a text with its secrets redacted, and their number. A unique text is not cached."""
        if text in self.clean:
            return text, 0
        found = 0
        clean = text
        for detector in self._detectors:
            clean, count = detector(clean)
            found += count
        is_cached = not is_unique and len(text) <= _MAX_CACHED_CHARS and len(self.clean) < _MAX_CACHED
        if not found and is_cached:
            self.clean[text] = None
        return clean, found


def _by_pattern(name: str, pattern: re.Pattern[str]) -> Detector:
    def detect(text: str) -> tuple[str, int]:
        return pattern.subn(f"[redacted:{name}]", text)

    return detect
