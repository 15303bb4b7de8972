"""Calls the function of a stage: with its inputs, in a thread, inside its interceptors."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import copy_context
from typing import Any

from .._interrupts import is_a
from .._time import get_clock
from ..context import StageContext
from ..errors import StageOutputError
from ..stages import StageOutput
from ._attempt import Call, StageScope, stage_timed_out
from ._executor_call import call_on_executor, stream_from_executor
from ._generator import run_generator, run_generator_in_thread
from ._interceptors import Interceptor, Proceed, StageCall
from ._map import run_map
from ._output import output_of
from ._plan import Node
from ._spec import arguments
from ._thread_call import call_in_thread

__all__ = ["begin"]

_DECLINED = StageOutput.skip("when= returned false")
"""The output of an attempt whose `when=` returned false: `execute` was not called."""


def begin(node: Node, scope: StageScope, ctx: StageContext) -> Coroutine[Any, Any, Any]:
    """Return the coroutine of an attempt that is more than the call of a coroutine function."""
    began = get_clock().monotonic_ns() if node.interceptors else 0
    call = _instantiated(node, scope) if node.make is not None and node.executor is None else node.call
    if node.map is not None:
        others = [ctx.inputs.value(ref) for ref in (node.inputs or ())[1:]]
        call = functools.partial(run_map, node, call, others)
    else:
        values, keywords = _inputs(node, ctx)
        if node.executor is not None:
            run: Call = call_on_executor if node.generator is None else stream_from_executor
            call = functools.partial(run, node, values, keywords)
        elif values or keywords or not node.takes_context:
            call = _with_inputs(call, node.takes_context, values, keywords)
        if node.generator is not None:
            call = _streaming(node, call, ctx)
    if node.plain:
        start = functools.partial(call_in_thread, call, ctx, scope, bool(node.interceptors))
    else:
        start = functools.partial(call, ctx)
    if node.interceptors:
        start = functools.partial(_intercepted, node, ctx, start, began)
    if node.when is not None and ctx.attempt == 0:
        return _call_when(node.when, start, ctx, scope)
    steps: Coroutine[Any, Any, Any] = start()
    return steps


def _instantiated(node: Node, scope: StageScope) -> Call:
    """Return the method of the instance of a stage class, which all attempts share."""
    if scope.instance is None:
        scope.instance = node.make()
        scope.variables = copy_context()
    execute: Call = scope.instance.execute
    return execute


def _inputs(node: Node, ctx: StageContext) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the function after the context, by position and by name."""
    if node.inputs is not None:
        return tuple(ctx.inputs.value(ref) for ref in node.inputs), {}
    if node.parameters:
        return (), arguments(ctx, node.parameters, node.ended)
    return (), {}


def _with_inputs(
    call: Call, takes_context: bool, values: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Call:
    """Return a function that takes the context and calls `call` with its inputs."""
    if takes_context:
        return lambda ctx: call(ctx, *values, **keywords)
    return lambda _: call(*values)


def _streaming(node: Node, call: Call, ctx: StageContext) -> Call:
    """Return a function that takes the context and sends the values of the generator that `call` returns."""
    if node.generator == "async" or node.executor is not None:
        return functools.partial(run_generator, call, ctx._stream)
    return functools.partial(run_generator_in_thread, call, ctx._stream, asyncio.get_running_loop())


async def _call_when(
    condition: Callable[[StageContext], Any],
    start: Callable[[], Awaitable[Any]],
    ctx: StageContext,
    scope: StageScope,
) -> Any:
    """Start the first attempt if `condition` returns true; otherwise return `_DECLINED`."""
    verdict = condition(ctx)
    if inspect.isawaitable(verdict):
        verdict = await verdict
    if not verdict:
        return _DECLINED
    account = ctx._recorder.account
    if account is not None and not account.start_attempt(ctx._sequence):
        raise asyncio.CancelledError  # the run has ended
    ctx.attempt = 1
    scope.variables = copy_context()
    return await start()


async def _intercepted(
    node: Node, ctx: StageContext, start: Callable[[], Awaitable[Any]], began: int
) -> StageOutput:
    """Run an attempt inside the interceptors of its stage, the first one outermost.

    Args:
        node: The stage.
        ctx: The context of the attempt.
        start: Calls the stage.
        began: Start of the attempt in monotonic nanoseconds.
    """
    call = StageCall(node.pipeline, ctx)

    async def innermost() -> StageOutput:
        output = output_of(await start(), node, ctx)
        # The attempt fails although the stage returned, and the interceptors must see that failure.
        if (
            node.timeout is not None
            and get_clock().monotonic_ns() - (ctx._worker_began or began) > node.timeout * 1e9
        ):
            ctx.timed_out = True
        if ctx.timed_out:
            raise stage_timed_out(node, ctx, None)
        return output

    proceed: Proceed = innermost
    for interceptor in reversed(node.interceptors):
        proceed = _Layer(interceptor, call, proceed, node).outcome
    return await proceed()


class _Layer:
    """One interceptor, and the inner layers that it wraps."""

    __slots__ = (
        "_call",
        "_inner",
        "_interceptor",
        "_name",
        "_node",
        "_output",
        "_proceed_awaited",
        "_proceed_called",
        "_raised",
    )

    def __init__(self, interceptor: Interceptor, call: StageCall, inner: Proceed, node: Node) -> None:
        self._interceptor = interceptor
        self._name = getattr(interceptor, "__name__", None) or type(interceptor).__name__
        self._call = call
        self._inner = inner
        self._node = node
        self._proceed_called = False
        self._proceed_awaited = False
        self._output: StageOutput | None = None
        self._raised: BaseException | None = None

    async def outcome(self) -> StageOutput:
        """Return the outcome of the attempt as this interceptor determines it."""
        try:
            value = await self._interceptor(self._call, self._proceed)
        except BaseException as error:
            if error is not self._raised and not is_a(error, asyncio.CancelledError):
                self._call.ctx.outcome_by = self._name
            raise
        finally:
            self._raised = None  # it refers to the frame of this call; avoid a reference cycle
        if isinstance(value, StageOutput) and value is self._output:
            return value  # unchanged: `outcome_by` remains as the inner layers set it
        self._call.ctx.outcome_by = self._name
        if inspect.iscoroutine(value):
            value.close()
        if self._proceed_called and not self._proceed_awaited:
            raise self._error("did not await proceed()", "write `return await proceed()`")
        if not isinstance(value, (StageOutput, Mapping)):
            returned = "None" if value is None else f"{type(value).__name__}"
            raise self._error(f"returned {returned}", "return await proceed(), or another StageOutput")
        return output_of(value, self._node, None)

    def _proceed(self) -> Coroutine[Any, Any, StageOutput]:
        self._proceed_called = True
        return self._run_inner()

    async def _run_inner(self) -> StageOutput:
        if self._proceed_awaited:
            raise self._error(
                "awaited proceed() twice",
                "an attempt calls the stage once; to retry it, use a Retry policy",
            )
        self._proceed_awaited = True
        try:
            self._output = await self._inner()
        except BaseException as error:
            self._raised = error
            raise
        return self._output

    def _error(self, problem: str, hint: str) -> StageOutputError:
        return StageOutputError(
            f"interceptor {self._name} {problem}",
            pipeline=self._call.pipeline,
            stage=self._call.stage,
            run_id=str(self._call.ctx.run.pipeline_run_id),
            hint=hint,
        )
