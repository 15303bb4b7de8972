"""Compares the annotations of functions that are connected: what one returns, and what the other accepts.

The comparison is conservative: a pair that cannot be decided is accepted. Classes are compared without
additional packages; other types, such as `list[int]` and unions, require the `types` extra (beartype).
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
import typing
from collections import abc, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from ..errors import did_you_mean
from ..stages import ChunksRef, ItemFailure, StageOutput, StageRef, StreamRef
from ._output import model_fields
from ._spec import StageSpec, entry_of, generator_kind, parameters_of

__all__ = ["annotation_problems"]

_UNKNOWN: Any = Any
_UNIONS = (typing.Union, types.UnionType)  # pyright: ignore[reportDeprecated]
_WIDENED = {float: (int,), complex: (float, int)}
"""The classes that a type checker accepts in place of another one, although they are not subclasses of it."""


_CONTAINERS = frozenset(
    {
        list,
        set,
        frozenset,
        deque,
        abc.AsyncGenerator,
        abc.AsyncIterable,
        abc.AsyncIterator,
        abc.Collection,
        abc.Generator,
        abc.Iterable,
        abc.Iterator,
        abc.Sequence,
        abc.Set,
        abc.MutableSequence,
    }
)
"""The generic types whose first argument is the type of their items."""


class _Signature(Struct, frozen=True):
    """The annotations of the function of a stage; `Any` if there is none, or it cannot be evaluated.

    Attributes:
        name: Name of the function.
        returns: Type of the value of the stage.
        parameters: The types of the parameters by name.
        chunk: Type of the chunks of a generator function.
    """

    name: str
    returns: Any
    parameters: dict[str, Any]
    chunk: Any = _UNKNOWN


class _Signatures(dict[str, _Signature]):
    """The signatures of stages by name, created on demand because evaluating annotations is slow."""

    def __init__(self, specs: Sequence[StageSpec]) -> None:
        super().__init__()
        self._specs = {spec.name: spec for spec in specs}

    def __missing__(self, name: str) -> _Signature:
        self[name] = signature = _signature_of(self._specs[name])
        return signature


def annotation_problems(specs: Sequence[StageSpec]) -> list[str]:
    """Return one sentence per connection of two stages whose annotations do not match."""
    signatures = _Signatures(specs)
    problems: list[str] = []
    for spec in specs:
        if spec.inputs is not None:
            problems += _problems_of_inputs(spec, signatures)
        else:
            problems += _problems_of_parameters(spec, signatures)
    return problems


def _problems_of_inputs(spec: StageSpec, signatures: _Signatures) -> Iterator[str]:
    if not spec.inputs:
        return
    called = signatures[spec.name]
    parameters = list(called.parameters.items())[1 if spec.takes_context else 0 :]
    given = [
        _given(signatures[ref.name], ref, parameter)
        for ref, (_, parameter) in zip(
            spec.inputs, [*parameters, *[("", _UNKNOWN)] * len(spec.inputs)], strict=False
        )
    ]
    returned = [
        f"stage {ref.name!r} {'sends' if isinstance(ref, ChunksRef) else 'returns'} {_text(type)}"
        for ref, type in zip(spec.inputs, given, strict=True)
    ]
    if spec.map is not None:
        key = spec.map.key
        if key is not None:
            fields = _fields_of(given[0])
            given[0] = _UNKNOWN if fields is None else fields.get(key, _UNKNOWN)
        items = _item_type(given[0])
        if items is None:
            yield f"stage {spec.name!r}: {returned[0]}, which is not an iterable of items"
            return
        given[0], returned[0] = items, f"an item of stage {spec.inputs[0].name!r} is {_text(items)}"
    for ref, (name, accepted), type, text in zip(spec.inputs, parameters, given, returned, strict=False):
        if not _is_compatible(type, accepted):
            yield (
                f"stage {spec.name!r}: parameter {name!r} of {called.name} is {_text(accepted)}, but {text}"
                + ("; use or_default() with another value" if ref.if_missing == "default" else "")
                + (f"; pass chunks() of {ref.name!r} to read its stream" if _reads(accepted, ref) else "")
            )


def _problems_of_parameters(spec: StageSpec, signatures: _Signatures) -> Iterator[str]:
    entry = entry_of(spec.runner)
    parameters = parameters_of(entry.called, entry.context_at) if entry is not None else ()
    if not parameters or not spec.ended:
        return
    called = signatures[spec.name]
    fields = {name: _fields_of(signatures[name].returns) for name in spec.ended}
    for name, has_default, _ in parameters:
        sources = [(stage, known[name]) for stage, known in fields.items() if known and name in known]
        if len(sources) == 1:
            ((stage, given),) = sources
            accepted = called.parameters.get(name, _UNKNOWN)
            if not _is_compatible(given, accepted):
                yield (
                    f"stage {spec.name!r}: parameter {name!r} of {called.name} is {_text(accepted)}, but"
                    f" {name!r} in the output of stage {stage!r} is {_text(given)}"
                )
        elif not sources and not has_default and all(known is not None for known in fields.values()):
            names = [each for known in fields.values() for each in known or ()]
            yield (
                f"stage {spec.name!r}: no dependency returns a value for parameter {name!r}"
                f" of {called.name}{did_you_mean(name, names)}"
            )


def _signature_of(spec: StageSpec) -> _Signature:
    entry = entry_of(spec.runner)
    assert entry is not None, "validated"
    called = entry.called
    while isinstance(called, functools.partial):
        called = called.func
    if not inspect.isroutine(called):
        called = getattr(type(called), "__call__", called)  # noqa: B004 - the function, for its annotations
    name = getattr(called, "__qualname__", repr(called)).rpartition("<locals>.")[2]
    try:
        hints = typing.get_type_hints(called)
        declared = inspect.signature(entry.called).parameters
    except Exception:  # an annotation cannot be evaluated, or Python cannot determine the signature
        return _Signature(name, _UNKNOWN, {})
    names = list(declared)[entry.context_at :]
    returns = _without_output(hints.get("return", _UNKNOWN))
    chunk = _UNKNOWN
    if spec.map is None and generator_kind(entry.called) is not None:
        chunk = _without_output((typing.get_args(returns) or (_UNKNOWN,))[0])
        returns = _collected(chunk)
    if spec.map is not None and returns is not _UNKNOWN:
        collects = spec.map.on_item_failure == "collect"
        returns = types.GenericAlias(list, (_union((returns, ItemFailure)) if collects else returns,))
    return _Signature(name, returns, {name: hints.get(name, _UNKNOWN) for name in names}, chunk)


def _reads(accepted: Any, ref: StageRef[Any]) -> bool:
    """Return whether a parameter is an iterator, but the input is the collected value of a stream."""
    return isinstance(ref, StreamRef) and typing.get_origin(accepted) in (abc.AsyncIterator, abc.Iterator)


def _collected(chunk: Any) -> Any:
    """Return the type of the collected value of a stream."""
    if chunk in (str, bytes):
        return chunk
    if _is_undecidable(chunk) or _is_union(chunk):
        return _UNKNOWN
    return types.GenericAlias(list, (chunk,))


def _given(sender: _Signature, ref: StageRef[Any], accepted: Any) -> Any:
    """Return the type that an input provides; the iterator over a stream suits `for` and `async for`."""
    if not isinstance(ref, ChunksRef):
        return _with_default(sender.returns, ref)
    if sender.chunk is _UNKNOWN:
        return _UNKNOWN
    is_synchronous = typing.get_origin(accepted) in (abc.Iterator, abc.Iterable)
    return types.GenericAlias(abc.Iterator if is_synchronous else abc.AsyncIterator, (sender.chunk,))


def _without_output(returned: Any) -> Any:
    """Return the type of the value of a stage: `R | StageOutput` provides R; StageOutput alone is unknown."""
    if returned is StageOutput:
        return _UNKNOWN
    if _is_union(returned):
        left = tuple(each for each in typing.get_args(returned) if each is not StageOutput)
        return _union(left) if left else _UNKNOWN
    return returned


def _item_type(iterated: Any) -> Any:
    """Return the type of the items of a type: `Any` if it is unknown, None if a map does not accept it."""
    origin = typing.get_origin(iterated) or iterated
    if origin is Any or origin is object or not inspect.isclass(origin) or typing.is_typeddict(origin):
        return _UNKNOWN
    if issubclass(origin, (str, bytes, Mapping)) or not (
        hasattr(origin, "__iter__") or hasattr(origin, "__aiter__") or hasattr(origin, "__getitem__")
    ):
        return None
    arguments = typing.get_args(iterated)
    if origin is tuple:
        return arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else _UNKNOWN
    return arguments[0] if origin in _CONTAINERS and len(arguments) >= 1 else _UNKNOWN


def _with_default(returned: Any, ref: StageRef[Any]) -> Any:
    if ref.if_missing != "default" or returned is Any:
        return returned
    return _union((returned, type(ref.default)))


def _fields_of(returned: Any) -> dict[str, Any] | None:
    """Return the types of the fields of a model or a TypedDict; None for other types."""
    if not inspect.isclass(returned) or (
        model_fields(returned) is None and not typing.is_typeddict(returned)
    ):
        return None
    try:
        return typing.get_type_hints(returned)
    except Exception:
        return None


def _is_compatible(given: Any, accepted: Any) -> bool:
    """Return False if a value of type `given` is certainly no valid argument for a parameter `accepted`."""
    try:
        if _is_undecidable(given) or _is_undecidable(accepted) or accepted is object:
            return True
        return any(_is_subtype(given, each) for each in _alternatives(accepted))
    except Exception:
        return True  # a type that the comparison does not support


def _alternatives(accepted: Any) -> Iterator[Any]:
    """Yield the type, and the type with the classes added that a type checker accepts in its place."""
    yield accepted
    members = typing.get_args(accepted) if _is_union(accepted) else (accepted,)
    widened = [also for each in members if inspect.isclass(each) for also in _WIDENED.get(each, ())]
    if widened:
        yield _union((*members, *widened))


def _is_subtype(given: Any, accepted: Any) -> bool:
    origins = typing.get_origin(given) or given, typing.get_origin(accepted) or accepted
    if all(map(inspect.isclass, origins)) and not (_is_union(given) or _is_union(accepted)):
        if not issubclass(*origins):
            return False
        if origins == (given, accepted) or _is_bare_generic(given) or _is_bare_generic(accepted):
            return True
    is_subhint = _find_is_subhint()
    return is_subhint is None or is_subhint(given, accepted)


def _find_is_subhint() -> Callable[[Any, Any], bool] | None:
    try:
        from beartype.door import is_subhint
    except ImportError:
        return None
    return is_subhint


def _is_undecidable(hint: Any) -> bool:
    """Return whether a type contains a part that accepts anything, or that depends on other types."""
    if hint is Any or isinstance(hint, (TypeVar, str, typing.ParamSpec, typing.TypeVarTuple)):
        return True
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return False
    if typing.is_typeddict(hint) or origin is typing.get_origin(Callable[..., Any]):
        return True
    if inspect.isclass(hint) and getattr(hint, "_is_protocol", False):
        return True
    return any(_is_undecidable(each) for each in typing.get_args(hint) if each is not Ellipsis)


def _is_bare_generic(hint: Any) -> bool:
    return inspect.isclass(hint) and not typing.get_args(hint) and hasattr(hint, "__class_getitem__")


def _union(members: tuple[Any, ...]) -> Any:
    return functools.reduce(operator.or_, members)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in _UNIONS


def _text(hint: Any) -> str:
    return (
        hint.__name__
        if inspect.isclass(hint) and not typing.get_args(hint)
        else str(hint).replace("typing.", "").replace("collections.abc.", "")
    )
