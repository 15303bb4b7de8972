"""Haystack: a pipeline of components that run asynchronously, as many at once as there are."""

from __future__ import annotations

from typing import Any

from haystack import Pipeline, component
from haystack.dataclasses import StreamingCallbackT, StreamingChunk

from ..chunks import Source
from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare", "prepare_stream"]


async def prepare(shape: Shape, gate: Gate | None) -> Run:
    """Return what runs the shape once; each component has one input for each of its dependencies."""

    @component
    class Stage:
        """A component that does nothing."""

        def __init__(self, dependencies: tuple[str, ...]) -> None:
            component.set_input_types(self, **dict.fromkeys(dependencies, int))

        @component.output_types(number=int)
        def run(self, **inputs: Any) -> dict[str, int]:
            return {"number": 0}

        @component.output_types(number=int)
        async def run_async(self, **inputs: Any) -> dict[str, int]:
            if gate is not None:
                await gate()
            return {"number": 0}

    pipeline = Pipeline()
    for name, dependencies in shape.items():
        pipeline.add_component(name, Stage(dependencies))
    for name, dependencies in shape.items():
        for before in dependencies:
            pipeline.connect(f"{before}.number", f"{name}.{before}")
    return lambda: pipeline.run_async({}, concurrency_limit=len(shape))


async def prepare_stream(source: Source) -> Run:
    """Return what reads the chunks that a component passes to its callback; the buffer has no limit."""

    @component
    class Writer:
        """A component that streams as generators do."""

        @component.output_types(number=int)
        def run(self, streaming_callback: StreamingCallbackT | None = None) -> dict[str, int]:
            return {"number": 0}

        @component.output_types(number=int)
        async def run_async(self, streaming_callback: StreamingCallbackT | None = None) -> dict[str, int]:
            async for chunk in source():
                await streaming_callback(StreamingChunk(chunk))
            return {"number": 0}

    pipeline = Pipeline()
    pipeline.add_component("write", Writer())

    async def run() -> int:
        count = 0
        async for _ in pipeline.stream({}):
            count += 1
        return count

    return run
