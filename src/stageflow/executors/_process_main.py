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
    REJECTED,
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

_PR_SET_PDEATHSIG = 1


class _Unpickler(pickle.Unpickler):
    """Imports the main module of the parent process if an object refers to it."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__":
            MAIN_MODULE.ensure()
        return super().find_class(module, name)


def _load(data: bytes | bytearray) -> Any:
    return _Unpickler(io.BytesIO(data)).load()


class _Reports(PickledReports):
    """Sends messages to the parent process; see `_worker_call.Reports`."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._lock = threading.Lock()
        self.unacknowledged = 0

    def send_pickled(self, tag: int, data: bytes) -> None:
        with self._lock:  # a thread that the function has started may record something
            send_frame(self._connection, tag, data)

    def chunk(self, value: Any) -> None:
        while self.unacknowledged >= WINDOW:
            self._receive_acknowledgements()
        self.send_chunk(value)

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
        self.send_chunk(value)

    def send_chunk(self, value: Any) -> None:
        super().send_chunk(value)
        self.unacknowledged += 1

    def _receive_acknowledgements(self) -> None:
        received = len(self._connection.recv(WINDOW))
        if not received:
            os._exit(0)  # the parent process has ended
        self.unacknowledged -= received

    def returned(self, value: Any, duration_ns: int) -> None:
        self._await_acknowledgements()
        super().returned(value, duration_ns)

    def raised(self, error: BaseException, duration_ns: int) -> None:
        self._await_acknowledgements()
        super().raised(error, duration_ns)

    def _await_acknowledgements(self) -> None:
        # Afterwards, the connection contains nothing but the next call.
        while self.unacknowledged:
            self._receive_acknowledgements()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


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


def main(connection_fd: int, alive_fd: int, start_fd: int) -> None:
    """Run calls until the parent process closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
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
    for name, level in setup.log_levels.items():
        logging.getLogger(name).setLevel(level)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a worker that is killed does not flush its output
    MAIN_MODULE.set(setup.main_name, setup.main_path)
    reports, calls = _Reports(connection), WorkerCalls(_load)
    received = first
    while True:
        for _, data in received:
            try:
                call, function = calls.load(data, reports)
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
