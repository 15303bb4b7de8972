"""Named limits that all runs of a process share, whatever their loops."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from .._fork import reset_in_child

__all__ = ["Limit", "Limits", "Ticket"]


class Ticket:
    """One stage's turn at a limit: `holder` is called on `loop` when it has come.

    It knows its holder weakly: a run that is dropped with its loop must not live on in a queue.
    """

    __slots__ = ("_called", "has_place", "limit", "loop", "withdrawn")

    def __init__(
        self, limit: Limit, loop: asyncio.AbstractEventLoop, called: Callable[[Ticket], None]
    ) -> None:
        self.limit = limit
        self.loop = loop
        self._called = weakref.WeakMethod(called)
        self.has_place = False
        self.withdrawn = False

    def call(self) -> None:
        """Tell the holder that it has a place; if it is gone, give the place to the next one."""
        if self.withdrawn:
            return
        called = self._called()
        if called is None:
            self.limit.release()
        else:
            called(self)


class Limit:
    """So many places, first come, first served."""

    def __init__(self, name: str, places: int) -> None:
        self.name = name
        self.places = places
        # Reentrant: a run that is dropped gives its places back when the collector finds it, anywhere.
        self._lock = threading.RLock()
        self._taken = 0
        self._waiting: deque[Ticket] = deque()
        _limits.add(self)

    @property
    def taken(self) -> int:
        """Places that are taken now."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Stages that wait for a place now."""
        return sum(not ticket.withdrawn for ticket in list(self._waiting))

    def acquire(self, ticket: Ticket) -> bool:
        """Take a place now, or queue `ticket` for one and return False."""
        with self._lock:
            if self._taken < self.places:
                self._taken += 1
                return True
            self._waiting.append(ticket)
            return False

    def release(self) -> None:
        """Give a place back: to the stage that waits longest, if one waits."""
        while True:
            with self._lock:
                # A withdrawn ticket stays in the queue: to look for it would cost all of its length.
                while self._waiting and self._waiting[0].withdrawn:
                    self._waiting.popleft()
                if not self._waiting:
                    self._taken -= 1
                    return
                ticket = self._waiting.popleft()
                ticket.has_place = True
            try:
                # Another loop, perhaps in another thread; the place goes over with the call.
                ticket.loop.call_soon_threadsafe(ticket.call)
            except RuntimeError:  # that loop was closed: its run is gone, and the next one has its turn
                with self._lock:
                    # The run may still withdraw the ticket when it is collected: it holds no permit.
                    ticket.has_place, ticket.withdrawn = False, True
                continue
            return

    def withdraw(self, ticket: Ticket) -> None:
        """Let `ticket` wait no longer, and take back the place that is on its way to it."""
        with self._lock:
            ticket.withdrawn = True
        if ticket.has_place:
            self.release()

    def _forget_parent(self) -> None:
        self._lock = threading.RLock()
        self._taken = 0
        self._waiting.clear()

    def __repr__(self) -> str:
        return f"<Limit {self.name!r}: {self._taken} of {self.places} taken, {self.waiting} waiting>"


class Limits(Mapping[str, Limit]):
    """Limits by name. Share one object among the graphs that share what it protects.

    A stage with `limit="openai"` starts an attempt only when it has one of the 8 places. It gives
    it back when the attempt ends, so none is held during the wait before a retry, and when the
    attempt is abandoned. The wait shows in `queue_ms`.

    Raises:
        ValueError: For a number of places under 1.

    Example:
        >>> limits = Limits(openai=8, gpu=1)
        >>> limits["gpu"]
        <Limit 'gpu': 0 of 1 taken, 0 waiting>
    """

    def __init__(self, **places: int) -> None:
        for name, count in places.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"Limits({name}={count!r}): give a whole number, 1 or more")
        self._limits = {name: Limit(name, count) for name, count in places.items()}

    def __getitem__(self, name: str) -> Limit:
        return self._limits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._limits)

    def __len__(self) -> int:
        return len(self._limits)


_limits: weakref.WeakSet[Limit] = weakref.WeakSet()


def _forget_parent() -> None:
    # What held places and waited in the parent does not exist in a forked child.
    for limit in list(_limits):
        limit._forget_parent()


reset_in_child(_forget_parent)
