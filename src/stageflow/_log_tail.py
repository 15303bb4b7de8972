"""`LogTail`: the last lines that an attempt logged, and `LogCapture`, which receives them from `logging`.

A line is stored unformatted, and formatted only if the attempt fails. It is formatted immediately if its
arguments could change before that, or would keep large objects alive.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from logging import ERROR, WARNING, LogRecord
from typing import Any, Protocol

from msgspec import Struct

from ._fork import reset_in_child
from ._interrupts import INTERRUPTS, is_a
from ._time import rfc3339
from .errors import as_text, describe

__all__ = [
    "FORMATTING",
    "LOG_CAPTURE",
    "MAX_LOG_LINES",
    "LogCapture",
    "LogReceiver",
    "LogTail",
    "StageLogs",
    "event_as_text",
    "format_line",
    "format_record",
    "is_internal_logger",
]

MAX_LOG_LINES = 20
"""Default number of lines that an attempt keeps."""

_MAX_CHARS = 2_000
"""Maximum length of a stored message. It is longer than a line of an event, because the text after the
end of the line is also searched for secrets."""

_SCALARS = frozenset({int, float, bool, type(None)})

_Line = tuple[float, str, str, str, Any]
"""An unformatted line: time, name of the level, name of the logger, message and arguments."""


class StageLogs(Struct, frozen=True, gc=False):
    """What an attempt logged.

    Attributes:
        warnings: Number of lines at level WARNING or above, but below ERROR.
        errors: Number of lines at level ERROR or above.
        tail: The last lines, if the attempt failed or was cancelled while it was running; not redacted.
    """

    warnings: int = 0
    errors: int = 0
    tail: tuple[str, ...] = ()


class LogTail:
    """The last lines of one attempt, and the number of its warnings and errors.

    Args:
        size: Maximum number of lines.

    Example:
        >>> tail = LogTail(1)
        >>> tail.add_line(logging.WARNING, "slow")
        >>> tail.summary(with_lines=False)
        StageLogs(warnings=1, errors=0, tail=())
        >>> tail.add_line(logging.ERROR, "broken")
        >>> tail.summary(with_lines=True)
        StageLogs(warnings=1, errors=1, tail=('broken',))
    """

    __slots__ = ("_errors", "_lines", "_logger", "_summaries", "_warnings")

    def __init__(self, size: int) -> None:
        self._lines: deque[_Line | str] = deque(maxlen=size)
        # Several threads may log at the same time: `next` is atomic, `+= 1` is not, and a lock takes longer.
        self._warnings = itertools.count()
        self._errors = itertools.count()
        self._summaries = 0
        self._logger: str | None = None

    def add(self, record: LogRecord) -> None:
        """Add a record of `logging`, unless stageflow logged it."""
        name, message, level = record.name, record.msg, record.levelno
        args: Any = record.args
        if name is not self._logger:
            if is_internal_logger(name):
                return
            self._logger = name
        if (
            type(message) is str
            and len(message) <= _MAX_CHARS
            and type(args) is tuple
            and not record.exc_info
        ):
            # Inlined, because a call would take as long as the loop.
            for arg in args:
                kind = type(arg)
                if kind not in _SCALARS and (kind is not str or len(arg) > _MAX_CHARS):
                    self._add_formatted(record)
                    break
            else:
                self._lines.append((record.created, record.levelname, name, message, args))
        else:
            self._add_formatted(record)
        if level >= WARNING:
            next(self._errors if level >= ERROR else self._warnings)

    def _add_formatted(self, record: LogRecord) -> None:
        if not FORMATTING.active:
            self._lines.append(format_record(record))

    def add_line(self, level: int, line: str) -> None:
        """Add a line that is already formatted."""
        self._lines.append(line[:_MAX_CHARS])
        if level >= WARNING:
            next(self._errors if level >= ERROR else self._warnings)

    def summary(self, *, with_lines: bool) -> StageLogs:
        """Return what was logged so far; the lines are formatted if they are included."""
        lines: tuple[str, ...] = ()
        if with_lines:
            # A copy: a thread or task that the attempt started may continue to log.
            lines = tuple(line if isinstance(line, str) else _stored(line) for line in self._lines.copy())
        # Reading a counter increments it.
        before, self._summaries = self._summaries, self._summaries + 1
        return StageLogs(next(self._warnings) - before, next(self._errors) - before, lines)


def _stored(line: _Line) -> str:
    """Return a stored line; only its message if the application has set an invalid time or level."""
    try:
        return _format(*line)
    except BaseException as error:
        INTERRUPTS.contain(error)
        return line[3]


def is_internal_logger(logger: str) -> bool:
    """Return whether stageflow logs with this logger."""
    return logger == "stageflow" or logger.startswith("stageflow.")


class _Formatting(threading.local):
    """Whether this thread is formatting a line. Lines that its arguments log meanwhile are not formatted."""

    active = False


FORMATTING = _Formatting()


def format_record(record: LogRecord) -> str:
    """Return a record of `logging` as a line, followed by the last line of its exception.

    A message that cannot be formatted is followed by the error.

    Example:
        >>> record = logging.LogRecord("acme.db", logging.WARNING, "", 0, "%d left", ("no",), None)
        >>> record.created = 43_384.123
        >>> format_record(record)
        '12:03:04.123 WARNING acme.db: %d left [TypeError: %d format: a real number is required, not str]'
    """
    before, FORMATTING.active = FORMATTING.active, True
    try:
        line = _format(record.created, record.levelname, record.name, record.msg, record.args)
        info = record.exc_info
        error = info[1] if type(info) is tuple else None
        return line if error is None else f"{line}\n{describe(error)[:_MAX_CHARS]}"
    finally:
        FORMATTING.active = before


def _format(created: float, level: str, logger: str, message: Any, args: Any) -> str:
    # structlog can pass its event to `logging`, to render it in a formatter.
    text = event_as_text(message) if type(message) is dict and "event" in message else as_text(message)
    try:
        if args:
            text %= args
    except BaseException as error:
        INTERRUPTS.contain(error)
        text = f"{text} [{describe(error)}]"
    return format_line(created, level, logger, text)


def format_line(created: float, level: str, logger: str, text: str) -> str:
    """Return a line of a log.

    Args:
        created: Time, in seconds since the Unix epoch.
        level: Name of the level.
        logger: Name of the logger, or an empty text.
        text: The message.

    Example:
        >>> format_line(43_384.123, "WARNING", "acme.db", "pool exhausted")
        '12:03:04.123 WARNING acme.db: pool exhausted'
    """
    name = f" {logger}" if logger else ""
    return f"{rfc3339(round(created * 1e6))[11:23]} {level}{name}: {text[:_MAX_CHARS]}"


_OMITTED = frozenset(
    {"event", "exc_info", "exception", "level", "logger", "stack", "stack_info", "timestamp"}
)
"""Keys of an event of structlog that are part of the line, or are too long for it."""


def event_as_text(event: Mapping[str, Any]) -> str:
    """Return an event of structlog as text: the event, its other fields, and its exception.

    Example:
        >>> event_as_text({"event": "pool exhausted", "size": 3, "level": "warning"})
        'pool exhausted size=3'
    """
    fields = [f"{as_text(key)}={_field_as_text(value)}" for key, value in _fields(event)]
    text = " ".join([as_text(event.get("event")), *fields])
    error = _exception_of(event)
    return f"{text}\n{error}" if error else text


def _fields(event: Mapping[str, Any]) -> Iterable[tuple[Any, Any]]:
    for key, value in event.items():
        # Keys such as "_record" are internal to structlog.
        if key not in _OMITTED and not (type(key) is str and key.startswith("_")):
            yield key, value


def _field_as_text(value: Any) -> str:
    text = as_text(value)
    return text if text and not any(blank in text for blank in " =\n") else repr(text)


def _exception_of(event: Mapping[str, Any]) -> str:
    given = event.get("exc_info")
    error: Any = given
    if type(given) is tuple and len(given) == 3:
        error = given[1]
    elif given is True:
        error = sys.exc_info()[1]
    if is_a(error, BaseException):
        return describe(error)[:_MAX_CHARS]
    rendered = event.get("exception")
    return rendered.strip().rpartition("\n")[2][:_MAX_CHARS] if type(rendered) is str else ""


_PROBE = "stageflow"
"""The logger of a record that only checks which factory is called; its lines are never recorded."""


class LogReceiver(Protocol):
    """An object that keeps the lines that are logged, such as the context of an attempt."""

    _log_tail: LogTail | None

    def _open_log_tail(self) -> LogTail:
        """Create the `LogTail` for the first line."""
        ...


def _no_receiver() -> None:
    return None


class LogCapture:
    """Adds each line that is logged to the current receiver, whichever handlers its logger has.

    The log record factory, which `logging` calls for each line of an enabled level, adds it. Unlike a
    handler, the factory is independent of `propagate`, `logging.basicConfig` and `logging.config`.

    Attributes:
        size: Number of lines that an attempt keeps; 0 to add no lines.
    """

    def __init__(self) -> None:
        self.size = MAX_LOG_LINES
        self._current: Callable[[], LogReceiver | None] = _no_receiver
        self._factory: Callable[..., LogRecord] | None = None  # the last one that is known to add lines
        self._prober: int | None = None
        self._reset()
        reset_in_child(self._reset)

    def _reset(self) -> None:
        self._installing = threading.RLock()

    def resize(self, size: int) -> None:
        """Set the number of lines that later attempts keep."""
        self.size = size
        if not size:
            self._current = _no_receiver

    def install(self, current: Callable[[], LogReceiver | None]) -> None:
        """Start adding lines, or continue to do so if the application has replaced the factory.

        A factory of the application that calls the previous one remains as it is.

        Args:
            current: Returns the receiver of a line, or None. It is called in the thread that logs.
        """
        if not self.size:
            return
        self._current = current
        if logging.getLogRecordFactory() is self._factory:
            return
        with self._installing:
            factory = logging.getLogRecordFactory()
            if not self._is_called_by(factory):
                factory = self._chained_to(factory)
                logging.setLogRecordFactory(factory)
            self._factory = factory

    def _is_called_by(self, factory: Callable[..., LogRecord]) -> bool:
        """Return whether a factory already adds lines: create an empty record, as `logging` does."""
        self._prober = threading.get_ident()
        try:
            factory(_PROBE, logging.DEBUG, "", 0, "", (), None, None)
        except BaseException as error:  # a factory of the application may not expect such a record
            INTERRUPTS.contain(error)
        called, self._prober = self._prober is None, None
        return called

    def _chained_to(self, factory: Callable[..., LogRecord]) -> Callable[..., LogRecord]:
        """Return a factory that calls another one, and adds its records."""

        def create(*args: Any, **more: Any) -> LogRecord:
            record = factory(*args, **more)
            try:
                name = record.name
                if name == _PROBE:
                    if self._prober == threading.get_ident():
                        self._prober = None
                elif name is None:
                    pass  # an empty record, which `logging.makeLogRecord` creates to copy another one
                elif (receiver := self._current()) is not None:
                    (receiver._log_tail or receiver._open_log_tail()).add(record)
            except BaseException as error:
                INTERRUPTS.contain(error)
            return record

        return create


LOG_CAPTURE = LogCapture()
"""`stageflow.configure(log_tail=...)`"""
