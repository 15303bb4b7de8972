"""What an attempt came to: one `StageOutput`, whatever the stage returned or raised."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from collections.abc import Mapping
from typing import Any

from ..errors import StageOutputError, StageTimeoutError, describe, did_you_mean, type_name
from ..interrupts import INTERRUPTS, is_a
from ..stages import Retry, StageKind, StageOutput, StageStatus
from .node import Node

__all__ = ["failure", "output_of", "retried_or_failed", "timed_out", "told_to_end"]

# One made by hand may hold anything; what makes one by its methods has these.
_SHAPE = (
    ("status", StageStatus),
    ("data", dict),
    ("error", str | None),
    ("exception", BaseException | None),
    ("reason", str | None),
    ("after", float | int | None),
    ("routes", tuple | None),
)
_OURS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_DEFAULT_RETRY = Retry(attempts=3, on=())


def output_of(value: Any, node: Node) -> StageOutput:
    """Return what a stage returned as an output; anything else, or what cannot be read, becomes a failure."""
    try:
        return _output_of(value, node)
    except BaseException as error:  # by an object of the application's that was asked what it is
        INTERRUPTS.postpone(error)
        return failure(error)


def _output_of(value: Any, node: Node) -> StageOutput:
    if type(value) is StageOutput:
        if value.status is StageStatus.OK and type(value.data) is dict and not node.route_labels:
            return value if value.routes is None else _routed(value, node)
        for name, kind in _SHAPE:
            if not isinstance(getattr(value, name), kind):
                return _nonsense(f"a StageOutput with {name}={_cut(getattr(value, name))}", node)
        if value.after is not None and not 0 <= value.after < math.inf:
            return _nonsense(f"a StageOutput with after={value.after!r}", node)
        return value if value.status is not StageStatus.OK else _routed(value, node)
    if node.route_labels:
        return _nonsense(f"{_cut(value)} and chose no route", node, _ROUTE_HINT)
    if value is None:
        return StageOutput(StageStatus.OK, {})
    if isinstance(value, Mapping):
        return StageOutput(StageStatus.OK, dict(value))
    hint = "did you forget an `await`?" if inspect.isawaitable(value) else _HINT
    if inspect.iscoroutine(value):
        value.close()
    return _nonsense(f"{type(value).__name__} {_cut(value)}", node, hint)


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
    return output


def failure(error: BaseException) -> StageOutput:
    """Return the outcome of an attempt that raised, its traceback beginning in the stage."""
    with INTERRUPTS:
        return _failure(error)


def _failure(error: BaseException) -> StageOutput:
    # Without the frames of the scheduler: they hold the run, and the run holds this exception.
    try:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_OURS):
            traceback = traceback.tb_next
        error.__traceback__ = traceback
    except BaseException as raised:  # by a class that overrides the attribute
        INTERRUPTS.contain(raised)
    if is_a(error, asyncio.CancelledError):
        text = "CancelledError: something the stage awaited was cancelled, not the stage itself"
        return StageOutput(StageStatus.FAIL, {}, error=text, exception=error)
    return StageOutput(StageStatus.FAIL, {}, error=describe(error), exception=error)


def timed_out(node: Node, run_id: str, raised: BaseException | None) -> StageTimeoutError:
    """Return the error of an attempt that took too long, whatever it did in the end."""
    error = StageTimeoutError(
        f"the attempt took longer than its timeout of {node.timeout:g} s",
        pipeline=node.pipeline,
        stage=node.name,
        run_id=run_id,
    )
    if raised is not None and not is_a(raised, asyncio.CancelledError):
        error.__cause__ = raised
    return error


def told_to_end(output: StageOutput, raised: BaseException | None, reason: str) -> StageOutput:
    """Return the outcome of an attempt that was cancelled because the run ended.

    What it still returned counts. What it raised is the echo of the cancellation: it is kept, but
    the stage is not to blame for it.
    """
    if raised is None and output.status is not StageStatus.RETRY:
        return output
    own = None if is_a(raised, asyncio.CancelledError) else raised
    with INTERRUPTS:
        error = describe(own) if own is not None else None
    return StageOutput(StageStatus.CANCEL, {}, error=error, exception=own, reason=reason)


def retried_or_failed(
    output: StageOutput, node: Node, attempt: int, raised: BaseException | None, since: float
) -> StageOutput:
    """Return RETRY with its wait where the policy gives another attempt, else FAIL.

    `since` is the number of seconds since the start of the first attempt.
    """
    policy = node.retry or _DEFAULT_RETRY
    wants = output.status is StageStatus.RETRY
    after: float | None = None
    reason: str | None = None
    try:
        if not wants and (raised is None or not policy.covers(raised)):
            return output
        if attempt < policy.attempts:
            after = policy.seconds_after(attempt) if output.after is None else output.after
            if policy.deadline is not None and since + after > policy.deadline:
                reason = (
                    f"attempt {attempt} of {policy.attempts} failed after {since:.3g} s, and the next one "
                    f"in {after:g} s would be past the deadline of {policy.deadline:g} s"
                )
                return StageOutput(StageStatus.FAIL, {}, output.error, output.exception, reason)
            status = StageStatus.RETRY
            reason = f"attempt {attempt} of {policy.attempts} failed, the next one in {after:g} s"
        else:
            status = StageStatus.FAIL
            reason = f"no attempts left ({attempt} of {policy.attempts})" if attempt > 1 or wants else None
    except BaseException as error:
        # A policy is the user's code too.
        INTERRUPTS.postpone(error)
        status = StageStatus.FAIL
        with INTERRUPTS:
            reason = f"its retry policy raised {describe(error)}"
    return StageOutput(status, {}, error=output.error, exception=output.exception, reason=reason, after=after)
