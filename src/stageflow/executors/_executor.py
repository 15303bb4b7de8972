"""The interface between a stage and the place where its function runs outside this process."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Protocol, Self, TypeVar

from msgspec import Struct

from ..schema import Worker

__all__ = [
    "Call",
    "Chunk",
    "Executor",
    "Message",
    "MessageT",
    "Raised",
    "Recorded",
    "Returned",
    "Session",
    "StageCallContext",
    "Started",
    "open_calls",
]


class StageCallContext(Struct, frozen=True, array_like=True):
    """The parts of a `StageContext` that are sent to a worker.

    Attributes:
        pipeline: Name of the pipeline.
        run_id: Id of the run.
        stage: Name of the stage.
        kind: Kind of the stage.
        attempts: The attempt number of each call, starting at 1.
        traceparent: The W3C `traceparent` of the attempt of the stage.
        run: The fields of the `PipelineContext` except `resources`; without `data` if the function takes no
            context.
        dependencies: The output of each dependency: status, data, error, reason, and the returned value
            unless it is the data. Empty if the function takes no context.
    """

    pipeline: str
    run_id: str
    stage: str
    kind: str
    attempts: tuple[int, ...]
    traceparent: str
    run: Mapping[str, Any]
    dependencies: Mapping[str, tuple[Any, ...]]


class Call(Struct, frozen=True):
    """One call of the function of a stage, or several calls of the function of a map, one for each item.

    Attributes:
        function: The function, instance or class; in a worker, in pickled form.
        is_generator: Whether it is a generator function, whose values are sent as chunks.
        takes_context: Whether the function is called with a `StageContext`.
        context: The context of the stage.
        arguments: The positional arguments of each call, in order.
        keywords: The keyword arguments of each call.
        variables: The values of context variables, by "module:name".
        announce: Whether to send `Started` when the calls start on a worker.
        is_live: Whether messages must be delivered as they occur. Otherwise, an executor may deliver all of
            them after the calls have ended.
    """

    function: Any
    is_generator: bool
    takes_context: bool
    context: StageCallContext
    arguments: tuple[tuple[Any, ...], ...]
    keywords: Mapping[str, Any]
    variables: Mapping[str, Any]
    announce: bool
    is_live: bool


class Started(Struct, frozen=True):
    """The message that the calls have started on a worker."""


class Recorded(Struct, frozen=True):
    """A call of a context method by the function, such as `annotate`; the parent process repeats it."""

    method: str
    arguments: tuple[Any, ...]


class Chunk(Struct, frozen=True):
    """A chunk that the function sent; the parent process confirms it with `Session.acknowledge`."""

    value: Any


class Returned(Struct, frozen=True):
    """The value that a call returned, and its duration in nanoseconds."""

    value: Any
    duration_ns: int


class Raised(Struct, frozen=True):
    """The exception that a call raised, and its duration in nanoseconds."""

    error: BaseException
    duration_ns: int


Message = Started | Recorded | Chunk | Returned | Raised
MessageT = TypeVar("MessageT", bound=Message)


class OpenCalls:
    """Counts the calls that were passed to executors and have not been closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self, change: int) -> None:
        """Add to the count."""
        with self._lock:
            self.count += change


open_calls = OpenCalls()


class Session(Protocol):
    """A `Call` that was passed to an executor, and the messages from its worker."""

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            WorkerLostError: The worker ended before it returned all values. Further calls raise it again.
        """
        ...

    def receive_now(self, kind: type[MessageT]) -> MessageT | None:
        """Return the next message if it has arrived and is of this type, otherwise None."""
        ...

    def acknowledge(self) -> None:
        """Confirm a chunk: the worker may send another one."""
        ...

    def current_item(self) -> tuple[int, int]:
        """Return the number of the item that the worker is running, and its duration so far in nanoseconds.

        The first item has the number 1. Before it, and after the end of the worker, both are 0. Called only
        for executors with `confirms_calls`.
        """
        ...

    def kill_item(self, item: int) -> bool | None:
        """Kill the worker if it is still running the item with this number.

        `receive` then returns the messages that the worker has sent, and after them raises `WorkerLostError`.
        Returns False if the item has ended, and None if this is not known yet and the method must be called
        again. Called only for executors with `confirms_calls`.
        """
        ...

    def close(self) -> None:
        """End the call; if it is still running, stop its worker."""
        ...

    @property
    def items_started(self) -> int:
        """After the loss of the worker, the number of items that it has started; 0 if it is not known."""
        ...

    @property
    def killed(self) -> bool:
        """True once `kill_item` has killed the worker."""
        ...

    @property
    def worker(self) -> Worker | None:
        """The worker of the call; None until it is known."""
        ...

    @property
    def started_ns(self) -> int:
        """When the calls started on the worker, in monotonic nanoseconds of `get_clock()`; 0 if unknown."""
        ...


class Executor(ABC):
    """Runs the functions of stages in other processes.

    Pass an instance as `executor=` to `with_stage`, `with_map`, `Flow.add` or `Flow.map`.

    Attributes:
        kind: Name of the kind of worker, as recorded in the field `worker.kind`.
        max_calls: Maximum number of calls of a map that are passed to the executor at the same time; None for
            no such limit.
        confirms_calls: Whether all outcomes that a worker sent are received before its loss is reported.
            If so, only the first call without an outcome can have started. Otherwise, a map cannot determine
            which calls have run, and fails the items of all calls without an outcome.
    """

    kind: ClassVar[str]
    confirms_calls: ClassVar[bool] = False
    max_calls: int | None = None

    @abstractmethod
    def problem_of(self, runner: Any) -> str | None:
        """Return why a runner cannot be sent to a worker, or None."""

    @abstractmethod
    def open(self, call: Call) -> Session:
        """Start a call, on the running event loop.

        Raises:
            ClosedError: The executor is closed.
        """

    @property
    def context_vars(self) -> Mapping[str, ContextVar[Any]]:
        """The context variables whose values are sent with each call, by "module:name"."""
        return MappingProxyType({})

    @abstractmethod
    def close(self) -> None:
        """Stop all workers, and wait until they end. Running calls fail with `WorkerLostError`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """Call `close()` in a thread, so that it does not block the event loop."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
