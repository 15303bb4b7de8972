"""Differences between a selection of runs or stages and the rest, over every field."""

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
    """Compare a selection of runs or stages with the rest, and return what differs.

    Every field is compared: the columns of the view, all attributes, and for runs the status, error
    type, duration, waiting time, attempts and attributes of each of their stages. Values are compared
    by their share (Fisher's exact test), numbers by their best split (Kolmogorov-Smirnov) and their mean
    rank. Whether a field has a value is compared as well. All comparisons are corrected: within a field
    by the Bonferroni method, across fields by the Benjamini-Yekutieli procedure.

    If the predicate refers to results of runs (their status or duration), equivalent fields are left
    out, and other results are returned as `consequences`, because they are likely effects and not causes.
    The same applies to an attribute that is missing although almost all other rows have it: a run that
    ends early writes fewer attributes.

    Every share is weighted by `sample_rate`. Significance is based on Kish's effective sample size, so
    that weighting does not inflate significance, and stage rows are clustered by run. If a side has more
    than about 25,000 rows, a deterministic sample is used.

    Args:
        connection: A connection to DuckDB with the views `runs` and `stages`. It is left unchanged.
        where: A predicate over the view, which defines the selection; NULL counts as false. Default None,
            for failures: the column `failed` of a store, or status FAIL in views without that column.
        against: A predicate for the rest; default None, for all rows that are not selected. With the
            default `where`, None also excludes cancelled rows. Rows that match both predicates belong to
            the selection.
        over: The view to compare: "runs" (default) or "stages".
        limit: Maximum number of differences, and of consequences; default 20.
        alpha: Maximum q-value of a difference; default 0.05.

    Raises:
        QueryError: A predicate is invalid, or it refers to an unknown field.
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
            f"cannot explain {over!r}: unknown view", sql=str(over), hint='use over="runs" or over="stages"'
        )
    try:
        investigation = import_module("._investigation", __package__)
    except ModuleNotFoundError as error:
        raise MissingExtraError("explain", "store") from error
    explanation: Explanation = investigation.investigate(connection, where, against, over, limit, alpha)
    return explanation
