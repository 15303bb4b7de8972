"""Summarizes the calls of an attempt to other services: the number, durations, errors and hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from .schema import Role

__all__ = ["CALL_ROLES", "Call", "CallSummary"]


_MAX_HOSTS = 10
"""Number of hosts per kind of call; the calls to further hosts are summarized as "other"."""

_MAX_TEXT = 200

KINDS = ("http.client", "db", "gen_ai.client", "rpc.client", "messaging")

CALL_ROLES: Mapping[str, Role] = {
    f"{kind}.{name}": role
    for kind in KINDS
    for name, role in (
        ("count", Role.WORK),
        ("ms", Role.DURATION),
        ("errors", Role.OUTCOME),
        ("slowest", Role.OUTCOME),
        ("slowest_ms", Role.DURATION),
        ("hosts", Role.OUTCOME),
    )
}
"""The roles of the attributes that summarize calls."""


class Call(Struct, frozen=True, gc=False):
    """One call to another service.

    Attributes:
        kind: Prefix of the attributes, one of `KINDS`.
        name: Name of the call, such as "GET".
        host: Name of the host, or of the system if the host is unknown; None if both are.
        ms: Duration in milliseconds.
        failed: Whether the call failed.
    """

    kind: str
    name: str
    host: str | None
    ms: float
    failed: bool

    def amounts(self) -> dict[str, float]:
        """Return the amounts to add to the attributes of the attempt and the run."""
        kind = self.kind
        return {f"{kind}.count": 1, f"{kind}.ms": self.ms, f"{kind}.errors": int(self.failed)}


class _Host(Struct, gc=False):
    count: int = 0
    ms: float = 0.0
    errors: int = 0


class CallSummary:
    """The slowest call of each kind, and the hosts of all calls, of one attempt."""

    __slots__ = ("_hosts", "_slowest")

    def __init__(self) -> None:
        self._slowest: dict[str, float] = {}
        self._hosts: dict[str, dict[str, _Host]] = {}

    def add(self, call: Call) -> dict[str, Any]:
        """Add a call, and return the attributes whose values change."""
        kind, changed = call.kind, dict[str, Any]()
        if call.ms > self._slowest.get(kind, -1.0):
            self._slowest[kind] = call.ms
            changed[f"{kind}.slowest"] = _name(call)
            changed[f"{kind}.slowest_ms"] = call.ms
        if call.host is not None:
            hosts = self._hosts.setdefault(kind, {})
            key = call.host[:_MAX_TEXT]
            if key not in hosts and len(hosts) >= _MAX_HOSTS:
                key = "other"
            host = hosts.setdefault(key, _Host())
            host.count += 1
            host.ms = round(host.ms + call.ms, 3)
            host.errors += call.failed
            # A new mapping: the event of the attempt may be built at the same time.
            changed[f"{kind}.hosts"] = {
                name: {"count": each.count, "ms": each.ms, "errors": each.errors}
                for name, each in hosts.items()
            }
        return changed


def _name(call: Call) -> str:
    """Return the name of a call with its host: "GET api.example"."""
    if call.host is None or call.host in call.name:
        return call.name[:_MAX_TEXT]
    return f"{call.name} {call.host}"[:_MAX_TEXT]
