"""What `explain` compares, and how."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .._selection import Over

__all__ = ["Request", "Sort"]

Sort = Literal["deviance", "excess", "lift"]
"""The order of differences."""


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
