"""LangGraph: a `StateGraph` without a checkpointer, invoked asynchronously."""

from __future__ import annotations

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare"]


class State(TypedDict):
    """A state of one number, which no stage writes."""

    number: int


async def prepare(shape: Shape, gate: Gate | None) -> Run:
    """Return what runs the shape once."""

    async def stage(state: State) -> dict[str, Any]:
        if gate is not None:
            await gate()
        return {}

    graph = StateGraph(State)
    for name in shape:
        graph.add_node(name, stage)
    for name, dependencies in shape.items():
        if len(dependencies) > 1:
            graph.add_edge(list(dependencies), name)
        else:
            graph.add_edge(dependencies[0] if dependencies else START, name)
    followed = {before for dependencies in shape.values() for before in dependencies}
    for name in shape:
        if name not in followed:
            graph.add_edge(name, END)
    compiled = graph.compile()
    # It counts steps against this limit, and takes a chain for a loop.
    limit = {"recursion_limit": len(shape) + 2}
    return lambda: compiled.ainvoke({"number": 0}, limit)
