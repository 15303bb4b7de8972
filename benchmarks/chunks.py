"""The chunks that a stream sends, and their baseline: a hop through a bare bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from .rounds import Contestant

__all__ = ["BUFFER", "CHUNKS", "SOURCES", "Source", "through_queue"]

CHUNKS = 10_000
BUFFER = 64
"""Maximum number of chunks that wait for the reader, where it can be set."""

Source = Callable[[], AsyncIterator[str]]


async def _fast() -> AsyncIterator[str]:
    for _ in range(CHUNKS):
        yield "token "


async def _in_turns() -> AsyncIterator[str]:
    for _ in range(CHUNKS):
        await asyncio.sleep(0)
        yield "token "


SOURCES: dict[str, Source] = {"sent without waiting": _fast, "sent in turns with the loop": _in_turns}


def through_queue(source: Source) -> Contestant:
    """Return what sends the chunks through a bounded queue from one task to another, and counts them."""

    async def run() -> int:
        queue: asyncio.Queue[str | None] = asyncio.Queue(BUFFER)

        async def send() -> None:
            async for chunk in source():
                await queue.put(chunk)
            await queue.put(None)

        sending = asyncio.create_task(send())
        count = 0
        while await queue.get() is not None:
            count += 1
        await sending
        return count

    return run
