"""`ProcessExecutor`: runs the functions of stages in worker processes on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import pickle
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal

from .._cpython import interpreter_arguments
from .._fork import reset_in_child
from .._time import get_clock
from ..errors import ClosedError, WorkerLostError, invalid_argument
from ..schema import Worker
from ._executor import (
    Call,
    Executor,
    Message,
    MessageT,
    Started,
)
from ._main_module import MAIN_MODULE
from ._messages import message_of
from ._pickling import context_variables, function_problem, pickled_call
from ._protocol import RAISED, REJECTED, RETURNED, STARTED, CallProgress, FrameReader, Setup, send_frame
from ._remote_error import restored_error

__all__ = ["ProcessExecutor"]

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from stageflow.executors._process_main import main; main(*map(int, sys.argv[1].split()))"
)
"""The program of a worker. Its arguments are file descriptors and the import path of this process."""

_MAX_STARTS = 3
"""Maximum number of workers that are started for one call, if each ends before the call starts."""

_CLOSE_SECONDS = 2.0
"""How long `close()` waits for an idle worker to end."""

_CHECK_SECONDS = 0.05
"""How often to check whether a call has started, if there is a `start_timeout`."""

_END_SECONDS = 0.2
"""How long to wait for the exit code of a worker that has closed its connection."""


class ProcessExecutor(Executor):
    """Runs the functions of stages in worker processes, which use all cores and can be stopped at any time.

    A worker starts when a call needs it, and then executes one call after another. Each call runs alone in
    its worker: a crash affects only that call, which fails with `WorkerLostError`. If an attempt is cancelled
    or exceeds its `timeout`, its worker is killed, even in the middle of a C function. Workers never outlive
    this process, even if it is killed.

    A worker imports the function by its module and name. Inputs and values are pickled. The `resources` of
    the run are not sent.

    Args:
        workers: Maximum number of worker processes; default the number of available CPUs.
        max_tasks_per_worker: Number of calls after which a worker is replaced, for functions that leak
            memory; default no limit. The items of one batch of a map count as one call.
        start_timeout: Maximum time in seconds that a worker may take to start, to import the function and to
            instantiate its class, which `timeout` does not include; default no limit.
        context_vars: Context variables whose values are sent with each call, as paths such as
            "app.tenant:current_tenant".

    Raises:
        InvalidArgumentError: An argument is invalid.

    Example:
        processes = ProcessExecutor(workers=4)
        pipeline = Pipeline("report").with_stage("parse", parse, executor=processes, timeout=30)
    """

    kind = "process"
    confirms_calls = True

    def __init__(
        self,
        workers: int | None = None,
        *,
        max_tasks_per_worker: int | None = None,
        start_timeout: float | None = None,
        context_vars: Iterable[str] = (),
    ) -> None:
        for name, number in (("workers", workers), ("max_tasks_per_worker", max_tasks_per_worker)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise invalid_argument("ProcessExecutor", name, number, "a positive integer")
        if start_timeout is not None and not (
            isinstance(start_timeout, (int, float)) and 0 < start_timeout < math.inf
        ):
            raise invalid_argument("ProcessExecutor", "start_timeout", start_timeout, "more than 0 seconds")
        self.workers = workers or _available_cpus()
        self.start_timeout = start_timeout
        self.max_tasks_per_worker = max_tasks_per_worker
        self.max_calls = self.workers + 1  # another call is queued, so that no worker is idle
        self._paths = (context_vars,) if isinstance(context_vars, str) else tuple(context_vars)
        self._variables: Mapping[str, ContextVar[Any]] | None = None
        self._pool: _Pool | None = None
        self._closed = False
        self._lock = threading.Lock()

    def problem_of(self, runner: Any) -> str | None:
        return function_problem(runner)

    @property
    def context_vars(self) -> Mapping[str, ContextVar[Any]]:
        # On first use: the module of a variable may be the one that creates this executor.
        if self._variables is None:
            self._variables = MappingProxyType(context_variables(self._paths))
        return self._variables

    def open(self, call: Call) -> _Session:
        if MAIN_MODULE.importing:
            raise SystemExit("a stage was started while a worker imported the main module of the program")
        with self._lock:
            if self._closed:
                raise ClosedError("the ProcessExecutor is closed", hint="create a new one")
            pool = self._pool
            if pool is None or pool.process_id != os.getpid():  # a forked child starts its own workers
                pool = self._pool = _Pool(self.workers, self.max_tasks_per_worker, self.start_timeout)
        session = _Session(call, asyncio.get_running_loop())
        pool.submit(session)
        return session

    def close(self) -> None:
        """Stop all workers, and wait until they end. Running calls fail with `WorkerLostError`.

        The end of the process stops its workers, too, so calling this method is optional. On an event loop,
        use `aclose()` or `async with`.
        """
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None and pool.process_id == os.getpid():
            pool.close()

    def __repr__(self) -> str:
        return f"<ProcessExecutor, {self.workers} worker{'' if self.workers == 1 else 's'}>"


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Session:
    """A call, the messages from its worker, and the coroutine that receives them; see `Session`.

    Attributes:
        call: The call.
        opened_ns: When it was passed to the executor, in nanoseconds of `time.monotonic_ns`.
        closed: True once `close` has been called.
        killed: See `Session`.
        slot: The slot that runs the call, or None.
        worker: The worker that runs the call, or None.
        started_ns: When it started; see `Session`.
        items_started: See `Session`.
    """

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.opened_ns = time.monotonic_ns()
        self.closed = False
        self.killed = False
        self.slot: _Slot | None = None
        self.worker: Worker | None = None
        self.started_ns = 0
        self.items_started = 0
        self._loop = loop
        self._clock = get_clock()
        self._messages: deque[Message | BaseException] = deque()
        self._waiter: asyncio.Future[None] | None = None

    async def receive(self) -> Message:
        while not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._messages.popleft()
        if isinstance(message, BaseException):
            try:
                raise message
            finally:
                del message  # avoid a reference cycle with this frame
        return message

    def receive_now(self, kind: type[MessageT]) -> MessageT | None:
        if not self._messages or type(message := self._messages[0]) is not kind:
            return None
        self._messages.popleft()
        return message

    def started(self, at_ns: int, host: str, process_id: int) -> None:
        """Record that the call started on a worker at `at_ns`, a time of `time.monotonic_ns`."""
        self.started_ns = self._clock.monotonic_ns() - (time.monotonic_ns() - at_ns)
        self.worker = Worker(host, process_id, ProcessExecutor.kind, (at_ns - self.opened_ns) // 1000 / 1000)

    def acknowledge(self) -> None:
        slot = self.slot
        if slot is not None:
            slot.acknowledge(self)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            slot = self.slot
            if slot is not None:
                slot.kill(self)

    def current_item(self) -> tuple[int, int]:
        return (0, 0) if self.slot is None else self.slot.current_item(self)

    def kill_item(self, item: int) -> bool | None:
        if self.slot is None:
            return False
        killed = self.slot.kill_item(self, item)
        self.killed = self.killed or killed is True
        return killed

    def deliver(self, messages: list[Message | BaseException]) -> None:
        """Pass messages to the coroutine; called in the thread of the slot."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._deliver, messages)

    def _deliver(self, messages: list[Message | BaseException]) -> None:
        self._messages.extend(messages)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Pool:
    """The workers of an executor in one process."""

    def __init__(self, size: int, max_tasks: int | None, start_timeout: float | None) -> None:
        self.process_id = os.getpid()
        self.host = socket.gethostname()
        self.max_tasks = max_tasks
        self.start_timeout = start_timeout
        self._size = size
        self._slots: list[_Slot] = []
        self._lock = threading.Lock()
        # Either all slots are busy, and calls may be waiting, or no call is waiting.
        self._waiting: deque[_Session] = deque()
        self._idle = 0
        self._assigned: queue.SimpleQueue[_Session | None] = queue.SimpleQueue()
        self._closed = False
        _pools.add(self)

    def submit(self, session: _Session) -> None:
        """Assign a call to an idle slot, or to a new one; if all are busy, queue it."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._assigned.put(session)
                return
            if self._closed:
                raise ClosedError("the ProcessExecutor is closed", hint="create a new one")
            self._waiting.append(session)
            if len(self._slots) == self._size:
                return
            slot = _Slot(self)
            try:
                slot.start()
            except RuntimeError:  # no thread can be started; another slot runs the call later
                if not self._slots:
                    self._waiting.remove(session)
                    raise
            else:
                self._slots.append(slot)

    def next(self) -> _Session | None:
        """Wait for the next call; None means that the pool is closed."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                return None
            self._idle += 1
        return self._assigned.get()

    def close(self) -> None:
        """End all slots and their workers."""
        with self._lock:
            self._closed = True
            for _ in range(self._idle):
                self._assigned.put(None)
            self._idle = 0
            slots = list(self._slots)
        for slot in slots:
            slot.stop()
        for slot in slots:
            slot.join()

    def forget(self) -> None:
        """Close the connections to the workers in a forked child, which must not keep them open."""
        for slot in self._slots:
            slot.forget()


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()


@reset_in_child
def _forget_pools() -> None:
    for pool in list(_pools):
        pool.forget()
    _pools.clear()


_Outcome = Literal["completed", "started", "unstarted"]
"""Whether a worker has completed a call, or has ended after or before the call started."""


class _Slot(threading.Thread):
    """A thread that passes one call after another to its worker process, and receives the messages.

    On Linux, the kernel kills a worker when the thread that started it ends, so each worker has its own
    thread.
    """

    def __init__(self, pool: _Pool) -> None:
        super().__init__(name="stageflow-process", daemon=True)
        self._pool = pool
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._process: _Process | None = None
        self._stopping = False

    def run(self) -> None:
        while (session := self._pool.next()) is not None:
            try:
                self._run(session)
            except BaseException as error:
                # The connection may contain further messages of the call: the worker cannot be used again.
                with self._lock:
                    process, self._process = self._process, None
                    self._session = None
                if process is not None:
                    process.end()
                session.deliver([error])
            with self._lock:
                self._session = None
            del session
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _run(self, session: _Session) -> None:
        """Run a call on the worker, or on a new one if the worker ends before the call has started."""
        try:
            data = pickled_call(session.call)
        except BaseException as error:  # also an error of an object of the application
            session.deliver([error])
            return
        for number in range(1, _MAX_STARTS + 1):
            with self._lock:
                if session.closed:
                    return
                if self._stopping:
                    session.deliver([ClosedError("the ProcessExecutor was closed before it ran the stage")])
                    return
                self._session, session.slot = session, self
                process = self._process
            if process is None:
                process = _Process()
                with self._lock:
                    self._process = process
                    if session.closed or self._stopping:
                        process.kill()
            outcome = self._exchange(process, session, data)
            if outcome == "completed":
                process.completed += 1
                if process.completed != self._pool.max_tasks:
                    return
            with self._lock:
                self._session = self._process = None
            exit_code = process.close() if outcome == "completed" else process.end()
            if outcome == "completed" or session.closed:
                return
            if outcome == "started" or number == _MAX_STARTS or self._stopping:
                session.deliver([_lost(exit_code, has_started=outcome == "started")])
                return

    def _exchange(self, process: _Process, session: _Session, data: bytes) -> _Outcome:
        """Send a call, and pass its messages to the session until it has completed or the worker ends."""
        process.calls += 1
        process.progress.clear()
        try:
            send_frame(process.connection, 0, process.calls, data)
        except OSError:  # the worker ended while it was idle
            return "unstarted"
        seconds = self._pool.start_timeout
        if seconds is not None and not process.starts_within(seconds):
            process.kill()
            raise WorkerLostError(
                f"the worker process did not start, import the function and instantiate its class"
                f" within the start_timeout of {seconds:g} s"
            )
        left = len(session.call.arguments)
        while left:
            frames = process.frames.read()
            if session.worker is None and (started_ns := process.progress.started_ns):
                session.started(started_ns, self._pool.host, process.id)
            if not frames:
                session.items_started, _ = process.progress.current_item()
                return "unstarted" if session.worker is None else "started"
            messages: list[Message | BaseException] = []
            for tag, number, content in frames:
                if number != process.calls:
                    pass  # a thread of an earlier call has sent it; its stage has ended
                elif tag == STARTED:
                    messages.append(Started())
                elif tag == REJECTED:
                    (rejection,) = pickle.loads(content)
                    messages.append(restored_error(rejection))
                    left = 0
                else:
                    messages.append(message_of(tag, content))
                    left -= tag in (RETURNED, RAISED)
            if not left:
                with self._lock:  # before `deliver`, so that closing the session does not kill the worker
                    self._session = None
            session.deliver(messages)
        return "completed"

    def current_item(self, session: _Session) -> tuple[int, int]:
        """See `Session.current_item`."""
        with self._lock:
            if self._session is not session or self._process is None:
                return 0, 0
            item, since = self._process.progress.current_item()
            return item, time.monotonic_ns() - since if item else 0

    def kill_item(self, session: _Session, item: int) -> bool | None:
        """See `Session.kill_item`."""
        with self._lock:
            process = self._process
            if self._session is not session or process is None:
                return False
            if not process.suspend():
                return None
            if process.progress.current_item()[0] != item:
                process.resume()
                return False
            process.kill()
            return True

    def kill(self, session: _Session) -> None:
        """Kill the worker if it is running this call; called in the thread of the event loop."""
        with self._lock:
            if self._session is session and self._process is not None:
                self._process.kill()

    def stop(self) -> None:
        """End the worker: an idle one by closing its connection, a busy one by killing it."""
        with self._lock:
            self._stopping = True
            if self._session is not None and self._process is not None:
                self._process.kill()

    def acknowledge(self, session: _Session) -> None:
        """Send an acknowledgement of a chunk to the worker."""
        with self._lock:
            if self._session is session and self._process is not None:
                with contextlib.suppress(OSError):  # the worker has ended
                    self._process.connection.sendmsg([b"\0"], [], socket.MSG_DONTWAIT)

    def forget(self) -> None:
        """Close the connection in a forked child, which must not kill the worker either."""
        self._lock = threading.Lock()  # a thread of the parent process may have held it
        process, self._process = self._process, None
        if process is not None:
            process.disconnect()


class _Process:
    """One worker process.

    Attributes:
        id: Its process id, which is also the id of its process group.
        connection: The socket for calls and messages.
        frames: Reads its messages.
        progress: The progress of its current call.
        calls: Number of calls that it has received.
        completed: Number of calls that it has completed.
    """

    def __init__(self) -> None:
        import multiprocessing.spawn  # on first use: this takes several milliseconds

        # `theirs` are closed in this process in any case, `ours` only if the process cannot be started.
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            self.connection, connection = socket.socketpair()
            ours.callback(self.connection.close)
            theirs.callback(connection.close)
            alive, self._alive = os.pipe()
            ours.callback(os.close, self._alive)
            theirs.callback(os.close, alive)
            progress = CallProgress.create_file()
            theirs.callback(os.close, progress)
            self.progress = CallProgress(progress)
            ours.callback(self.progress.close)
            fds = (connection.fileno(), alive, progress)
            self._popen = subprocess.Popen(
                [
                    multiprocessing.spawn.get_executable() or sys.executable,
                    *interpreter_arguments(),
                    "-c",
                    _START,
                    " ".join(map(str, fds)),
                    json.dumps([entry for entry in sys.path if isinstance(entry, str)]),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                # A separate group: Ctrl-C reaches only the parent process, and `kill` ends the processes that
                # the function has started, too.
                process_group=0,
            )
            ours.pop_all()
        self.id = self._popen.pid
        self.frames = FrameReader(self.connection)
        self.calls = self.completed = 0
        main = sys.modules["__main__"]
        name = getattr(getattr(main, "__spec__", None), "name", None)
        path = getattr(main, "__file__", None)
        if (
            name == "__main__" and path is not None
        ):  # a directory or a zip archive that contains `__main__.py`
            name, path = None, os.path.dirname(path)
        setup = Setup(
            os.getpid(),
            sys.argv,
            name,
            None if path is None else os.path.abspath(path),
            _log_levels(),
        )
        with contextlib.suppress(OSError):  # it ended; `end` returns the exit code
            send_frame(self.connection, 0, 0, pickle.dumps(setup))

    def starts_within(self, seconds: float) -> bool:
        """Wait until the process has started the call, has sent a message, or has ended."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        deadline = time.monotonic() + seconds
        while not self.progress.started_ns:
            if (left := deadline - time.monotonic()) <= 0:
                return False
            if poll.poll(min(left, _CHECK_SECONDS) * 1000):
                return True
        return True

    def suspend(self) -> bool:
        """Suspend the process; return whether it no longer runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.id, signal.SIGSTOP)
        options = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
        try:
            return os.waitid(os.P_PID, self.id, options) is not None
        except ChildProcessError:
            return True

    def resume(self) -> None:
        """Continue a suspended process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.id, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process and those that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.id, signal.SIGKILL)

    def end(self) -> int | None:
        """Kill the process, and return its exit code: its own if it had already ended, otherwise -9."""
        return self._reap(_END_SECONDS)

    def close(self) -> int | None:
        """End an idle process, and return its exit code."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        return self._reap(_CLOSE_SECONDS)

    def _reap(self, seconds: float) -> int | None:
        """Return the exit code of the process; kill it if it does not end within this number of seconds.

        The exit code is None if the program ignores SIGCHLD, or if it has waited for the process itself.
        """
        deadline = time.monotonic() + seconds
        try:
            while os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.001)
        except ChildProcessError:
            self._popen.wait()
            self.disconnect()
            return None
        self.kill()  # before the process is reaped: afterwards, its id may belong to another group
        exit_code = self._popen.wait()
        self.disconnect()
        return exit_code

    def disconnect(self) -> None:
        """Close the connection, and the pipe whose closing informs the worker that its parent ended."""
        self.connection.close()
        self.progress.close()
        with contextlib.suppress(OSError):
            os.close(self._alive)


def _log_levels() -> dict[str, int]:
    """Return the level of the root logger, and those of the loggers that have one."""
    loggers = logging.root.manager.loggerDict.copy().items()
    levels = {name: each.level for name, each in loggers if isinstance(each, logging.Logger) and each.level}
    return {"": logging.root.level, **levels}


def _lost(exit_code: int | None, *, has_started: bool) -> WorkerLostError:
    """Return the error of a call whose worker has ended."""
    if exit_code is None:
        how = "ended"
    elif exit_code >= 0:
        how = f"exited with code {exit_code}"
    else:
        try:
            how = f"was killed by {signal.Signals(-exit_code).name}"
        except ValueError:
            how = f"was killed by signal {-exit_code}"
    if has_started:
        text, hint = "while running the stage", None
        if exit_code == -signal.SIGKILL:
            hint = "the operating system kills processes when memory runs out; see `dmesg`"
    else:
        text = f"before it could run the stage, {_MAX_STARTS} times in a row"
        hint = "its output on stderr shows why, for example an error during the import of a module"
    error = WorkerLostError(f"the worker process {how} {text}", hint=hint)
    error.exit_code = exit_code
    return error
