"""Generates run ids and random bits, and parses W3C trace contexts."""

from __future__ import annotations

import os
import re

__all__ = ["parse_traceparent", "random_bits", "trace_flags", "uuid7"]


_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def random_bits(bits: int) -> int:
    """Return `bits` random bits (a multiple of 8) from the operating system.

    Not from the `random` module, because an application that seeds it would get the same ids again.
    """
    return int.from_bytes(os.urandom(bits // 8), "big")


def uuid7(wall_ns: int) -> str:
    """Return a new UUIDv7 for the time `wall_ns` (nanoseconds since the Unix epoch) as a string.

    The 12 bits after the version contain the fraction of the millisecond (RFC 9562, method 3), so the ids of
    one process sort by their creation time, with a resolution of about a quarter of a microsecond.
    """
    ms, rest = divmod(wall_ns, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    low = random_bits(64) & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    text = f"{ms & 0xFFFF_FFFF_FFFF:012x}7{fraction:03x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_traceparent(header: str | bytes | None) -> tuple[str, str] | None:
    """Return `(trace_id, span_id)` of a W3C `traceparent`, or None if it is absent or invalid.

    Example:
        >>> parse_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        ('4bf92f3577b34da6a3ce929d0e0e4736', '00f067aa0ba902b7')
    """
    if isinstance(header, bytes):  # ASGI headers
        header = header.decode("latin-1")
    match = _TRACEPARENT.fullmatch(header.strip().lower()) if isinstance(header, str) else None
    if match is None:
        return None
    version, trace_id, span_id, _flags, rest = match.groups()
    # The standard: version ff is invalid, version 00 has exactly four fields, ids are never zero.
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return trace_id, span_id


def trace_flags(header: str | bytes | None) -> str:
    """Return the flags (two hex digits) of a valid W3C `traceparent`; "01" if the caller samples the trace.

    Example:
        >>> trace_flags("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
        '00'
    """
    text = header.decode("latin-1") if isinstance(header, bytes) else header or ""
    return text.strip().lower()[53:55]
