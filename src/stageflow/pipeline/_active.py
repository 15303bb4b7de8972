"""The active runs of this process."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from .._fork import reset_in_child
from .._time import get_clock
from ..observability import Heartbeats, ObservedRun

__all__ = ["HEARTBEATS", "ActiveRun", "MapProgress", "active_runs", "add_active_run", "remove_active_run"]


class MapProgress(Struct, frozen=True):
    """The progress of a running mapped stage.

    Attributes:
        stage: Name of the stage.
        done: Number of items that have ended.
        total: Number of items, or the number received so far if it is not known.
        failed: Number of items that failed.
    """

    stage: str
    done: int
    total: int
    failed: int


class ActiveRun(Struct, frozen=True):
    """A run in progress.

    Attributes:
        pipeline: Name of the pipeline.
        pipeline_run_id: Id of the run.
        running_ms: Milliseconds since the start of the run.
        stages: Names of the running stages that are suspended at an `await`, or run in a thread.
    """

    pipeline: str
    pipeline_run_id: str
    running_ms: float
    stages: tuple[str, ...]
    maps: tuple[MapProgress, ...] = ()
    """The mapped stages that are running."""


class Running(ObservedRun, Protocol):
    """The parts of a run that this module uses."""

    pipeline_name: str
    run_id: str

    def suspended_stages(self) -> tuple[str, ...]: ...

    def detach_after_fork(self) -> None: ...


# Weak references: a run whose coroutine is dropped with its loop ends when it is garbage-collected.
_running: set[weakref.ref[Running]] = set()
_discard = _running.discard  # bound once, because each weak reference refers to it


def add_active_run(run: Running) -> None:
    """Add a run that has started."""
    _running.add(weakref.ref(run, _discard))


def remove_active_run(run: Running) -> None:
    """Remove a run that has ended."""
    _running.discard(weakref.ref(run))


def _runs() -> list[Running]:
    return [run for reference in list(_running) if (run := reference()) is not None]


HEARTBEATS = Heartbeats(_runs)


def active_runs() -> list[ActiveRun]:
    """Return the runs in progress in this process, on all event loops, longest-running first.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     async def report(ctx):
        ...         return {"active": [run.pipeline for run in active_runs()]}
        ...
        ...     results = await Pipeline("monitor").with_stage("report", report).run()
        ...     return results.data("report")["active"]
        >>> "monitor" in asyncio.run(main())
        True
    """
    now = get_clock().monotonic_ns()
    found = [
        ActiveRun(
            run.pipeline_name,
            run.run_id,
            (now - run.began) // 1000 / 1000,
            run.suspended_stages(),
            tuple(_maps(run)),
        )
        for run in _runs()
    ]
    return sorted(found, key=lambda run: -run.running_ms)


def _maps(run: Running) -> Iterator[MapProgress]:
    for stage, _, _, ctx in run.stages_in_progress():
        if ctx is not None and (items := ctx.items) is not None:
            yield MapProgress(stage, items.ok + items.failed + items.skipped, items.total, items.failed)


def _disown_runs() -> None:
    # A forked child may continue in the middle of a run, whose record only the parent must write.
    for run in _runs():
        run.detach_after_fork()
    _running.clear()


reset_in_child(_disown_runs)
