"""The messages of a worker in pickled form."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from ..errors import SerializationError, describe, type_name
from ..stages import StageOutput
from ._executor import Chunk, Message, Raised, Recorded, Returned
from ._protocol import CHUNK, RAISED, RECORDED, RETURNED
from ._remote_error import remote_error, restored_error

__all__ = ["PickledReports", "message_of"]


_MAX_DEPTH = 8
_MAX_CHARS = 10_000


class PickledReports(ABC):
    """Pickles the messages of a worker; see `_worker_call.Reports`.

    Args:
        dumps: Pickles a value.
    """

    def __init__(self, dumps: Callable[[Any, int], bytes] = pickle.dumps) -> None:
        self._dumps = dumps

    @abstractmethod
    def send_pickled(self, tag: int, data: bytes) -> None:
        """Send a message; the tags are those of `_protocol`."""

    def send(self, tag: int, *message: Any) -> None:
        """Pickle a message, and send it."""
        self.send_pickled(tag, self._dumps(message, pickle.HIGHEST_PROTOCOL))

    def recorded(self, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            self.send(RECORDED, method, arguments)
        except Exception:  # raised by `__reduce__` of an object, for example
            self.send(RECORDED, method, tuple(self._as_picklable(argument) for argument in arguments))

    def send_chunk(self, value: Any) -> None:
        """Send a chunk without waiting for the reader.

        Raises:
            SerializationError: It cannot be pickled.
        """
        try:
            self.send(CHUNK, value)
        except Exception as error:
            raise _not_sendable("the chunk", value, error) from error

    def returned(self, value: Any, duration_ns: int) -> None:
        error = value.exception if isinstance(value, StageOutput) else None
        try:
            if error is None:
                self.send(RETURNED, value, duration_ns)
            else:
                plain = StageOutput(value.status, value.data, value.error, None, value.reason, value.after)
                self.send(RETURNED, plain, duration_ns, remote_error(error, dumps=self._dumps))
        except Exception as raised:
            self.raised(_not_sendable("the value that the stage returned", value, raised), duration_ns)

    def raised(self, error: BaseException, duration_ns: int) -> None:
        self.send(RAISED, remote_error(error, dumps=self._dumps), duration_ns)

    def _as_picklable(self, value: Any, depth: int = 0) -> Any:
        """Return a value with every part that cannot be pickled replaced by its `repr`."""
        if depth < _MAX_DEPTH and type(value) is dict:
            return {key: self._as_picklable(item, depth + 1) for key, item in value.items()}
        if depth < _MAX_DEPTH and type(value) in (list, tuple):
            return [self._as_picklable(item, depth + 1) for item in value]
        try:
            self._dumps(value, pickle.HIGHEST_PROTOCOL)
        except Exception:
            try:
                return repr(value)[:_MAX_CHARS]
            except Exception as error:
                return f"<repr() of {type_name(value)} failed: {type_name(error)}>"
        return value


def _not_sendable(what: str, value: Any, error: BaseException) -> SerializationError:
    return SerializationError(
        f"{what}, of type {type_name(value)}, cannot be sent from a worker: {describe(error)}",
        hint="return dicts, lists, text, bytes, numbers, or objects of classes that can be pickled",
    )


def message_of(tag: int, data: bytes | bytearray | memoryview | pickle.PickleBuffer) -> Message:
    """Unpickle a message of a worker; if this fails, return a message that contains the error."""
    try:
        fields = pickle.loads(data)
    except BaseException as error:  # an object of the application may raise anything
        problem = SerializationError(
            f"the parent process cannot restore a value from the worker: {describe(error)}",
            hint="define the class of the value at the top level of a module that both can import",
        )
        problem.__cause__ = error
        if tag == RECORDED:
            return Recorded("annotate", ({"worker.unreadable_value": describe(error)},))
        return Raised(problem, 0)
    if tag == RETURNED:
        value, duration_ns, *others = fields
        if others:
            value = replace(value, exception=restored_error(*others))
        return Returned(value, duration_ns)
    if tag == RAISED:
        raised, duration_ns = fields
        return Raised(restored_error(raised), duration_ns)
    return Recorded(*fields) if tag == RECORDED else Chunk(*fields)
