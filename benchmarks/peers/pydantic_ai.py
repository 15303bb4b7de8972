"""pydantic-ai: an agent whose model is a function, and the deltas of its text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.function import FunctionModel

from ..chunks import Source
from .adapter import Run

__all__ = ["prepare_stream"]


async def prepare_stream(source: Source) -> Run:
    """Return what reads the chunks that the model yields; the reader iterates the model, without a buffer."""

    async def write(messages: Any, info: Any) -> AsyncIterator[str]:
        async for chunk in source():
            yield chunk

    agent = Agent(FunctionModel(stream_function=write))

    async def run() -> int:
        count = 0
        async with agent.run_stream("") as streamed:
            async for _ in streamed.stream_text(delta=True, debounce_by=None):
                count += 1
        return count

    return run
