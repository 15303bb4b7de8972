"""`RayExecutor`: runs the functions of stages on a Ray cluster."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from types import FunctionType, MappingProxyType
from typing import Any, ClassVar

from .._fork import reset_in_child
from .._time import get_clock
from ..errors import (
    ClosedError,
    MissingExtraError,
    StageflowError,
    WorkerLostError,
    describe,
    invalid_argument,
    type_name,
)
from ..schema import Worker
from ._executor import Call, Executor, Message, MessageT, Raised, Returned, Started
from ._messages import message_of
from ._pickling import context_variables, pickled_call
from ._protocol import REJECTED, STARTED
from ._remote_error import restored_error

try:
    import ray
    from ray import exceptions
except ImportError as error:
    raise MissingExtraError("RayExecutor", "ray") from error

from . import _ray_main
from ._ray_main import Frame, arguments_of, dumps, frames_in, run_call, stream_call

__all__ = ["RayExecutor"]

_CHECK_SECONDS = 0.5
"""Interval of the checks whether Ray was shut down while calls run; Ray does not report this."""

_CLOSE_SECONDS = 10.0
"""How long `close()` waits for Ray to end the actors."""

_UNREAD_OBJECTS = 2
"""Number of lists of messages that Ray accepts from a worker before this process reads them."""

_LARGE_BYTES = 1 << 18
"""Messages of a stream that are larger than this are restored in a thread."""

_LOST = (
    exceptions.WorkerCrashedError,
    exceptions.RayActorError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.OutOfDiskError,
    exceptions.TaskCancelledError,
    exceptions.RaySystemError,
    exceptions.RpcError,
)

_RESERVED = ("num_cpus", "num_gpus", "resources", "max_retries", "retry_exceptions", "num_returns", "name")
_RESERVED_FOR_ACTORS = ("max_restarts", "max_task_retries", "max_concurrency", "lifetime")


class RayExecutor(Executor):
    """Runs the functions of stages as tasks or in actors of a Ray cluster.

    Ray never repeats a call: if a worker or its node is lost, the attempt fails with `WorkerLostError`, and
    the retry policy of the stage decides. If an attempt is cancelled or exceeds its `timeout`, its worker is
    killed, even in the middle of a C function. What a call records is received when it ends; only generator
    functions, stages whose stream is read, and those with a `timeout` report it as it occurs.

    The first call connects to Ray with `ray.init()`, unless the program has done so. Functions are sent by
    import path, so that the nodes need the same modules; lambdas, nested functions and those of the main
    module are sent by value. The `resources` of the run are not sent.

    Args:
        num_cpus: Number of CPUs that each call (or each actor) reserves.
        num_gpus: Number of GPUs that each call (or each actor) reserves; may be a fraction.
        resources: Custom resources that each call (or each actor) reserves, such as `{"highmem": 1}`.
        actors: Number of actors that run the calls. Each is a process that remains until `close()`, and
            instantiates a stage class once, so that it can load a model in `__init__`. Default: each call is
            a task, in a worker that Ray chooses.
        max_calls: Maximum number of calls of a map that are passed to Ray at the same time, in addition to
            the `max_concurrency` of the map; default no limit or, with actors, their number plus 1.
        context_vars: Context variables whose values are sent with each call, as paths such as
            "app.tenant:current_tenant".
        options: Additional Ray options for the tasks or actors, such as `{"runtime_env": {...}}`.

    Raises:
        InvalidArgumentError: An argument is invalid.
        MissingExtraError: Ray is not installed.

    Example:
        gpu = RayExecutor(num_gpus=1, actors=2)
        pipeline = Pipeline("captions").with_stage("caption", CaptionModel, executor=gpu, timeout=30)
    """

    kind = "ray"
    confirms_calls: ClassVar[bool] = False

    def __init__(
        self,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        actors: int | None = None,
        max_calls: int | None = None,
        context_vars: Iterable[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, count in (("actors", actors), ("max_calls", max_calls)):
            if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
                raise invalid_argument("RayExecutor", name, count, "a positive integer")
        for name, amount in (("num_cpus", num_cpus), ("num_gpus", num_gpus), *(resources or {}).items()):
            if not isinstance(amount, (int, float)) or isinstance(amount, bool) or amount < 0:
                raise invalid_argument("RayExecutor", name, amount, "a non-negative number")
        for name in options or {}:
            if name in _RESERVED or (actors and name in _RESERVED_FOR_ACTORS):
                raise invalid_argument(
                    "RayExecutor", "options", name, "options that RayExecutor does not set itself"
                )
        self.actors = actors
        self.max_calls = max_calls or (actors + 1 if actors else None)
        self._options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": dict(resources or {}),
            **(options or {}),
        }
        self._paths = (context_vars,) if isinstance(context_vars, str) else tuple(context_vars)
        self._variables: Mapping[str, ContextVar[Any]] | None = None
        self._functions: dict[int, tuple[Any, bytes]] = {}
        self._tasks: dict[tuple[str, bool], Any] = {}
        self._sessions: set[_Session] = set()
        self._pool = _Actors(self._options, actors) if actors else None
        self._closed = False

    def problem_of(self, runner: Any) -> str | None:
        try:
            dumps(runner, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            name = getattr(runner, "__qualname__", None) or type_name(runner)
            return (
                f"{name} cannot be sent to a worker: {describe(error)}; pass only values that can be pickled,"
                " and create clients and locks in the worker"
            )
        return None

    @property
    def context_vars(self) -> Mapping[str, ContextVar[Any]]:
        # On first use: the module of a variable may be the one that creates this executor.
        if self._variables is None:
            self._variables = MappingProxyType(context_variables(self._paths))
        return self._variables

    def open(self, call: Call) -> _Session:
        if self._closed:
            raise ClosedError("the RayExecutor is closed", hint="create a new one")
        session = _Session(call, asyncio.get_running_loop(), self)
        _driver().call(partial(self._submit, session))
        return session

    def _submit(self, session: _Session) -> None:
        """Pass a call to Ray; called in the thread of the driver."""
        if session.closed:
            return
        self._sessions.add(session)
        _driver().sessions.add(session)
        try:
            call = session.call
            data = pickled_call(call, self._pickled_function, dumps)
            if not ray.is_initialized():
                ray.init()
            arguments = arguments_of(data, session.opened_ns)
            if self._pool is not None:
                self._pool.submit(session, arguments)
            else:
                session.started(self._task(call).remote(*arguments))
        except BaseException as error:
            session.fail(error)

    def _pickled_function(self, function: Any) -> bytes:
        if not isinstance(function, (FunctionType, type)):
            return dumps(function, pickle.HIGHEST_PROTOCOL)
        known = self._functions.get(id(function))
        if known is None:
            known = self._functions[id(function)] = (
                function,
                dumps(function, pickle.HIGHEST_PROTOCOL),
            )
        return known[1]

    def _task(self, call: Call) -> Any:
        """Return the remote function for calls of a stage."""
        key = (call.context.stage, call.is_live)
        task = self._tasks.get(key)
        if task is None:
            options = {**self._options, "max_retries": 0, "name": call.context.stage}
            if call.is_live:
                options |= {
                    "num_returns": "streaming",
                    "_generator_backpressure_num_objects": _UNREAD_OBJECTS,
                }
            function = ray.remote(stream_call if call.is_live else run_call)
            task = self._tasks[key] = function.options(**options)
        return task

    def ended(self, session: _Session) -> None:
        """Process the end of a call; called in any thread."""
        self._sessions.discard(session)
        if self._pool is not None:
            self._pool.release(session)

    def cancel(self, session: _Session) -> None:
        """Kill the worker of a call, or remove it from the queue; called in the thread of the driver."""
        self._sessions.discard(session)
        reference = session.take_reference()
        if self._pool is not None:
            self._pool.cancel(session)
        elif reference is not None and ray.is_initialized():
            # Without `force`, Ray interrupts the Python code, and a C function that does not return would
            # make the worker ignore every further cancellation.
            with contextlib.suppress(Exception):
                ray.cancel(reference, force=True)

    def close(self) -> None:
        """Kill the actors. Calls that are running fail with `WorkerLostError`.

        The end of the process ends its tasks and actors, too, so calling this method is optional. On an event
        loop, use `aclose()` or `async with`.
        """
        self._closed = True
        done = threading.Event()
        _driver().call(partial(self._close, done))
        done.wait(_CLOSE_SECONDS)

    def _close(self, done: threading.Event) -> None:
        for session in list(self._sessions):
            self.cancel(session)
            session.fail(WorkerLostError("the RayExecutor was closed while the stage was running"))
        if self._pool is not None:
            self._pool.close()
        done.set()

    def __repr__(self) -> str:
        if self.actors is None:
            return "<RayExecutor, tasks>"
        return f"<RayExecutor, {self.actors} actor{'' if self.actors == 1 else 's'}>"


class _Session:
    """A call, the messages from its worker, and the coroutine that receives them; see `Session`.

    Attributes:
        call: The call.
        opened_ns: When it was passed to the executor, in nanoseconds of the system clock.
        closed: True once `close` has been called.
        killed: False; see `kill_item`.
        items_started: 0: it is not known.
        lost: True if its worker was lost.
        worker: The worker that runs the call; its host and process id are None until they are known.
        started_ns: When it started; see `Session`.
    """

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop, executor: RayExecutor) -> None:
        self.call = call
        self.opened_ns = time.time_ns()
        self.closed = False
        self.killed = False
        self.items_started = 0
        self.lost = False
        self.worker: Worker | None = Worker(None, None, RayExecutor.kind, None)
        self.started_ns = 0
        self._executor = executor
        self._loop = loop
        self._clock = get_clock()
        self._opened_at = self._clock.monotonic_ns()
        self._messages: deque[Message] = deque()
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._reference: Any = None
        self._pull: asyncio.Task[None] | None = None
        self._left = len(call.arguments)

    async def receive(self) -> Message:
        while not self._messages:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            if self.call.is_live and self._pull is None and self._reference is not None:
                self._pull = asyncio.Task(self._pull_messages(), loop=self._loop)
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._messages.popleft()

    def receive_now(self, kind: type[MessageT]) -> MessageT | None:
        if not self._messages or type(message := self._messages[0]) is not kind:
            return None
        self._messages.popleft()
        return message

    def acknowledge(self) -> None:
        pass  # Ray accepts more chunks when this process has read the previous ones

    def current_item(self) -> tuple[int, int]:
        raise NotImplementedError  # `confirms_calls` is False

    def kill_item(self, item: int) -> bool | None:
        raise NotImplementedError  # `confirms_calls` is False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self._pull is not None:
                self._pull.cancel()
            if self._left:
                self._left = 0
                _driver().sessions.discard(self)
                _driver().call(partial(self._executor.cancel, self))
            self._error = None

    def take_reference(self) -> Any:
        """Return the reference to the call, and forget it."""
        reference, self._reference = self._reference, None
        return reference

    # ------------------------------------------------------------ in the thread of the driver

    def started(self, reference: Any) -> None:
        """Store the reference of a call that was passed to Ray, or a generator of references."""
        self._reference = reference
        if self.call.is_live:
            self._notify()
        else:
            reference.future().add_done_callback(self._completed)

    def fail(self, error: BaseException) -> None:
        """End the call with this error."""
        self._ended(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._deliver, [], None, error)

    def _ended(self, error: BaseException | None) -> None:
        self._left = 0
        self.lost = isinstance(error, WorkerLostError)
        self._reference = None
        _driver().sessions.discard(self)
        self._executor.ended(self)

    def _notify(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._deliver, [], None, None)

    # ------------------------------------------------------------ in a thread of Ray

    def _completed(self, future: Any) -> None:
        """Process the messages of a call that has ended."""
        if self.closed:
            self._executor.ended(self)
            return
        try:
            messages, worker, error = _decoded(frames_in(future.result()))
        except BaseException as raised:
            messages, worker, error = [], None, _as_error(raised)
        self._left = 0
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._deliver, messages, worker, error)
        self._ended(error)

    # ------------------------------------------------------------ on the event loop

    async def _pull_messages(self) -> None:
        """Receive the next messages of a live call."""
        try:
            frames = frames_in(await (await anext(self._reference)))
            if sum(memoryview(data).nbytes for _, data in frames) > _LARGE_BYTES:
                messages, worker, error = await asyncio.to_thread(_decoded, frames)
            else:
                messages, worker, error = _decoded(frames)
        except asyncio.CancelledError:
            return
        except BaseException as raised:
            messages, worker, error = [], None, _as_error(raised)
        self._pull = None
        self._left -= sum(isinstance(message, (Returned, Raised)) for message in messages)
        if error is not None or not self._left:
            self._ended(error)
        self._deliver(messages, worker, error)

    def _deliver(self, messages: list[Message], worker: Worker | None, error: BaseException | None) -> None:
        if worker is not None:
            self.worker = worker
            if worker.queue_ms is not None:
                waited_ns = int(worker.queue_ms * 1e6)
                self.started_ns = min(self._opened_at + waited_ns, self._clock.monotonic_ns())
            if self.call.announce:
                messages.insert(0, Started())
        self._messages.extend(messages)
        self._error = self._error or error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _decoded(frames: list[Frame]) -> tuple[list[Message], Worker | None, BaseException | None]:
    """Return messages of a worker, the worker if they contain it, and the error if it rejected the call."""
    messages: list[Message] = []
    worker = None
    for tag, data in frames:
        if tag == STARTED:
            host, process_id, queue_ms = pickle.loads(data)
            worker = Worker(host, process_id, RayExecutor.kind, queue_ms)
        elif tag == REJECTED:
            return messages, worker, restored_error(*pickle.loads(data))
        else:
            messages.append(message_of(tag, data))
    return messages, worker, None


def _as_error(error: BaseException) -> BaseException:
    """Return the error of a call for an exception of Ray."""
    if isinstance(error, exceptions.RayTaskError) and not isinstance(error, exceptions.TaskCancelledError):
        cause = getattr(error, "cause", None) or error
        problem = StageflowError(
            f"the Ray worker could not run the stage: {describe(cause)}",
            hint="install the same versions of Python, Ray and stageflow on all nodes",
        )
        problem.__cause__ = error
        return problem
    if not isinstance(error, (*_LOST, StopAsyncIteration)):
        return error
    text, hint = "the Ray worker was lost while running the stage", None
    if isinstance(error, exceptions.TaskCancelledError):
        text = "the Ray task was cancelled from outside the run"
    elif isinstance(error, exceptions.OutOfMemoryError):
        text = "Ray killed the worker of the stage because its node ran out of memory"
        hint = 'reserve more resources per call: `RayExecutor(num_cpus=2)` or `options={"memory": ...}`'
    elif isinstance(error, exceptions.NodeDiedError):
        text = "the node of the Ray worker was lost while the stage was running"
    elif isinstance(error, exceptions.RayActorError):
        text = "the Ray actor died while running the stage"
    elif isinstance(error, exceptions.ObjectLostError):
        text = "the value of the stage was lost with the node that stored it"
    lost = WorkerLostError(text, hint=hint)
    lost.__cause__ = error
    return lost


class _Actors:
    """The actors of an executor; all methods except `release` are called in the thread of the driver.

    Args:
        options: Options of the actors.
        size: Maximum number of actors.
    """

    def __init__(self, options: Mapping[str, Any], size: int) -> None:
        self._options = options
        self._size = size
        self._count = 0
        self._idle: list[Any] = []
        self._busy: dict[_Session, Any] = {}
        self._waiting: deque[tuple[_Session, tuple[Any, ...]]] = deque()

    def submit(self, session: _Session, arguments: tuple[Any, ...]) -> None:
        """Pass a call to an actor; if all are busy and there are `size` of them, queue it."""
        self._waiting.append((session, arguments))
        self._start_waiting()

    def _start_waiting(self) -> None:
        while self._waiting and (self._idle or self._count < self._size):
            session, arguments = self._waiting.popleft()
            if session.closed or session.lost:
                continue
            try:
                session.started(self._start(session, arguments))
            except BaseException as error:
                session.fail(error)

    def _start(self, session: _Session, arguments: tuple[Any, ...]) -> Any:
        while True:
            is_new = not self._idle
            actor = self._new() if is_new else self._idle.pop()
            method = actor.run_call
            if session.call.is_live:
                method = actor.stream_call.options(
                    num_returns="streaming", _generator_backpressure_num_objects=_UNREAD_OBJECTS
                )
            try:
                reference = method.remote(*arguments)
            except Exception:
                self._count -= 1
                if is_new:
                    raise
                continue  # the actor belongs to an earlier Ray session
            self._busy[session] = actor
            return reference

    def _new(self) -> Any:
        options = {**self._options, "max_restarts": 0, "max_task_retries": 0}
        self._count += 1
        return ray.remote(_ray_main.Worker).options(**options).remote()

    def release(self, session: _Session) -> None:
        """Release the actor of a call that has ended; called in any thread."""
        actor = self._busy.pop(session, None)
        if actor is None:
            return
        if session.lost:
            _driver().call(self._discard)
            return
        self._idle.append(actor)
        if self._waiting:
            _driver().call(self._start_waiting)

    def _discard(self) -> None:
        """Remove an actor that has ended."""
        self._count -= 1
        self._start_waiting()

    def cancel(self, session: _Session) -> None:
        """Kill the actor that runs the call."""
        actor = self._busy.pop(session, None)
        if actor is not None:
            _kill(actor)
            self._discard()

    def close(self) -> None:
        """Kill all actors."""
        for actor in (*self._idle, *self._busy.values()):
            _kill(actor)
        self._idle.clear()
        self._busy.clear()
        self._waiting.clear()


def _kill(actor: Any) -> None:
    if ray.is_initialized():
        with contextlib.suppress(Exception):
            ray.kill(actor)


class _Driver(threading.Thread):
    """The thread that calls Ray: many functions of Ray block, for example while an object store is full.

    It never ends: on Linux, the kernel stops a local cluster when the thread that started it ends.

    Attributes:
        sessions: The calls that are running.
    """

    def __init__(self) -> None:
        super().__init__(name="stageflow-ray", daemon=True)
        self.sessions: set[_Session] = set()
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def call(self, function: Callable[[], None]) -> None:
        """Call a function in this thread."""
        self._queue.put(function)

    def run(self) -> None:
        checked = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                function = self._queue.get(timeout=_CHECK_SECONDS if self.sessions else None)
                with contextlib.suppress(Exception):
                    function()
                del function
            if time.monotonic() - checked > _CHECK_SECONDS:
                self._check()
                checked = time.monotonic()

    def _check(self) -> None:
        """Fail the running calls if Ray was shut down."""
        if self.sessions and not ray.is_initialized():
            for session in list(self.sessions):
                session.fail(WorkerLostError("Ray was shut down while the stage was running"))


_lock = threading.Lock()
_drivers: list[_Driver] = []


def _driver() -> _Driver:
    """Return the thread that calls Ray; start it if necessary."""
    with _lock:
        if not _drivers:
            _drivers.append(_Driver())
            _drivers[0].start()
        return _drivers[0]


@reset_in_child
def _forget_driver() -> None:
    global _lock
    _lock = threading.Lock()
    _drivers.clear()
