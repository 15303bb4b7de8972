"""An exception as the record keeps it: type, message, the stack that matters, and the chain."""

from __future__ import annotations

import os
from types import TracebackType

from ..errors import as_text, type_name
from ..interrupts import INTERRUPTS
from ..schema import ExceptionInfo, Relation
from .shape import Shaper

__all__ = ["exception_info"]

_FRAMES = 20
_LINKS = 8
_LONGEST_MESSAGE = 2000
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OURS = tuple(
    os.path.join(_PACKAGE, room, "")
    for room in ("pipeline", "context", "executors", "observability", "testing")
)
"""The rooms that a stage is called through; what is raised in the other faces is worth seeing."""


def exception_info(error: BaseException, shaping: Shaper) -> ExceptionInfo:
    """Return the record of `error`: its innermost 20 frames, without ours, and up to 8 links."""
    seen = {id(error)}
    return ExceptionInfo(
        type=_type(error),
        message=_message(error, shaping),
        stack=_stack(error, shaping),
        chain=_chain(error, seen, shaping),
    )


def _chain(error: BaseException, seen: set[int], shaping: Shaper) -> list[ExceptionInfo]:
    links: list[ExceptionInfo] = []
    following = _next(error)
    while following and len(links) < _LINKS:
        relation, link = following.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        following += _next(link)
        links.append(
            ExceptionInfo(
                type=_type(link),
                message=_message(link, shaping),
                stack=_stack(link, shaping),
                chain=[],
                relation=relation,
            )
        )
    return links


def _next(error: BaseException) -> list[tuple[Relation, BaseException]]:
    """Return the group members and the cause or context of an exception; ignore overrides that raise."""
    members: list[tuple[Relation, BaseException]] = []
    try:
        if isinstance(error, BaseExceptionGroup):
            members = [("group", member) for member in error.exceptions]
        if error.__cause__ is not None:
            members.append(("cause", error.__cause__))
        elif error.__context__ is not None and not error.__suppress_context__:
            members.append(("context", error.__context__))
    except BaseException as raised:
        INTERRUPTS.contain(raised)
    return members


def _type(error: BaseException) -> str:
    kind = type(error)
    try:
        module = kind.__module__
        return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    except BaseException as raised:  # raised by a metaclass
        INTERRUPTS.contain(raised)
        return type_name(error)


def _message(error: BaseException, shaping: Shaper) -> str:
    return shaping.text(as_text(error), "exception", _LONGEST_MESSAGE)


def _stack(error: BaseException, shaping: Shaper) -> list[str]:
    frames: list[str] = []
    at: TracebackType | None
    try:
        at = error.__traceback__
    except BaseException as raised:  # raised by a property of its class
        INTERRUPTS.contain(raised)
        return []
    while at is not None:
        code = at.tb_frame.f_code
        if not code.co_filename.startswith(_OURS):
            frames.append(f"{code.co_filename}:{at.tb_lineno} in {code.co_qualname}")
        at = at.tb_next
    return [shaping.text(frame, "exception") for frame in frames[-_FRAMES:]]
