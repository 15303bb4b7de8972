"""What an adapter has: `async def prepare(shape, gate, ...) -> Run`, if the engine runs graphs of stages.

Those of engines with maps also have `async def prepare_map(items, gate, ...) -> Run`. Those of engines with
streams have `async def prepare_stream(source, ...) -> Run`, and their run returns how many chunks were read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Gate", "Run"]

Gate = Callable[[], Awaitable[None]]
"""What a stage waits for; None for a stage that does nothing."""

Run = Callable[[], Awaitable[Any]]
"""Runs all stages of the shape once."""
