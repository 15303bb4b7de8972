"""The main function of a worker process of `ProcessExecutor`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import os
import pickle
import select
import signal
import socket
import sys
import threading
from typing import Any

from ..errors import SerializationError, describe, type_name
from ..stages import StageOutput
from ._main_module import MAIN_MODULE
from ._protocol import (
    CHUNK,
    RAISED,
    RECORDED,
    REJECTED,
    RETURNED,
    STARTED,
    WINDOW,
    FrameReader,
    Setup,
    StartTime,
    send_frame,
)
from ._remote_error import remote_error
from ._worker_call import WorkerCalls

__all__ = ["main"]

_PROTOCOL = pickle.HIGHEST_PROTOCOL
_PR_SET_PDEATHSIG = 1


class _Unpickler(pickle.Unpickler):
    """Imports the main module of the parent process if an object refers to it."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__":
            MAIN_MODULE.ensure()
        return super().find_class(module, name)


def _load(data: bytes | bytearray) -> Any:
    return _Unpickler(io.BytesIO(data)).load()


class _Reports:
    """Sends messages to the parent process; see `_worker_call.Reports`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.unacknowledged = 0

    def send(self, tag: int, *message: Any) -> None:
        data = pickle.dumps(message, _PROTOCOL)
        with self._lock:  # a thread that the function has started may record something
            send_frame(self._connection, tag, data)

    def recorded(self, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            self.send(RECORDED, method, arguments)
        except (TypeError, ValueError, AttributeError, pickle.PicklingError):
            self.send(RECORDED, method, tuple(_as_picklable(argument) for argument in arguments))

    def chunk(self, value: Any) -> None:
        while self.unacknowledged >= WINDOW:
            self._receive_acknowledgements()
        self._send_chunk(value)

    async def chunk_async(self, value: Any) -> None:
        while self.unacknowledged >= WINDOW:
            loop = asyncio.get_running_loop()
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._connection, _set, readable)
            try:
                await readable
            finally:
                loop.remove_reader(self._connection)
            if self.unacknowledged >= WINDOW:
                self._receive_acknowledgements()
        self._send_chunk(value)

    def _send_chunk(self, value: Any) -> None:
        try:
            self.send(CHUNK, value)
        except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
            raise _not_sendable("the chunk", value, error) from error
        self.unacknowledged += 1

    def _receive_acknowledgements(self) -> None:
        received = len(self._connection.recv(WINDOW))
        if not received:
            os._exit(0)  # the parent process has ended
        self.unacknowledged -= received

    def returned(self, value: Any, duration_ns: int) -> None:
        self._await_acknowledgements()
        error = value.exception if isinstance(value, StageOutput) else None
        try:
            if error is None:
                self.send(RETURNED, value, duration_ns)
            else:
                plain = StageOutput(value.status, value.data, value.error, None, value.reason, value.after)
                self.send(RETURNED, plain, duration_ns, remote_error(error))
        except (TypeError, ValueError, AttributeError, pickle.PicklingError, RecursionError) as raised:
            self.raised(_not_sendable("the value that the stage returned", value, raised), duration_ns)

    def raised(self, error: BaseException, duration_ns: int) -> None:
        self._await_acknowledgements()
        self.send(RAISED, remote_error(error), duration_ns)

    def _await_acknowledgements(self) -> None:
        # Afterwards, the connection contains nothing but the next call.
        while self.unacknowledged:
            self._receive_acknowledgements()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _not_sendable(what: str, value: Any, error: BaseException) -> SerializationError:
    return SerializationError(
        f"{what}, of type {type_name(value)}, cannot be sent from a worker: {describe(error)}",
        hint="return dicts, lists, text, bytes, numbers, or objects of classes that can be pickled",
    )


def _as_picklable(value: Any) -> Any:
    """Return a value with every part that cannot be pickled replaced by its `repr`."""
    if isinstance(value, dict):
        return {_as_picklable(key): _as_picklable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_picklable(item) for item in value]
    try:
        pickle.dump(value, io.BytesIO(), _PROTOCOL)
    except Exception:
        try:
            return repr(value)
        except Exception as error:
            return f"<repr() of {type_name(value)} failed: {type_name(error)}>"
    return value


def _end_with_parent(alive: int, parent: int) -> None:
    """Ensure that the kernel ends this process as soon as the parent process ends, whatever it is doing.

    Args:
        alive: A pipe whose other end only the parent process has open.
        parent: The id of the parent process.
    """
    with contextlib.suppress(Exception):  # only on Linux, and only if Python was built with ctypes
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if hasattr(fcntl, "F_SETSIG"):
        # The kernel sends the signal when the other end is closed, even while C code holds the GIL.
        fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(alive, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(alive, fcntl.F_SETFL, fcntl.fcntl(alive, fcntl.F_GETFL) | os.O_ASYNC)
    else:
        threading.Thread(target=_exit_at_end_of, args=(alive,), daemon=True).start()
    poll = select.poll()
    poll.register(alive, select.POLLIN)
    if poll.poll(0) or os.getppid() != parent:  # it ended before the signal was requested
        os._exit(0)


def _exit_at_end_of(alive: int) -> None:
    while os.read(alive, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main(connection_fd: int, alive_fd: int, start_fd: int) -> None:
    """Run calls until the parent process closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides
    os.set_inheritable(connection_fd, False)
    os.set_inheritable(alive_fd, False)
    started = StartTime(start_fd)
    os.close(start_fd)
    connection = socket.socket(fileno=connection_fd)
    frames = FrameReader(connection)
    first = frames.read()
    if not first:
        return
    setup: Setup = pickle.loads(first.pop(0)[1])
    _end_with_parent(alive_fd, setup.parent)
    sys.argv[:] = setup.argv
    MAIN_MODULE.set(setup.main_name, setup.main_path)
    reports, calls = _Reports(connection), WorkerCalls(_load)
    received = first
    while True:
        for _, data in received:
            try:
                call, function = calls.load(data)
            except BaseException as error:
                reports.send(REJECTED, remote_error(error))
                continue
            started.set()
            if call.announce:
                reports.send(STARTED)
            calls.run(call, function, reports)
            del call
        received = frames.read()
        if not received:
            return
