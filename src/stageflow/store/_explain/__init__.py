"""Differences between a selection of runs or stages and the rest, over every field."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from ...errors import MissingExtraError, QueryError, invalid_argument
from ...journal import RunRecord
from .._selection import Over
from ._explanation import Explanation
from ._request import Request, Sort
from ._run_explanation import RunExplanation

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["answer", "compare_run", "explain"]


def explain(
    connection: DuckDBPyConnection,
    where: str | None = None,
    *,
    against: str | None = None,
    within: str | None = None,
    over: Over = "runs",
    cluster: str | None = None,
    sort: Sort = "deviance",
    limit: int = 20,
    alpha: float = 0.05,
    changed: bool = False,
) -> Explanation:
    """Compare a selection of runs or stages with the rest, and return what differs.

    Every field is compared: the columns of the view, all attributes, and for runs the status, error type,
    duration, waiting time, attempts and attributes of each of their stages, for stages the attributes of
    their run. Each field is one hypothesis, with conditions of several shapes: a value, a set of values, a
    prefix, an element of a list, a threshold, an interval, a date, a weekday, an hour, no value. Combinations
    of two and three fields are compared as well. q-values are corrected for all comparisons.

    If the predicate refers to results of runs (their status or duration), equivalent fields are left
    out, and other results are returned as `effects`, because they are not causes.

    Every share is weighted by `sample_rate`. Significance accounts for the dependence between the rows of a
    cluster, such as the runs of a session. Values are counted in all rows. If a side has more than about
    25,000 rows, numbers and combinations are compared in a deterministic sample.

    Args:
        connection: A connection to DuckDB with the `runs` and `stages` views. It is left unchanged.
        where: A predicate over the view, which defines the selection; NULL counts as false. Default None,
            for failures: the `failed` column of a store, or status FAIL in views without that column.
        against: A predicate for the rest; default None, for all rows that are not selected. With the
            default `where`, None also excludes cancelled rows. Rows that match both predicates belong to
            the selection.
        within: A predicate that restricts both sides, for example to a pipeline or a time window; default
            None. Unlike the fields of `where`, its fields are compared.
        over: The view to compare: "runs" (default) or "stages".
        cluster: The column whose values are the independent units of the tests. Default None:
            `session_id`, else `root_run_id`, else `user_id`, whichever has a value, else the run.
        sort: The order of differences: by the deviance that each explains in addition to those above it
            (default), by their excess of selected rows, or by their lift.
        limit: Maximum number of differences; default 20. At most 5 effects are returned.
        alpha: Maximum q-value of a difference; default 0.05.
        changed: Whether to return also which values occurred for the first time shortly before the selection
            became more frequent, as `changes`; default False.

    Raises:
        QueryError: A predicate is invalid, or it refers to an unknown field.
        InvalidArgumentError: `limit`, `alpha` or `sort` is invalid.
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
    request = Request(
        where=where,
        against=against,
        within=within,
        over=over,
        cluster=cluster,
        sort=sort,
        limit=limit,
        alpha=alpha,
        changed=changed,
    )
    return answer(connection, request)


def answer(connection: DuckDBPyConnection, request: Request) -> Explanation:
    """Compare a selection with the rest; see `explain`.

    Raises:
        QueryError: A predicate is invalid, or it refers to an unknown field.
        InvalidArgumentError: `limit`, `alpha` or `sort` is invalid.
        MissingExtraError: The extra "store" is not installed.
    """
    if request.over not in ("runs", "stages"):
        raise QueryError(
            f"cannot explain {request.over!r}: unknown view",
            sql=str(request.over),
            hint='use over="runs" or over="stages"',
        )
    for name, value, is_valid, expected in (
        ("limit", request.limit, request.limit >= 1, "at least 1"),
        ("alpha", request.alpha, 0 < request.alpha < 1, "a number between 0 and 1"),
        ("sort", request.sort, request.sort in ("deviance", "excess", "lift"), "deviance, excess or lift"),
    ):
        if not is_valid:
            raise invalid_argument("explain()", name, value, expected)
    explanation: Explanation = _load("_investigation").investigate(connection, request)
    return explanation


def compare_run(connection: DuckDBPyConnection, record: RunRecord, within: str | None) -> RunExplanation:
    """Compare a run with its peers; see `EventStore.explain_run`.

    Raises:
        MissingExtraError: The extra "store" is not installed.
    """
    explanation: RunExplanation = _load("_peers").compare_with_peers(connection, record, within)
    return explanation


def _load(module: str) -> ModuleType:
    try:
        return import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        raise MissingExtraError("explain", "store") from error
