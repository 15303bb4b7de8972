"""Trials without consequences: a sample to each receiver, each query once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..errors import QueryError
from .evaluation import why
from .notice import sample_notice
from .receiver import NotDelivered
from .run_alerts import AlertRules, present
from .sql_rows import SqlRows
from .window import Window

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = ["check_rules", "try_receivers"]


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
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as failure:  # a custom receiver may raise anything
                error = why(failure)
            kind = type(receiver).__name__.lower()
            found.append({"receiver": receiver.name, "kind": kind, "error": error})
    return found


def check_rules(store: EventStore, rules: AlertRules) -> Sequence[str]:
    """Evaluate each rule without side effects, and return the problems, each with its path.

    The query of a `SqlRows` is planned but not executed; the other rules are measured.

    Args:
        store: The store that they are evaluated on.
        rules: The rules to evaluate.
    """
    found = []
    for number, rule in enumerate(rules.rules):
        place = f"at $.rules[{number}]"
        try:
            if isinstance(rule, SqlRows):
                parameters = rule.parameters(Window.ending(present(), rule.window))
                store.sql(f"explain {rule.sql}", parameters or None)
            else:
                rule.measure(store, present())
        except QueryError as error:
            place += ".sql" if isinstance(rule, SqlRows) else ""
            found.append(f"{place}: {error.message.splitlines()[0]}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a custom rule may raise anything
            found.append(f"{place}: rule {rule.name!r} cannot be evaluated: {why(error)}")
    return found
