"""How the process is: its age, memory, processor time and the lag of its loop, sampled now and then."""

from __future__ import annotations

import asyncio
import sys
import time
from resource import RUSAGE_SELF, getrusage

from .._fork import reset_in_child
from ..schema import ProcessSample
from .resource import BEGAN_NS

__all__ = ["sample"]

SAMPLE_EVERY_NS = 10_000_000_000
"""No more than one sample in 10 s: events in between share the last one."""

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class _Sampler:
    """The last sample of this process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset the sample in a forked child, which is another process."""
        self.last: ProcessSample | None = None
        self.taken_ns = 0
        self.cpu_ns = time.process_time_ns()
        self.lag_ms: float | None = None
        self.lag_asked_ns = 0

    def sample(self) -> ProcessSample:
        now = time.monotonic_ns()
        if self.last is None or now - self.taken_ns >= SAMPLE_EVERY_NS:
            cpu_ns = time.process_time_ns()
            since = max(now - (self.taken_ns or BEGAN_NS), 1)
            usage = getrusage(RUSAGE_SELF)
            self.last = ProcessSample(
                uptime_s=(now - BEGAN_NS) // 1_000_000 / 1000,
                memory_peak_bytes=usage.ru_maxrss * _MAXRSS_UNIT,
                cpu_percent=round(100 * (cpu_ns - self.cpu_ns) / since, 1),
                loop_lag_ms=self.lag_ms,
            )
            self.taken_ns, self.cpu_ns = now, cpu_ns
        # Separately: a thread without an event loop may have taken the sample.
        if now - self.lag_asked_ns >= SAMPLE_EVERY_NS:
            self._measure_lag(now)
        return self.last

    def _measure_lag(self, now: int) -> None:
        """Find out how long the loop takes to come to what is ready now; the next sample has it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self.lag_asked_ns = now

        def came() -> None:
            self.lag_ms = (time.monotonic_ns() - now) // 1000 / 1000

        loop.call_soon(came)


_sampler = _Sampler()


def sample() -> ProcessSample:
    """Return how the process was within the last 10 s."""
    return _sampler.sample()


reset_in_child(_sampler.reset)
