"""LangGraph: a `StateGraph` without a checkpointer, invoked asynchronously."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from ..chunks import Source
from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare", "prepare_map", "prepare_stream"]


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


class Mapped(TypedDict):
    """The values of the items."""

    values: Annotated[list[int], operator.add]


async def prepare_map(items: int, gate: Gate | None) -> Run:
    """Return what sends each item to a node."""

    async def item(state: dict[str, int]) -> dict[str, list[int]]:
        if gate is not None:
            await gate()
        return {"values": [state["number"]]}

    graph = StateGraph(Mapped)
    graph.add_node("source", lambda state: {"values": []})
    graph.add_node("item", item)
    graph.add_edge(START, "source")
    graph.add_conditional_edges(
        "source", lambda state: [Send("item", {"number": number}) for number in range(items)], ["item"]
    )
    graph.add_edge("item", END)
    compiled = graph.compile()
    return lambda: compiled.ainvoke({"values": []})


async def prepare_stream(source: Source) -> Run:
    """Return what reads the chunks that a node writes; its buffer has no limit."""

    async def write(state: State) -> dict[str, Any]:
        writer = get_stream_writer()
        async for chunk in source():
            writer(chunk)
        return {}

    graph = StateGraph(State)
    graph.add_node("write", write)
    graph.add_edge(START, "write")
    graph.add_edge("write", END)
    compiled = graph.compile()

    async def run() -> int:
        count = 0
        async for _ in compiled.astream({"number": 0}, stream_mode="custom"):
            count += 1
        return count

    return run
