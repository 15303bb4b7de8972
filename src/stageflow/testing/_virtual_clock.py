"""A clock for tests, with which retries, timeouts and sleeps take no real time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

from .._time import set_clock
from ..errors import invalid_argument
from ..executors import busy_threads, open_calls

__all__ = ["VirtualClock"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualClock:
    """A clock that advances to the next timer whenever the event loop would wait.

    Args:
        wall_ns: Initial wall time in nanoseconds since the Unix epoch.

    Example:
        >>> async def main():
        ...     await asyncio.sleep(3600)
        ...     return "an hour later"
        >>> VirtualClock().run(main())
        'an hour later'
    """

    def __init__(self, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._wall_ns = wall_ns
        self._now_ns = 0

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return self._wall_ns + self._now_ns

    def monotonic_ns(self) -> int:
        """Nanoseconds since the clock was created."""
        return self._now_ns

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP would. Monotonic time is not affected."""
        self._wall_ns += round(seconds * 1e9)

    def advance(self, seconds: float) -> None:
        """Advance wall time and monotonic time.

        Raises:
            InvalidArgumentError: `seconds` is negative; use `step_wall` to set the wall clock back.
        """
        if not seconds >= 0:
            raise invalid_argument(
                "advance()",
                "seconds",
                seconds,
                "0 or more seconds",
                hint="use step_wall() to set the wall clock back",
            )
        self._now_ns += round(seconds * 1e9)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` as `asyncio.run` does, on an event loop that uses this clock; so do all runs in it."""
        previous = set_clock(self)
        try:
            with asyncio.Runner(loop_factory=self.new_loop) as runner:
                return runner.run(main)
        finally:
            set_clock(previous)

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Return an event loop that uses this clock."""
        return _VirtualLoop(self)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._selector = _JumpingSelector(clock)
        super().__init__(self._selector)

    def time(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        # A thread takes real time: do not skip any time until it is done.
        future = super().run_in_executor(executor, func, *args)
        self._selector.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, *args: Any, **options: Any) -> None:
        # Since Python 3.12 this call has a timeout, which the virtual clock must not skip.
        self._selector.threads += 1
        try:
            await super().shutdown_default_executor(*args, **options)
        finally:
            self._selector.threads -= 1

    def _thread_done(self, _: asyncio.Future[Any]) -> None:
        self._selector.threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    """Advances the clock by the time that the loop would have waited."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            ready: list[tuple[selectors.SelectorKey, int]] = super().select(timeout)
            return ready
        # While a thread or a worker is running, time passes in steps of one real millisecond.
        real = 0.001 if self.threads or busy_threads() or open_calls.count else 0
        ready = super().select(real)
        if not ready:
            self._clock.advance(min(timeout, real) if real else timeout)
        return ready
