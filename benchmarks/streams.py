"""What a chunk of a stream costs beside a hop through a bare bounded queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from stageflow import Pipeline, StageContext

from .chunks import BUFFER, CHUNKS, SOURCES, Source, through_queue
from .rounds import Contestant, measure

__all__ = ["bench_streams"]


async def bench_streams(rounds: int) -> None:
    """Print the ratio of a chunk to a hop, for a reader outside the run and for one, two and three stages."""
    print(f"{f'{CHUNKS:,} chunks, ratio to a bounded queue':<54}{'of 1 hop':>14}{'per hop':>14}")
    for title, source in SOURCES.items():
        contestants = {"queue": through_queue(source)} | {
            f"{hops}": _streamed(source, hops) for hops in (1, 2, 3)
        }
        found = await measure(contestants, rounds)
        for hops in (1, 2, 3):
            ratio = found[f"{hops}"][1]
            print(f"  {f'{title}, {hops} stream' + 's' * (hops > 1):<52}{ratio:>14.2f}{ratio / hops:>14.2f}")
    print()


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
        async with graph.stream(stages=f"s{hops}", buffer=BUFFER) as streamed:
            async for _ in streamed:
                count += 1
        assert count == CHUNKS
        return count

    return run
