"""What is different about some runs, asked of every field that they have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ...errors import MissingExtraError, QueryError
from .._selection import Over
from ._difference import Explanation

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["explain"]


def explain(
    connection: DuckDBPyConnection,
    where: str | None = None,
    *,
    against: str | None = None,
    over: Over = "runs",
    limit: int = 20,
    alpha: float = 0.05,
) -> Explanation:
    """Return what is different about a selection of runs, or of stages, against the rest.

    Every field is compared: the columns of the view, all attributes, and for runs the status, error
    type, duration, waiting time, attempts and attributes of each of their stages. Values are compared
    by their share (Fisher's exact test), numbers by their best split (Kolmogorov and Smirnov) and
    their mean rank; whether a field has a value at all counts as well. Every comparison is corrected
    for: Bonferroni within a field, Benjamini and Yekutieli over the fields.

    Where the selection is made by what a run came to (its status, its time), fields of that kind say
    so again: those that do are left out, and the others are `consequences`, apart from the
    `differences` that may be causes. So is an attribute that is missing, where all others have it: who
    ends early writes less.

    A row counts for as many as its `sample_rate` says in every share; what is significant follows from
    Kish's effective size, so that weights add no certainty. Over stages it follows from how many
    runs they are of. Of more than about 25,000 rows a side a fixed sample is looked at.

    Args:
        connection: A connection to DuckDB with the views `runs` and `stages`. Nothing is left in it.
        where: Any predicate over the view: what is selected. Null counts as no. Default None, for failures:
            the column `failure` of a store, or status FAIL in views without that column.
        against: A predicate for the rest; None, the default, for everything that is not selected; with the
            default `where`, without what is cancelled. What both name belongs to the selection.
        over: "runs", the default, or "stages": which view.
        limit: Maximum number of differences, and of consequences.
        alpha: Up to which q-value a difference is told.

    Raises:
        QueryError: A predicate is none, or names a field that there is not.
        MissingExtraError: The extra "store" is not installed.

    Example:
        >>> import duckdb
        >>> connection = duckdb.connect()
        >>> _ = connection.execute(
        ...     "CREATE TABLE runs AS SELECT if(i % 50 = 0, 'FAIL', 'OK') AS status, "
        ...     "if(i % 50 = 0 OR i % 71 = 0, 'large', 'small') AS topology FROM range(5000) r(i)"
        ... )
        >>> print(*explain(connection).differences)
        topology = large
    """
    if over not in ("runs", "stages"):
        raise QueryError(
            f"there is no view {over!r} to explain", sql=str(over), hint='over="runs" or "stages"'
        )
    try:
        investigation = import_module("._investigation", __package__)
    except ModuleNotFoundError as error:
        raise MissingExtraError("explain", "store") from error
    answer: Explanation = investigation.investigate(connection, where, against, over, limit, alpha)
    return answer
