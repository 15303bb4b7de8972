"""Adds to the record of the stage at hand from anywhere below it, without a context to pass along.

These find the stage by a context variable, which `await`, `asyncio.create_task`, `asyncio.to_thread` and
the threads of plain stages carry along. A thread that you start yourself has none: run its function in
`contextvars.copy_context()`, or hand it the stage's `ctx`. Outside of a stage they do nothing, so that a
function may be used in a pipeline and elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from .genai import Amount, EmbeddingCall, LlmCall, Retrieval
from .stage_context import current_stage
from .timer import Timer

__all__ = ["annotate", "annotate_run", "count", "record_embedding", "record_llm", "record_retrieval", "timer"]


def annotate(fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
    """Add fields to the event of the stage at hand; see `StageContext.annotate`."""
    if (ctx := current_stage.get()) is not None:
        ctx.annotate(fields, **more)


def annotate_run(fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
    """Add fields to the event of the run at hand; see `StageContext.annotate_run`."""
    if (ctx := current_stage.get()) is not None:
        ctx.annotate_run(fields, **more)


def count(name: str, by: Amount = 1) -> None:
    """Add to a number of the stage and the run at hand; see `StageContext.count`."""
    if (ctx := current_stage.get()) is not None:
        ctx.count(name, by)


def timer(name: str) -> Timer:
    """Measure a block of the stage at hand; see `StageContext.timer`."""
    ctx = current_stage.get()
    return ctx.timer(name) if ctx is not None else Timer(name, lambda amounts: None)


def record_llm(model: str, **usage: Unpack[LlmCall]) -> None:
    """Record one call of a language model; see `StageContext.record_llm`."""
    if (ctx := current_stage.get()) is not None:
        ctx.record_llm(model, **usage)


def record_embedding(model: str, **usage: Unpack[EmbeddingCall]) -> None:
    """Record one call that made embeddings; see `StageContext.record_embedding`."""
    if (ctx := current_stage.get()) is not None:
        ctx.record_embedding(model, **usage)


def record_retrieval(source: str | None = None, **found: Unpack[Retrieval]) -> None:
    """Record one search for documents; see `StageContext.record_retrieval`."""
    if (ctx := current_stage.get()) is not None:
        ctx.record_retrieval(source, **found)
