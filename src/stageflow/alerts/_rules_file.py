"""Reads rules, receivers and silences from TOML; errors contain the path of each problem."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

from .._decodable import decodable
from .._toml import parse_toml
from ..errors import AlertRuleError, did_you_mean
from ._receivers import Apprise, Webhook
from ._rule import Silence, WrongField
from ._rules import BurnRate, CrashedRuns, EventsDropped, FailureRate, NewError, NoRuns, SlowerThan, SqlRows
from ._run import AlertRules

__all__ = ["parse_rules", "read_rules"]


Kinds = Mapping[str, type[Struct]]


def _by_tag(*kinds: type[Struct]) -> Kinds:
    return {str(kind.__struct_config__.tag): kind for kind in kinds}


RULES = _by_tag(BurnRate, CrashedRuns, EventsDropped, FailureRate, NewError, NoRuns, SlowerThan, SqlRows)
RECEIVERS = _by_tag(Apprise, Webhook)
_ONE = ""
"""Key for tables that have only one kind."""

_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "datetime": "a time (2026-11-25T08:00:00Z)",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "text",
}
_EXPECTED = re.compile(r"Expected `([^`]+)`")


def read_rules(path: str | os.PathLike[str]) -> AlertRules:
    """Return the rules, receivers and silences of a TOML file.

    Args:
        path: Path of the file, such as "alerts.toml".

    Raises:
        AlertRuleError: The file is invalid; contains all problems, each with its path.
        OSError: The file cannot be read.

    Example:
        read_rules("alerts.toml").rules
    """
    file = os.fspath(path)
    with open(file, "rb") as opened:
        content = opened.read()
    try:
        return parse_rules(content.decode(), file)
    except UnicodeDecodeError as error:
        raise AlertRuleError(file, [f"at $: invalid UTF-8: {error.reason}"]) from None


def parse_rules(text: str, file: str = "alerts.toml") -> AlertRules:
    """Return the rules, receivers and silences of a TOML document.

    Args:
        text: The TOML.
        file: Name for error messages.

    Raises:
        AlertRuleError: The document is invalid; contains all problems, each with its path.

    Example:
        >>> [rule] = parse_rules('''
        ... [[rules]]
        ... kind = "failure_rate"
        ... name = "checkout fails"
        ... above = 0.05
        ... ''').rules
        >>> rule.above
        0.05
    """
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise AlertRuleError(file, [f"at $: invalid TOML: {error}"]) from None
    known: dict[str, Kinds] = {"rules": RULES, "receivers": RECEIVERS, "silences": {_ONE: Silence}}
    problems = [f"at $.{key}: unknown key{did_you_mean(key, known)}" for key in sorted(table.keys() - known)]
    found: dict[str, tuple[Any, ...]] = {
        key: _list(table.get(key, []), kinds, f"$.{key}", problems) for key, kinds in known.items()
    }
    _check_names(table, problems)
    if not table.get("rules"):
        problems.append("at $.rules: at least one rule is required; add one with [[rules]]")
    if problems:
        raise AlertRuleError(file, problems)
    return AlertRules(**found)


def _check_names(table: Mapping[str, Any], problems: list[str]) -> None:
    """Report duplicate names, and references to unknown rules and receivers."""
    names: dict[str, dict[str, int]] = {"rules": {}, "receivers": {}}
    for key, first in names.items():
        for number, each in enumerate(_tables(table, key)):
            name = each.get("name")
            if isinstance(name, str) and first.setdefault(name, number) != number:
                problems.append(
                    f"at $.{key}[{number}].name: name {name!r} is already used at $.{key}[{first[name]}]"
                )
    for number, rule in enumerate(_tables(table, "rules")):
        listed = rule.get("receivers", [])
        for at, name in enumerate(listed if isinstance(listed, list) else []):
            if isinstance(name, str) and name not in names["receivers"]:
                near = did_you_mean(name, names["receivers"])
                problems.append(f"at $.rules[{number}].receivers[{at}]: unknown receiver {name!r}{near}")
    for number, silence in enumerate(_tables(table, "silences")):
        name = silence.get("rule")
        if not isinstance(name, str):
            problems.append(f"at $.silences[{number}].rule: the key is required")
        elif name not in names["rules"]:
            near = did_you_mean(name, names["rules"])
            problems.append(f"at $.silences[{number}].rule: unknown rule {name!r}{near}")


def _tables(table: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    found = table.get(key, [])
    return [each if isinstance(each, dict) else {} for each in found] if isinstance(found, list) else []


def _list(value: Any, kinds: Kinds, at: str, problems: list[str]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        problems.append(f"at {at}: expected a list of tables ([[{at[2:]}]]), got {value!r}")
        return ()
    made = [_make(each, kinds, f"{at}[{number}]", problems) for number, each in enumerate(value)]
    return tuple(each for each in made if each is not None)


def _make(table: Any, kinds: Kinds, at: str, problems: list[str]) -> Struct | None:
    """Return the object that a table describes; None if a problem was added."""
    if not isinstance(table, dict):
        problems.append(f"at {at}: expected a table, got {table!r}")
        return None
    shape = kinds.get(_ONE)
    if shape is None:
        kind = table.get("kind")
        shape = kinds.get(kind) if isinstance(kind, str) else None
        if shape is None:
            near = did_you_mean(kind, kinds) if isinstance(kind, str) else ""
            problem = f"expected one of {', '.join(kinds)}, got {kind!r}{near}"
            if "kind" not in table:
                problem = f"the key is required; it is one of {', '.join(kinds)}"
            problems.append(f"at {at}.kind: {problem}")
            return None
    before = len(problems)
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    suggested = set()
    for key in table.keys() - fields.keys() - {"kind" if _ONE not in kinds else ""}:
        near = did_you_mean(key, fields)
        suggested.add(near)
        problems.append(f"at {at}.{key}: unknown key{near}")
    values = {}
    for name, field in fields.items():
        if name in table:
            values[field.name] = _value(table[name], field.type, f"{at}.{name}", problems)
        elif field.required and did_you_mean(name, [name]) not in suggested:
            problems.append(f"at {at}.{name}: the key is required")
    if len(problems) > before:
        return None
    try:
        return shape(**values)
    except WrongField as error:
        problems.append(f"at {at}.{error.field}: {error.problem}")
        return None


def _value(value: Any, type: Any, at: str, problems: list[str]) -> Any:
    """Return a value converted to the type of its field."""
    if get_origin(type) is tuple and _is_struct(item := get_args(type)[0]):
        return _list(value, {_ONE: item}, at, problems)
    if get_origin(type) is Literal and value not in get_args(type):
        near = did_you_mean(value, get_args(type)) if isinstance(value, str) else ""
        problems.append(f"at {at}: expected one of {', '.join(get_args(type))}, got {value!r}{near}")
        return None
    try:
        return msgspec.convert(value, decodable(type))
    except msgspec.ValidationError as error:
        expected = _EXPECTED.search(str(error))
        words = (
            [_WORDS.get(word, word) for word in expected[1].split(" | ") if word != "null"]
            if expected
            else []
        )
        within = re.search(r"at `\$\[(\d+)\]`", str(error))
        if within and isinstance(value, list):
            value, at = value[int(within[1])], f"{at}[{within[1]}]"
        got = value.isoformat() if isinstance(value, date | time) else repr(value)
        problem = f"expected {' or '.join(words)}, got {got}" if words else str(error)
        problems.append(f"at {at}: {problem}")
        return None


def _is_struct(type: Any) -> bool:
    return isinstance(type, msgspec.StructMeta)
