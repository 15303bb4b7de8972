"""Distinguishes interrupts of the process from exceptions that application code raises during recording.

Recording calls application code: `__repr__`, `__str__`, `__class__`, iteration. Such code may raise any
exception, including `SystemExit`; the record then contains a placeholder instead of the value. A Ctrl-C may
arrive during the same call, and must reach the application, but only after the record has been written.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any

__all__ = ["INTERRUPTS", "Interrupts", "is_a"]


class Interrupts(threading.local):
    """The interrupt that the engine must raise once the record has been written, per thread.

    As a context manager, this object marks a section that writes a record and holds interrupts that occur in
    it. Outside such a section, `contain` raises an interrupt immediately. Sections can be nested and must not
    await.

    Attributes:
        interrupt: The first held interrupt, or None.

    Example:
        with INTERRUPTS:
            emit()
        INTERRUPTS.raise_held()
    """

    def __init__(self) -> None:
        self._depth = 0
        self.interrupt: BaseException | None = None

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1

    def contain(self, error: BaseException) -> None:
        """Return if the caller may substitute a placeholder; otherwise hold the interrupt or raise it.

        Args:
            error: The exception that application code raised during recording.
        """
        if not is_a(error, Exception) and _is_interrupt(error):
            self.hold(error)

    def postpone(self, error: BaseException) -> None:
        """Hold `error` if it is an interrupt, even outside a section: the engine is about to take it."""
        with self:
            self.contain(error)

    def keep(self, error: BaseException) -> None:
        """Hold an interrupt, in a section or not: the caller will raise it, or take it."""
        if self.interrupt is None:
            self.interrupt = error

    def hold(self, error: BaseException) -> None:
        """Hold an interrupt inside a section; raise it outside a section."""
        if not self._depth:
            raise error
        if self.interrupt is None:
            self.interrupt = error

    def take(self) -> BaseException | None:
        """Return the held interrupt, and release it."""
        interrupt, self.interrupt = self.interrupt, None
        return interrupt

    def raise_held(self) -> None:
        """Raise the held interrupt, unless an outer section is still writing."""
        if self.interrupt is not None and not self._depth:
            try:
                raise self.interrupt
            finally:
                self.interrupt = None


INTERRUPTS = Interrupts()


def is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    """Return `isinstance(value, kind)`, but check only the real type: `value.__class__` may raise.

    Example:
        >>> is_a(KeyError("a"), LookupError)
        True
    """
    return issubclass(type(value), kind)


def _is_interrupt(error: BaseException) -> bool:
    """Return whether `error` came from a signal: only the main thread runs signal handlers."""
    if threading.get_ident() != threading.main_thread().ident:
        return False
    # The default handler of Ctrl-C is not a Python function and leaves no frame.
    return is_a(error, KeyboardInterrupt) or not _codes(error.__traceback__).isdisjoint(_handlers())


def _codes(traceback: TracebackType | None) -> set[CodeType]:
    codes = set()
    while traceback is not None:
        codes.add(traceback.tb_frame.f_code)
        traceback = traceback.tb_next
    return codes


def _handlers() -> Iterator[CodeType]:
    """Yield the code of every signal handler that is a Python function, a method or a callable object."""
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        with contextlib.suppress(Exception):  # an application-defined callable object
            handler = getattr(handler, "__func__", handler)
            called = handler if hasattr(handler, "__code__") else type(handler).__call__
            yield called.__code__
