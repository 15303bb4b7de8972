"""Which fields say the same thing about a run, and which of them a run only came to.

A selection of failed runs is not explained by their errors: those are the failure. What a run was
given (ids, versions, hosts, attributes, when it began) may be a cause. What it came to (how it ended,
how long it took) is its course.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...schema import Role, fields_with
from ..columns import COLUMNS, FAILURE

__all__ = ["COURSE", "DOCUMENTS", "IDS", "OF_STAGES", "PROCESS", "implied", "is_measured_time"]

_OUTCOME = fields_with(Role.OUTCOME) | {FAILURE}
_DURATION = fields_with(Role.DURATION)
_WHEN = fields_with(Role.TIME) | {"day"}

COURSE = _OUTCOME | _DURATION | fields_with(Role.WORK)
"""What a run or a stage came to."""

PROCESS = fields_with(Role.PROCESS)
"""How the process was when a run ended: nothing that the run was given."""

_MEASURED = re.compile(r"(^|[._])(time_to_\w+|duration|latency|elapsed)([._]\w+)?$|_(ms|us|ns|seconds)$")


def is_measured_time(name: str) -> bool:
    """Tell by its name whether a field is a time that was measured, as timers and `record_llm` leave them.

    Example:
        >>> is_measured_time("attributes.db_ms"), is_measured_time("attributes.model")
        (True, False)
        >>> is_measured_time("attributes.gen_ai.response.time_to_first_chunk")
        True
    """
    return _MEASURED.search(name) is not None


DOCUMENTS = frozenset(name for name, column in COLUMNS.items() if column.shape == "JSON") | {"rest"}
"""JSON whole, which is compared field by field or not at all."""

IDS = fields_with(Role.IDENTITY) | {"segment", "sample_reason"}
"""Names of one run or one attempt, and how it came to be stored."""

OF_STAGES = ("status", "error_type", "duration_ms", "queue_ms", "attempts")
"""What of each stage of a run is compared, beside its attributes."""


def implied(named: Iterable[str]) -> frozenset[str]:
    """Return the fields that say what a predicate says, by the fields that it names.

    Example:
        >>> "error_type" in implied(["status"]), "error_type" in implied(["org_id"])
        (True, False)
    """
    named = frozenset(named)
    return named.union(*(family for family in (_OUTCOME, _DURATION, _WHEN) if family & named))
