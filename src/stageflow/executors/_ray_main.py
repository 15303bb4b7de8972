"""What `RayExecutor` runs in the workers of a Ray cluster."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from ray import cloudpickle

from ._messages import PickledReports
from ._protocol import CHUNK, REJECTED, STARTED
from ._remote_error import remote_error
from ._worker_call import WorkerCalls

__all__ = ["Data", "Frame", "Worker", "packed", "run_call", "stream_call"]

Data = bytes | pickle.PickleBuffer | memoryview
"""Pickled data as Ray transfers it: large data in a buffer, which Ray does not copy."""

Frame = tuple[int, Data]
"""The tag and the pickled form of a message."""

_LARGE_BYTES = 1 << 16

_WINDOW = 16
"""Maximum number of chunks that wait in a worker until Ray accepts them."""

_HOST = socket.gethostname()
_CALLS = WorkerCalls(cloudpickle.loads)


def packed(data: bytes) -> Data:
    """Return data as it is passed to Ray."""
    return pickle.PickleBuffer(data) if len(data) > _LARGE_BYTES else data


class _Frames(PickledReports):
    """Collects the messages of a worker; see `_worker_call.Reports`."""

    def __init__(self) -> None:
        super().__init__(cloudpickle.dumps)
        self.frames: list[Frame] = []

    def send_pickled(self, tag: int, data: bytes) -> None:
        self.frames.append((tag, packed(data)))

    def chunk(self, value: Any) -> None:
        self.send_chunk(value)

    async def chunk_async(self, value: Any) -> None:
        self.send_chunk(value)

    def raised(self, error: BaseException, duration_ns: int) -> None:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise error  # Ray stops this worker
        super().raised(error, duration_ns)

    def started(self, opened_ns: int) -> None:
        """Report the start of a call that was passed to the executor at this time of the system clock."""
        waited_ns = time.time_ns() - opened_ns
        # Negative if the clocks of the two machines differ.
        queue_ms = waited_ns // 1000 / 1000 if waited_ns >= 0 else None
        self.send(STARTED, _HOST, os.getpid(), queue_ms)

    def run(self, data: Data) -> None:
        """Run a call."""
        try:
            call, function = _CALLS.load(data)  # type: ignore[arg-type]  # a buffer is accepted, too
        except BaseException as error:
            if isinstance(error, ModuleNotFoundError):
                error.add_note(
                    'hint: `ray.init(runtime_env={"working_dir": "."})` sends the modules of this directory'
                )
            self.send(REJECTED, remote_error(error, dumps=cloudpickle.dumps))
        else:
            _CALLS.run(call, function, self)


class _LiveFrames(_Frames):
    """Passes the messages on while the call runs in another thread.

    Attributes:
        interrupt: The `SystemExit` or `KeyboardInterrupt` that has ended the call, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._chunks = 0
        self._has_ended = False
        self.interrupt: BaseException | None = None

    def send_pickled(self, tag: int, data: bytes) -> None:
        with self._changed:
            super().send_pickled(tag, data)
            self._chunks += tag == CHUNK
            self._changed.notify_all()

    def _wait_for_room(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._chunks < _WINDOW)

    def chunk(self, value: Any) -> None:
        self._wait_for_room()
        self.send_chunk(value)

    async def chunk_async(self, value: Any) -> None:
        while self._chunks >= _WINDOW:
            await asyncio.to_thread(self._wait_for_room)
        self.send_chunk(value)

    def run(self, data: Data) -> None:
        try:
            super().run(data)
        except BaseException as error:
            self.interrupt = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def take(self) -> list[Frame]:
        """Wait for messages; an empty list means that the call has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self.frames or self._has_ended)
            frames, self.frames = self.frames, []
            self._chunks = 0
            self._changed.notify_all()
        return frames


def run_call(data: Data, opened_ns: int) -> list[Frame]:
    """Run a call, and return all of its messages."""
    reports = _Frames()
    reports.started(opened_ns)
    reports.run(data)
    return reports.frames


def stream_call(data: Data, opened_ns: int) -> Iterator[list[Frame]]:
    """Run a call, and yield its messages as they occur."""
    reports = _LiveFrames()
    reports.started(opened_ns)
    yield reports.take()
    # Only now: a C function could prevent this thread from sending the message.
    thread = threading.Thread(target=reports.run, args=(data,), name="stageflow-ray", daemon=True)
    thread.start()
    while frames := reports.take():
        yield frames
    if reports.interrupt is not None:
        raise reports.interrupt


class Worker:
    """An actor that runs one call after another; it keeps the instances of stage classes."""

    def run_call(self, data: Data, opened_ns: int) -> list[Frame]:
        """Run a call, and return all of its messages."""
        return run_call(data, opened_ns)

    def stream_call(self, data: Data, opened_ns: int) -> Iterator[list[Frame]]:
        """Run a call, and yield its messages as they occur."""
        yield from stream_call(data, opened_ns)
