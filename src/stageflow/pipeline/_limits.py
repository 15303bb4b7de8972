"""Limits on concurrent stages, and on threads."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from enum import Enum, auto

from .._fork import reset_in_child
from ..errors import LimitDeadlockError, invalid_argument
from ..observability import defaults, on_change

__all__ = [
    "THREADS",
    "Limit",
    "Limits",
    "Permit",
    "ThreadLimit",
    "ThreadPermit",
    "innermost_permit",
    "thread_permit",
]

# One lock for all limits: deadlock detection examines several limits. Reentrant: a run that is dropped
# releases its permits when it is garbage-collected, which may happen anywhere.
_lock = threading.RLock()

_number = itertools.count()

_limits: weakref.WeakSet[Limit] = weakref.WeakSet()


class _State(Enum):
    NEW = auto()
    WAITING = auto()
    DEFERRED = auto()
    HELD = auto()
    RELEASED = auto()


class Permit:
    """A stage's request for a permit, from the request to the release.

    It refers to its run and to its event loop weakly: a run that is dropped with its loop must not be kept
    alive by a limit.

    Attributes:
        limit: The limit.
        index: Number of the stage in its run.
        pipeline: Name of the pipeline.
        stage: Name of the stage.
        run_id: The run.
        outer: The permit held by the stage in which this run was started, or by one of that stage's
            ancestors; None if there is none.
        nested_waiting: Number of waiting permits for which this is an outer permit.
    """

    __slots__ = (
        "_loop",
        "_notify",
        "index",
        "limit",
        "nested_waiting",
        "number",
        "outer",
        "pipeline",
        "run_id",
        "stage",
        "state",
    )

    def __init__(
        self,
        limit: Limit,
        index: int,
        pipeline: str,
        stage: str,
        run_id: str,
        loop: asyncio.AbstractEventLoop,
        granted: Callable[[Permit], None],
        outer: Permit | None,
    ) -> None:
        self.limit = limit
        self.index = index
        self.pipeline = pipeline
        self.stage = stage
        self.run_id = run_id
        self.outer = outer
        self.nested_waiting = 0
        self.number = next(_number)
        self.state = _State.NEW
        self._loop = weakref.ref(loop)
        self._notify = weakref.WeakMethod(granted)

    @property
    def loop_is_closed(self) -> bool:
        """True if the code of the run can no longer execute."""
        loop = self._loop()
        return loop is None or loop.is_closed()

    def notify_soon(self) -> None:
        """Notify the run on its event loop, which may be that of another thread.

        Raises:
            RuntimeError: The loop is closed.
        """
        loop = self._loop()
        if loop is None:
            raise RuntimeError("the event loop no longer exists")
        loop.call_soon_threadsafe(self._notify_now)

    def _notify_now(self) -> None:
        if self.state is not _State.HELD:
            return
        notify = self._notify()
        if notify is None:
            self.limit.release(self)
        else:
            notify(self)

    def outer_permits(self) -> Iterator[Permit]:
        """Yield the permits held by the stages in which this run was started."""
        outer = self.outer
        while outer is not None:
            if outer.state is _State.HELD:
                yield outer
            outer = outer.outer

    def count_waiting(self, change: int) -> None:
        """Change the number of waiting nested permits of all outer permits."""
        if self.outer is not None:
            for outer in self.outer_permits():
                outer.nested_waiting += change


innermost_permit: ContextVar[Permit | None] = ContextVar("stageflow_permit", default=None)
"""The permit of the stage that is running, or of the innermost enclosing stage that holds one."""


class Limit:
    """A number of permits, granted in FIFO order."""

    def __init__(self, name: str, permits: int) -> None:
        self.name = name
        self.permits = permits
        self._held: set[Permit] = set()
        # Released permits stay in the queue until they reach the front: removing one earlier takes linear
        # time.
        self._queue: list[tuple[int, Permit]] = []
        _limits.add(self)

    @property
    def taken(self) -> int:
        """Number of permits that are currently held."""
        return len(self._held)

    @property
    def waiting(self) -> int:
        """Number of stages that are currently waiting for a permit."""
        return len(self.queued())

    def acquire(self, permit: Permit) -> bool:
        """Return whether the permit is granted now; otherwise it is queued, and its run is notified later.

        Raises:
            LimitDeadlockError: It would never be granted.
        """
        with _lock:
            if len(self._held) >= self.permits:
                self._reclaim()
            self._enqueue(permit)
            self._grant(unnotified=permit)
            self._refuse_deadlock(permit)
            return permit.state is _State.HELD

    def defer(self, permit: Permit) -> None:
        """Give up a granted permit in favor of the next stage; the request keeps its place in the queue."""
        with _lock:
            if permit.state is _State.HELD:
                permit.state = _State.DEFERRED
                self._held.discard(permit)
                self._grant()

    def resume(self, permit: Permit) -> None:
        """Request a deferred permit again, with its former place in the queue; its run is notified.

        Raises:
            LimitDeadlockError: It would never be granted.
        """
        with _lock:
            if permit.state is _State.DEFERRED:
                self._enqueue(permit)
                self._grant()
                self._refuse_deadlock(permit)

    def release(self, permit: Permit) -> None:
        """Release a permit, or withdraw the request for it. A second call has no effect."""
        with _lock:
            if permit.state is _State.WAITING:
                permit.count_waiting(-1)
            permit.state = _State.RELEASED
            if permit in self._held:
                self._held.discard(permit)
                self._grant()

    def queued(self) -> list[Permit]:
        """Return the waiting requests, in arbitrary order."""
        return [permit for _, permit in list(self._queue) if permit.state is _State.WAITING]

    def held(self) -> list[Permit]:
        """Return the permits that are held, in arbitrary order."""
        return list(self._held)

    def only_held_by(self, permits: set[Permit]) -> bool:
        """Return whether all held permits are in `permits`."""
        return self._held <= permits

    def _enqueue(self, permit: Permit) -> None:
        permit.state = _State.WAITING
        permit.count_waiting(1)
        heapq.heappush(self._queue, (permit.number, permit))

    def _grant(self, unnotified: Permit | None = None) -> None:
        """Grant free permits to the stages that have waited longest."""
        while self._queue and len(self._held) < self.permits:
            entry = heapq.heappop(self._queue)
            permit = entry[1]
            if permit.state is not _State.WAITING:
                continue
            self._held.add(permit)
            if len(self._held) > self.permits:  # the garbage collector has released and granted another one
                self._held.discard(permit)
                heapq.heappush(self._queue, entry)
                return
            permit.state = _State.HELD
            permit.count_waiting(-1)
            if permit is unnotified:
                continue
            try:
                permit.notify_soon()
            except RuntimeError:  # the loop was closed, and the run ended with it
                permit.state = _State.RELEASED
                self._held.discard(permit)

    def _refuse_deadlock(self, permit: Permit) -> None:
        if permit.state is _State.WAITING and permit.outer is not None and _is_deadlock(permit):
            held = self.held()
            self.release(permit)
            raise _deadlock(permit, held)

    def _reclaim(self) -> None:
        """Release the permits of runs whose event loop was closed before they ended."""
        for permit in [each for each in self.held() if each.loop_is_closed]:
            self.release(permit)

    def _forget_parent(self) -> None:
        self._held.clear()
        self._queue.clear()

    def __repr__(self) -> str:
        return f"<Limit {self.name!r}: {self.taken} of {self.permits} taken, {self.waiting} waiting>"


def _is_deadlock(permit: Permit) -> bool:
    """Return whether a waiting permit can never be granted.

    A stage that holds a permit is blocked if a run that was started in it waits for a permit that is never
    granted. A permit is never granted if all stages that hold a permit of the same limit are blocked. The
    search starts from all waiting permits and removes those for which a stage may still release one, until no
    more can be removed: the remaining permits wait for each other.
    """
    if not all(held.nested_waiting for held in permit.limit.held()):
        return False  # the common case
    left = [each for limit in list(_limits) for each in limit.queued() if each.outer is not None]
    while permit in left:
        blocked = {outer for each in left for outer in each.outer_permits()}
        stuck = [each for each in left if each.limit.only_held_by(blocked)]
        if len(stuck) == len(left):
            return True
        left = stuck
    return False


def _deadlock(permit: Permit, held: list[Permit]) -> LimitDeadlockError:
    own = set(permit.outer_permits())
    held.sort(key=lambda each: (each not in own, each.number))
    stages = list(dict.fromkeys(f"stage {each.stage!r} of pipeline {each.pipeline!r}" for each in held))
    runs = list(dict.fromkeys(each.run_id for each in held))
    if len(held) == 1:
        why = f"its only permit is held by {stages[0]}, which waits for this run"
    else:
        holders = _first(stages)
        why = f"all {len(held)} permits are held by {holders}, which wait for runs that wait for this limit"
    return LimitDeadlockError(
        f"limit {permit.limit.name!r} would never become available: {why}",
        limit=permit.limit.name,
        holders=[(each.pipeline, each.stage, each.run_id) for each in held],
        pipeline=permit.pipeline,
        stage=permit.stage,
        run_id=permit.run_id,
        hint="do not use the same limit for the stages of nested runs and for the stages that start them; "
        f"permits are held in run{'s' if len(runs) > 1 else ''} {_first(runs)}",
    )


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Limits(Mapping[str, Limit]):
    """Limits by name. Share one object among the graphs that share the limited resource.

    With `Limits(openai=8)`, a stage with `limit="openai"` starts an attempt only when it has acquired one of
    the 8 permits. It releases the permit when the attempt ends or is abandoned, so it holds none during the
    wait before a retry. The wait is part of `queue_ms`.

    A stage that would wait indefinitely, because all permits are held by stages that wait for it, fails
    immediately with `LimitDeadlockError`.

    Raises:
        InvalidArgumentError: A number of permits is less than 1.

    Example:
        >>> limits = Limits(openai=8, gpu=1)
        >>> limits["gpu"]
        <Limit 'gpu': 0 of 1 taken, 0 waiting>
    """

    def __init__(self, **permits: int) -> None:
        for name, count in permits.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise invalid_argument("Limits", name, count, "a positive integer")
        self._limits = {name: Limit(name, count) for name, count in permits.items()}

    def __getitem__(self, name: str) -> Limit:
        return self._limits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._limits)

    def __len__(self) -> int:
        return len(self._limits)


def _forget_parent() -> None:
    # The runs of the parent do not exist in a forked child.
    global _lock
    _lock = threading.RLock()
    for limit in list(_limits):
        limit._forget_parent()


reset_in_child(_forget_parent)


class ThreadPermit:
    """The permit of an attempt to use a thread, from the request until its function has returned.

    Attributes:
        granted: Completed when the permit is granted, if it was not granted immediately.
    """

    __slots__ = ("_loop", "granted", "is_counted", "is_waiting", "suspensions")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.granted: asyncio.Future[None] | None = None
        self.is_waiting = False
        self.is_counted = False
        self.suspensions = 0

    def wait(self) -> asyncio.Future[None]:
        """Return a future for the grant. The caller must hold the lock of the limit."""
        self.is_waiting = True
        self.granted = self._loop.create_future()
        return self.granted

    def notify_soon(self) -> None:
        """Complete `granted` on its event loop, which may be that of another thread.

        Raises:
            RuntimeError: The loop is closed.
        """
        self._loop.call_soon_threadsafe(self._notify)

    def _notify(self) -> None:
        if self.granted is not None and not self.granted.done():
            self.granted.set_result(None)


class ThreadLimit:
    """A number of permits, granted in FIFO order.

    A permit does not count while a run that its function has started is in progress: most likely the function
    waits for that run, whose synchronous stages need permits as well. Nor does it count while the function
    waits for a reader of its stream. If it counted, functions that wait for others could hold every permit,
    and none of them would ever return.
    """

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self.reset()

    def reset(self) -> None:
        """Reset the limit in a forked child, which has none of its parent's threads."""
        # Reentrant: a run may end when the garbage collector finds it, which may happen anywhere.
        self._lock = threading.RLock()
        self._counted = 0
        self._queue: deque[ThreadPermit] = deque()

    def resize(self, permits: int) -> None:
        """Change the number of permits."""
        with self._lock:
            self._permits = permits
            self._grant()

    def acquire(self, permit: ThreadPermit) -> asyncio.Future[None] | None:
        """Return None if the permit is granted now, or else a future for it."""
        with self._lock:
            if self._counted < self._permits:
                self._count(permit, 1)
                return None
            self._queue.append(permit)
            return permit.wait()

    def exceed(self, permit: ThreadPermit) -> None:
        """Count a permit although none may be free: its function cannot wait."""
        with self._lock:
            self._count(permit, 1)

    def release(self, permit: ThreadPermit) -> None:
        """Release a permit, or withdraw the request for it. A second call has no effect."""
        with self._lock:
            permit.is_waiting = False
            permit.suspensions = -1
            if permit.is_counted:
                self._count(permit, -1)
                self._grant()

    def suspend(self, permit: ThreadPermit) -> None:
        """Do not count the permit of a function that waits for others; no effect once it has returned."""
        with self._lock:
            if permit.suspensions >= 0:
                permit.suspensions += 1
                if permit.is_counted:
                    self._count(permit, -1)
                    self._grant()

    def resume(self, permit: ThreadPermit) -> None:
        """Count the permit again, without waiting, after as many calls as those of `suspend`."""
        with self._lock:
            if permit.suspensions > 0:
                permit.suspensions -= 1
                if not permit.suspensions:
                    self._count(permit, 1)

    def _count(self, permit: ThreadPermit, change: int) -> None:
        permit.is_counted = change > 0
        # In a forked child, a function of the parent may still return.
        self._counted = max(0, self._counted + change)

    def _grant(self) -> None:
        while self._queue and self._counted < self._permits:
            permit = self._queue.popleft()
            if not permit.is_waiting:
                continue
            permit.is_waiting = False
            self._count(permit, 1)
            try:
                permit.notify_soon()
            except RuntimeError:  # the loop was closed, and the run ended with it
                self._count(permit, -1)


THREADS = ThreadLimit(defaults().max_threads)
"""`stageflow.configure(max_threads=...)`"""

on_change(lambda: THREADS.resize(defaults().max_threads))
reset_in_child(THREADS.reset)

thread_permit: ContextVar[ThreadPermit | None] = ContextVar("stageflow_thread_permit", default=None)
"""The permit of the function that runs in the current thread, or that has started the current run."""
