"""An interceptor that spares a dependency which is down."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from ..clock import get_clock
from ..errors import CircuitOpenError
from ..stages import Retry, StageStatus
from ..stages.retry import Covered
from ..stages.wait import check_seconds
from .interceptor import Proceed, StageCall

__all__ = ["CircuitBreaker"]


class CircuitBreaker:
    """Stop calling a stage after several failures in a row; try one call again later.

    While it is open, each attempt fails at once with `CircuitOpenError`: FAIL, never OK. After
    `reset_after` seconds one attempt is let through; if it does well, the breaker closes, if not, it
    stays open for as long again. State is kept for each stage of each pipeline, in this object,
    by all runs of the process.

    Args:
        failures: So many failures in a row open it; 1 or more.
        reset_after: Seconds until one attempt is let through.
        on: The exceptions that count: a class, a tuple of classes, or a function from the
            exception to a bool. A returned `StageOutput.fail` and a time-out count always.

    Raises:
        ValueError: For failures under 1 or a negative time.

    Example:
        pipeline.with_stage("search", search, interceptors=(CircuitBreaker(failures=5),))
    """

    def __init__(self, failures: int = 5, reset_after: float = 30.0, on: Covered = Exception) -> None:
        if not isinstance(failures, int) or failures < 1:
            raise ValueError(f"CircuitBreaker(failures={failures!r}): give a whole number, 1 or more")
        check_seconds("CircuitBreaker", reset_after=reset_after)
        self.failures = failures
        self.reset_after = reset_after
        self._counts = Retry(on=on).covers
        self._lock = threading.Lock()
        self._circuits: dict[tuple[str, str], _Circuit] = {}

    async def __call__(self, call: StageCall, proceed: Proceed) -> Any:
        """Fail at once while open, else run the attempt and learn from it."""
        with self._lock:
            circuit = self._circuits.setdefault((call.pipeline, call.stage), _Circuit())
            trial = self._let_through(circuit, call)
        failed: bool | None = True  # also when `on` raises, which is the application's code
        try:
            output = await proceed()
            failed = output.status is StageStatus.FAIL
        except asyncio.CancelledError:
            # A time-out is a failure of what is called; any other cancellation says nothing of it.
            failed = True if call.ctx.timed_out else None
            raise
        except BaseException as error:
            failed = self._counts(error)
            raise
        finally:
            self._learn(circuit, failed=failed, trial=trial)
        return output

    def _let_through(self, circuit: _Circuit, call: StageCall) -> bool:
        """Return True for the one attempt that tries an open circuit; raise for all others."""
        if circuit.opened_ns is None:
            return False
        # A trial that never came back (a thread that hangs) is not waited for longer than this either.
        since = max(circuit.opened_ns, circuit.tried_ns)
        now = get_clock().monotonic_ns()
        if now - since < self.reset_after * 1e9:
            raise CircuitOpenError(
                f"the circuit is open after {circuit.failed} failures in a row",
                pipeline=call.pipeline,
                stage=call.stage,
                run_id=str(call.ctx.run.pipeline_run_id),
                hint=f"one attempt is let through {self.reset_after:g} s after it opened",
            )
        circuit.tried_ns = now
        return True

    def _learn(self, circuit: _Circuit, *, failed: bool | None, trial: bool) -> None:
        """Take in how an attempt went; None says nothing."""
        with self._lock:
            if failed is None:
                if trial:
                    circuit.tried_ns = 0  # the next one tries
            elif failed:
                circuit.failed += 1
                if trial or circuit.failed >= self.failures:
                    circuit.opened_ns = get_clock().monotonic_ns()
            elif circuit.opened_ns is None or trial:
                circuit.failed, circuit.opened_ns = 0, None

    def state(self, pipeline: str, stage: str) -> str:
        """Return "closed" or "open" for one stage."""
        with self._lock:
            circuit = self._circuits.get((pipeline, stage))
            return "open" if circuit is not None and circuit.opened_ns is not None else "closed"


class _Circuit:
    __slots__ = ("failed", "opened_ns", "tried_ns")

    def __init__(self) -> None:
        self.failed = 0
        self.opened_ns: int | None = None
        self.tried_ns = 0
