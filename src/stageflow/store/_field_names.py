"""Fields that a person may have meant by a name that is not a field."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from ._columns import ATTRIBUTE

__all__ = ["SYNONYMS", "similar_field"]

SYNONYMS: dict[str, tuple[str, ...]] = {
    "org_id": (
        "account",
        "account_id",
        "client",
        "company",
        "customer",
        "customer_id",
        "organization",
        "tenant",
        "tenant_id",
    ),
    "user_id": ("customer", "customer_id", "member", "person"),
    "duration_ms": ("elapsed", "latency", "response_time", "runtime_ms", "time", "took"),
    "service_version": ("release", "tag", "version"),
    "error_type": ("exception_type",),
    "started_at": ("date", "start", "timestamp"),
    "pipeline_name": ("name", "workflow"),
    "stage_name": ("step", "task"),
    "host": ("machine", "node", "server"),
    "environment": ("deployment", "env"),
}
"""Other names for fields, which people type."""

_LIKE = 0.75
"""The least similarity of a misspelled name, 0 to 1: that of `stauts` and `status`, for example."""


def similar_field(name: str, known: Collection[str]) -> str | None:
    """Return the field that a name probably means; None if none is near.

    An attribute of that name comes first, then a field whose name is a synonym, then one that ends or
    begins with the name, then one with a similar name.

    Args:
        name: The name that is not a field.
        known: The fields.

    Example:
        >>> fields = ["org_id", "outcome", "attributes.model", "status", "user_id"]
        >>> [similar_field(name, fields) for name in ("model", "customer", "stauts", "zebra")]
        ['attributes.model', 'org_id', 'status', None]
    """
    wanted = name.lower().removeprefix(ATTRIBUTE)
    by_lower_case = {field.lower(): field for field in known}
    near = [field for field in by_lower_case if field.endswith((f".{wanted}", f"/{wanted}"))]
    near += [field for field, names in SYNONYMS.items() if wanted in names and field in by_lower_case]
    if not near and len(wanted) > 1:
        near = _shortest_first(field for field in by_lower_case if field.endswith(f"_{wanted}"))
        near += _shortest_first(field for field in by_lower_case if field.startswith(f"{wanted}_"))
    if near:
        return by_lower_case[near[0]]
    # The name of an attribute is compared without its prefix and its stage too.
    candidates = {field.rpartition(ATTRIBUTE)[2]: field for field in reversed(by_lower_case)} | {
        field: field for field in by_lower_case
    }
    close = difflib.get_close_matches(wanted, candidates, n=1, cutoff=_LIKE)
    return by_lower_case[candidates[close[0]]] if close else None


def _shortest_first(fields: Iterable[str]) -> list[str]:
    return sorted(fields, key=lambda field: (len(field), field))
