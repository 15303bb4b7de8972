"""What an attempt came to: one `StageOutput`, whatever the stage returned or raised."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from ..errors import (
    StageOutputError,
    StageTimeoutError,
    describe,
    did_you_mean,
    is_internal_code,
    type_name,
    with_message,
)
from ..interrupts import INTERRUPTS, is_a
from ..stages import StageKind, StageOutput, StageStatus
from .node import Node

__all__ = ["failure", "output_of", "timed_out"]

_NONE = type(None)
# The constructor accepts any value; the methods that create an output use these types.
_FIELD_TYPES: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("status", (StageStatus,)),
    ("data", (dict,)),
    ("error", (str, _NONE)),
    ("exception", (BaseException, _NONE)),
    ("reason", (str, _NONE)),
    ("after", (float, int, _NONE)),
    ("routes", (tuple, _NONE)),
)


def output_of(value: Any, node: Node) -> StageOutput:
    """Convert the return value of a stage to an output; an invalid value becomes a failure.

    Raises:
        BaseException: An application object raised during a type check.
    """
    if type(value) is StageOutput:
        if (
            value.status is StageStatus.OK
            and type(value.data) is dict
            and value.routes is None
            and value.error is None
            and value.exception is None
            and value.reason is None
            and value.after is None
            and not node.route_labels
        ):
            return value
        return _checked(value, node)
    if node.route_labels:
        return _nonsense(f"{_cut(value)} and chose no route", node, _ROUTE_HINT)
    if value is None:
        return StageOutput(StageStatus.OK, {})
    if type(value) is dict:
        return StageOutput(StageStatus.OK, value.copy())
    if isinstance(value, Mapping):
        return StageOutput(StageStatus.OK, dict(value))
    hint = "did you forget an `await`?" if inspect.isawaitable(value) else _HINT
    if inspect.iscoroutine(value):
        value.close()
    return _nonsense(f"{type(value).__name__} {_cut(value)}", node, hint)


def _checked(output: StageOutput, node: Node) -> StageOutput:
    """Return an output whose fields have exactly the expected types.

    An instance of a subclass may raise from any operation, in the middle of the engine's own steps.
    """
    for name, types in _FIELD_TYPES:
        if not is_a(getattr(output, name), types):
            return _nonsense(f"a StageOutput with {name}={_cut(getattr(output, name))}", node)
    after: Any = output.after
    if after is not None:
        after = float.__float__(after) if is_a(after, float) else int.__int__(after)
        if not 0 <= after < math.inf:
            return _nonsense(f"a StageOutput with after={after!r}", node)
    output = StageOutput(
        output.status,
        output.data if type(output.data) is dict else dict(output.data),
        _plain_text(output.error),
        output.exception,
        _plain_text(output.reason),
        after,
        output.routes,
    )
    return output if output.status is not StageStatus.OK else _routed(output, node)


def _plain_text(text: str | None) -> str | None:
    return None if text is None else str.__str__(text)


_HINT = "return StageOutput.ok(key=value), a mapping, or None"
_ROUTE_HINT = "return StageOutput.route(label), or StageOutput.route() for none of them"


def _nonsense(what: str, node: Node, hint: str = _HINT) -> StageOutput:
    error = StageOutputError(f"the stage returned {what}", pipeline=node.pipeline, stage=node.name, hint=hint)
    return StageOutput(StageStatus.FAIL, {}, error=describe(error), exception=error)


def _cut(value: Any) -> str:
    try:
        text = str.__str__(repr(value))
    except BaseException as error:
        INTERRUPTS.postpone(error)
        return f"<repr() of {type_name(value)} failed: {type_name(error)}>"
    return text if len(text) <= 80 else text[:79] + "…"


def _routed(output: StageOutput, node: Node) -> StageOutput:
    if output.routes is None:
        return (
            _nonsense("StageOutput.ok and chose no route", node, _ROUTE_HINT) if node.route_labels else output
        )
    if node.kind is not StageKind.ROUTE:
        error = StageOutputError(
            f"a stage of kind {node.kind.name} returned StageOutput.route",
            pipeline=node.pipeline,
            stage=node.name,
            hint="describe it with StageKind.ROUTE",
        )
        return StageOutput(StageStatus.FAIL, {}, error=describe(error), exception=error)
    for label in output.routes:
        if label not in node.route_labels:
            known = ", ".join(repr(known) for known in node.route_labels) or "none"
            error = StageOutputError(
                f"it chose the route {label!r}, which no dependant takes"
                f"{did_you_mean(str(label), node.route_labels)}",
                pipeline=node.pipeline,
                stage=node.name,
                hint=f"its dependants take {known}",
            )
            return StageOutput(StageStatus.FAIL, {}, error=describe(error), exception=error)
    labels = tuple(node.route_labels[node.route_labels.index(label)] for label in output.routes)
    return replace(output, routes=labels)


def timed_out(node: Node, run_id: str, raised: BaseException | None) -> StageTimeoutError:
    """Return the error of an attempt that took too long, regardless of what it returned or raised."""
    if type(raised) is StageTimeoutError and (raised.stage, raised.run_id) == (node.name, run_id):
        return raised
    error = StageTimeoutError(
        f"the attempt took longer than its timeout of {node.timeout:g} s",
        pipeline=node.pipeline,
        stage=node.name,
        run_id=run_id,
    )
    if raised is not None and not is_a(raised, asyncio.CancelledError):
        error.__cause__ = raised
    return error


def failure(error: BaseException) -> StageOutput:
    """Return the outcome of an attempt that raised; its traceback starts in the stage."""
    with INTERRUPTS:
        return _failure(error)


def _failure(error: BaseException) -> StageOutput:
    # Remove the frames of the engine: they refer to the run, and the run refers to this exception.
    try:
        traceback = error.__traceback__
        while traceback is not None and is_internal_code(traceback.tb_frame.f_code.co_filename):
            traceback = traceback.tb_next
        # Not by assignment, which an exception that is a frozen dataclass refuses.
        BaseException.with_traceback(error, traceback)
    except BaseException as raised:  # raised by a class that overrides the attribute
        INTERRUPTS.contain(raised)
    if is_a(error, asyncio.CancelledError):
        text = "CancelledError: something the stage awaited was cancelled, not the stage itself"
        return StageOutput(StageStatus.FAIL, {}, error=with_message(text, error), exception=error)
    return StageOutput(StageStatus.FAIL, {}, error=describe(error), exception=error)
