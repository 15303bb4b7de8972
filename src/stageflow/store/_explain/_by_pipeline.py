"""Explains the runs of each pipeline separately, because the runs of different pipelines differ in kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from ..._explained import Part
from .._selection import named_fields, parenthesized
from ._explanation import Explanation
from ._fields import literal
from ._request import Request

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["explain_by_pipeline"]


_PIPELINE = frozenset({"pipeline_name", "topology"})
"""The fields that identify the pipeline of a run."""


class _OfPipeline(Struct, frozen=True):
    request: Request
    selection: Part
    rest: Part


def explain_by_pipeline(
    connection: DuckDBPyConnection,
    request: Request,
    select: Callable[[Request], Request],
    explain: Callable[[Request], Explanation],
    *,
    pipelines: int,
) -> tuple[Explanation, ...]:
    """Return an explanation for each pipeline with selected runs, most selected runs first.

    Args:
        connection: The connection with the views of a store.
        request: The runs of all pipelines.
        select: Returns the request of a pipeline with its selection, if that depends on its runs.
        explain: Explains a request.
        pipelines: Maximum number of pipelines to explain; for the others, the runs are only counted.
    """
    if request.pipeline is not None or request.per in _PIPELINE:
        return (explain(select(request)),)
    for predicate in (request.where, request.against):
        if predicate is not None and named_fields(connection, predicate, _PIPELINE):
            return (explain(select(request)),)
    names = connection.execute(
        f"SELECT DISTINCT pipeline_name FROM runs WHERE {parenthesized(request.within or 'TRUE')} ORDER BY 1"
    ).fetchall()
    found = [_count(connection, select(_restricted(request, name))) for (name,) in names]
    found = [one for one in found if one.selection.rows]
    if not found:
        return (explain(select(request)),)
    found.sort(key=lambda one: -one.selection.count)
    explanations = [explain(one.request) for one in found[:pipelines]]
    return (*explanations, *(_counted(explanations[0], one) for one in found[pipelines:]))


def _restricted(request: Request, pipeline: str | None) -> Request:
    of_pipeline = f"pipeline_name = {literal(pipeline)}" if pipeline is not None else "pipeline_name IS NULL"
    within, history = (
        of_pipeline if predicate is None else f"{parenthesized(predicate)} AND {of_pipeline}"
        for predicate in (request.within, request.history)
    )
    return structs.replace(request, within=within, history=history, pipeline=pipeline or "")


def _count(connection: DuckDBPyConnection, request: Request) -> _OfPipeline:
    where, against = (
        f"coalesce({parenthesized(predicate or 'TRUE')}::BOOLEAN, FALSE)"
        for predicate in (request.where, request.against)
    )
    (counts,) = connection.execute(
        f"SELECT count(*) FILTER (selected), sum(weight) FILTER (selected), "
        f"count(*) FILTER (NOT selected AND eligible), sum(weight) FILTER (NOT selected AND eligible) "
        f"FROM (SELECT {where} AS selected, {against} AS eligible, "
        f"greatest(coalesce(sample_rate, 1), 1)::DOUBLE AS weight "
        f"FROM runs WHERE {parenthesized(request.within or 'TRUE')})"
    ).fetchall()
    rows, count, rest_rows, rest_count = counts
    return _OfPipeline(
        request,
        Part(rows, count or 0.0, 1.0 if rows else 0.0),
        Part(rest_rows, rest_count or 0.0, 1.0 if rest_rows else 0.0),
    )


def _counted(explained: Explanation, one: _OfPipeline) -> Explanation:
    """Return the numbers of a pipeline that was not explained."""
    return Explanation(
        summary="The runs were not compared, because other pipelines have more selected runs.",
        where=str(one.request.where),
        against=one.request.against,
        within=one.request.within,
        over="runs",
        pipeline=one.request.pipeline,
        selected_are=explained.selected_are,
        selection=one.selection,
        rest=one.rest,
        selection_compared=0,
        rest_compared=0,
        cluster=None,
        clusters=0,
        users=None,
        design_effect=1.0,
        fields=0,
        comparisons=0,
        alpha=explained.alpha,
    )
