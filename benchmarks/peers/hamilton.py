"""Hamilton's async driver: a function per stage, and the names of its parameters are its dependencies."""

from __future__ import annotations

import sys

from hamilton.ad_hoc_utils import module_from_source
from hamilton.async_driver import Builder

from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare"]


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
