"""pydantic-graph: its builder, broadcasting to the stages after one, and joining those before one."""

from __future__ import annotations

from typing import Any

from pydantic_graph import GraphBuilder, StepContext, reduce_list_append, reduce_null

from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare", "prepare_map"]


async def prepare(shape: Shape, gate: Gate | None) -> Run:
    """Return what runs the shape once; it has a join wherever a stage has several dependencies."""

    async def stage(ctx: StepContext[None, None, Any]) -> Any:
        if gate is not None:
            await gate()
        return {}

    builder = GraphBuilder(auto_instrument=False)
    steps = {name: builder.step(stage, node_id=name) for name in shape}

    def end_of(names: tuple[str, ...]) -> Any:
        if len(names) == 1:
            return steps[names[0]]
        if not names:
            return builder.start_node
        join = builder.join(reduce_null, initial=None)
        builder.add(builder.edge_from(*(steps[name] for name in names)).to(join))
        return join

    after: dict[tuple[str, ...], list[Any]] = {}
    for name, dependencies in shape.items():
        after.setdefault(dependencies, []).append(steps[name])
    for dependencies, following in after.items():
        builder.add(builder.edge_from(end_of(dependencies)).to(*following))
    followed = {before for dependencies in after for before in dependencies}
    last = tuple(name for name in shape if name not in followed)
    builder.add(builder.edge_from(end_of(last)).to(builder.end_node))
    graph = builder.build()
    return lambda: graph.run(infer_name=False)


async def prepare_map(items: int, gate: Gate | None) -> Run:
    """Return what maps a step over so many items, and joins their values in a list."""

    async def source(ctx: StepContext[None, None, Any]) -> list[int]:
        return list(range(items))

    async def item(ctx: StepContext[None, None, int]) -> int:
        if gate is not None:
            await gate()
        return ctx.inputs

    builder = GraphBuilder(auto_instrument=False)
    first, mapped = builder.step(source, node_id="source"), builder.step(item, node_id="item")
    join = builder.join(reduce_list_append, initial_factory=list[int])
    builder.add(
        builder.edge_from(builder.start_node).to(first),
        builder.edge_from(first).map().to(mapped),
        builder.edge_from(mapped).to(join),
        builder.edge_from(join).to(builder.end_node),
    )
    graph = builder.build()
    return lambda: graph.run(infer_name=False)
