"""Detects secrets in text."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable

from ._secrets import (
    VALUE,
    Detector,
    closing_bracket,
    is_empty,
    is_long,
    is_measure,
    is_secret_name,
    is_secret_number,
    named_value_detector,
    value_at,
)

__all__ = ["DETECTORS", "FORMATS", "Detector"]


_LINE_END = r"(?:\r?\n|\\r\\n|\\n)"
"""A line end, including one in the `repr` of a string."""

_QUOTE = r"\\*[\"']"
"""A quote, including one of JSON inside JSON."""


def _has_secret_part(path: str) -> bool:
    """Return whether a part of a path names a secret: `db.password.int`, `['tokens']['api'][0]`."""
    return any(map(is_secret_name, re.split(r"[^\w-]+", path[-1_000:])))


# ------------------------------------------------------------ command lines

_OPTION = re.compile(
    r"(?<![\w-])--?(?P<name>\w[\w.-]*+)(?:[ \t\0]{1,9}|\r?\n[ \t]{0,40}(?:-[ \t]{1,9})?)"
    rf"(?P<value>(?={_QUOTE})|(?!-)(?=[^\s\"'\0]*\d|[^\s\"'\0]{{12}})[^\s\"'\0]{{4,}})"
)
"""An option and its value, separated by a space, a NUL (`/proc/PID/cmdline`) or a line break (YAML)."""

_ITEMS = re.compile(
    rf"(?P<quote>{_QUOTE})--?(?P<name>\w[\w.-]*+)(?P=quote)\s{{0,100}}(?:,\s{{0,100}})?"
    rf"(?P<value>)(?=b?{_QUOTE}(?!--?[A-Za-z][A-Za-z-]*+{_QUOTE})|\d{{4}})"
)
"""An option and its value as items of a list or a tuple, formatted by Python, JSON or a shell."""

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
"""pydantic: the location on one line, and the value on the next."""

_DACITE = re.compile(
    rf"\bfield {_QUOTE}(?P<name>[\w.-]++){_QUOTE} - should be [^\n]{{0,300}}? instead of value (?P<value>)"
)
_JSONSCHEMA = re.compile(r"\bOn instance(?P<name>(?:\[[^\]\n]{1,200}\]){1,50}+):(?:\s|\\n){1,40}(?P<value>)")
_ATTRS = re.compile(
    rf"{_QUOTE}(?P<name>\w++){_QUOTE} must [^\n]{{1,300}}? \((?:got )?(?P<value>)(?=b?{_QUOTE}|\d)"
)

_MAX_REPEATED_VALUES = 8
"""Maximum number of different values whose repetitions are redacted too."""


def _repeated_value_detector(pattern: re.Pattern[str]) -> Detector:
    """Return a detector for a value that the message repeats elsewhere without its name."""

    def detect(text: str) -> tuple[str, int]:
        values: dict[str, None] = {}
        for match in pattern.finditer(text):
            if len(values) == _MAX_REPEATED_VALUES:
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
    """Redact all values of a statement that names a secret: the position of the secret is uncertain."""
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
            end = closing_bracket(text, start)
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

_items = named_value_detector(_ITEMS)
_sql_word = named_value_detector(
    _SQL_WORD, lambda name: is_secret_name(name) or name[:10].lower() == "identified"
)

FORMATS: tuple[tuple[str, Detector], ...] = (
    ("<", named_value_detector(_ELEMENT)),
    ("<![cdata[", named_value_detector(_CDATA)),
    ("value=", named_value_detector(_NAMED_VALUE)),
    ("value=", named_value_detector(_VALUE_NAMED)),
    ("content=", named_value_detector(_NAMED_VALUE)),
    ("content=", named_value_detector(_VALUE_NAMED)),
    ("</", named_value_detector(_NAMED_ELEMENT)),
    ("form-data;", named_value_detector(_MULTIPART)),
    ("22%", named_value_detector(_ENCODED)),
    ("-", named_value_detector(_OPTION)),
    ("'-", _items),
    ('"-', _items),
    ("argument ", named_value_detector(_ARGUMENT, _has_secret_part)),
    ("input_value=", named_value_detector(_PYDANTIC, _has_secret_part)),
    ("instead of value", named_value_detector(_DACITE)),
    ("on instance", _repeated_value_detector(_JSONSCHEMA)),
    (" must ", _repeated_value_detector(_ATTRS)),
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


# ------------------------------------------------------------ credentials

# A token has a digit, an inner capital or an unusual length: "bearer of bad news" contains no token.
_BEARER = re.compile(
    r"\b([Bb][Ee][Aa][Rr][Ee][Rr]\s+)"
    r"(?:(?=[^\s]*[0-9=]|[^\s]*[a-z][A-Z])[A-Za-z0-9._~+/=-]{8,}|[A-Za-z0-9_~+/]{24,}[A-Za-z0-9._~+/=-]*)"
)
_BASIC = re.compile(r"\b(basic\s+)([A-Za-z0-9+/]{4,}={0,2})", re.IGNORECASE)
# The match must start at a word boundary. Otherwise a word of many "eyJ-" would take quadratic time.
_JWT = re.compile(
    r"(?:(?<![\w-])|(?<=%[0-9A-F]{2}))"
    r"eyJ[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?|(?:\.[A-Za-z0-9_-]*){4})"
)
_KEY_BLOCK = r"[A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
_PEM = re.compile(rf"-----BEGIN {_KEY_BLOCK}.*?(?:-----END {_KEY_BLOCK}|\Z)", re.DOTALL)
_ISSUED = re.compile(
    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|xox[abeprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{30,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}"
    r"|npm_[A-Za-z0-9]{20,}|(?:gsk_|xai-|pplx-|whsec_)[A-Za-z0-9]{24,}|hvs\.[\w-]{24,}|ya29\.[\w-]{24,}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|do[opr]_v1_[0-9a-f]{64}|sbp_[0-9a-f]{40}"
    r"|dapi[0-9a-f]{32}|lin_api_[A-Za-z0-9]{32,}|pypi-[\w-]{32,}|ATATT[\w=-]{32,}|AGE-SECRET-KEY-1[0-9A-Z]{40,}"
    r"|\d{8,10}:AA[\w-]{30,})"
)
_MAY_BE_ISSUED = re.compile(r"[_.:-]|A(?:KIA|SIA|Iza|TATT)|dapi")
_MAY_BE_FORMATTED = re.compile(r"['\"<(\n\0%-]")
_KEY = re.compile(r"\b[spr]k[-_][A-Za-z0-9_-]{16,}")
# Up to the last "@" before the path, because a password may contain an "@".
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://[^\s/:\[]*:)[^\s/\"']+(?=@)", re.IGNORECASE)
# Or up to the first "@" after a slash, which is invalid in a URL, but occurs in passwords. Ports are
# excluded.
_SLASHED = re.compile(
    r"\b([a-z][a-z0-9+.-]{0,30}://[^\s/:\[@]*:)(?!\d{1,5}/|\[redacted)[^\s/\"'@][^\s\"'@]{0,200}+(?=@)",
    re.IGNORECASE,
)
_TOKEN_IN_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://)([\w-]{20,})(?=@)", re.IGNORECASE)
_SIGNED = re.compile(r"([?&](?:X-Amz-|X-Goog-)?(?:Signature|sig)=)(?!\[redacted)[^\s&\"'#]+", re.IGNORECASE)
_HOOK = re.compile(r"(\bhooks\.slack\.com/services/\w+/\w+/)\w+")
_NAMED = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]++)(?P<close>\\*+[\"']?)\]?(?:\[\d{0,3}\])?\\*+[\"']?\s{0,9}(?P<sign>=>|:=|=|%3[Dd]|:(?!:))\s{0,9}"
)
# A pair of name and value, as in a list of headers.
_PAIR = re.compile(
    r"(?:\(|\[\[|\], ?\[)b?(?P<quote>[\"'])(?P<name>[\w.-]++)(?P=quote), ?(?P<value>)(?=b?[\"'])"
)
_SETTING = re.compile(
    r"[\"'](?:name|key)[\"']: ?[\"'](?P<name>[\w.-]++)[\"'], ?[\"']value[\"']: ?(?P<value>)(?=[\"'])",
    re.IGNORECASE,
)
_JAR = re.compile(r"(<Cookie [^=\s>]{1,200}=)(?!\[redacted)[^\s>]+")
_HEADER = re.compile(
    r"(?P<scheme>(?:[A-Za-z][\w-]*+[ \t]{1,9})?)(?!\[redacted)"
    r"(?P<first>(?:=\\*\"[^\"\r\n]*\"|=\\*'[^'\r\n]*'|[^\s\"'\\])+)"
)
_LINE = re.compile(r"(?:=\\*\"[^\"\r\n]*\"|=\\*'[^'\r\n]*'|[^\"'\r\n\\])*")
"""The rest of the line after `Cookie:` and `Authorization:`, because a header can contain several values."""


def _credentials(text: str) -> tuple[str, int]:
    found = 0
    lower = text.lower()
    for mark, detect in _MARKED_DETECTORS:
        if mark in lower:
            text, more = detect(text)
            found += more
    if _MAY_BE_FORMATTED.search(text) is not None:
        for mark, detect in FORMATS:
            if mark in lower:
                text, more = detect(text)
                found += more
    if _MAY_BE_ISSUED.search(text) is not None:
        text, more = _ISSUED.subn("[redacted]", text)
        found += more
    if "=" in text or ":" in text or "%3" in text:
        text, more = _assigned(text)
        found += more
    return text, found


def _assigned(text: str) -> tuple[str, int]:
    """Redact values that are assigned to the name of a secret; see `is_secret_name`."""
    parts: list[str] = []
    at = 0
    for named in _NAMED.finditer(text):
        if named.start() < at or not is_secret_name(named["name"]):
            continue
        start, end = _value(text, named)
        if start < end:
            parts += (text[at:start], "[redacted]")
            at = end
    return ("".join([*parts, text[at:]]), len(parts) // 2) if parts else (text, 0)


def _value(text: str, named: re.Match[str]) -> tuple[int, int]:
    """Return the start and the end of the secret assigned to a name, which are equal if there is none."""
    at = named.end()
    header = named["name"][-13:].lower()
    if header.endswith(("cookie", "cookies", "authorization")) and (begins := _HEADER.match(text, at)):
        first, start = begins["first"], at
        if header.endswith("authorization"):
            start = begins.start("first")
        if "=" in first or (start > at and is_long(first)):
            rest = _LINE.match(text, begins.end())
            return start, begins.end() if rest is None else rest.end()
    value = VALUE.match(text, at)
    if value is None:
        return at, at
    if value["open"]:
        # After a colon in a sentence, brackets are not a value.
        start = value.start("open")
        given = named["close"] or named["sign"] != ":" or text[start + 1 : start + 2] in _QUOTES
        return (start, closing_bracket(text, start)) if given else (at, at)
    if not _is_value(named, value):
        return at, at
    return value.span("bare" if value["quoted"] is None else "quoted")


_QUOTES = ("'", '"')


def _is_value(named: re.Match[str], value: re.Match[str]) -> bool:
    """Return whether a value is a secret, and not the next word of a sentence."""
    bare = value["bare"]
    if is_empty(bare or value["quoted"]):
        return False
    if bare is None or value["scheme"]:
        return True
    if is_measure(bare) and not is_secret_number(named["name"], 0):  # "auth: 200ms", "second pass: 2.5"
        return False
    if named["sign"] != ":":
        return len(bare) >= 3
    if bare.isdecimal():  # "pin: 1234", but neither "pin: 3" nor the port in "auth:8080"
        return len(bare) >= 3 and is_secret_number(named["name"], int(bare[:20]))
    return is_long(bare)


def _substitution_detector(pattern: re.Pattern[str], replacement: str) -> Detector:
    return lambda text: pattern.subn(replacement, text)


def _checked_detector(pattern: re.Pattern[str], replacement: str, is_one: Callable[[str], bool]) -> Detector:
    """Return a detector for matches of a pattern that also pass a check.

    A pattern with groups has two: the part that is not redacted, and the part that is checked.
    """

    def detect(text: str) -> tuple[str, int]:
        found = 0

        def replaced(match: re.Match[str]) -> str:
            nonlocal found
            before, what = match.groups() if match.re.groups else ("", match[0])
            if not is_one(what):
                return match[0]
            found += 1
            return before + replacement

        return pattern.sub(replaced, text), found

    return detect


def _is_basic(word: str) -> bool:
    """Return whether a word is "user:password" in base64 (RFC 7617)."""
    try:
        decoded = base64.b64decode(word + "=" * (-len(word) % 4), validate=True).decode()
    except ValueError:
        return False
    return ":" in decoded and decoded.isprintable()


def _is_key(word: str) -> bool:
    """Return whether a word is a key: one of its parts is long, and mixes letters and digits."""
    return any(
        len(part) >= 10 and any(map(str.isdecimal, part)) and any(map(str.isalpha, part))
        for part in re.split("[-_]", word)
    )


_key = _checked_detector(_KEY, "[redacted]", _is_key)
_pair = named_value_detector(_PAIR)
_MARKED_DETECTORS: tuple[tuple[str, Detector], ...] = (
    ("-----begin", _substitution_detector(_PEM, "[redacted]")),
    ("eyj", _substitution_detector(_JWT, "[redacted]")),
    ("bearer", _substitution_detector(_BEARER, r"\1[redacted]")),
    ("basic", _checked_detector(_BASIC, "[redacted]", _is_basic)),
    ("k-", _key),
    ("k_", _key),
    ("://", _substitution_detector(_ADDRESS, r"\1[redacted]")),
    ("://", _substitution_detector(_SLASHED, r"\1[redacted]")),
    ("://", _checked_detector(_TOKEN_IN_ADDRESS, "[redacted]", _is_key)),
    ("sig", _substitution_detector(_SIGNED, r"\1[redacted]")),
    ("hooks.slack", _substitution_detector(_HOOK, r"\1[redacted]")),
    ("<cookie", _substitution_detector(_JAR, r"\1[redacted]")),
    ("'", _pair),
    ('"', _pair),
    ("value", named_value_detector(_SETTING)),
)
"""The detectors for a string that contains a marker. Most strings contain none, so the check is fast."""


def _jwt(text: str) -> tuple[str, int]:
    return _JWT.subn("[redacted:jwt]", text) if "eyJ" in text else (text, 0)


_basic = _checked_detector(_BASIC, "[redacted:bearer]", _is_basic)


def _bearer(text: str) -> tuple[str, int]:
    text, found = _BEARER.subn(r"\1[redacted:bearer]", text)
    text, more = _basic(text)
    return text, found + more


# ------------------------------------------------------------ people and money

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b")
_CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_IP6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?![\w:])")


def _email(text: str) -> tuple[str, int]:
    return _EMAIL.subn("[redacted:email]", text) if "@" in text else (text, 0)


def _is_card(text: str) -> bool:
    """Return whether the check digit of a card number is valid (Luhn algorithm, ISO/IEC 7812-1)."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """Return whether the check digits of an IBAN are valid (ISO 13616: the number is 1 modulo 97)."""
    plain = text.replace(" ", "")
    return (
        15 <= len(plain) <= 34
        and int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1
    )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_ip4, _ip6 = (
    _checked_detector(_IP4, "[redacted:ip]", _is_ip),
    _checked_detector(_IP6, "[redacted:ip]", _is_ip),
)


def _ip(text: str) -> tuple[str, int]:
    text, found = _ip4(text)
    if ":" in text:
        text, more = _ip6(text)
        found += more
    return text, found


DETECTORS: dict[str, Detector] = {
    "credentials": _credentials,
    "email": _email,
    "card": _checked_detector(_CARD, "[redacted:card]", _is_card),
    "iban": _checked_detector(_IBAN, "[redacted:iban]", _is_iban),
    "ip": _ip,
    "jwt": _jwt,
    "bearer": _bearer,
}
"""The detectors, by their names in `Redact(detect=...)`."""
