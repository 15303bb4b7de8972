"""Sends exceptions from one process to another, with their tracebacks and causes."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any

from msgspec import Struct

from .._fingerprint import module_of
from ..errors import as_text, is_internal_code, type_name

__all__ = ["RemoteError", "remote_error", "restored_error"]

_MAX_FRAMES = 50
_MAX_LINKS = 16

_Frame = tuple[str, int, str, str]
"""File, line, function and module."""


class RemoteError(Struct, frozen=True, array_like=True):
    """An exception in a form that any process can read.

    Attributes:
        pickled: The exception; None if it cannot be pickled or restored.
        module: Module of its class.
        name: Qualified name of its class.
        text: Its message.
        notes: Its notes (PEP 678).
        frames: File, line, function and module of each frame of its traceback, outermost first.
        cause: The exception that it was raised from, or None.
        context: The exception during whose handling it was raised, or None.
        suppress_context: Whether `raise ... from None` hides the context.
    """

    pickled: bytes | None
    module: str
    name: str
    text: str
    notes: tuple[str, ...]
    frames: tuple[_Frame, ...]
    cause: RemoteError | None = None
    context: RemoteError | None = None
    suppress_context: bool = False


def remote_error(
    error: BaseException, depth: int = 0, dumps: Callable[[Any, int], bytes] = pickle.dumps
) -> RemoteError:
    """Return the form of an exception that is sent to another process.

    Args:
        error: The exception.
        depth: Number of exceptions that it is the cause or context of.
        dumps: Pickles an exception.
    """
    try:
        notes = getattr(error, "__notes__", ())
        module, name = type(error).__module__, type(error).__qualname__
    except BaseException:  # raised by an override in its class or metaclass
        notes, module, name = (), "builtins", type_name(error)
    return RemoteError(
        _pickled(error, dumps),
        as_text(module).replace("\0", ""),
        as_text(name).replace("\0", ""),
        as_text(error),
        tuple(as_text(note) for note in notes) if isinstance(notes, (list, tuple)) else (),
        _frames(error.__traceback__),
        _link(error.__cause__, depth, dumps),
        _link(error.__context__, depth, dumps) if error.__cause__ is None else None,
        error.__suppress_context__,
    )


def _link(error: BaseException | None, depth: int, dumps: Callable[[Any, int], bytes]) -> RemoteError | None:
    return None if error is None or depth == _MAX_LINKS else remote_error(error, depth + 1, dumps)


def _pickled(error: BaseException, dumps: Callable[[Any, int], bytes]) -> bytes | None:
    """Return an exception in pickled form, or None if unpickling would not restore its class."""
    try:
        data = dumps(error, pickle.HIGHEST_PROTOCOL)
        return data if type(pickle.loads(data)) is type(error) else None
    except BaseException:  # a method of its class may raise anything
        return None


def _frames(traceback: TracebackType | None) -> tuple[_Frame, ...]:
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not is_internal_code(code.co_filename):
            module = module_of(traceback.tb_frame)
            frames.append((code.co_filename, traceback.tb_lineno or 0, code.co_qualname, module))
        traceback = traceback.tb_next
    return tuple(frames[-_MAX_FRAMES:])


def restored_error(remote: RemoteError) -> BaseException:
    """Return an exception of another process, with a traceback that has the same files, lines and functions.

    If its class cannot be imported or restored, the exception has a class of the same name, derived from
    `Exception`.
    """
    error: BaseException | None = None
    if remote.pickled is not None:
        with contextlib.suppress(BaseException):
            error = pickle.loads(remote.pickled)
    if not isinstance(error, BaseException):
        simple = remote.name.rpartition(".")[2]
        kind = type(simple, (Exception,), {"__module__": remote.module, "__qualname__": remote.name})
        error = kind(remote.text)
        for note in remote.notes:
            error.add_note(note)
    with contextlib.suppress(BaseException):  # an exception may refuse new attributes
        BaseException.with_traceback(error, _traceback(remote.frames))
        if remote.cause is not None:
            error.__cause__ = restored_error(remote.cause)
        if remote.context is not None:
            error.__context__ = restored_error(remote.context)
        error.__suppress_context__ = remote.suppress_context
    return error


_RAISE: CodeType = compile("raise error", "<worker>", "exec")


def _traceback(frames: tuple[_Frame, ...]) -> TracebackType | None:
    """Return a traceback with these frames: raise an exception in code that has their names and lines."""
    traceback: TracebackType | None = None
    for file, line, name, module in reversed(frames):
        code = _RAISE.replace(
            co_filename=file, co_firstlineno=max(line, 1), co_name=name.rpartition(".")[2], co_qualname=name
        )
        variables: dict[str, Any] = {"error": Exception(), "__name__": module}
        frame = None
        try:
            exec(code, variables)
        except Exception as raised:
            frame = raised.__traceback__ and raised.__traceback__.tb_next
        if frame is not None:
            traceback = TracebackType(traceback, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
        del variables["error"]  # it refers to the frame, which refers to the variables
    return traceback
