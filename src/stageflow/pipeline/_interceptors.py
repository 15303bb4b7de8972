"""Interceptors, which wrap the attempts of stages, and the built-in ones."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from .._interrupts import is_a
from .._time import get_clock
from ..context import StageContext
from ..errors import CircuitOpenError, invalid_argument
from ..retry import Covered, Retry, check_seconds
from ..stages import StageOutput, StageResult, StageStatus

__all__ = ["CircuitBreaker", "Interceptor", "Log", "Proceed", "StageCall"]


Proceed = Callable[[], Awaitable[StageOutput]]
"""Runs the inner interceptors and the stage, and returns the output of the stage."""


class StageCall:
    """The attempt that an interceptor wraps.

    Attributes:
        pipeline: Name of the pipeline.
        stage: Name of the stage.
        ctx: The context of the stage; `ctx.attempt` is the number of the attempt.
    """

    __slots__ = ("ctx", "pipeline", "stage")

    def __init__(self, pipeline: str, ctx: StageContext) -> None:
        self.pipeline = pipeline
        self.stage = ctx.stage
        self.ctx = ctx

    def add_done_callback(self, callback: Callable[[StageResult], object]) -> None:
        """Call `callback` with the recorded result of the attempt, once the engine has determined it.

        The result may differ from what `proceed()` returns: the attempt may time out or be abandoned, another
        interceptor may replace its outcome, and the retry policy decides between RETRY and FAIL. The callback
        is called on the event loop of the run, in the context variables of this call, and before `run()`
        returns. It must not block. An exception that it raises is logged.

        Example:
            async def metrics(call, proceed):
                call.add_done_callback(lambda result: requests.labels(call.stage, result.status).inc())
                return await proceed()
        """
        self.ctx.add_done_callback(callback)


class Interceptor(Protocol):
    """The protocol of an async callable that wraps one attempt of a stage.

    `await proceed()` runs the inner interceptors and the stage. It returns the `StageOutput` of the stage, or
    raises the exception that the stage raised. The return value of the interceptor is the outcome of the
    attempt; if the interceptor raises an exception, the attempt fails.

    Example:
        async def timing(call, proceed):
            began = time.monotonic()
            try:
                return await proceed()
            finally:
                call.ctx.annotate(timed_s=time.monotonic() - began)
    """

    async def __call__(self, call: StageCall, proceed: Proceed) -> Any:
        """Run code before and after `await proceed()`, or instead of it."""
        ...


class CircuitBreaker:
    """Stop calling a stage after consecutive failures, and try it again later.

    While the circuit is open, each attempt fails immediately with `CircuitOpenError`. After `reset_after`
    seconds, one attempt is allowed as a trial: if it succeeds, the circuit closes; if it fails, the circuit
    stays open for another `reset_after` seconds. A trial that was cancelled with its run decides nothing, and
    the next attempt is the trial. One breaker keeps one circuit for each stage of each pipeline, shared by
    all runs of the process.

    An attempt fails if it times out (also if it is abandoned, or returns later), raises an exception that
    `on` covers, or returns `StageOutput.fail` or `StageOutput.retry`. Each attempt of a retried stage counts.
    An attempt that is cancelled with its run counts neither as a failure nor as a success, and neither does
    one that started before the circuit last opened or closed.

    Args:
        failures: Number of consecutive failures that open the circuit; 1 or more.
        reset_after: Seconds until a trial is allowed.
        on: The exceptions that count: a class, a tuple of classes, or a function that takes the exception
            and returns a bool. An exception group counts if every leaf does. Other exceptions count as a
            success.

    Raises:
        InvalidArgumentError: `failures` is less than 1, or `reset_after` is negative.

    Example:
        pipeline.with_stage("search", search, interceptors=(CircuitBreaker(failures=5),))
    """

    def __init__(self, failures: int = 5, reset_after: float = 30.0, on: Covered = Exception) -> None:
        if not isinstance(failures, int) or failures < 1:
            raise invalid_argument("CircuitBreaker", "failures", failures, "a positive integer")
        check_seconds("CircuitBreaker", reset_after=reset_after)
        self.failures = failures
        self.reset_after = reset_after
        self._counts = Retry(on=on).covers
        # Reentrant: a run that is dropped ends when it is garbage-collected, which may happen anywhere.
        self._lock = threading.RLock()
        self._circuits: dict[tuple[str, str], _Circuit] = {}

    async def __call__(self, call: StageCall, proceed: Proceed) -> Any:
        """Fail immediately while the circuit is open; otherwise run the attempt and evaluate it."""
        with self._lock:
            circuit = self._circuits.setdefault((call.pipeline, call.stage), _Circuit())
            tried_ns = self._admit(circuit, call)
            period = circuit.period
        failed: bool | None = None
        ctx = call.ctx

        def evaluate(result: StageResult) -> None:
            cancelled = result.status is StageStatus.CANCEL or (ctx.cancelled and not ctx.timed_out)
            # Without an outcome, the attempt was cancelled: with its run, or by a timeout.
            outcome = failed if failed is not None or cancelled else True
            self._evaluate(circuit, period, tried_ns, outcome)

        # Not at the end of this call: an attempt that is abandoned does not get there.
        call.add_done_callback(evaluate)
        try:
            output = await proceed()
        except BaseException as error:
            # An exception of an attempt that is cancelled with its run is a result of the cancellation.
            if not is_a(error, asyncio.CancelledError) and (ctx.timed_out or not ctx.cancelled):
                failed = True  # also if `on` raises
                failed = ctx.timed_out or self._counts(error)
            raise
        failed = ctx.timed_out or output.status in (StageStatus.FAIL, StageStatus.RETRY)
        return output

    def _admit(self, circuit: _Circuit, call: StageCall) -> int | None:
        """Return the start time of a trial, or None while the circuit is closed.

        Raises:
            CircuitOpenError: The circuit is open, and no trial is due.
        """
        if circuit.opened_ns is None:
            return None
        # A trial without a result, such as a thread that hangs, blocks the next one no longer than this.
        since = max(circuit.opened_ns, circuit.tried_ns)
        now = get_clock().monotonic_ns()
        if now - since < self.reset_after * 1e9:
            raise CircuitOpenError(
                f"the circuit is open after {circuit.failed} consecutive failures",
                pipeline=call.pipeline,
                stage=call.stage,
                run_id=str(call.ctx.run.pipeline_run_id),
                hint=f"a trial attempt is allowed {self.reset_after:g} s after the circuit opened",
            )
        circuit.tried_ns = now
        return now

    def _evaluate(self, circuit: _Circuit, period: int, tried_ns: int | None, failed: bool | None) -> None:
        """Update a circuit with the result of an attempt; None if it has none."""
        with self._lock:
            if circuit.period != period:
                return  # the circuit has opened or closed since this attempt started
            if failed is None:
                if tried_ns == circuit.tried_ns:
                    circuit.tried_ns = 0
            elif failed:
                circuit.failed += 1
                if tried_ns is not None or circuit.failed >= self.failures:
                    circuit.opened_ns = get_clock().monotonic_ns()
                    circuit.period += 1
            else:
                circuit.failed = 0
                if tried_ns is not None:
                    circuit.opened_ns = None
                    circuit.period += 1

    def state(self, pipeline: str, stage: str) -> str:
        """Return "closed" or "open" for one stage."""
        with self._lock:
            circuit = self._circuits.get((pipeline, stage))
            return "open" if circuit is not None and circuit.opened_ns is not None else "closed"


class _Circuit:
    """The state of one stage.

    Attributes:
        failed: Number of consecutive failures.
        opened_ns: Time at which the circuit opened, or None while it is closed.
        tried_ns: Start time of the latest trial, or 0.
        period: Incremented whenever the circuit opens or closes.
    """

    __slots__ = ("failed", "opened_ns", "period", "tried_ns")

    def __init__(self) -> None:
        self.failed = 0
        self.opened_ns: int | None = None
        self.tried_ns = 0
        self.period = 0


class Log:
    """Log the start and the recorded result of every attempt, with its stage, run and duration.

    Args:
        level: Level of the log records; default DEBUG. FAIL and RETRY are logged at WARNING or higher.
        logger: Logger to use; default the one named "stageflow".

    Raises:
        InvalidArgumentError: `level` is not a number.

    Example:
        graph = pipeline.build(interceptors=(Log(logging.INFO),))
    """

    def __init__(self, level: int = logging.DEBUG, logger: logging.Logger | None = None) -> None:
        if not isinstance(level, int):
            raise invalid_argument("Log", "level", level, "an integer such as logging.INFO")
        self._level = level
        self._logger = logger or logging.getLogger("stageflow")

    async def __call__(self, call: StageCall, proceed: Proceed) -> Any:
        """Log the start, and the result once the engine has determined it."""
        ctx = call.ctx
        attempt = (call.pipeline, call.stage, ctx.attempt)
        run_id = ctx.run.pipeline_run_id

        def ended(result: StageResult) -> None:
            failed = result.status in (StageStatus.FAIL, StageStatus.RETRY)
            why = result.error or result.reason
            self._logger.log(
                max(self._level, logging.WARNING) if failed else self._level,
                "%s.%s attempt %d ended %s after %.1f ms%s (run %s)",
                *attempt,
                result.status,
                result.duration_ms,
                f": {why}" if why else "",
                run_id,
            )

        call.add_done_callback(ended)
        self._logger.log(self._level, "%s.%s attempt %d started (run %s)", *attempt, run_id)
        return await proceed()
