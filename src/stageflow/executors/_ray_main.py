"""The code that `RayExecutor` runs in the workers of a Ray cluster."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from ray import cloudpickle

from ._messages import PickledReports
from ._protocol import CHUNK, REJECTED, STARTED
from ._remote_error import remote_error
from ._worker_call import WorkerCalls

__all__ = [
    "Data",
    "Frame",
    "Frames",
    "Worker",
    "arguments_of",
    "dumps",
    "frames_in",
    "run_call",
    "stream_call",
]

Data = bytes | pickle.PickleBuffer | memoryview
"""Pickled data as Ray transfers it: large data in a buffer, which Ray does not copy."""

Frame = tuple[int, Data]
"""The tag and the pickled form of a message."""

Frames = bytes | list[Frame]
"""Messages as Ray transfers them: a single object of bytes, which is faster, if all of them are small."""

# cloudpickle can pickle functions and classes by value, such as those of the main module.
dumps: Callable[[Any, int], bytes] = cloudpickle.dumps  # pyright: ignore[reportPrivateImportUsage]

_LARGE_BYTES = 1 << 16

_WINDOW = 16
"""Maximum number of chunks that wait in a worker until Ray accepts them."""

_TIME_BYTES = 8

_HOST = socket.gethostname()
_CALLS = WorkerCalls(cloudpickle.loads)


def arguments_of(data: bytes, opened_ns: int) -> tuple[Any, ...]:
    """Return the arguments of `run_call`: for small data, a single one, which is faster.

    Args:
        data: A call in pickled form.
        opened_ns: When it was passed to the executor, in nanoseconds of the system clock.
    """
    if len(data) > _LARGE_BYTES:
        return pickle.PickleBuffer(data), opened_ns
    return (data + opened_ns.to_bytes(_TIME_BYTES),)  # bytes after the end of a pickle are ignored


def frames_in(frames: Frames) -> list[Frame]:
    """Return the messages that a worker has returned."""
    return pickle.loads(frames) if isinstance(frames, bytes) else frames


class _Frames(PickledReports):
    """Collects the messages of a worker; see `_worker_call.Reports`."""

    def __init__(self) -> None:
        super().__init__(dumps)
        self.frames: list[Frame] = []
        self._are_small = True

    def send_pickled(self, tag: int, data: bytes) -> None:
        is_small = len(data) <= _LARGE_BYTES
        self._are_small &= is_small
        self.frames.append((tag, data if is_small else pickle.PickleBuffer(data)))

    def take(self) -> Frames:
        """Return the messages so far, and forget them."""
        frames, self.frames = self.frames, []
        are_small, self._are_small = self._are_small, True
        return pickle.dumps(frames, pickle.HIGHEST_PROTOCOL) if are_small else frames

    def call_started(self) -> None:
        pass  # its messages are received when it ends

    def chunk(self, value: Any) -> None:
        self.send_chunk(value)

    async def chunk_async(self, value: Any) -> None:
        self.send_chunk(value)

    def raised(self, error: BaseException, duration_ns: int) -> None:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise error  # Ray stops this worker
        super().raised(error, duration_ns)

    def started(self, data: Data, opened_ns: int | None) -> None:
        """Report the start of a call; see `arguments_of`."""
        if opened_ns is None:
            opened_ns = int.from_bytes(memoryview(data)[-_TIME_BYTES:])
        waited_ns = time.time_ns() - opened_ns
        # Negative if the clock of this machine is behind that of the other one.
        queue_ms = waited_ns // 1000 / 1000 if waited_ns >= 0 else None
        self.send(STARTED, _HOST, os.getpid(), queue_ms)

    def run(self, data: Data) -> None:
        """Run a call."""
        try:
            call, function = _CALLS.load(cast("bytes", data), self)  # a buffer is accepted, too
        except BaseException as error:
            if isinstance(error, ModuleNotFoundError):
                error.add_note(
                    'hint: `ray.init(runtime_env={"working_dir": "."})` sends the modules of this directory'
                )
            self.send(REJECTED, remote_error(error, dumps=dumps))
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

    def wait(self) -> bool:
        """Wait for messages, or for the end of the call; return whether there are messages."""
        with self._changed:
            self._changed.wait_for(lambda: self.frames or self._has_ended)
            return bool(self.frames)

    def take(self) -> Frames:
        with self._changed:
            self._chunks = 0
            self._changed.notify_all()
            return super().take()


def run_call(data: Data, opened_ns: int | None = None) -> Frames:
    """Run a call, and return all of its messages."""
    reports = _Frames()
    reports.started(data, opened_ns)
    reports.run(data)
    return reports.take()


def stream_call(data: Data, opened_ns: int | None = None) -> Iterator[Frames]:
    """Run a call, and yield its messages as they occur."""
    reports = _LiveFrames()
    reports.started(data, opened_ns)
    yield reports.take()
    # Start the call after the first message: a C function could prevent this thread from sending it.
    thread = threading.Thread(target=reports.run, args=(data,), name="stageflow-ray", daemon=True)
    thread.start()
    while reports.wait():
        yield reports.take()
    if reports.interrupt is not None:
        raise reports.interrupt


class Worker:
    """An actor that runs one call after another; it keeps the instances of stage classes."""

    def run_call(self, data: Data, opened_ns: int | None = None) -> Frames:
        """Run a call, and return all of its messages."""
        return run_call(data, opened_ns)

    def stream_call(self, data: Data, opened_ns: int | None = None) -> Iterator[Frames]:
        """Run a call, and yield its messages as they occur."""
        yield from stream_call(data, opened_ns)
