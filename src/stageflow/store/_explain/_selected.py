"""Explanations of selections in the short forms of the interfaces: `failed`, `slow`, a window, a run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Unpack

from msgspec import Struct

from ..._timeparse import is_duration
from ...errors import RunNotFoundError
from ...journal import RunFilter
from .._selection import Over, as_predicate, compare_with_earlier, parenthesized
from ._explanation import Explanation
from ._request import ExplainOptions
from ._run_explanation import RunExplanation

if TYPE_CHECKING:
    from .._event_store import EventStore

__all__ = ["Selected", "explain_one_run", "explain_selected", "may_be_run_id", "select"]


_SLOWEST = 0.05
"""The share of the runs that `slow` selects."""

_ID = re.compile(r"[\w:@#/+-][\w.:@#/+-]*")
_NAME = re.compile(r"[^\W\d][\w.]*")


class Selected(Struct, frozen=True, kw_only=True):
    """The two sides of a comparison.

    Attributes:
        where: Predicate of the selection; None for failures, or for slow runs.
        against: Predicate of the rest; None for all other rows.
        within: Predicate that restricts both sides; None for all rows.
        slowest: The share that counts as slow; None unless slow runs are selected.
        filter: Restricts both sides.
    """

    where: str | None = None
    against: str | None = None
    within: str | None = None
    slowest: float | None = None
    filter: RunFilter


def select(selection: str, against: str | None, filter: RunFilter, *, within: str | None = None) -> Selected:
    """Return the two sides of a comparison.

    Args:
        selection: "failed", "slow", or what `as_predicate` accepts.
        against: What `as_predicate` accepts, or a time span such as "1d": the same window that much earlier.
            None for all other rows.
        filter: Restricts both sides.
        within: Predicate that restricts both sides, in addition to the filter; default None.

    Raises:
        QueryError: `selection` or `against` is invalid.

    Example:
        >>> select("version=1.5", None, RunFilter()).where
        "service_version = '1.5'"
    """
    if against is not None and is_duration(against):
        windows = compare_with_earlier(selection, against, filter)
        given = [one for one in (within, windows.within) if one is not None]
        return Selected(
            where=windows.where,
            against=windows.against,
            within=" and ".join(map(parenthesized, given)) if len(given) > 1 else next(iter(given), None),
            filter=windows.filter,
        )
    slow = selection == "slow" and against is None
    return Selected(
        where=None if slow or selection == "failed" else as_predicate(selection),
        against=None if against is None else as_predicate(against),
        within=within,
        slowest=_SLOWEST if slow else None,
        filter=filter,
    )


def explain_selected(
    store: EventStore,
    selected: Selected,
    *,
    over: Over = "runs",
    per: str | None = None,
    together: bool = False,
    **options: Unpack[ExplainOptions],
) -> tuple[Explanation, ...]:
    """Return how selected rows differ from the rest: one explanation per pipeline, or one for all.

    Args:
        store: The store.
        selected: The two sides.
        over: "runs" or "stages".
        per: With slow rows: the field that rows of the same kind have in common.
        together: Compare the runs of all pipelines with each other.
        options: See `ExplainOptions`.

    Raises:
        QueryError: A predicate is invalid.
    """
    where, against, within, filter = selected.where, selected.against, selected.within, selected.filter
    slowest = selected.slowest
    if over == "runs" and not together:
        return store.explain_by_pipeline(
            where, against=against, within=within, slowest=slowest, per=per, filter=filter, **options
        )
    if slowest is not None:
        return (store.explain_slow(over, filter, slowest=slowest, per=per, within=within, **options),)
    return (store.explain(where, against=against, within=within, over=over, filter=filter, **options),)


def may_be_run_id(text: str) -> bool:
    """Return whether a selection can be the id of a run: a single word, unless it is another selection.

    Example:
        >>> may_be_run_id("req-597"), may_be_run_id("failed"), may_be_run_id("attempts > 1")
        (True, False, False)
    """
    return text not in ("failed", "slow") and ".." not in text and _ID.fullmatch(text) is not None


def explain_one_run(store: EventStore, run_id: str, filter: RunFilter) -> RunExplanation | None:
    """Return the explanation of a run; None if no run matches and the text can be a predicate.

    Raises:
        RunNotFoundError: No run matches, and the text cannot be a predicate.
    """
    try:
        return store.explain_run(run_id, filter)
    except RunNotFoundError:
        if run_id == "last" or not _NAME.fullmatch(run_id):
            raise
        return None
