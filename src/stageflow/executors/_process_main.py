"""The main function of a worker process of `ProcessExecutor`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import logging
import os
import pickle
import select
import signal
import socket
import sys
import threading
from typing import Any

from ._main_module import MAIN_MODULE
from ._messages import PickledReports
from ._protocol import (
    RAISED,
    REJECTED,
    RETURNED,
    STARTED,
    WINDOW,
    CallProgress,
    FrameReader,
    Setup,
    send_frame,
)
from ._remote_error import remote_error
from ._worker_call import WorkerCalls

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


class _Unpickler(pickle.Unpickler):
    """Imports the main module of the parent process if an object refers to it."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__":
            MAIN_MODULE.ensure()
        return super().find_class(module, name)


def _load(data: bytes | bytearray) -> Any:
    return _Unpickler(io.BytesIO(data)).load()


class _Connection:
    """The connection of this worker to the parent process.

    Args:
        endpoint: The socket.
    """

    def __init__(self, endpoint: socket.socket) -> None:
        self.socket = endpoint
        self._lock = threading.Lock()
        self._process = os.getpid()
        # The parent process must notice the end of this process although a child that it forked continues.
        os.register_at_fork(after_in_child=endpoint.close)

    @property
    def is_forked(self) -> bool:
        """True in a child that the function has forked, which is not part of the record."""
        return os.getpid() != self._process

    def send(self, tag: int, call: int, data: bytes) -> None:
        """Send a message."""
        with self._lock:  # a thread that the function has started may record something
            send_frame(self.socket, tag, call, data)


class _Reports(PickledReports):
    """Sends the messages of one call to the parent process; see `_worker_call.Reports`.

    Args:
        connection: The connection to the parent process.
        progress: Where to store the progress of the call.
        call: The number of the call.
    """

    def __init__(self, connection: _Connection, progress: CallProgress, call: int) -> None:
        super().__init__()
        self._connection = connection
        self._progress = progress
        self._call = call
        self._unacknowledged = 0
        self._readable: asyncio.Future[None] | None = None

    def send_pickled(self, tag: int, data: bytes) -> None:
        if self._connection.is_forked:
            if tag in (RETURNED, RAISED):
                os._exit(tag == RAISED)  # the function has returned in the child as well
            return
        self._connection.send(tag, self._call, data)

    def call_started(self) -> None:
        self._progress.item_started()

    def chunk(self, value: Any) -> None:
        while self._unacknowledged >= WINDOW:
            self._receive_acknowledgements()
        self.send_chunk(value)

    async def chunk_async(self, value: Any) -> None:
        while self._unacknowledged >= WINDOW:
            loop = asyncio.get_running_loop()
            if self._readable is None:  # several tasks may wait
                self._readable = loop.create_future()
                loop.add_reader(self._connection.socket, self._has_acknowledgements, loop)
            await asyncio.shield(self._readable)
        self.send_chunk(value)

    def _has_acknowledgements(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._connection.socket)
        self._receive_acknowledgements()
        if self._readable is not None:
            self._readable.set_result(None)
            self._readable = None

    def send_chunk(self, value: Any) -> None:
        super().send_chunk(value)
        self._unacknowledged += 1

    def _receive_acknowledgements(self) -> None:
        received = len(self._connection.socket.recv(WINDOW))
        if not received:
            os._exit(0)  # the parent process has ended
        self._unacknowledged -= received

    def returned(self, value: Any, duration_ns: int) -> None:
        self._await_acknowledgements()
        super().returned(value, duration_ns)

    def raised(self, error: BaseException, duration_ns: int) -> None:
        self._await_acknowledgements()
        super().raised(error, duration_ns)

    def _await_acknowledgements(self) -> None:
        # Afterwards, the connection contains nothing but the next call.
        if self._readable is not None:
            loop = self._readable.get_loop()
            loop.remove_reader(self._connection.socket)
            self._readable = None
        while self._unacknowledged and not self._connection.is_forked:
            self._receive_acknowledgements()


def _end_with_parent(alive: int, parent: int) -> None:
    """Ensure that the kernel ends this process as soon as the parent process ends, whatever it is doing.

    Args:
        alive: A pipe whose other end is open only in the parent process.
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
    if poll.poll(0) or os.getppid() != parent:  # the parent ended before the signal was requested
        os._exit(0)


def _exit_at_end_of(alive: int) -> None:
    while os.read(alive, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main(connection_fd: int, alive_fd: int, progress_fd: int) -> None:
    """Run calls until the parent process closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    os.set_inheritable(connection_fd, False)
    os.set_inheritable(alive_fd, False)
    progress = CallProgress(progress_fd)
    os.close(progress_fd)
    connection = _Connection(socket.socket(fileno=connection_fd))
    frames = FrameReader(connection.socket)
    first = frames.read()
    if not first:
        return
    setup: Setup = pickle.loads(first.pop(0)[2])
    _end_with_parent(alive_fd, setup.parent)
    sys.argv[:] = setup.argv
    for name, level in setup.log_levels.items():
        logging.getLogger(name).setLevel(level)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a worker that is killed does not flush its output
    MAIN_MODULE.set(setup.main_name, setup.main_path)
    calls = WorkerCalls(_load)
    received = first
    while True:
        for _, number, data in received:
            reports = _Reports(connection, progress, number)
            try:
                call, function = calls.load(data, reports)
            except BaseException as error:
                reports.send(REJECTED, remote_error(error))
                continue
            progress.call_started()
            if call.announce:
                reports.send(STARTED)
            calls.run(call, function, reports)
            del call, data
        del received
        received = frames.read()
        if not received:
            return
