"""What must not be stored, and what stands in its place."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from msgspec import Struct

from ..._interrupts import INTERRUPTS
from ..._value import ValueType
from ...errors import InvalidArgumentError
from ._coerce import safe_text
from ._detectors import DETECTORS
from ._secrets import Detector, is_secret_name, is_secret_number

__all__ = ["REDACTED", "REDACTION_FAILED", "Redact", "Redactor"]


REDACTED = "[redacted]"
REDACTION_FAILED = "[redaction failed]"


class Redact(Struct, metaclass=ValueType, frozen=True, kw_only=True):
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
        InvalidArgumentError: An option has another type.
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
        for option in ("names", "detect", "allow"):
            given = getattr(self, option)
            if isinstance(given, str):  # each of its letters would be one
                raise ValueError(f"Redact({option}={given!r}); give a tuple: ({given!r},)")
            if given is not None and not (
                isinstance(given, Collection) and all(isinstance(name, str) for name in given)
            ):
                raise InvalidArgumentError(
                    f"Redact({option}={given!r}) is not a tuple of texts",
                    hint=f'write Redact({option}=("...",))',
                )
        if not isinstance(self.patterns, Mapping):
            raise InvalidArgumentError(
                f"Redact(patterns={self.patterns!r}) is not a mapping",
                hint='write Redact(patterns={"order": r"ORD-[0-9]{6}"})',
            )
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
        known: What `is_withheld` has said of names that may themselves be shown.
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
        """Tell whether the value of a top-level field of this name is not for keeping."""
        withheld = not self._allows(name) or self.is_secret(name)
        try:
            # What is remembered as clean is shown as it is: so it is asked for as it may be shown.
            _, found = self.text(safe_text(name[:_MAX_NAME_CHARS]))
        except BaseException as error:
            INTERRUPTS.contain(error)
            return True  # closed: whatever this field is, it is not for keeping
        if not found and name in self.clean and len(self.known) < _MAX_CACHED:
            self.known[name] = withheld
        return withheld

    def _allows(self, name: str) -> bool:
        allow = self._rules.allow
        return allow is None or any(fnmatchcase(name[:_MAX_NAME_CHARS], pattern) for pattern in allow)

    def is_secret(self, name: str) -> bool:
        """Tell whether a field of this name holds a secret, wherever it stands."""
        return is_secret_name(name) or self._is_named(name)

    def _is_named(self, name: str) -> bool:
        return any(fnmatchcase(name[:_MAX_NAME_CHARS], pattern) for pattern in self._rules.names)

    def is_measure(self, name: str, value: Any) -> bool:
        """Tell whether what is withheld for the words of its name is only a number: `ms_per_token`."""
        return (
            type(value) in (int, float)
            and is_secret_name(name)
            and not is_secret_number(name, value)
            and self._allows(name)
            and not self._is_named(name)
        )

    def text(self, text: str) -> tuple[str, int]:
        """Return a text without the secrets in it, and how many there were."""
        if text in self.clean:
            return text, 0
        found = 0
        clean = text
        for detector in self._detectors:
            clean, count = detector(clean)
            found += count
        if not found and len(text) <= _SHORT and len(self.clean) < _MAX_CACHED:
            self.clean[text] = None
        return clean, found


_MAX_CACHED = 10_000
_SHORT = 100
"""Characters of a text or a name that is remembered at most."""

_MAX_NAME_CHARS = 256
"""Characters at the beginning of a name that patterns are compared with."""


def _by_pattern(name: str, pattern: re.Pattern[str]) -> Detector:
    def detect(text: str) -> tuple[str, int]:
        return pattern.subn(f"[redacted:{name}]", text)

    return detect
