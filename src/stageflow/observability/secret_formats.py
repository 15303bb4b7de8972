"""Finds secrets in command lines, markup, SQL and the error messages of common libraries.

In these formats the name of a secret is not directly before its value.
"""

from __future__ import annotations

import re

from .secret_names import is_secret_name
from .secret_values import Detector, beside, closing, is_empty, value_at

__all__ = ["FORMATS"]

_LINE_END = r"(?:\r?\n|\\r\\n|\\n)"
"""Also as the `repr` of a text shows it."""

_QUOTE = r"\\*[\"']"
"""Also of JSON inside JSON."""


def _has_secret_part(path: str) -> bool:
    """Return whether a part of a path is the name of a secret: `db.password.int`, `['tokens']['api'][0]`."""
    return any(map(is_secret_name, re.split(r"[^\w-]+", path[-1_000:])))


# ------------------------------------------------------------ command lines

_OPTION = re.compile(
    r"(?<![\w-])--?(?P<name>\w[\w.-]*+)(?:[ \t\0]{1,9}|\r?\n[ \t]{0,40}(?:-[ \t]{1,9})?)"
    rf"(?P<value>(?={_QUOTE})|(?!-)(?=[^\s\"'\0]*\d|[^\s\"'\0]{{12}})[^\s\"'\0]{{4,}})"
)
"""An option and its value, separated by a blank, a NUL (`/proc/PID/cmdline`) or a line break (YAML)."""

_ITEMS = re.compile(
    rf"(?P<quote>{_QUOTE})--?(?P<name>\w[\w.-]*+)(?P=quote)\s{{0,100}}(?:,\s{{0,100}})?"
    rf"(?P<value>)(?=b?{_QUOTE}(?!--?[A-Za-z][A-Za-z-]*+{_QUOTE})|\d{{4}})"
)
"""An option and its value as items of a list or a tuple, as Python, JSON or a shell shows them."""

_ARGUMENT = re.compile(
    rf"\bargument (?P<name>[\w/, -]{{1,200}}+): [^\n:\"']{{1,100}}: (?P<value>)(?={_QUOTE})"
)
"""argparse: "argument -p/--password: invalid int value: 'x'"."""


# ------------------------------------------------------------ validation errors

_PYDANTIC = re.compile(
    rf"(?:^|\\n)(?P<name>[^\s\\][^\n\\]{{0,300}}){_LINE_END}[ \t]{{1,40}}"
    r"[^\n]{0,1000}?\binput_value=(?P<value>)",
    re.MULTILINE,
)
"""The location on one line, and the value on the next."""

_DACITE = re.compile(
    rf"\bfield {_QUOTE}(?P<name>[\w.-]++){_QUOTE} - should be [^\n]{{0,300}}? instead of value (?P<value>)"
)
_JSONSCHEMA = re.compile(r"\bOn instance(?P<name>(?:\[[^\]\n]{1,200}\]){1,50}+):(?:\s|\\n){1,40}(?P<value>)")
_ATTRS = re.compile(
    rf"{_QUOTE}(?P<name>\w++){_QUOTE} must [^\n]{{1,300}}? \((?:got )?(?P<value>)(?=b?{_QUOTE}|\d)"
)

_MOST_ECHOES = 8
"""Maximum number of different values that are also redacted elsewhere in their text."""


def _echoed(pattern: re.Pattern[str]) -> Detector:
    """Return a detector for a value that the message repeats elsewhere without its name."""

    def detect(text: str) -> tuple[str, int]:
        values: dict[str, None] = {}
        for match in pattern.finditer(text):
            if len(values) == _MOST_ECHOES:
                break
            if _has_secret_part(match["name"]):
                start, end = value_at(text, match.end())
                if not is_empty(text[start:end]):
                    values[text[start:end]] = None
        found = 0
        for value in values:
            if value.startswith("[redacted"):
                continue
            text, count = re.subn(rf"(?<!\w){re.escape(value)}(?!\w)", "[redacted]", text)
            found += count
        return text, found

    return detect


# ------------------------------------------------------------ SQL

_IDENTIFIER = re.compile(r"[A-Za-z_]\w{0,100}")
_COLUMNS = re.compile(r"\b(?:into|update|select|set|where|merge|call)\b", re.IGNORECASE)
_PARAMETERS = re.compile(
    r"\b(?:parameters|params|args)\s?[:=]\s?(?=[(\[])|[\"'], ?(?=[(\[])|\bvalues\s{0,9}(?=\()", re.IGNORECASE
)
_BETWEEN = re.compile(r"[\s,]{0,100}")
_PLACEHOLDERS = re.compile(r"%\(\w{1,100}\)s|%s|[$:@]\w{1,100}|[?,\s()\[\]]")


def _positional(text: str) -> tuple[str, int]:
    """Redact all values of a statement that names a secret: which one belongs to the name is not certain."""
    if _COLUMNS.search(text) is None:
        return text, 0
    parts: list[str] = []
    at = looked = 0
    named = False
    for match in _PARAMETERS.finditer(text):
        start = match.end()
        if start <= looked:
            continue
        named = named or any(map(is_secret_name, set(_IDENTIFIER.findall(text, looked, match.start()))))
        looked = start
        while named and start < len(text) and text[start] in "([":
            end = closing(text, start)
            if _PLACEHOLDERS.sub("", text[start:end]) and "[redacted" not in text[start:end]:
                parts += (text[at:start], "[redacted]")
                at = end
            if end == start:
                break
            looked = end
            between = _BETWEEN.match(text, end)
            start = end if between is None else between.end()  # `VALUES (...), (...)`
    return ("".join([*parts, text[at:]]), len(parts) // 2) if parts else (text, 0)


_SQL_WORD = re.compile(
    r"\b(?P<name>(?i:passw(?:or)?d|passphrase|identified\s{1,9}(?:with\s{1,9}\S{1,100}\s{1,9})?(?:by|as))"
    r"|[A-Z][A-Z_]{2,60}+)\s{1,9}(?P<value>)(?=E?')"
)
"""`PASSWORD 'x'`, `IDENTIFIED BY 'x'`, `SECRET 'x'`; but "unexpected token 'x'" is not about a secret."""


# ------------------------------------------------------------ markup and forms

_ELEMENT = re.compile(
    r"<(?:[\w.-]++:)?(?P<name>[\w.-]++)(?:\s[^<>]{0,300})?(?<!/)>(?P<value>[^<]++)(?=</|\Z)"
)
_CDATA = re.compile(
    r"<(?:[\w.-]++:)?(?P<name>[\w.-]++)(?:\s[^<>]{0,300})?(?<!/)>\s{0,100}<!\[CDATA\[(?P<value>(?:[^\]]|\](?!\]>))++)"
)
_ATTRIBUTE = r"[\w:.-]{1,100}\s?=\s?(?:\"[^\"<>]{0,300}\"|'[^'<>]{0,300}')"
_NAMED_VALUE = re.compile(
    rf"\b(?:name|key|id)\s?=\s?{_QUOTE}(?P<name>[\w.-]++){_QUOTE}(?:\s{{1,40}}{_ATTRIBUTE}){{0,4}}?"
    rf"\s{{1,40}}(?:value|content)\s?=\s?(?P<value>)(?={_QUOTE})",
    re.IGNORECASE,
)
_NAMED_ELEMENT = re.compile(
    rf"\b(?:name|key|id)\s?=\s?{_QUOTE}(?P<name>[\w.-]++){_QUOTE}[^<>]{{0,200}}+(?<!/)>(?P<value>[^<]++)(?=</|\Z)",
    re.IGNORECASE,
)
"""`<property name="password" value="x"/>`, and the same with the value as text of the element."""

_VALUE_NAMED = re.compile(
    rf"\b(?:value|content)\s?=\s?(?P<value>)(?={_QUOTE})(?:\"[^\"<>]{{0,300}}\"|'[^'<>]{{0,300}}')"
    rf"(?:\s{{1,40}}{_ATTRIBUTE}){{0,4}}?\s{{1,40}}(?:name|key|id)\s?=\s?{_QUOTE}(?P<name>[\w.-]++)",
    re.IGNORECASE,
)

_MULTIPART = re.compile(
    rf"\bform-data;\s{{0,9}}name={_QUOTE}?(?P<name>[\w.-]++)[^\r\n\\]{{0,200}}+"
    rf"(?:{_LINE_END}(?!{_LINE_END})[^\r\n\\]{{1,200}}){{0,5}}{_LINE_END}{_LINE_END}"
    rf"(?P<value>(?:(?!{_LINE_END}--).)++)",
    re.DOTALL | re.IGNORECASE,
)
_ENCODED = re.compile(
    r"%(?:25){0,3}22(?P<name>[\w.-]++)%(?P<twice>(?:25){0,3})22(?:%(?:25){0,3}20|\+){0,3}%(?:25){0,3}3A(?:%(?:25){0,3}20|\+){0,3}"
    r"(?:%(?:25){0,3}22(?P<value>(?:(?!%(?:25){0,3}22)[^\s&\"'])++)|(?P<text>[^\s&\"'%]{3,}+))",
    re.IGNORECASE,
)
"""JSON in a query string, encoded once or several times."""

_items = beside(_ITEMS)
_sql_word = beside(_SQL_WORD, lambda name: is_secret_name(name) or name[:10].lower() == "identified")

FORMATS: tuple[tuple[str, Detector], ...] = (
    ("<", beside(_ELEMENT)),
    ("<![cdata[", beside(_CDATA)),
    ("value=", beside(_NAMED_VALUE)),
    ("value=", beside(_VALUE_NAMED)),
    ("content=", beside(_NAMED_VALUE)),
    ("content=", beside(_VALUE_NAMED)),
    ("</", beside(_NAMED_ELEMENT)),
    ("form-data;", beside(_MULTIPART)),
    ("22%", beside(_ENCODED)),
    ("-", beside(_OPTION)),
    ("'-", _items),
    ('"-', _items),
    ("argument ", beside(_ARGUMENT, _has_secret_part)),
    ("input_value=", beside(_PYDANTIC, _has_secret_part)),
    ("instead of value", beside(_DACITE)),
    ("on instance", _echoed(_JSONSCHEMA)),
    (" must ", _echoed(_ATTRS)),
    ("insert into", _positional),
    ("parameters: ", _positional),
    ("args=", _positional),
    ("params=", _positional),
    ("password '", _sql_word),
    ("passwd '", _sql_word),
    ("identified ", _sql_word),
    ("secret '", _sql_word),
    ("token '", _sql_word),
    ("key '", _sql_word),
)
"""The detectors for a text that contains a marker (in lower case)."""
