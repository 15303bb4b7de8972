"""Calls the function of a stage on an executor."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextvars import copy_context
from typing import Any

from msgspec import UNSET

from .._time import get_clock
from ..context import StageContext
from ..executors import (
    Call,
    Chunk,
    Executor,
    Raised,
    Recorded,
    Returned,
    Session,
    StageCallContext,
    open_calls,
)
from ._plan import Node

__all__ = ["call_on_executor", "close_session", "next_outcome", "open_session", "stream_from_executor"]

_FIELDS_OF_RUN = (
    "pipeline_run_id",
    "request_id",
    "session_id",
    "user_id",
    "org_id",
    "service",
    "topology",
    "execution_mode",
    "traceparent",
)


def open_session(
    executor: Executor,
    node: Node,
    ctx: StageContext,
    attempts: Sequence[int],
    arguments: Sequence[tuple[Any, ...]],
    keywords: Mapping[str, Any],
    *,
    announce: bool,
) -> Session:
    """Call the function of a stage once for each of `arguments`, in one worker.

    Args:
        executor: The executor of the stage.
        node: The stage.
        ctx: The context of the attempt of the stage.
        attempts: The number of the attempt of each call.
        arguments: The positional arguments of each call, after the context.
        keywords: The keyword arguments of each call.
        announce: Whether to send `Started` when the calls start on a worker.

    Raises:
        ClosedError: The executor is closed.
    """
    run = {name: getattr(ctx.run, name) for name in _FIELDS_OF_RUN}
    dependencies: dict[str, tuple[Any, ...]] = {}
    if node.takes_context:
        run["data"] = ctx.run.data
        source = node.inputs[0].name if node.map is not None and node.inputs else None
        for name in node.ended:
            if name == source:
                continue  # each call receives its items
            result = ctx.inputs.result_from(name)
            returned = () if result.returned is UNSET else (result.returned,)
            dependencies[name] = (result.status.value, result.data, result.error, result.reason, *returned)
    context = StageCallContext(
        node.pipeline,
        ctx._upstream.run_id,
        node.name,
        node.kind.value,
        tuple(attempts),
        ctx.traceparent,
        run,
        dependencies,
    )
    is_live = (
        announce
        or node.generator is not None
        or (node.takes_context and ctx._upstream.has_reader(ctx._sequence))
    )
    given = copy_context()
    variables = {path: given[each] for path, each in executor.context_vars.items() if each in given}
    session = executor.open(
        Call(
            node.runner,
            node.generator is not None,
            node.takes_context,
            context,
            tuple(arguments),
            keywords,
            variables,
            announce,
            is_live,
        )
    )
    open_calls.add(1)
    return session


def close_session(session: Session) -> None:
    """End a call; if it is still running, stop its worker."""
    session.close()
    open_calls.add(-1)


async def next_outcome(
    session: Session, ctx: StageContext, started: Callable[[], None] | None = None
) -> Returned | Raised:
    """Wait for the outcome of the next call, and repeat what its function records and sends.

    `started` is called when the first call starts on a worker.

    Raises:
        WorkerLostError: The worker ended before the call did.
    """
    while True:
        message = await session.receive()
        if isinstance(message, (Returned, Raised)):
            return message
        if isinstance(message, Recorded):
            _repeat(message, ctx)
        elif isinstance(message, Chunk):
            await ctx.send(message.value)
            session.acknowledge()
        elif started is not None:
            started()


def _repeat(recorded: Recorded, ctx: StageContext) -> None:
    """Call the method of the context that the function has called in its worker."""
    if recorded.method == "add_missing":
        ctx.inputs.add_missing(*recorded.arguments)
    else:
        getattr(ctx, recorded.method)(*recorded.arguments)


@contextlib.contextmanager
def _session(
    node: Node, arguments: tuple[Any, ...], keywords: Mapping[str, Any], ctx: StageContext
) -> Generator[Session]:
    """Open a session for one call, whose attempt starts when a worker starts to run it."""
    executor = node.executor
    assert executor is not None
    announce = node.timeout is not None or node.idle_timeout is not None
    session = open_session(executor, node, ctx, (ctx.attempt,), (arguments,), keywords, announce=announce)
    ctx._waits_for_worker = True
    if ctx._on_worker_change is not None:
        ctx._on_worker_change()
    try:
        yield session
    finally:
        # An attempt that never started has not exceeded its timeout.
        waited = ctx._waits_for_worker and not session.started_ns
        ctx._worker_began = get_clock().monotonic_ns() if waited else session.started_ns
        ctx._worker = session.worker
        close_session(session)


def _started(session: Session, ctx: StageContext) -> None:
    """Start the timers of the attempt, because its worker has started to run it."""
    ctx._waits_for_worker = False
    ctx._worker, ctx._worker_began = session.worker, session.started_ns
    if ctx._stream is not None:
        ctx._stream.last_ns = session.started_ns
    if ctx._on_worker_change is not None:
        ctx._on_worker_change()


async def call_on_executor(
    node: Node, arguments: tuple[Any, ...], keywords: Mapping[str, Any], ctx: StageContext
) -> Any:
    """Call the function of a stage in a worker, and return its value.

    Raises:
        BaseException: The function raised it.
        WorkerLostError: The worker ended before the function returned.
    """
    with _session(node, arguments, keywords, ctx) as session:
        outcome = await next_outcome(session, ctx, functools.partial(_started, session, ctx))
    if isinstance(outcome, Raised):
        raise outcome.error
    return outcome.value


async def stream_from_executor(
    node: Node, arguments: tuple[Any, ...], keywords: Mapping[str, Any], ctx: StageContext
) -> AsyncGenerator[Any, None]:
    """Call a generator function in a worker, and yield its values.

    Raises:
        BaseException: The function raised it.
        WorkerLostError: The worker ended before the function returned.
    """
    with _session(node, arguments, keywords, ctx) as session:
        while True:
            message = await session.receive()
            if isinstance(message, Chunk):
                yield message.value
                session.acknowledge()
            elif isinstance(message, Recorded):
                _repeat(message, ctx)
            elif isinstance(message, Raised):
                raise message.error
            elif isinstance(message, Returned):
                return
            else:
                _started(session, ctx)
