"""Finds secrets in texts: each kind by a function that gives the text without them, and how many."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

__all__ = ["DETECTORS", "Detector"]

Detector = Callable[[str], tuple[str, int]]


# ------------------------------------------------------------ credentials

_SUSPECT = re.compile(
    r"[=:]|eyJ|-----BEGIN|[Bb]earer|BEARER|[Bb]asic|BASIC|[sprk]k[-_]|AKIA|ASIA|gh[pousr]_|github_pat_|xox|AIza|glpat-|hf_|npm_"
)
"""Texts without any of these hold no credential; most texts are done with here."""

_BEARER = re.compile(r"\b(bearer|basic)(\s+)(?=[^\s]*[0-9=])[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)?")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_ISSUED = re.compile(
    r"\b(?:(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|xox[abeprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{30,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}"
    r"|npm_[A-Za-z0-9]{20,})"
)
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://[^\s/:@]*:)[^\s/@]+(?=@)", re.IGNORECASE)
# "password=..." always; "password: ..." where the value does not look like a word of a sentence.
_ASSIGNED = re.compile(
    r"((?:password|passwd|pwd|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|secret[_-]?key|token|authorization|credential|cookie)[\"']?\s*)"
    r"(?:(=\s*[\"']?)(?!\[redacted)[^\s\"'&,;)}\]]{3,}"
    r"|(:\s*)(?!\[redacted)(?:[\"'][^\"']{3,}[\"']|(?=[^\s]*[0-9])[^\s\"'&,;)}\]]{4,}|[^\s\"'&,;)}\]]{12,}))",
    re.IGNORECASE,
)


def _credentials(text: str) -> tuple[str, int]:
    if _SUSPECT.search(text) is None:
        return text, 0
    text, found = _PEM.subn("[redacted]", text)
    for pattern, instead in (
        (_JWT, "[redacted]"),
        (_BEARER, r"\1\2[redacted]"),
        (_ISSUED, "[redacted]"),
        (_ADDRESS, r"\1[redacted]"),
    ):
        text, more = pattern.subn(instead, text)
        found += more
    if "=" in text or ":" in text:
        text, more = _ASSIGNED.subn(lambda match: f"{match[1]}{match[2] or match[3]}[redacted]", text)
        found += more
    return text, found


def _jwt(text: str) -> tuple[str, int]:
    return _JWT.subn("[redacted:jwt]", text) if "eyJ" in text else (text, 0)


def _bearer(text: str) -> tuple[str, int]:
    return _BEARER.subn(r"\1\2[redacted:bearer]", text)


# ------------------------------------------------------------ people and money

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b")
_CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_IP6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?![\w:])")


def _email(text: str) -> tuple[str, int]:
    return _EMAIL.subn("[redacted:email]", text) if "@" in text else (text, 0)


def _checked(pattern: re.Pattern[str], name: str, is_one: Callable[[str], bool]) -> Detector:
    """Return a detector for what matches a pattern and then a check that no pattern can make."""

    def detect(text: str) -> tuple[str, int]:
        found = 0

        def instead(match: re.Match[str]) -> str:
            nonlocal found
            if not is_one(match[0]):
                return match[0]
            found += 1
            return f"[redacted:{name}]"

        return pattern.sub(instead, text), found

    return detect


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


_ip4, _ip6 = _checked(_IP4, "ip", _is_ip), _checked(_IP6, "ip", _is_ip)


def _ip(text: str) -> tuple[str, int]:
    text, found = _ip4(text)
    if ":" in text:
        text, more = _ip6(text)
        found += more
    return text, found


DETECTORS: dict[str, Detector] = {
    "credentials": _credentials,
    "email": _email,
    "card": _checked(_CARD, "card", _is_card),
    "iban": _checked(_IBAN, "iban", _is_iban),
    "ip": _ip,
    "jwt": _jwt,
    "bearer": _bearer,
}
"""By the names that `Redact(detect=...)` takes."""
