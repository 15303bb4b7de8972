"""Determines whether the outcomes of its dependencies skip a stage: conditions, routes and missing inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..stages import StageResult, StageStatus, is_missing
from ._plan import Node, Plan

__all__ = ["skip_reason"]

SKIP, FAIL = StageStatus.SKIP, StageStatus.FAIL


def skip_reason(
    node: Node,
    plan: Plan,
    results: Sequence[StageResult | None],
    routes: Mapping[int, tuple[str, ...]],
) -> str | None:
    """Return why its dependencies, which have ended, skip a stage, or None if they do not.

    Args:
        node: The stage.
        plan: The pipeline.
        results: The terminal result of each stage that has ended.
        routes: The labels that each router has chosen.
    """
    index = plan.index
    if node.route is not None:
        routers = [index[name] for name in node.dependencies if plan.nodes[index[name]].route_labels]
        if all(node.route not in routes.get(router, ()) for router in routers):
            chosen = "; ".join(_choice(plan.nodes[each].name, results[each], routes) for each in routers)
            return f"route {node.route!r} was not chosen: {chosen}"
    if node.conditional:
        dependencies = [results[index[name]] for name in node.dependencies]
        if all(result is not None and result.status in (SKIP, FAIL) for result in dependencies):
            return "every one of its dependencies was skipped"
    for ref in node.inputs or ():
        result = results[index[ref.name]]
        if ref.if_missing == "skip" and result is not None and is_missing(result):
            return f"its input {ref.name!r} " + ("was skipped" if result.status is SKIP else "failed")
    return None


def _choice(name: str, result: StageResult | None, routes: Mapping[int, tuple[str, ...]]) -> str:
    """Return the result of a router that has ended, as text for a reason."""
    if result is None or result.status is FAIL:
        return f"{name!r} failed"
    if result.status is SKIP:
        return f"{name!r} was skipped: {result.reason}"
    chosen = ", ".join(map(repr, routes.get(result.sequence, ())))
    return f"{name!r} chose {chosen or 'no route'}"
