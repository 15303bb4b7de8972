"""Shapes what the application says, before any sink has it: plain values, no secrets, bounded size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from ..errors import describe
from ..telling import tell
from .plain import plain, safe_text
from .redaction import REDACTED, REDACTION_FAILED, Redact, Redactor

__all__ = ["EventLimits", "Shape", "Shaper", "shaper", "use_shape"]

log = logging.getLogger("stageflow.observability")

OTHER = "other"
"""The attribute that takes fields whose names came after too many others."""

_LONG_NUMBER = 10**11

_MARGIN = 1000
"""A text is looked through so far behind its cut that no secret on the edge is left in half."""


class EventLimits(Struct, frozen=True, kw_only=True):
    """How large an event may grow. What is beyond is cut, the largest first, and named in `truncated`.

    Attributes:
        fields: Attributes of one event; default 256.
        depth: Levels of a nested value; default 8. What lies deeper is left out.
        text_chars: Characters of one text; default 16,384.
        event_bytes: Bytes of all attributes, or of a payload, together; default 256 KiB.
        names: Different names of attributes in one process; default 2,000. Fields with later
            names go together into one attribute, `other`, so that nobody's columns grow without end.

    Raises:
        ValueError: A limit is no positive whole number.
    """

    fields: int = 256
    depth: int = 8
    text_chars: int = 16_384
    event_bytes: int = 256 << 10
    names: int = 2_000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"EventLimits({name}={value!r}); give a whole number, 1 or more")


class Shape(Struct, frozen=True):
    """The rules in force: what is taken out, and how large an event may grow."""

    redact: Redact | None = Redact()
    limits: EventLimits = EventLimits()


class Rules:
    """A `Shape`, ready to be applied. Made once a process, or when the rules change."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.limits = shape.limits
        self.redactor = None if shape.redact is None else Redactor(shape.redact)
        self.names: set[str] = set()
        self.told: set[str] = set()


class Shaper:
    """Shapes the parts of one event, and notes what was done.

    Attributes:
        redacted: How many secrets were taken out.
        truncated: Names of what was cut.
    """

    __slots__ = ("_rules", "redacted", "truncated")

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.redacted = 0
        self.truncated: list[str] = []

    def text(self, text: str, name: str) -> str:
        """Return a text that may be stored; `name` is that of its field."""
        text = safe_text(text)
        most = self._rules.limits.text_chars
        if len(text) > most + _MARGIN:
            text = text[: most + _MARGIN]
        text = self._clean(text)
        if len(text) > most:
            self.truncated.append(self._clean(name))
            return text[: most - 1] + "…"
        return text

    def _clean(self, text: str) -> str:
        redactor = self._rules.redactor
        if redactor is None:
            return text
        try:
            clean, found = redactor.text(text)
        except Exception as error:
            # Closed: nobody knows what is in it.
            self._tell(error)
            clean, found = REDACTION_FAILED, 1
        self.redacted += found
        return clean

    def _tell(self, error: Exception) -> None:
        if type(error).__name__ not in self._rules.told:
            self._rules.told.add(type(error).__name__)
            tell(log, "a text could not be redacted, and was left out whole: %s (said once)", describe(error))

    def name(self, name: str) -> str:
        """Return the name of a field or an input as it may be stored."""
        redactor = self._rules.redactor
        return name if redactor is None or name in redactor.clean else self._clean(name)

    def attributes(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return attributes that may be stored; those with names beyond the limit stand under one name."""
        return self._guarded(self.fields(fields, "attributes"))

    def fields(self, fields: Mapping[str, Any], within: str) -> dict[str, Any]:
        """Return fields that may be stored, a copy down to the last level."""
        redactor, limits = self._rules.redactor, self._rules.limits
        shaped: dict[str, Any] = plain(fields)
        chars = 0
        for name, value in shaped.items():
            kind = type(value)
            withheld = redactor is not None and redactor.withholds(name)
            if value is None or kind is bool:
                continue
            if withheld:
                self.redacted += 1
                shaped[name] = REDACTED
            elif kind is str:
                if redactor is None or value not in redactor.clean:
                    shaped[name] = value = self.text(value, f"{within}.{name}")
                chars += len(value)
            elif kind is int:
                if abs(value) >= _LONG_NUMBER:
                    shaped[name] = self._number(value)
            elif kind is not float:
                shaped[name] = self._nested(value, f"{within}.{name}", 1)
                chars += limits.event_bytes  # not worth a guess: it is measured below
        if redactor is not None and redactor.renamed:
            for name in shaped.keys() & redactor.renamed.keys():
                shaped[redactor.renamed[name]] = shaped.pop(name)
                self.redacted += 1
        if len(shaped) > limits.fields:
            self._cut_fields(shaped, within)
        if chars * 6 > limits.event_bytes:
            self._cut_bytes(shaped, within)
        return shaped

    def _nested(self, value: Any, name: str, level: int) -> Any:
        redactor = self._rules.redactor
        if isinstance(value, str):
            return self.text(value, name)
        if isinstance(value, (list, dict)) and level > self._rules.limits.depth:
            self.truncated.append(self._clean(name))
            return f"[cut: deeper than {self._rules.limits.depth} levels]"
        if isinstance(value, list):
            return [self._nested(item, name, level + 1) for item in value]
        if isinstance(value, dict):
            nested = {}
            for key, item in value.items():
                harmless = item is None or type(item) is bool
                if redactor is not None and not harmless and redactor.is_secret(key):
                    self.redacted += 1
                    nested[self._clean(key)] = REDACTED
                else:
                    nested[self._clean(key)] = self._nested(item, f"{name}.{key}", level + 1)
            return nested
        return self._number(value) if type(value) is int and abs(value) >= _LONG_NUMBER else value

    def _number(self, number: int) -> int | str:
        """Look at a number as the text it may have been: that of a card, say."""
        text = str(number)
        clean = self._clean(text)
        return number if clean == text else clean

    def _guarded(self, attributes: dict[str, Any]) -> dict[str, Any]:
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

    def _cut_fields(self, fields: dict[str, Any], within: str) -> None:
        """Leave out the fields that came last."""
        for name in list(fields)[self._rules.limits.fields :]:
            del fields[name]
        self.truncated.append(within)

    def _cut_bytes(self, fields: dict[str, Any], within: str) -> None:
        """Cut the largest, until the rest fits."""
        sizes = {name: len(msgspec.json.encode(value)) + len(name) + 4 for name, value in fields.items()}
        whole = sum(sizes.values())
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            if whole <= self._rules.limits.event_bytes:
                return
            fields[name] = instead = f"[cut: {sizes[name]:,} bytes]"
            whole -= sizes[name] - len(name) - len(instead) - 6
            self.truncated.append(self._clean(f"{within}.{name}"))


_rules = Rules(Shape())


def shaper() -> Shaper:
    """Return what shapes one event, by the rules in force."""
    return Shaper(_rules)


def use_shape(shape: Shape) -> Shape:
    """Put rules in force for every event from now on, and return those they replace."""
    global _rules
    before = _rules.shape
    _rules = Rules(shape)
    return before
