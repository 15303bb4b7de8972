"""`Sanitizer`: makes application values plain, free of secrets and bounded, before any sink receives them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ..._interrupts import INTERRUPTS
from ..._log import log_safely
from ..._value import ValueType
from ...errors import as_text, describe, invalid_argument
from ._coerce import (
    REPR_CHARS,
    Coercer,
    ReprText,
    Truncated,
    copy_if_simple,
    items_of,
    safe_repr,
    safe_text,
    text_key,
    unique_key,
)
from ._redact import REDACTED, REDACTION_FAILED, Redact, Redactor

__all__ = ["EventLimits", "SanitizeRules", "Sanitizer", "new_sanitizer", "use_sanitize_rules"]


log = logging.getLogger("stageflow.observability")

OTHER = "other"
"""The attribute that contains the fields whose names exceed `EventLimits.names`."""

_LONG_NUMBER = 10**11

_OPTION_START = re.compile(r"-|b['\"]-")
"""The beginning of an option, including one in the `repr` of bytes."""

_NAMES, _VALUES = ("name", "Name", "key", "Key"), ("value", "Value")
"""Keys of an object that contains the name and the value of a setting or a header."""

_MAX_NAME_CHARS = 256
"""Maximum length of a string that can be the name of an adjacent value."""

_LOOKAHEAD_CHARS = 1000
"""Number of characters after the recorded part that are searched too, to find secrets that cross its end."""


class EventLimits(Struct, metaclass=ValueType, frozen=True, kw_only=True):
    """Size limits of an event. Values beyond a limit are truncated, largest first, and listed in `truncated`.

    Attributes:
        fields: Maximum number of attributes of one event; default 256.
        depth: Maximum nesting level of a value; default 8. Deeper values are replaced.
        text_chars: Maximum length of a string, in characters; default 16,384.
        name_chars: Maximum length of the name of a field, in characters; default 256.
        event_bytes: Maximum total size of all attributes, or of a payload, in bytes; default 256 KiB.
        names: Maximum number of different attribute names in one process; default 2,000. Fields with other
            names are stored in one attribute, `other`, so that the number of columns is bounded.

    Raises:
        InvalidArgumentError: A limit is not a positive integer.
    """

    fields: int = 256
    depth: int = 8
    text_chars: int = 16_384
    name_chars: int = 256
    event_bytes: int = 256 << 10
    names: int = 2_000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise invalid_argument("EventLimits", name, value, "a positive integer")


class SanitizeRules(Struct, frozen=True):
    """The current settings: what is redacted, and the size limits of an event."""

    redact: Redact | None = Redact()
    limits: EventLimits = EventLimits()


class _CompiledRules:
    """`SanitizeRules` with a redactor and caches. Created once per process, and when the rules change."""

    def __init__(self, rules: SanitizeRules) -> None:
        self.source = rules
        self.limits = rules.limits
        self.redactor = None if rules.redact is None else Redactor(rules.redact)
        self.names: set[str] = set()
        self.logged: set[str] = set()


class Sanitizer:
    """Sanitizes the parts of one event, and records what was redacted and truncated.

    Attributes:
        redacted: Number of redacted secrets.
        truncated: Names of the truncated fields.
    """

    __slots__ = ("_rules", "redacted", "truncated")

    def __init__(self, rules: _CompiledRules) -> None:
        self._rules = rules
        self.redacted = 0
        self.truncated: list[str] = []

    def text(self, text: str, name: str, most: int | None = None, *, is_unique: bool = False) -> str:
        """Return a sanitized text.

        Args:
            text: Text of any length.
            name: Name of its field, which is recorded in `truncated` if the text is truncated.
            most: Maximum length; default `EventLimits.text_chars`.
            is_unique: True for a text that does not occur again, and must not fill the cache.
        """
        if type(text) is not str:  # a manually created result may contain any value
            text = as_text(text)
        shown, cut = self._sanitize(text, most or self._rules.limits.text_chars, is_unique)
        if cut:
            self._note_truncated(name)
        return shown

    def name(self, name: str) -> str:
        """Return the sanitized name of a field or an input."""
        shown, cut = self._sanitize_name(name)
        if cut:
            self._note_truncated(shown)
        return shown

    def names(self, names: Iterable[Any], within: str) -> list[str]:
        """Return the sanitized names of fields or inputs, at most `EventLimits.fields` of them."""
        most = self._rules.limits.fields
        shown: list[str] = []
        for name in names:
            if len(shown) == most:
                self._note_truncated(within)
                break
            clean, cut = self._sanitize_name(name if type(name) is str else text_key(name))
            shown.append(clean)
            if cut:
                self._note_truncated(within)
        return shown

    def _sanitize_name(self, name: str) -> tuple[str, bool]:
        redactor, most = self._rules.redactor, self._rules.limits.name_chars
        if redactor is not None and name in redactor.clean and len(name) <= most:
            return name, False
        return self._sanitize(name, most)

    def _sanitize(self, text: str, most: int, is_unique: bool = False) -> tuple[str, bool]:
        """Return a text without secrets, with at most `most` characters, and whether it was truncated."""
        if self._rules.redactor is None and len(text) <= most:
            return safe_text(text), False
        searched = text[: most + _LOOKAHEAD_CHARS]
        clean = self._redact(safe_text(searched), is_unique)
        is_complete = len(searched) == len(text)
        if is_complete and len(clean) <= most:
            return clean, False
        # The end of the searched part may be the first half of a secret, so drop it, unless it was redacted.
        end = len(clean) if is_complete or clean.endswith(REDACTED) else max(len(clean) - _LOOKAHEAD_CHARS, 0)
        return clean[: min(end, most - 1)] + "…", True

    def _note_truncated(self, name: str) -> None:
        """Record the name of a truncated field, once."""
        if len(self.truncated) < self._rules.limits.fields and name not in self.truncated:
            self.truncated.append(name)

    def _redact(self, text: str, is_unique: bool = False) -> str:
        redactor = self._rules.redactor
        if redactor is None:
            return text
        try:
            clean, found = redactor.text(text, is_unique)
        except BaseException as error:
            INTERRUPTS.contain(error)
            # Fail closed: the text may contain a secret.
            self._warn_once(error)
            clean, found = REDACTION_FAILED, 1
        self.redacted += found
        return clean

    def _warn_once(self, error: BaseException) -> None:
        if type(error).__name__ not in self._rules.logged:
            self._rules.logged.add(type(error).__name__)
            log_safely(
                log,
                "could not redact a string; it was omitted: %s (further occurrences are not logged)",
                describe(error),
            )

    def attributes(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return sanitized attributes. Those whose names exceed the limit are stored under `other`."""
        return self._limit_names(self.fields(fields, "attributes"))

    def fields(self, fields: Mapping[str, Any], within: str) -> dict[str, Any]:
        """Return a sanitized deep copy of fields.

        Large values are truncated before they are searched for secrets, so the work is bounded.
        """
        limits = self._rules.limits
        sanitized = copy_if_simple(fields, limits.fields, limits.name_chars, limits.event_bytes)
        renames = sanitized is None
        if sanitized is None:
            sanitized = self._coerced(fields, within)
        if self._rules.redactor is not None and self._redact_by_name(sanitized, self._rules.redactor):
            renames = True
        chars = self._sanitize_values(sanitized, within)
        if renames:
            sanitized = self._with_sanitized_names(sanitized)
        if chars * 6 > limits.event_bytes:
            sanitized = self._with_size_limit(sanitized, within)
        return sanitized

    def _redact_by_name(self, fields: dict[str, Any], redactor: Redactor) -> bool:
        """Redact the fields whose names are sensitive; return whether a name has not been seen before."""
        known, has_new_name = redactor.known, False
        for name, value in fields.items():
            withheld = known.get(name)
            if withheld is None:
                withheld = redactor.is_withheld(name)
                has_new_name = has_new_name or name not in known
            if withheld and not (value is None or type(value) is bool or redactor.is_measure(name, value)):
                self.redacted += 1
                fields[name] = REDACTED
        return has_new_name

    def _sanitize_values(self, fields: dict[str, Any], within: str) -> int:
        """Redact and truncate the values in place; return an upper bound of their length in characters."""
        redactor, limits = self._rules.redactor, self._rules.limits
        chars = 0
        for name, value in fields.items():
            kind = type(value)
            if value is REDACTED:
                chars += len(REDACTED)
            elif kind is str:
                # Check the length first, because a lookup hashes the whole text.
                if redactor is None or len(value) > limits.text_chars or value not in redactor.clean:
                    value, cut = self._sanitize(value, limits.text_chars)
                    fields[name] = value
                    if cut:
                        self._note_truncated(f"{within}.{self.name(name)}")
                chars += len(value)
            elif kind is int:
                if abs(value) >= _LONG_NUMBER:
                    fields[name] = self._sanitize_number(value)
            elif kind is not float and kind is not bool and value is not None:
                fields[name] = self._sanitize_nested(value, f"{within}.{self.name(name)}")
                chars += limits.event_bytes  # the size is unknown, so it is measured
        return chars

    def _with_size_limit(self, fields: dict[str, Any], within: str) -> dict[str, Any]:
        """Return the fields with the largest values truncated until they fit into an event."""
        sizes = {name: len(msgspec.json.encode(value)) + len(name) + 4 for name, value in fields.items()}
        self._cut_largest(fields, sizes, within)
        # Convert `Truncated` to `str`, because msgspec does not encode subclasses of `str`.
        return {name: str(value) if type(value) is Truncated else value for name, value in fields.items()}

    def _coerced(self, fields: Mapping[str, Any], within: str) -> dict[str, Any]:
        """Return a copy of fields of any type, with bounded size but not yet redacted."""
        limits = self._rules.limits
        items = items_of(fields, limits.fields + 1)
        if items is None:
            items = [(within, fields)]  # a custom mapping that cannot be read is recorded by its `repr`
        if len(items) > limits.fields:
            self._note_truncated(within)
            items.pop()
        plain = Coercer(limits.depth, limits.text_chars)
        copied: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        for key, value in items:
            name = unique_key(text_key(key), copied)
            try:
                copied[name] = plain.copy(value)
            except BaseException as error:  # raised by a value that fakes its type
                INTERRUPTS.contain(error)
                copied[name] = ReprText(safe_repr(value))
            sizes[name] = plain.size + min(len(name), limits.name_chars) + 4
        self._cut_largest(copied, sizes, within)
        return copied

    def _with_sanitized_names(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return fields with sanitized names."""
        named: dict[str, Any] = {}
        for name, value in fields.items():
            named[unique_key(self.name(name), named)] = value
        return named

    def _sanitize_nested(self, value: Any, path: str) -> Any:
        redactor = self._rules.redactor
        kind = type(value)
        if kind is Truncated:
            self._note_truncated(path)
            return str(value)
        if kind is ReprText:
            return self._sanitize(value, REPR_CHARS)[0]
        if isinstance(value, str):
            return self.text(value, path)
        if kind is list:
            return self._sanitize_list(value, path)
        if kind is dict:
            nested: dict[str, Any] = {}
            setting: Any = next((value[key] for key in _NAMES if key in value), None)
            for key, item in value.items():
                name = unique_key(self.name(key), nested)
                if redactor is None:
                    nested[name] = self._sanitize_nested(item, f"{path}.{name}")
                else:
                    named_by = setting if key in _VALUES and self._names_a_secret(setting) else key
                    nested[name] = self._withheld(named_by, item, f"{path}.{name}")
            return nested
        return self._sanitize_number(value) if kind is int and abs(value) >= _LONG_NUMBER else value

    def _sanitize_list(self, items: list[Any], path: str) -> list[Any]:
        """Sanitize a list, including pairs of name and value (headers), and values that follow an option."""
        listed: list[Any] = []
        option: str | None = None
        for item in items:
            if type(item) is list and len(item) == 2 and self._names_a_secret(item[0]):
                listed.append(
                    [self._sanitize_nested(item[0], path), self._withheld(str(item[0]), item[1], path)]
                )
            elif option is not None:
                listed.append(self._withheld(option, item, path))
            else:
                listed.append(self._sanitize_nested(item, path))
            is_option = isinstance(item, str) and _OPTION_START.match(item) is not None
            option = str(item) if is_option and self._names_a_secret(item) else None
        return listed

    def _withheld(self, name: str, value: Any, path: str) -> Any:
        """Return the sanitized value of a nested field, or of an item that follows a name."""
        redactor = self._rules.redactor
        if value is None or type(value) is bool or redactor is None or not redactor.is_secret(name):
            return self._sanitize_nested(value, path)
        if redactor.is_measure(name, value):
            return value
        self.redacted += 1
        return REDACTED

    def _names_a_secret(self, name: Any) -> bool:
        """Return whether a value is the name of a secret, rather than a sentence that ends with one."""
        redactor = self._rules.redactor
        return (
            redactor is not None
            and isinstance(name, str)
            and len(name) <= _MAX_NAME_CHARS
            and not any(blank in name for blank in " =\n")
            and redactor.is_secret(name)
        )

    def _sanitize_number(self, number: int) -> int | str:
        """Sanitize a long number, which may be a secret such as a card number."""
        text = str(number)
        clean = self._redact(text)
        return number if clean == text else clean

    def _limit_names(self, attributes: dict[str, Any]) -> dict[str, Any]:
        names = self._rules.names
        if attributes.keys() <= names:
            return attributes
        for name in list(attributes):
            if name in names:
                continue
            if len(names) < self._rules.limits.names:
                names.add(name)
            elif name != OTHER:
                other = attributes.setdefault(OTHER, {})
                if not isinstance(other, dict):
                    other = attributes[OTHER] = {OTHER: other}
                other[name] = attributes.pop(name)
        return attributes

    def _cut_largest(self, fields: dict[str, Any], sizes: dict[str, int], within: str) -> None:
        """Truncate the largest fields until the rest fits."""
        total, most = sum(sizes.values()), self._rules.limits.event_bytes
        if total <= most:
            return
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            if total <= most:
                return
            fields[name] = replacement = Truncated(f"[cut: {sizes[name]:,} bytes]")
            total -= sizes[name] - len(name) - len(replacement) - 6
            self._note_truncated(f"{within}.{self.name(name)}")


_rules = _CompiledRules(SanitizeRules())


def new_sanitizer() -> Sanitizer:
    """Return a sanitizer for one event, with the current rules."""
    return Sanitizer(_rules)


def use_sanitize_rules(rules: SanitizeRules) -> SanitizeRules:
    """Set the rules for all future events, and return the previous ones."""
    global _rules
    before = _rules.source
    _rules = _CompiledRules(rules)
    return before
