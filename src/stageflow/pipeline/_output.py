"""The conversion of the return value of a stage to an output."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from .._interrupts import INTERRUPTS, is_a
from ..context import StageContext
from ..errors import StageOutputError, describe, did_you_mean, type_name
from ..stages import StageKind, StageOutput, StageStatus
from ._plan import Node

__all__ = ["PLAIN_TYPES", "fields_of", "model_fields", "output_of"]


_OK = StageStatus.OK  # on Python 3.11, reading a member of an enum takes 0.1 us
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

PLAIN_TYPES = frozenset({bool, bytes, float, int, list, str, tuple})
"""Types of values that are neither mappings nor models, and are always valid."""

_OUTPUT_HINT = "return StageOutput.ok(...), or a value"
_ROUTE_HINT = "return StageOutput.route(label), or StageOutput.route() for none of them"


def output_of(value: Any, node: Node, ctx: StageContext | None) -> StageOutput:
    """Convert the return value of a stage to an output; an invalid value becomes a failure.

    A stage that returns nothing, but has sent chunks with the context `ctx`, returns the collected chunks.

    Raises:
        BaseException: An application object raised during a type check.
    """
    if type(value) is StageOutput:
        if (
            value.status is _OK
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
        return _invalid(f"{_short_repr(value)} and chose no route", node, _ROUTE_HINT)
    if value is None:
        if ctx is not None and ctx._stream is not None:
            collected: StageOutput = ctx._stream.collected()
            return collected
        return StageOutput(_OK, {}, None, None, None, None, None, None)
    if type(value) is dict:
        return StageOutput(_OK, value.copy())
    if type(value) in PLAIN_TYPES:
        return StageOutput(_OK, {"value": value}, returned=value)
    if isinstance(value, Mapping):
        return StageOutput(_OK, dict(value))
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        return _invalid(_described(value), node, "did you forget an `await`?")
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        return _invalid(_described(value), node, "a generator can be read only once; return a list")
    if isinstance(value, StageStatus):
        return _invalid(_described(value), node, f"return StageOutput.{value.lower()}(...)")
    if isinstance(value, BaseException):
        return _invalid(_described(value), node, "raise it, or return StageOutput.fail(error)")
    return StageOutput(_OK, fields_of(value), returned=value)


def _described(value: Any) -> str:
    return f"a value of type {type_name(value)}: {_short_repr(value)}"


def model_fields(kind: type) -> Iterable[str] | None:
    """Return the names of the fields of a Struct, dataclass, attrs class or pydantic model, or None."""
    if issubclass(kind, Struct):
        return kind.__struct_fields__
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    if (attributes := getattr(kind, "__attrs_attrs__", None)) is not None:
        return [attribute.name for attribute in attributes]
    return getattr(kind, "__pydantic_fields__", None)


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a model; of another value, one field `value`."""
    names = model_fields(type(value))
    if names is None:
        return {"value": value}
    fields = {}
    for name in names:
        with contextlib.suppress(AttributeError):  # a field that was never set
            fields[name] = getattr(value, name)
    return fields


def _checked(output: StageOutput, node: Node) -> StageOutput:
    """Return an output whose fields have exactly the expected types.

    An instance of a subclass may raise from any operation, in the middle of the engine's own steps.
    """
    for name, types in _FIELD_TYPES:
        if not is_a(getattr(output, name), types):
            return _invalid(f"a StageOutput with {name}={_short_repr(getattr(output, name))}", node)
    after: Any = output.after
    if after is not None:
        after = float.__float__(after) if is_a(after, float) else int.__int__(after)
        if not 0 <= after < math.inf:
            return _invalid(f"a StageOutput with after={after!r}", node)
    output = StageOutput(
        output.status,
        output.data if type(output.data) is dict else dict(output.data),
        _plain_text(output.error),
        output.exception,
        _plain_text(output.reason),
        after,
        output.routes,
        output.returned,
    )
    return output if output.status is not _OK else _routed(output, node)


def _plain_text(text: str | None) -> str | None:
    return None if text is None else str.__str__(text)


def _invalid(returned: str, node: Node, hint: str = _OUTPUT_HINT) -> StageOutput:
    error = StageOutputError(
        f"the stage returned {returned}", pipeline=node.pipeline, stage=node.name, hint=hint
    )
    return StageOutput(StageStatus.FAIL, {}, error=describe(error), exception=error)


def _short_repr(value: Any) -> str:
    try:
        text = str.__str__(repr(value))
    except BaseException as error:
        INTERRUPTS.postpone(error)
        return f"<repr() of {type_name(value)} failed: {type_name(error)}>"
    return text if len(text) <= 80 else text[:79] + "…"


def _routed(output: StageOutput, node: Node) -> StageOutput:
    if output.routes is None:
        return (
            _invalid("StageOutput.ok and chose no route", node, _ROUTE_HINT) if node.route_labels else output
        )
    if node.kind is not StageKind.ROUTE:
        error = StageOutputError(
            f"a stage of kind {node.kind.name} returned StageOutput.route",
            pipeline=node.pipeline,
            stage=node.name,
            hint="declare the stage with kind=StageKind.ROUTE",
        )
        return StageOutput(StageStatus.FAIL, {}, error=describe(error), exception=error)
    for label in output.routes:
        if label not in node.route_labels:
            known = ", ".join(repr(known) for known in node.route_labels) or "none"
            error = StageOutputError(
                f"no dependent has the route {label!r}{did_you_mean(str(label), node.route_labels)}",
                pipeline=node.pipeline,
                stage=node.name,
                hint=f"the routes of its dependents are {known}",
            )
            return StageOutput(StageStatus.FAIL, {}, error=describe(error), exception=error)
    labels = tuple(node.route_labels[node.route_labels.index(label)] for label in output.routes)
    return replace(output, routes=labels)
