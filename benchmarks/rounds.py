"""Runs contestants in turn and compares them round by round, so that a slow moment hits all of them."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Contestant", "at_once", "measure"]

Contestant = Callable[[], Awaitable[Any]]

_WARM_UP = 3


def at_once(run: Contestant, times: int) -> Contestant:
    """Return what runs so many of it side by side."""

    async def all_of_them() -> None:
        await asyncio.gather(*(run() for _ in range(times)))

    return all_of_them


async def measure(contestants: dict[str, Contestant], rounds: int) -> dict[str, tuple[float, float]]:
    """Return, for each contestant, its median seconds and its median ratio to the first one."""
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + _WARM_UP):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            began = time.perf_counter()
            await contestants[name]()
            took = time.perf_counter() - began
            # Nothing of one contestant may be left for the next one to pay.
            await asyncio.sleep(0.001)
            if number >= _WARM_UP:
                seconds[name].append(took)
    first = seconds[names[0]]
    return {
        name: (
            statistics.median(seconds[name]),
            statistics.median(ours / base for ours, base in zip(seconds[name], first, strict=True)),
        )
        for name in names
    }
