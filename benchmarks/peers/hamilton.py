"""Hamilton's async driver: a function per stage, and the names of its parameters are its dependencies."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from hamilton import driver
from hamilton.ad_hoc_utils import module_from_source
from hamilton.async_driver import Builder
from hamilton.execution import executors

from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare", "prepare_map"]


async def prepare(shape: Shape, gate: Gate | None) -> Run:
    """Return what runs the shape once; it asks for the stages that nothing depends on."""
    # It walks to what a stage depends on by recursion: as it is, some chains of 1,000 are too long.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * len(shape)))
    body = "return {}" if gate is None else "await _gate(); return {}"
    module = module_from_source(
        "".join(
            f"async def {name}({', '.join(f'{before}: dict' for before in dependencies)}) -> dict: {body}\n"
            for name, dependencies in shape.items()
        )
    )
    module.__dict__["_gate"] = gate
    driver = await Builder().with_modules(module).build()
    followed = {before for dependencies in shape.values() for before in dependencies}
    wanted = [name for name in shape if name not in followed]
    return lambda: driver.execute(wanted)


_MAP = """
def number() -> Parallelizable[int]:
    yield from range(_items)

def item(number: int) -> int:
    _count()
    return number

def values(item: Collect[int]) -> list:
    return list(item)
"""


async def prepare_map(items: int, gate: Gate | None) -> Run:
    """Return what maps a function over so many items; the asynchronous driver has no map."""

    def count() -> None:
        if gate is not None:
            with contextlib.suppress(StopIteration):
                gate().__await__().send(None)

    module = module_from_source("from hamilton.htypes import Collect, Parallelizable\n" + _MAP)
    module.__dict__.update(_items=items, _count=count)
    built = (
        driver.Builder()
        .enable_dynamic_execution(allow_experimental_mode=True)
        .with_modules(module)
        .with_local_executor(executors.SynchronousLocalTaskExecutor())
        .with_remote_executor(executors.SynchronousLocalTaskExecutor())
        .build()
    )

    async def run() -> Any:
        return built.execute(["values"])

    return run
