"""A progress bar over runs as they end."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["track"]

Results = TypeVar("Results")


async def track(
    runs: AsyncIterable[Results],
    total: int | None = None,
    *,
    description: str = "runs",
    console: Console | None = None,
) -> AsyncIterator[Results]:
    """Yield what `runs` yields, and show how many came, on standard error if that is a terminal.

    Args:
        runs: What `run_many()` gives.
        total: How many will come; without it the bar only counts.
        description: What stands before the bar.
        console: Where to draw; default standard error.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = console or Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        async for results in runs:
            bar.advance(task)
            yield results
