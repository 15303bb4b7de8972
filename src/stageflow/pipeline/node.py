"""A stage as the scheduler holds it: compiled once by `build()`, shared by all runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from ..stages import Retry, StageKind
from .interceptor import Interceptor
from .limits import Limit
from .parameters import parameters_of
from .spec import Condition, StageSpec

__all__ = ["Around", "Node", "compile_nodes", "gives_coroutine"]


class Around(Struct, frozen=True):
    """What `build()` puts around every stage: interceptors, and the limits that stages name."""

    interceptors: tuple[Interceptor, ...] = ()
    limits: Mapping[str, Limit] = {}


class Node:
    """One stage, its policies, and its place in the graph. Immutable after `build()`.

    Attributes:
        make: The class, where the stage is one: each run makes an instance of its own.
        call: What to call with the context, where the stage is no class.
        direct: True where `call` gives a coroutine that needs nothing around it.
        plain: True where `call` is a plain function, for a thread.
        first_attempt: 1, or 0 where a condition is asked before the first one.
        gated: True where the outcome of its dependencies may skip it.
        limit: Where it takes a place before each attempt, or None.
        interceptors: What is around each attempt, outermost first.
        parameters: What it takes by name.
        dependents: Numbers of the stages that wait for this one.
        route_labels: The labels its dependants take, for a stage of kind ROUTE.
    """

    __slots__ = (
        "call",
        "conditional",
        "dependencies",
        "dependency_set",
        "dependents",
        "direct",
        "first_attempt",
        "gated",
        "index",
        "interceptors",
        "kind",
        "limit",
        "make",
        "name",
        "optional",
        "parameters",
        "pipeline",
        "plain",
        "retry",
        "route",
        "route_labels",
        "timeout",
        "when",
    )

    def __init__(self, index: int, spec: StageSpec, pipeline: str, around: Around) -> None:
        self.index = index
        self.pipeline = pipeline
        self.name = spec.name
        self.kind = spec.kind
        self.dependencies = spec.dependencies
        self.dependency_set = frozenset(spec.dependencies)
        self.conditional = spec.conditional
        self.optional = spec.optional
        self.when: Condition | None = spec.when
        self.first_attempt = 1 if spec.when is None else 0
        self.route = spec.route
        self.timeout = spec.timeout
        self.retry: Retry | None = spec.retry
        self.dependents: tuple[int, ...] = ()
        self.route_labels: tuple[str, ...] = ()
        self.gated = bool(spec.dependencies) and (spec.conditional or spec.route is not None)
        runner = spec.runner
        self.make: Any = None
        self.call: Any = None
        if inspect.isclass(runner):
            self.make = runner
            called = getattr(runner, "execute")  # noqa: B009
        else:
            execute = getattr(runner, "execute", None)
            self.call = called = execute if callable(execute) else runner
        self.limit = around.limits[spec.limit] if spec.limit is not None else None
        self.interceptors = (*around.interceptors, *spec.interceptors)
        self.parameters = () if spec.runner is not called else parameters_of(called)
        self.plain = not gives_coroutine(called)
        self.direct = not (self.plain or self.when or self.make or self.interceptors or self.parameters)


def gives_coroutine(called: Any) -> bool:
    """Tell whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(called) or (
        not inspect.isroutine(called) and inspect.iscoroutinefunction(getattr(called, "__call__", None))  # noqa: B004
    )


def compile_nodes(specs: Sequence[StageSpec], pipeline: str, around: Around) -> tuple[Node, ...]:
    """Return the nodes of a sound description, in its order."""
    nodes = tuple(Node(index, spec, pipeline, around) for index, spec in enumerate(specs))
    by_name = {node.name: node for node in nodes}
    dependents: list[list[int]] = [[] for _ in nodes]
    labels: list[list[str]] = [[] for _ in nodes]
    for node in nodes:
        for name in node.dependencies:
            before = by_name[name]
            dependents[before.index].append(node.index)
            if node.route is not None and before.kind is StageKind.ROUTE:
                labels[before.index].append(node.route)
    for node in nodes:
        node.dependents = tuple(dependents[node.index])
        node.route_labels = tuple(dict.fromkeys(labels[node.index]))
    return nodes
