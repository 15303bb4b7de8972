"""Finds secrets in texts: each kind by a function that gives the text without them, and how many."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable

from .secret_names import is_secret_name, is_secret_number

__all__ = ["DETECTORS", "Detector"]

Detector = Callable[[str], tuple[str, int]]


# ------------------------------------------------------------ credentials

_SUSPECT = re.compile(
    r"[=:]|eyJ|-----BEGIN|(?i:bearer|basic)|[spr]k[-_]|AKIA|ASIA|gh[pousr]_|github_pat_|xox|AIza|glpat-|hf_|npm_"
)
"""Texts without any of these hold no credential; most texts are done with here."""

# With a digit, an inner capital or the length of no word: "bearer of bad news" holds no token.
_BEARER = re.compile(
    r"\b([Bb][Ee][Aa][Rr][Ee][Rr]\s+)"
    r"(?:(?=[^\s]*[0-9=]|[^\s]*[a-z][A-Z])[A-Za-z0-9._~+/=-]{8,}|[A-Za-z0-9_~+/]{24,}[A-Za-z0-9._~+/=-]*)"
)
_BASIC = re.compile(r"\b(basic\s+)([A-Za-z0-9+/]{4,}={0,2})", re.IGNORECASE)
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?")
_KEY_BLOCK = r"[A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
_PEM = re.compile(rf"-----BEGIN {_KEY_BLOCK}.*?(?:-----END {_KEY_BLOCK}|\Z)", re.DOTALL)
_ISSUED = re.compile(
    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|xox[abeprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{30,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}"
    r"|npm_[A-Za-z0-9]{20,})"
)
_KEY = re.compile(r"\b[spr]k[-_][A-Za-z0-9_-]{16,}")
# To the last "@" before the path: a password may hold one.
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://[^\s/:@]*:)[^\s/\"']+(?=@)", re.IGNORECASE)
_NAMED = re.compile(r"(?<![\w.-])(?P<name>[\w.-]++)\]?\\*+[\"']?\s{0,9}(?P<sign>=|:(?!:))\s{0,9}")
_VALUE = re.compile(
    r"(?P<scheme>(?:(?:bearer|basic|token|digest|apikey)\s+)?)(?!\[redacted)"
    # What is quoted goes to the same quotes (JSON in JSON has \" for them), or to the end of the text.
    r"(?:(?P<quote>\\*[\"'])(?P<quoted>(?:(?!(?P=quote))(?:\\+[\"']?|[^\\]))+)|(?P<bare>[^\s\"'&,;)}\]\\]+))",
    re.IGNORECASE | re.DOTALL,
)
_EMPTY = frozenset({"true", "false", "null", "none", "undefined", "..."})


def _credentials(text: str) -> tuple[str, int]:
    if _SUSPECT.search(text) is None:
        return text, 0
    found = 0
    for detect in _EACH:
        text, more = detect(text)
        found += more
    if "=" in text or ":" in text:
        text, more = _assigned(text)
        found += more
    return text, found


def _assigned(text: str) -> tuple[str, int]:
    """Take out what is assigned to a name that holds a secret: by the same words as that of a field."""
    parts: list[str] = []
    at = 0
    for named in _NAMED.finditer(text):
        if named.start() < at or not is_secret_name(named["name"]):
            continue
        value = _VALUE.match(text, named.end())
        if value is not None and _is_value(named, value):
            group = "quoted" if value["bare"] is None else "bare"
            parts += (text[at : value.start(group)], "[redacted]")
            at = value.end(group)
    return ("".join([*parts, text[at:]]), len(parts) // 2) if parts else (text, 0)


def _is_value(named: re.Match[str], value: re.Match[str]) -> bool:
    """Tell a secret from a word of the sentence that goes on behind a colon."""
    bare = value["bare"]
    if (bare or value["quoted"]).lower() in _EMPTY:
        return False
    if bare is None or value["scheme"]:
        return True
    if named["sign"] == "=":
        return len(bare) >= 3
    if bare.isdecimal():  # "pin: 1234", and not the port in "auth:8080"
        return is_secret_number(named["name"], int(bare[:20]))
    return len(bare) >= 12 or (len(bare) >= 4 and any(map(str.isdecimal, bare)))


def _substituted(pattern: re.Pattern[str], instead: str) -> Detector:
    return lambda text: pattern.subn(instead, text)


def _checked(pattern: re.Pattern[str], instead: str, is_one: Callable[[str], bool]) -> Detector:
    """Return a detector for what matches a pattern, and then a check that no pattern can make.

    A pattern with groups has two: what stays, and what is checked.
    """

    def detect(text: str) -> tuple[str, int]:
        found = 0

        def replaced(match: re.Match[str]) -> str:
            nonlocal found
            before, what = match.groups() if match.re.groups else ("", match[0])
            if not is_one(what):
                return match[0]
            found += 1
            return before + instead

        return pattern.sub(replaced, text), found

    return detect


def _is_basic(word: str) -> bool:
    """Tell whether it is "user:password" in base64, as RFC 7617 has it, and no word of a sentence."""
    try:
        decoded = base64.b64decode(word + "=" * (-len(word) % 4), validate=True).decode()
    except ValueError:
        return False
    return ":" in decoded and decoded.isprintable()


def _is_key(word: str) -> bool:
    """Tell a key from a name of many words: one part of it is long, and mixes letters and digits."""
    return any(
        len(part) >= 10 and any(map(str.isdecimal, part)) and any(map(str.isalpha, part))
        for part in re.split("[-_]", word)
    )


_EACH: tuple[Detector, ...] = (
    _substituted(_PEM, "[redacted]"),
    _substituted(_JWT, "[redacted]"),
    _substituted(_BEARER, r"\1[redacted]"),
    _checked(_BASIC, "[redacted]", _is_basic),
    _substituted(_ISSUED, "[redacted]"),
    _checked(_KEY, "[redacted]", _is_key),
    _substituted(_ADDRESS, r"\1[redacted]"),
)


def _jwt(text: str) -> tuple[str, int]:
    return _JWT.subn("[redacted:jwt]", text) if "eyJ" in text else (text, 0)


_basic = _checked(_BASIC, "[redacted:bearer]", _is_basic)


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
    """Check the digit that Luhn's rule (ISO/IEC 7812-1) puts at the end of a card's number."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """Check the two digits of ISO 13616 behind the country: the whole is 1 modulo 97."""
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


_ip4, _ip6 = _checked(_IP4, "[redacted:ip]", _is_ip), _checked(_IP6, "[redacted:ip]", _is_ip)


def _ip(text: str) -> tuple[str, int]:
    text, found = _ip4(text)
    if ":" in text:
        text, more = _ip6(text)
        found += more
    return text, found


DETECTORS: dict[str, Detector] = {
    "credentials": _credentials,
    "email": _email,
    "card": _checked(_CARD, "[redacted:card]", _is_card),
    "iban": _checked(_IBAN, "[redacted:iban]", _is_iban),
    "ip": _ip,
    "jwt": _jwt,
    "bearer": _bearer,
}
"""By the names that `Redact(detect=...)` takes."""
