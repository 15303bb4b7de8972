"""The record of an exception: type, message, notes, the relevant part of the stack, and the chain."""

from __future__ import annotations

from itertools import islice
from types import TracebackType

from .._interrupts import INTERRUPTS, is_a
from ..errors import as_text, is_internal_code, leaves_of, type_name
from ..schema import ExceptionInfo, Relation
from .sanitize._sanitizer import Sanitizer

__all__ = ["exception_info"]


_MAX_FRAMES = 20
_MAX_LINKS = 8
_MAX_VISITED = 1000
_MAX_LEAVES = 100
_MAX_LEAF_STACKS = 8
_MAX_NOTES = 10
_MAX_MESSAGE_CHARS = 2000


def exception_info(error: BaseException, sanitizer: Sanitizer) -> ExceptionInfo:
    """Return the record of an exception: its innermost 20 frames, its notes and its chain.

    Frames of the engine are omitted. The chain contains the first 8 causes and contexts and the last one,
    which is the root cause, and up to 100 leaves of exception groups, the first 8 of them with their stacks.
    Each entry is followed by its own causes. If anything is omitted, the field `exception` is listed as
    truncated.
    """
    return _info(error, sanitizer, _chain(error, sanitizer))


def _info(
    error: BaseException,
    sanitizer: Sanitizer,
    chain: list[ExceptionInfo],
    relation: Relation | None = None,
    *,
    with_stack: bool = True,
) -> ExceptionInfo:
    return ExceptionInfo(
        type=_type(error),
        message=_message(error, sanitizer),
        stack=_stack(error, sanitizer) if with_stack else [],
        chain=chain,
        relation=relation,
        notes=_notes(error, sanitizer),
    )


def _chain(error: BaseException, sanitizer: Sanitizer) -> list[ExceptionInfo]:
    links: list[ExceptionInfo] = []
    counts = {"group": 0, "other": 0}
    seen = {id(error)}
    root: tuple[Relation, BaseException] | None = None
    following = _next(error)[::-1]
    while following and len(seen) < _MAX_VISITED:
        relation, link = following.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        kind, limit = ("group", _MAX_LEAVES) if relation == "group" else ("other", _MAX_LINKS)
        if counts[kind] == limit:
            if kind == "other":
                if root is not None:
                    _note_truncated(sanitizer)
                root = relation, link
                following += _next(link)[::-1]
            else:
                _note_truncated(sanitizer)
            continue
        counts[kind] += 1
        following += _next(link)[::-1]
        links.append(_info(link, sanitizer, [], relation, with_stack=counts["group"] <= _MAX_LEAF_STACKS))
    if root is not None:
        links.append(_info(root[1], sanitizer, [], root[0]))
    return links


def _note_truncated(sanitizer: Sanitizer) -> None:
    if "exception" not in sanitizer.truncated:
        sanitizer.truncated.append("exception")


def _next(error: BaseException) -> list[tuple[Relation, BaseException]]:
    """Return the leaves and the cause or context of an exception; ignore overrides that raise."""
    following: list[tuple[Relation, BaseException]] = []
    if is_a(error, BaseExceptionGroup):
        following = [("group", leaf) for leaf in leaves_of(error)]
    try:
        if error.__cause__ is not None:
            following.append(("cause", error.__cause__))
        elif error.__context__ is not None and not error.__suppress_context__:
            following.append(("context", error.__context__))
    except BaseException as raised:
        INTERRUPTS.contain(raised)
    return following


def _notes(error: BaseException, sanitizer: Sanitizer) -> list[str]:
    """Return the notes of an exception (PEP 678)."""
    try:
        given = getattr(error, "__notes__", ())
        # `add_note` creates a list, but the attribute may be set to anything.
        notes = list(islice(given, _MAX_NOTES + 1)) if is_a(given, (list, tuple)) else [given]
    except BaseException as raised:  # raised by a property of its class
        INTERRUPTS.contain(raised)
        return []
    if len(notes) > _MAX_NOTES:
        _note_truncated(sanitizer)
    return [sanitizer.text(as_text(note), "exception", _MAX_MESSAGE_CHARS) for note in notes[:_MAX_NOTES]]


def _type(error: BaseException) -> str:
    kind = type(error)
    try:
        module = kind.__module__
        return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    except BaseException as raised:  # raised by a metaclass
        INTERRUPTS.contain(raised)
        return type_name(error)


def _message(error: BaseException, sanitizer: Sanitizer) -> str:
    return sanitizer.text(as_text(error), "exception", _MAX_MESSAGE_CHARS)


def _stack(error: BaseException, sanitizer: Sanitizer) -> list[str]:
    frames: list[str] = []
    at: TracebackType | None
    try:
        at = error.__traceback__
    except BaseException as raised:  # raised by a property of its class
        INTERRUPTS.contain(raised)
        return []
    while at is not None:
        code = at.tb_frame.f_code
        if not is_internal_code(code.co_filename):
            frames.append(f"{code.co_filename}:{at.tb_lineno} in {code.co_qualname}")
        at = at.tb_next
    return [sanitizer.text(frame, "exception") for frame in frames[-_MAX_FRAMES:]]
