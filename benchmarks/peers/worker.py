"""The process of one contestant: reads a request a line, does it, and writes its answer as a line.

It imports nothing of this library: it runs in the environment of the contestant.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO

from ..chunks import CHUNKS, SOURCES, through_queue
from ..rounds import at_once, measure
from ..shapes import Shape, chain
from .adapter import Run

__all__: list[str] = []


class Worker:
    """Does what is asked of one adapter."""

    def __init__(self, adapter: str, options: dict[str, bool]) -> None:
        self._adapter = adapter
        self._options = options
        self._run: Run | None = None

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for."""
        match request:
            case {"do": "prepare", "shape": shape, "times": times}:
                await self._make_ready({name: tuple(before) for name, before in shape.items()}, times)
                return {}
            case {"do": "prepare", "items": items}:
                await self._make_map_ready(items)
                return {}
            case {"do": "run"}:
                return {"seconds": await self._seconds()}
            case {"do": "stream", "source": source, "rounds": rounds}:
                return await self._stream(source, rounds)
            case {"do": "memory", "runs": runs}:
                return {"kB": await self._memory(runs)}
        raise ValueError(f"asked for {request!r}")

    def _function(self, name: str, missing: str) -> Callable[..., Awaitable[Run]]:
        """Return a function of the adapter, or raise an error that states what the engine lacks."""
        module = importlib.import_module(f"{__package__}.{self._adapter}")
        if not hasattr(module, name):
            raise RuntimeError(missing)
        return functools.partial(getattr(module, name), **self._options)

    def _prepare(self) -> Callable[..., Awaitable[Run]]:
        return self._function("prepare", "it runs no graph of stages")

    async def _make_ready(self, shape: Shape, times: int) -> None:
        """Build the graph, after a run that shows that every stage is reached."""
        reached = 0

        async def count() -> None:
            nonlocal reached
            reached += 1

        prepare = self._prepare()
        await (await prepare(shape, count))()
        if reached != len(shape):
            raise RuntimeError(f"{reached} of {len(shape)} stages were run")
        run = await prepare(shape, None)
        self._run = run if times == 1 else at_once(run, times)

    async def _make_map_ready(self, items: int) -> None:
        """Build the map, after a run that shows that every item is reached."""
        prepare = self._function("prepare_map", "it has no map")
        reached = 0

        async def count() -> None:
            nonlocal reached
            reached += 1

        await (await prepare(items, count))()
        if reached != items:
            raise RuntimeError(f"{reached} of {items} items were run")
        self._run = await prepare(items, None)

    async def _seconds(self) -> float:
        assert self._run is not None
        gc.collect()
        began = time.perf_counter()
        await self._run()
        took = time.perf_counter() - began
        # What it leaves undone is not for the next round to pay.
        await asyncio.sleep(0.001)
        return took

    async def _stream(self, source: str, rounds: int) -> dict[str, float]:
        """Return what a chunk costs, and its ratio to a hop through a bounded queue in this process."""
        prepare = self._function("prepare_stream", "its runs do not stream to a reader outside")
        run = await prepare(SOURCES[source])
        if (count := await run()) != CHUNKS:
            raise RuntimeError(f"{count} of {CHUNKS} chunks were read")
        found = await measure({"queue": through_queue(SOURCES[source]), "stream": run}, rounds)
        seconds, ratio = found["stream"]
        return {"seconds": seconds, "ratio": ratio}

    async def _memory(self, runs: int) -> float:
        """Return by how much memory grows with each run whose only stage waits."""
        goes_on = asyncio.Event()
        waiting: asyncio.Queue[None] = asyncio.Queue()

        async def gate() -> None:
            waiting.put_nowait(None)
            await goes_on.wait()

        run = await self._prepare()(chain(1), gate)
        goes_on.set()
        await run()
        await waiting.get()
        goes_on.clear()

        gc.collect()
        before = _resident()
        all_runs = asyncio.gather(*(run() for _ in range(runs)))
        for _ in range(runs):
            await waiting.get()
        grown = _resident() - before
        goes_on.set()
        await all_runs
        return grown / runs / 1024


def _resident() -> int:
    with open("/proc/self/statm", "rb") as counted:
        return int(counted.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _serve(worker: Worker, answers: BinaryIO) -> None:
    # Reading blocks the loop, and should: between two requests nothing is to be done.
    for line in sys.stdin.buffer:
        try:
            answer = await worker.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _main() -> None:
    _, adapter, options = sys.argv
    # What a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asyncio.run(_serve(Worker(adapter, json.loads(options)), answers))


if __name__ == "__main__":
    _main()
