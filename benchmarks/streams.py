"""What a chunk of a stream costs beside a hop through a bare bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from stageflow import Pipeline, StageContext

from .rounds import Contestant, measure

__all__ = ["bench_streams"]

_CHUNKS = 10_000
_BUFFER = 64

Source = Callable[[], AsyncIterator[str]]


async def bench_streams(rounds: int) -> None:
    """Print the ratio of a chunk to a hop, for a reader outside the run and for one, two and three stages."""
    sources: dict[str, Source] = {"sent without waiting": _fast, "sent in turns with the loop": _in_turns}
    print(f"{f'{_CHUNKS:,} chunks, ratio to a bounded queue':<54}{'of 1 hop':>14}{'per hop':>14}")
    for title, source in sources.items():
        contestants = {"queue": _queue(source)} | {f"{hops}": _streamed(source, hops) for hops in (1, 2, 3)}
        found = await measure(contestants, rounds)
        for hops in (1, 2, 3):
            ratio = found[f"{hops}"][1]
            print(f"  {f'{title}, {hops} stream' + 's' * (hops > 1):<52}{ratio:>14.2f}{ratio / hops:>14.2f}")
    print()


async def _fast() -> AsyncIterator[str]:
    for _ in range(_CHUNKS):
        yield "token "


async def _in_turns() -> AsyncIterator[str]:
    for _ in range(_CHUNKS):
        await asyncio.sleep(0)
        yield "token "


def _queue(source: Source) -> Contestant:
    """Return what sends the chunks through a bounded queue from one task to another."""

    async def run() -> int:
        queue: asyncio.Queue[str | None] = asyncio.Queue(_BUFFER)

        async def send() -> None:
            async for chunk in source():
                await queue.put(chunk)
            await queue.put(None)

        sending = asyncio.create_task(send())
        count = 0
        while await queue.get() is not None:
            count += 1
        await sending
        assert count == _CHUNKS
        return count

    return run


def _streamed(source: Source, hops: int) -> Contestant:
    """Return what reads the chunks outside a run, after they have passed through some stages."""

    async def first(ctx: StageContext) -> AsyncIterator[str]:
        async for chunk in source():
            yield chunk

    def copies(name: str) -> Callable[[StageContext], AsyncIterator[str]]:
        async def copy(ctx: StageContext) -> AsyncIterator[str]:
            async for chunk in ctx.inputs.stream(name):
                yield chunk

        return copy

    pipeline = Pipeline("stream").with_stage("s1", first)
    for hop in range(2, hops + 1):
        pipeline = pipeline.with_stage(f"s{hop}", copies(f"s{hop - 1}"), streams=(f"s{hop - 1}",))
    graph = pipeline.build()

    async def run() -> int:
        count = 0
        async with graph.stream(stages=f"s{hops}", buffer=_BUFFER) as streamed:
            async for _ in streamed:
                count += 1
        assert count == _CHUNKS
        return count

    return run
