"""The compiled form of a pipeline: its nodes, their edges, and the ancestors of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from ..budget import Budget
from ..observability import WideEventEmitter
from ..schema import StageOutline
from ..stages import StageKind
from ._interceptors import Interceptor
from ._limits import Limit
from ._spec import Parameter, StageSpec, entry_of, generator_kind, parameters_of, returns_coroutine

__all__ = ["Ancestry", "GraphOptions", "Node", "Plan", "compile_nodes"]


class Ancestry:
    """Answers whether one stage is an ancestor of another.

    A depth-first traversal along the edges numbers the stages in the order in which it leaves them. The
    stages that it visits from one stage have consecutive numbers, up to that of the stage itself: two numbers
    per stage are enough to recognize them as its descendants. A third number, the lowest of all descendants
    of a stage, excludes most other stages. Only the remaining cases need a search.
    """

    __slots__ = ("_last", "_lowest", "_nodes", "_places", "_visited_from")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._places = {node.name: node.index for node in nodes}
        self._last = [0] * len(nodes)
        self._visited_from = [-1] * len(nodes)
        self._lowest = [0] * len(nodes)
        left = 0
        for root in nodes:
            if root.dependencies:
                continue
            self._visited_from[root.index] = left
            path = [(root.index, iter(root.dependents))]
            while path:
                index, dependents = path[-1]
                for after in dependents:
                    if self._visited_from[after] < 0:
                        self._visited_from[after] = left
                        path.append((after, iter(nodes[after].dependents)))
                        break
                else:
                    path.pop()
                    self._last[index] = left
                    self._lowest[index] = min(
                        (self._lowest[after] for after in nodes[index].dependents),
                        default=left,
                    )
                    left += 1

    def contains(self, index: int, ancestor: int) -> bool:
        """Return whether stage number `ancestor` must have ended before stage number `index` starts."""
        first, last, lowest = self._visited_from[ancestor], self._last[ancestor], self._lowest[ancestor]
        if index == ancestor:
            return False
        seen = {index}
        following = [index]
        while following:
            at = following.pop()
            if first <= self._last[at] <= last:
                return True
            if not lowest <= self._last[at] < last:
                continue
            for name in self._nodes[at].dependencies:
                before = self._places[name]
                if before not in seen:
                    seen.add(before)
                    following.append(before)
        return False

    def names(self, index: int) -> set[str]:
        """Return the names of all ancestors of stage number `index`."""
        found: set[str] = set()
        following = [index]
        while following:
            for name in self._nodes[following.pop()].dependencies:
                if name not in found:
                    found.add(name)
                    following.append(self._places[name])
        return found


class GraphOptions(Struct, frozen=True):
    """The options of `build()` that apply to stages.

    Attributes:
        interceptors: Interceptors for each attempt of every stage.
        limits: The limits that stages refer to.
        grace: Seconds that a cancelled stage or item has to end.
    """

    interceptors: tuple[Interceptor, ...] = ()
    limits: Mapping[str, Limit] = {}
    grace: float = 0.0


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
        item_limit: The limit from which each attempt of an item acquires a permit, or None.
        grace: Seconds that a cancelled item has to end.
        parameters: The parameters that are passed by name.
        generator: "async" or "sync" if `call` is a generator function, which streams its values.
        opens_stream: True if each attempt has a stream before it sends a chunk.
        dependents: Positions of the stages that depend on this one.
        stream_dependents: Positions of those that read its stream.
        end_dependents: Positions of those that wait for its end.
        senders: Positions of the stages whose streams it reads.
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
    item_limit: Limit | None
    grace: float
    parameters: tuple[Parameter, ...]
    generator: Literal["async", "sync"] | None
    opens_stream: bool
    dependents: tuple[int, ...]
    stream_dependents: tuple[int, ...]
    end_dependents: tuple[int, ...]
    senders: tuple[int, ...]
    dependency_set: frozenset[str]
    route_labels: tuple[str, ...]


def compile_nodes(specs: Sequence[StageSpec], pipeline: str, options: GraphOptions) -> tuple[Node, ...]:
    """Return the nodes of a validated definition, in the same order."""
    places = {spec.name: index for index, spec in enumerate(specs)}
    dependents: list[list[int]] = [[] for _ in specs]
    labels: list[list[str]] = [[] for _ in specs]
    readers: list[list[int]] = [[] for _ in specs]
    for index, spec in enumerate(specs):
        for name in spec.dependencies:
            before = places[name]
            dependents[before].append(index)
            if spec.route is not None and specs[before].kind is StageKind.ROUTE:
                labels[before].append(spec.route)
        for ref in spec.streams:
            readers[places[ref.name]].append(index)
    return tuple(
        _compile(
            spec,
            index,
            pipeline,
            options,
            tuple(dependents[index]),
            tuple(readers[index]),
            tuple(places[ref.name] for ref in spec.streams),
            tuple(dict.fromkeys(labels[index])),
        )
        for index, spec in enumerate(specs)
    )


def _compile(
    spec: StageSpec,
    index: int,
    pipeline: str,
    options: GraphOptions,
    dependents: tuple[int, ...],
    readers: tuple[int, ...],
    senders: tuple[int, ...],
    route_labels: tuple[str, ...],
) -> Node:
    entry = entry_of(spec.runner)
    assert entry is not None, "validated"
    make, called = entry.make, entry.called
    call = called if make is None else None
    interceptors = (*options.interceptors, *spec.interceptors)
    parameters = parameters_of(called, entry.context_at) if spec.inputs is None else ()
    generator = None if spec.map is not None else generator_kind(called)
    plain = (
        spec.map is None and spec.executor is None and generator != "async" and not returns_coroutine(called)
    )
    item_limit = None if spec.map is None else spec.map.limit
    return Node(
        **{**asdict(spec), "interceptors": interceptors},
        index=index,
        pipeline=pipeline,
        make=make,
        call=call,
        direct=spec.takes_context
        and spec.executor is None
        and not (plain or generator or spec.when or make or interceptors or parameters or spec.inputs),
        plain=plain,
        first_attempt=1 if spec.when is None else 0,
        gated=bool(spec.dependencies) and (spec.conditional or spec.route is not None or bool(spec.inputs)),
        shared_limit=options.limits[spec.limit] if spec.limit is not None else None,
        item_limit=options.limits[item_limit] if item_limit is not None else None,
        grace=options.grace,
        parameters=parameters,
        generator=generator,
        opens_stream=generator is not None or spec.idle_timeout is not None,
        dependents=dependents,
        stream_dependents=readers,
        end_dependents=tuple(each for each in dependents if each not in readers) if readers else dependents,
        senders=senders,
        dependency_set=frozenset(spec.dependencies),
        route_labels=route_labels,
    )


class Plan:
    """The compiled pipeline, and the options of its runs.

    Attributes:
        name: Name of the pipeline.
        specs: The definition that it was compiled from.
        nodes: The stages, in the order of the definition. The number of a stage is its position here.
        index: The number of each stage, by name.
        waiting: The number of dependencies of each stage.
        roots: Numbers of the stages without dependencies.
        emitter: Emits the events.
        emits_stages: Whether to emit `stage.wide`; None if `stageflow.configure` decides.
        emits_pipeline: Whether to emit `pipeline.wide`; None if `stageflow.configure` decides.
        fail_fast: True if a failure ends the run.
        max_concurrency: Maximum number of stages of a run that are running at the same time; None for no
            limit.
        grace: Seconds that a cancelled stage has to end.
        budget: The budget of each run; None for no budget.
        limited: True if any stage has a shared limit.
        has_readers: True if any stage reads a stream.
        outline: The stages for the mark of the start of a run, as JSON.
    """

    def __init__(
        self,
        name: str,
        specs: Sequence[StageSpec],
        *,
        emitter: WideEventEmitter,
        emits_stages: bool | None,
        emits_pipeline: bool | None,
        fail_fast: bool,
        max_concurrency: int | None,
        budget: Budget | None,
        options: GraphOptions,
    ) -> None:
        self.name = name
        self.specs = tuple(specs)
        self.nodes: tuple[Node, ...] = compile_nodes(specs, name, options)
        self.index = {node.name: node.index for node in self.nodes}
        self.waiting = [len(node.dependencies) for node in self.nodes]
        self.roots = tuple(node.index for node in self.nodes if not node.dependencies)
        self.emitter = emitter
        self.emits_stages = emits_stages
        self.emits_pipeline = emits_pipeline
        self.fail_fast = fail_fast
        self.max_concurrency = max_concurrency
        self.grace = options.grace
        self.budget = budget
        self.limited = any(node.shared_limit is not None for node in self.nodes)
        self.has_readers = any(node.streams for node in self.nodes)
        self.outline = msgspec.Raw(
            msgspec.json.encode(
                [
                    StageOutline(
                        node.name,
                        node.kind.value if node.kind else None,
                        list(node.dependencies),
                        node.optional,
                    )
                    for node in self.nodes
                ]
            )
        )

    @cached_property
    def ancestry(self) -> Ancestry:
        """The ancestors of each stage. Built on first use: few stages read beyond their dependencies."""
        return Ancestry(self.nodes)
