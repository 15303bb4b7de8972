"""The compiled form of a stage: created once by `build()`, shared by all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from ..stages import StageKind
from .interceptor import Interceptor
from .limits import Limit
from .parameters import Parameter, parameters_of
from .runner import entry_of, gives_coroutine
from .spec import StageSpec

__all__ = ["Around", "Node", "compile_nodes"]


class Around(Struct, frozen=True):
    """What `build()` puts around every stage: interceptors, and the limits that stages name."""

    interceptors: tuple[Interceptor, ...] = ()
    limits: Mapping[str, Limit] = {}


class Node(StageSpec, frozen=True, eq=False, kw_only=True):
    """One stage: its description, and values derived from it and from the graph.

    Attributes:
        index: Position in the pipeline, starting at 0.
        pipeline: Name of the pipeline.
        make: The class if the stage is a class, which is instantiated per run.
        call: The callable to call with the context if the stage is not a class.
        direct: True if `call` returns a coroutine that needs no wrapper.
        plain: True if `call` is a synchronous function, which runs in a thread.
        first_attempt: 1, or 0 if `when=` is evaluated before the first attempt.
        gated: True if the outcomes of its dependencies can skip it.
        shared_limit: The limit from which each attempt acquires a permit, or None.
        parameters: What it takes by name.
        dependents: Positions of the stages that depend on this one.
        dependency_set: Names of its dependencies.
        route_labels: Route labels of its dependents, for a stage of kind ROUTE.
    """

    index: int
    pipeline: str
    make: Any
    call: Any
    direct: bool
    plain: bool
    first_attempt: int
    gated: bool
    shared_limit: Limit | None
    parameters: tuple[Parameter, ...]
    dependents: tuple[int, ...]
    dependency_set: frozenset[str]
    route_labels: tuple[str, ...]


def compile_nodes(specs: Sequence[StageSpec], pipeline: str, around: Around) -> tuple[Node, ...]:
    """Return the nodes of a validated description, in the same order."""
    places = {spec.name: index for index, spec in enumerate(specs)}
    dependents: list[list[int]] = [[] for _ in specs]
    labels: list[list[str]] = [[] for _ in specs]
    for index, spec in enumerate(specs):
        for name in spec.dependencies:
            before = places[name]
            dependents[before].append(index)
            if spec.route is not None and specs[before].kind is StageKind.ROUTE:
                labels[before].append(spec.route)
    return tuple(
        _compile(spec, index, pipeline, around, tuple(dependents[index]), tuple(dict.fromkeys(labels[index])))
        for index, spec in enumerate(specs)
    )


def _compile(
    spec: StageSpec,
    index: int,
    pipeline: str,
    around: Around,
    dependents: tuple[int, ...],
    route_labels: tuple[str, ...],
) -> Node:
    entry = entry_of(spec.runner)
    assert entry is not None, "validated"
    make, called = entry.make, entry.called
    call = called if make is None else None
    interceptors = (*around.interceptors, *spec.interceptors)
    parameters = parameters_of(called, entry.context_at)
    plain = not gives_coroutine(called)
    return Node(
        **{**asdict(spec), "interceptors": interceptors},
        index=index,
        pipeline=pipeline,
        make=make,
        call=call,
        direct=not (plain or spec.when or make or interceptors or parameters),
        plain=plain,
        first_attempt=1 if spec.when is None else 0,
        gated=bool(spec.dependencies) and (spec.conditional or spec.route is not None),
        shared_limit=around.limits[spec.limit] if spec.limit is not None else None,
        parameters=parameters,
        dependents=dependents,
        dependency_set=frozenset(spec.dependencies),
        route_labels=route_labels,
    )
