"""Runs a `Call` in a worker, and reports everything that its function does as messages."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextvars import Context, copy_context
from logging import LogRecord
from time import perf_counter_ns
from types import FunctionType
from typing import Any, NoReturn, Protocol

from msgspec import UNSET

from .._activation import activate
from .._calls import Call as ServiceCall
from .._items import ItemAttempt
from .._log_tail import FORMATTING, LOG_CAPTURE, LogTail, format_record, is_internal_logger
from ..budget import Account
from ..context import PipelineContext, StageContext, current_stage
from ..errors import (
    InputError,
    SerializationError,
    StageflowError,
    StageOutputError,
    as_text,
    describe,
    type_name,
)
from ..stages import ChunkIterator, StageKind, StageResult, StageStatus
from ._executor import Call, StageCallContext
from ._pickling import context_variables

__all__ = ["Reports", "WorkerCalls"]


class Reports(Protocol):
    """Sends the messages of a worker to the parent process; see `_executor.Message`."""

    def call_started(self) -> None:
        """A call starts; called before each of them."""
        ...

    def recorded(self, method: str, arguments: tuple[Any, ...]) -> None: ...

    def chunk(self, value: Any) -> None:
        """Send a chunk; wait until the parent process can accept it."""
        ...

    async def chunk_async(self, value: Any) -> None:
        """Send a chunk; wait, without blocking the event loop, until the parent process can accept it."""
        ...

    def returned(self, value: Any, duration_ns: int) -> None: ...

    def raised(self, error: BaseException, duration_ns: int) -> None: ...


_MAX_INSTANCES = 4
"""Maximum number of instances and partial functions that a worker keeps."""


class WorkerCalls:
    """The calls of one worker: its functions, its instances of stage classes and its event loop.

    A class is instantiated once per worker, so that it can load a model in `__init__`.

    Args:
        load: Restores a pickled object.
    """

    def __init__(self, load: Callable[[bytes | bytearray], Any] = pickle.loads) -> None:
        self._load = load
        LOG_CAPTURE.install(current_stage.get)
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._instances: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()
        self._runner: asyncio.Runner | None = None

    def load(self, data: bytes | bytearray, reports: Reports) -> tuple[Call, Callable[..., Any]]:
        """Restore a pickled call, and return it with its function.

        Raises:
            SerializationError: A value of the call cannot be restored.
            BaseException: The module of the function cannot be imported, or its class instantiated.
        """
        try:
            call = self._load(data)
        except StageflowError:
            raise
        except Exception as error:
            raise SerializationError(
                f"the worker cannot restore the inputs of the stage: {describe(error)}",
                hint="define the classes of the values at the top level of modules that it can import",
            ) from error

        def function() -> Callable[..., Any]:
            # What the module or the class records and logs belongs to the stage, too.
            activate(WorkerContext(call.context, call.context.attempts[0], reports))
            return self._function(call.function)

        return call, copy_context().run(function)

    def run(self, call: Call, function: Callable[..., Any], reports: Reports) -> None:
        """Call the function for each item of `call.arguments`, and report the outcome of each call."""
        for number, arguments in enumerate(call.arguments):
            reports.call_started()
            variables = copy_context()
            began = perf_counter_ns()
            try:
                value = variables.run(_start, call, function, number, arguments, reports)
                if inspect.iscoroutine(value):
                    value = self._run_loop(value, variables)
            except BaseException as error:
                reports.raised(error, perf_counter_ns() - began)
                del error
            else:
                reports.returned(value, perf_counter_ns() - began)
                del value

    def _function(self, pickled: bytes) -> Callable[..., Any]:
        function = self._functions.get(pickled) or self._instances.get(pickled)
        if function is None:
            runner = self._load(pickled)
            by_path = isinstance(runner, (type, FunctionType))
            if isinstance(runner, type):
                runner = runner()
            execute = getattr(runner, "execute", None)
            function = execute if callable(execute) else runner
            if by_path:
                self._functions[pickled] = function
            else:  # sent by value: a program may send any number of them
                self._instances[pickled] = function
                if len(self._instances) > _MAX_INSTANCES:
                    self._instances.popitem(last=False)
        assert function is not None
        return function

    def _run_loop(self, awaitable: Coroutine[Any, Any, Any], variables: Context) -> Any:
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(awaitable, context=variables)


def _start(
    call: Call, function: Callable[..., Any], number: int, arguments: tuple[Any, ...], reports: Reports
) -> Any:
    """Call the function, and return its value, or a coroutine that returns it."""
    if call.variables:
        for path, variable in context_variables(call.variables).items():
            variable.set(call.variables[path])
    ctx = WorkerContext(call.context, call.context.attempts[number], reports)
    activate(ctx)
    given = (ctx, *arguments) if call.takes_context else arguments
    result = function(*given, **call.keywords)
    if call.is_generator and inspect.isasyncgen(result):
        result = _send_all_async(result, reports)
    if inspect.isawaitable(result):
        return _awaited(result, ctx)
    try:
        return _send_all(result, ctx) if call.is_generator else result
    finally:
        ctx.report_missing()


async def _awaited(awaitable: Awaitable[Any], ctx: WorkerContext) -> Any:
    """Await a value; then cancel the tasks that it left running, as `asyncio.run` does at its end."""
    try:
        return await awaitable
    finally:
        ctx.report_missing()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.gather(*left, return_exceptions=True)


def _send_all(values: Any, ctx: WorkerContext) -> None:
    """Send the values of a generator function as chunks, including a `StageOutput`."""
    returned = None
    try:
        while True:
            try:
                value = next(values)
            except StopIteration as stop:
                returned = stop.value
                break
            ctx.reports.chunk(value)
    finally:
        values.close()
    if returned is not None:
        raise StageOutputError(
            f"a generator stage cannot return a value, but it returned one of type {type_name(returned)}",
            stage=ctx.stage,
            hint="yield the output last, as in `yield StageOutput.ok(answer=42)`",
        )


async def _send_all_async(values: Any, reports: Reports) -> None:
    try:
        async for value in values:
            await reports.chunk_async(value)
    finally:
        await values.aclose()


class _Resources(Mapping[str, Any]):
    """The `resources` of a run in a worker: an empty mapping whose lookups raise `StageflowError`."""

    def __getitem__(self, name: str) -> NoReturn:
        raise StageflowError(
            f"ctx.run.resources[{name!r}] is not available in a worker: resources are not sent to it",
            hint="create the client in the worker, for example in `__init__` of a stage that is a class",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Upstream:
    """The outputs of the dependencies of a stage, as sent with its call."""

    def __init__(self, sent: StageCallContext) -> None:
        self.pipeline_name = sent.pipeline
        self.run_id = sent.run_id
        self._stage = sent.stage
        self._results = {
            name: StageResult(
                name,
                StageStatus(status),
                data,
                error,
                reason=reason,
                returned=returned[0] if returned else UNSET,
            )
            for name, (status, data, error, reason, *returned) in sent.dependencies.items()
        }

    def ancestor(self, reader: int, stage: str) -> StageResult | None:
        found = self._results.get(stage)
        if found is None:
            raise InputError(
                f"the output of {stage!r} was not sent to the worker, which receives only the outputs of"
                " the dependencies of the stage",
                pipeline=self.pipeline_name,
                stage=self._stage,
                run_id=self.run_id,
                hint=f"add {stage!r} to the dependencies of {self._stage!r}",
            )
        return found

    def ancestors(self, reader: int) -> Collection[str]:
        return self._results.keys()

    def is_running(self, stage: str) -> bool:
        return False

    def stream(self, reader: int, stage: str) -> ChunkIterator[Any]:
        raise InputError(f"a stage with an executor cannot read the stream of {stage!r}", stage=self._stage)

    def has_reader(self, sender: int) -> NoReturn:
        raise NotImplementedError  # the parent process reads the streams

    def open_stream(self, ctx: Any) -> NoReturn:
        raise NotImplementedError  # `WorkerContext.send` does not use it


class _Recorder:
    """Reports what the function records about its run and its stage."""

    account: Account | None = None

    def __init__(self, reports: Reports, traceparent: str) -> None:
        self._reports = reports
        self._traceparent = traceparent

    def custom_event(self, stage: str, attempt: int, number: int, type: str, data: Any) -> None:
        self._reports.recorded("emit_event", (type, data))

    def item_ended(self, stage: str, attempt: int, item: ItemAttempt) -> None:
        raise NotImplementedError  # a map runs in the parent process

    def annotate_run(self, fields: Mapping[str, Any]) -> None:
        self._reports.recorded("annotate_run", (fields,))

    def add_to_run(self, amounts: Mapping[str, float]) -> None:
        raise NotImplementedError  # the parent process adds to its run

    def non_numeric_amount(self, stage: str, name: str, value: Any) -> None:
        self._reports.recorded("count", (name, as_text(value)))

    def amend_stage(self, stage: str, attempt: int, fields: Mapping[str, Any]) -> None:
        raise NotImplementedError  # the parent process amends its events

    def traceparent(self, sequence: int, attempt: int) -> str:
        return self._traceparent


class _ReportedLog(LogTail):
    """Reports each line that the function logs, so that it is in the event even if the worker is killed."""

    __slots__ = ("_reports",)

    def __init__(self, reports: Reports) -> None:
        super().__init__(0)
        self._reports = reports

    def add(self, record: LogRecord) -> None:
        if not FORMATTING.active and not is_internal_logger(record.name):
            self.add_line(record.levelno, format_record(record))

    def add_line(self, level: int, line: str) -> None:
        self._reports.recorded("_log", (level, line))


class WorkerContext(StageContext):
    """The context of a call in a worker. The parent process repeats what it records.

    Attributes:
        reports: Sends what it records to the parent process.
    """

    def __init__(self, sent: StageCallContext, attempt: int, reports: Reports) -> None:
        run = PipelineContext(**sent.run, resources=_Resources())
        super().__init__(
            run,
            sent.stage,
            StageKind(sent.kind),
            attempt,
            0,
            _Upstream(sent),
            _Recorder(reports, sent.traceparent),
        )
        self.reports = reports

    def report_missing(self) -> None:
        """Report the keys that were requested from `inputs` and not found."""
        if self.missing_inputs:
            self.reports.recorded("add_missing", (self.missing_inputs,))

    def annotate(self, fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        self.reports.recorded(
            "annotate", (more if fields is None else self._merged("annotate", fields, more),)
        )

    def _add(self, amounts: Mapping[str, Any]) -> None:
        self.reports.recorded("_add", (self._as_amounts(amounts),))

    def _record_call(self, call: ServiceCall) -> bool:
        self.reports.recorded("_record_call", (call,))
        return True

    def _usage_started(self) -> None:
        self.reports.recorded("_usage_started", ())

    def _usage_completed(self) -> None:
        self.reports.recorded("_usage_completed", ())

    def add_artifact(self, type: str, payload: Any = None) -> None:
        self._check_name("add_artifact", type, 'add_artifact("report", payload)')
        self.reports.recorded("add_artifact", (type, payload))

    def child_run_started(self, run_id: str) -> None:
        self.reports.recorded("child_run_started", (run_id,))

    def _open_log_tail(self) -> LogTail:
        self._log_tail = _ReportedLog(self.reports)
        return self._log_tail

    def send(self, value: Any) -> Awaitable[None]:
        return self.reports.chunk_async(value)
