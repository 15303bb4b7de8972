"""Runs a generator function as a stage: each value that it yields is a chunk of the stage's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from ..context import StageContext
from ..errors import StageOutputError, type_name
from ..stages import StageOutput
from ._limits import THREADS, ThreadPermit, thread_permit
from ._streams import StageStream, run_from_thread

__all__ = ["run_generator", "run_generator_in_thread"]


async def run_generator(
    call: Callable[[StageContext], AsyncGenerator[Any, None]], stream: StageStream, ctx: StageContext
) -> StageOutput:
    """Send the values of an asynchronous generator; return the output that it yields last, or the chunks.

    Raises:
        StageOutputError: The generator yielded a value after a `StageOutput`.
    """
    output: StageOutput | None = None
    values = call(ctx)
    try:
        async for value in values:
            if output is not None:
                raise _yielded_after_output(ctx)
            if isinstance(value, StageOutput):
                output = value
                continue
            if stream.full_buffers:
                await stream.wait_for_room(ctx)
            stream.check(ctx)
            stream.add(value)
    finally:
        await values.aclose()
    return stream.collected() if output is None else output


def run_generator_in_thread(
    call: Callable[[StageContext], Generator[Any, None, Any]],
    stream: StageStream,
    loop: asyncio.AbstractEventLoop,
    ctx: StageContext,
) -> StageOutput | None:
    """Send the values of a synchronous generator, from its thread; return the output that it yields last.

    Raises:
        StageOutputError: The generator yielded a value after a `StageOutput`, or returned a value.
        asyncio.CancelledError: The attempt was cancelled.
    """
    output: StageOutput | None = None
    permit = thread_permit.get()
    values = _without_result(call(ctx), ctx)
    try:
        for value in values:
            if output is not None:
                raise _yielded_after_output(ctx)
            if isinstance(value, StageOutput):
                output = value
                continue
            run_from_thread(_send(stream, ctx, value, permit), loop)
            if ctx.cancelled:
                raise asyncio.CancelledError
    finally:
        values.close()
    return output


def _without_result(values: Generator[Any, None, Any], ctx: StageContext) -> Generator[Any, None, None]:
    """Yield the values of a generator; raise an error if it returns one, which would be lost."""
    returned = yield from values
    if returned is not None:
        raise StageOutputError(
            f"a generator stage cannot return a value, but it returned one of type {type_name(returned)}",
            stage=ctx.stage,
            hint="yield the output last, as in `yield StageOutput.ok(answer=42)`",
        )


async def _send(stream: StageStream, ctx: StageContext, value: Any, permit: ThreadPermit | None) -> None:
    """Send a chunk from a thread, whose permit does not count while it waits for a reader."""
    if not stream.full_buffers or permit is None:
        await stream.send(ctx, value)
        return
    THREADS.suspend(permit)
    try:
        await stream.send(ctx, value)
    finally:
        THREADS.resume(permit)


def _yielded_after_output(ctx: StageContext) -> StageOutputError:
    return StageOutputError(
        "the generator yielded a value after a StageOutput",
        stage=ctx.stage,
        hint="yield the StageOutput last: it is the output of the stage",
    )
