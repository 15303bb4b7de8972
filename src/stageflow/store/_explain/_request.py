"""What `explain` compares, and how."""

from __future__ import annotations

from typing import Literal, TypedDict

from msgspec import Struct, structs

from ...errors import invalid_argument
from ...journal import RunFilter
from .._columns import FAILED
from .._selection import Over, condition

__all__ = ["ExplainOptions", "Request", "Sort", "check_share", "request_of", "restriction"]

Sort = Literal["deviance", "excess", "lift"]
"""The order of differences."""


class ExplainOptions(TypedDict, total=False):
    """How rows are compared: the options of `EventStore.explain` and its variants.

    Attributes:
        cluster: The field whose values are the independent units of the tests; default the session, else the
            root run, else the user.
        sort: The order of the differences: "deviance" (default), "excess" or "lift".
        limit: Maximum number of differences; default 20.
        alpha: Maximum q-value of a difference; default 0.05.
        changed: Whether to return what occurred for the first time shortly before the selection became more
            frequent; default False. This needs the whole record, also outside the window of the filter.

    Example:
        options: ExplainOptions = {"limit": 5, "sort": "lift"}
        store.explain("duration_ms > 2000", **options)
    """

    cluster: str | None
    sort: Sort
    limit: int
    alpha: float
    changed: bool


class Request(Struct, frozen=True, kw_only=True):
    """A comparison of a selection with the rest; see the arguments of `explain`.

    Attributes:
        where: The predicate of the selection; None for failures.
        against: The predicate of the rest; None for all other rows.
        within: The predicate that restricts both sides; None for all rows.
        over: "runs" or "stages".
        cluster: The field whose values are the independent units; None for the default.
        sort: The order of the differences.
        limit: Maximum number of differences.
        alpha: Maximum q-value of a difference.
        changed: Whether to determine what occurred for the first time shortly before the onset.
        history: A predicate for the rows in which a value can have occurred before; None for all rows.
        per: The column within whose values `where` compares durations; None if it does not.
        pipeline: The pipeline to which `within` restricts the comparison; None for all.
        limitations: What restricts the selection, in sentences.
    """

    where: str | None = None
    against: str | None = None
    within: str | None = None
    over: Over = "runs"
    cluster: str | None = None
    sort: Sort = "deviance"
    limit: int = 20
    alpha: float = 0.05
    changed: bool = False
    history: str | None = None
    per: str | None = None
    pipeline: str | None = None
    limitations: tuple[str, ...] = ()


def request_of(
    where: str | None,
    *,
    against: str | None = None,
    within: str | None = None,
    over: Over = "runs",
    filter: RunFilter | None = None,
    per: str | None = None,
    cluster: str | None = None,
    sort: Sort = "deviance",
    limit: int = 20,
    alpha: float = 0.05,
    changed: bool = False,
) -> Request:
    """Return the request for the arguments of `EventStore.explain` and its variants."""
    if where is None:
        where, against = FAILED, against if against is not None else f"not {FAILED}"
    always = structs.replace(filter, since=None, until=None) if filter is not None else None
    return Request(
        where=where,
        against=against,
        within=restriction(over, filter, within),
        history=restriction(over, always),
        over=over,
        pipeline=filter.pipeline if filter is not None else None,
        per=per,
        cluster=cluster,
        sort=sort,
        limit=limit,
        alpha=alpha,
        changed=changed,
    )


def restriction(over: Over, filter: RunFilter | None, within: str | None = None) -> str | None:
    """Return the predicate that restricts both sides of a comparison; None if nothing does."""
    if filter is None or filter == RunFilter():
        return within
    return condition(over, filter, within)


def check_share(function: str, slowest: float) -> None:
    """Check the share that counts as slow.

    Raises:
        InvalidArgumentError: It is not between 0 and 1.
    """
    if not 0 < slowest < 1:
        raise invalid_argument(function, "slowest", slowest, "a number between 0 and 1")
