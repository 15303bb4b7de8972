"""What runs in this process now."""

from __future__ import annotations

import weakref
from typing import Protocol

from msgspec import Struct

from .._fork import reset_in_child
from .._time import get_clock
from ..observability import Heartbeats, ObservedRun

__all__ = ["HEARTBEATS", "ActiveRun", "active_runs", "add_active_run", "remove_active_run"]


class ActiveRun(Struct, frozen=True):
    """One run that is under way.

    Attributes:
        pipeline: Name of the pipeline.
        pipeline_run_id: Id of the run.
        running_ms: For how many milliseconds it has been running.
        stages: Names of the stages that wait for something of their own just now.
    """

    pipeline: str
    pipeline_run_id: str
    running_ms: float
    stages: tuple[str, ...]


class Running(ObservedRun, Protocol):
    """A run, as far as this page needs it."""

    pipeline_name: str
    run_id: str

    def stages_under_way(self) -> tuple[str, ...]: ...

    def detach_after_fork(self) -> None: ...


# Weakly: a run whose coroutine is dropped with its loop must still be collected, and so end.
_running: set[weakref.ref[Running]] = set()
_forget = _running.discard  # bound once: each run refers to it


def add_active_run(run: Running) -> None:
    """Note that a run has begun."""
    _running.add(weakref.ref(run, _forget))


def remove_active_run(run: Running) -> None:
    """Note that a run has ended."""
    _running.discard(weakref.ref(run))


def _runs() -> list[Running]:
    return [run for known in list(_running) if (run := known()) is not None]


HEARTBEATS = Heartbeats(_runs)


def active_runs() -> list[ActiveRun]:
    """Return the runs that are under way in this process, on all loops, longest first.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     async def look(ctx):
        ...         return {"seen": [run.pipeline for run in active_runs()]}
        ...
        ...     results = await Pipeline("looks").with_stage("look", look).run()
        ...     return "looks" in results.data("look")["seen"]
        >>> asyncio.run(main())
        True
    """
    now = get_clock().monotonic_ns()
    found = [
        ActiveRun(run.pipeline_name, run.run_id, (now - run.began) // 1000 / 1000, run.stages_under_way())
        for run in _runs()
    ]
    return sorted(found, key=lambda run: -run.running_ms)


def _disown_parents() -> None:
    # A forked child may go on in the middle of a run. The record of it is its parent's to write.
    for run in _runs():
        run.detach_after_fork()
    _running.clear()


reset_in_child(_disown_parents)
