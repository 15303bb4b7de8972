"""What every adapter has: `async def prepare(shape, gate, ...) -> Run`.

Those of engines with maps also have `async def prepare_map(items, gate, ...) -> Run`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Gate", "Run"]

Gate = Callable[[], Awaitable[None]]
"""What a stage waits for; None for a stage that does nothing."""

Run = Callable[[], Awaitable[Any]]
"""Runs all stages of the shape once."""
