"""Trials without consequences: a sample to each receiver, each query once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..errors import QueryError, describe
from .notice import sample_notice
from .receiver import NotDelivered
from .run_alerts import AlertRules, present
from .sql_rows import SqlRows
from .window import Window

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = ["check_queries", "try_receivers"]


def try_receivers(rules: AlertRules, now: datetime, *, only: str | None = None) -> Sequence[dict[str, Any]]:
    """Send a sample to each receiver, and return `receiver`, `kind` and `error` of each.

    Args:
        rules: That have the receivers.
        now: The present.
        only: Name of the one; default all.
    """
    found = []
    for receiver in rules.receivers:
        if only is None or receiver.name == only:
            error = None
            try:
                receiver.send(sample_notice(now))
            except NotDelivered as failure:
                error = failure.why
            except Exception as failure:
                error = describe(failure)
            kind = type(receiver).__name__.lower()
            found.append({"receiver": receiver.name, "kind": kind, "error": error})
    return found


def check_queries(store: EventStore, rules: AlertRules) -> Sequence[str]:
    """Plan the query of each rule that has one, and return what is wrong, with its path.

    Args:
        store: On which they are planned.
        rules: That have them.
    """
    found = []
    for number, rule in enumerate(rules.rules):
        if isinstance(rule, SqlRows):
            try:
                parameters = rule.parameters(Window.ending(present(), rule.window))
                store.sql(f"explain {rule.sql}", parameters or None)
            except QueryError as error:
                found.append(f"at $.rules[{number}].sql: {error.message.splitlines()[0]}")
    return found
