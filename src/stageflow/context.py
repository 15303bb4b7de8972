"""The contexts of a run and of an attempt, and functions that annotate the current stage."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence, Set
from contextvars import Context, ContextVar, copy_context
from types import TracebackType
from typing import Any, Protocol, TypeAlias, Unpack
from uuid import UUID

from msgspec import Struct, field
from msgspec.structs import replace

from ._calls import Call, CallSummary
from ._genai import (
    Amount,
    EmbeddingCall,
    LlmCall,
    LlmUsage,
    Retrieval,
    check_keywords,
    embedding_fields,
    retrieval_fields,
)
from ._inputs import StageInputs, Upstream
from ._interrupts import INTERRUPTS
from ._items import ItemAttempt, ItemTally
from ._log import log_safely
from ._log_tail import LOG_CAPTURE, LogTail, StageLogs
from ._numbers import as_number
from ._time import get_clock
from ._value import ValueType
from .budget import Account
from .errors import InvalidArgumentError, StageflowError, describe, invalid_argument
from .schema import MAX_CHILD_RUNS, Items, Worker
from .stages import Artifact, ChildRun, StageKind, StageOutput, StageResult, StageStatus

__all__ = [
    "ContextOfRun",
    "PipelineContext",
    "Recorder",
    "Stage",
    "StageContext",
    "StageInputs",
    "StageReturn",
    "StageRunner",
    "Timer",
    "added",
    "annotate",
    "annotate_run",
    "as_amount",
    "count",
    "current_stage",
    "record_embedding",
    "record_llm",
    "record_retrieval",
    "timer",
]


Id = str | UUID | None

log = logging.getLogger("stageflow.pipeline")

# One lock for all contexts: it is held for a few additions. Reentrant: a signal handler may count as well.
_adding = threading.RLock()


class Recorder(Protocol):
    """Records what a stage adds to its events.

    Attributes:
        account: What the run has spent; None if neither it nor an outer run has a budget.
    """

    account: Account | None

    def custom_event(self, stage: str, attempt: int, number: int, type: str, data: Any) -> None:
        """Emit a custom event, the `number`th of the attempt, with the correlation ids of the run."""
        ...

    def item_ended(self, stage: str, attempt: int, item: ItemAttempt) -> None:
        """Emit `stage.item` for an attempt of an item of a mapped stage."""
        ...

    def annotate_run(self, fields: Mapping[str, Any]) -> None:
        """Set attributes of the run; after its end, amend its event."""
        ...

    def add_to_run(self, amounts: Mapping[str, float]) -> None:
        """Add to numeric attributes of the run; after its end, amend its event."""
        ...

    def non_numeric_amount(self, stage: str, name: str, value: Any) -> None:
        """Count and log an amount that is not a number."""
        ...

    def amend_stage(self, stage: str, attempt: int, fields: Mapping[str, Any]) -> None:
        """Emit attributes that an attempt set after its end."""
        ...

    def traceparent(self, sequence: int, attempt: int) -> str:
        """Return the W3C `traceparent` of an attempt."""
        ...


def added(fields: dict[str, Any], amounts: Mapping[str, float]) -> dict[str, float]:
    """Add each amount to the field of its name, and return the new totals. Replace non-numeric fields.

    Example:
        >>> fields = {"db_ms": 0.1}
        >>> added(fields, {"db_ms": 0.2, "db_count": 1})
        {'db_ms': 0.3, 'db_count': 1}
    """
    totals: dict[str, float] = {}
    for name, amount in amounts.items():
        before = as_number(fields.get(name, 0))
        try:
            total = amount if before is None or type(before) is bool else before + amount
        except OverflowError:  # an integer that is too large for a float
            total = amount
        # Round, so that 0.1 + 0.2 is 0.3; the cost of a token is about 0.000001.
        totals[name] = round(total, 12) if type(total) is float else total
    fields.update(totals)
    return totals


def as_amount(value: Any) -> int | float | None:
    """Return a value as a number that can be added, or None.

    Example:
        >>> [as_amount(value) for value in (2, 0.5, "x", None, float("nan"))]
        [2, 0.5, None, None, None]
    """
    number = as_number(value)
    return int(number) if type(number) is bool else number


class PipelineContext(Struct, metaclass=ValueType, frozen=True, kw_only=True, eq=False, weakref=True):
    """The context of a run. Every field is optional.

    A context is immutable. Each run uses a copy with all fields filled in, so concurrent runs can share one
    context.

    Args:
        pipeline_run_id: Id of the run; default a new UUIDv7. It must be unique: events with the same id are
            deduplicated.
        request_id: Id of the request that the run answers.
        session_id: Id of the session or conversation.
        user_id: Id of the user.
        org_id: Id of the organization.
        service: Name of the service, as in OpenTelemetry's `service.name`.
        topology: Name of the topology; default the name of the pipeline.
        execution_mode: A custom label, such as "practice" or "batch".
        data: The input of the run, which stages read as `ctx.run.data`. A dict is shallow-copied.
        resources: Shared objects such as clients, by name. They are never recorded.
        traceparent: The W3C `traceparent` header of the caller; the run continues its trace.

    Example:
        >>> PipelineContext(user_id="u1", data={"question": "why?"}).data["question"]
        'why?'
    """

    pipeline_run_id: Id = None
    request_id: Id = None
    session_id: Id = None
    user_id: Id = None
    org_id: Id = None
    service: str | None = None
    topology: str | None = None
    execution_mode: str | None = None
    data: Any = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    traceparent: str | None = None

    def with_data(self, data: Any) -> PipelineContext:
        """Return a copy of this context with other data, for another run with the same ids and labels.

        Example:
            >>> PipelineContext(user_id="u1").with_data({"question": "why?"}).user_id
            'u1'
        """
        return replace(self, data=data)


class ContextOfRun(PipelineContext, frozen=True, kw_only=True, eq=False, weakref=True):
    """The context of a run that has started, filled in by the engine, and every copy of it.

    Another run that is started with such a context inherits the labels and ids that the caller set, but gets
    a new `pipeline_run_id`.

    Attributes:
        defaults: Names of the labels that the engine filled in, which another run does not inherit.
    """

    defaults: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        names = PipelineContext.__struct_fields__
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{PipelineContext.__name__}({fields})"


class Timer:
    """A context manager that adds 1 to `NAME_count` and its milliseconds to `NAME_ms` when its block ends.

    A timer is reentrant, and can be shared by tasks and threads. Each block is measured separately; the time
    of a nested block is also part of the outer one.

    Attributes:
        ms: Milliseconds of the block that ended last; 0 before the first one ends.
    """

    __slots__ = ("_add", "_name", "_starts", "ms")

    def __init__(self, name: str, add: Callable[[Mapping[str, float]], None]) -> None:
        self._name = name
        self._add = add
        self._starts: dict[object, list[int]] = {}
        self.ms = 0.0

    def __enter__(self) -> Timer:
        self._starts.setdefault(_current_task_or_thread(), []).append(get_clock().monotonic_ns())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = get_clock().monotonic_ns()
        owner = _current_task_or_thread()
        if owner not in self._starts:  # another task closes the block, for example through an exit stack
            owner = next(iter(self._starts), None)
        if owner is None:
            return
        started = self._starts[owner].pop()
        if not self._starts[owner]:
            del self._starts[owner]
        self.ms = (ended - started) // 1000 / 1000
        self._add({f"{self._name}_count": 1, f"{self._name}_ms": self.ms})


def _current_task_or_thread() -> object:
    """Return the current task, or the id of the current thread if there is no task."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:  # no loop is running in this thread
        return threading.get_ident()


class StageContext:
    """The context of one attempt, passed to `execute(ctx)`: the run, the inputs, and methods to annotate it.

    Attributes:
        run: The `PipelineContext` of the run; its input is `ctx.run.data`.
        stage: Name of the stage.
        kind: Kind of the stage.
        attempt: Number of this attempt, starting at 1; 0 while `when=` is evaluated.
        cancelled: True once the attempt was cancelled. A coroutine also gets a `CancelledError`. A
            synchronous function runs in a thread, which cannot be interrupted: a long-running one should
            check this attribute regularly, and return.
        timed_out: True once the attempt has been cancelled because it exceeded its `timeout` or
            `idle_timeout`.
        abandoned: True once the run no longer waits for this attempt.
        outcome_by: Name of the interceptor that determined the outcome, or None.
        loop_blocked_ms: Milliseconds for which one step of an attempt that has ended blocked the event loop;
            None for 50 or less.
    """

    # Class attributes: creating an attempt that sets none of them takes half the time.
    cancelled = False
    timed_out = False
    abandoned = False
    outcome_by: str | None = None
    loop_blocked_ms: float | None = None
    _artifacts: list[Artifact] | None = None
    _blocked_ns = 0
    _attributes: dict[str, Any] | None = None
    _calls: CallSummary | None = None
    _child_runs: dict[str, ChildRun] | None = None
    _child_runs_total = 0
    _done_callbacks: list[tuple[Context, Callable[[StageResult], object]]] | None = None
    _events_count = 0
    _is_idle = False
    _incomplete_calls = 0
    _inputs: StageInputs | None = None
    _items: ItemTally | None = None
    _log_tail: LogTail | None = None
    _on_abandon: Callable[[], None] | None = None
    _sealed = False
    _stream: Any = None
    _on_worker_change: Callable[[], None] | None = None
    _waits_for_worker = False
    _worker: Worker | None = None
    _worker_began = 0

    def __init__(
        self,
        run: PipelineContext,
        stage: str,
        kind: StageKind,
        attempt: int,
        sequence: int,
        upstream: Upstream,
        recorder: Recorder,
    ) -> None:
        self.run = run
        self.stage = stage
        self.kind = kind
        self.attempt = attempt
        self._sequence = sequence
        self._upstream = upstream
        self._recorder = recorder

    @property
    def inputs(self) -> StageInputs:
        """The outputs of the ancestors of this stage."""
        inputs = self._inputs
        if inputs is None:
            inputs = self._inputs = StageInputs(self._upstream, self.stage, self._sequence)
        return inputs

    @property
    def missing_inputs(self) -> tuple[str, ...]:
        """The keys that were requested from `inputs` and not found, as `stage.key`."""
        return tuple(self._inputs.missing) if self._inputs is not None else ()

    @property
    def traceparent(self) -> str:
        """The W3C `traceparent` header for a call to another service; its spans become children of this one.

        Example:
            await client.post(url, headers={"traceparent": ctx.traceparent})
        """
        return self._recorder.traceparent(self._sequence, self.attempt)

    @property
    def items(self) -> Items | None:
        """The items of a mapped stage so far, without durations; None for other stages."""
        return None if self._items is None else self._items.so_far()

    def send(self, value: Any) -> Awaitable[None]:
        """Send a chunk to the readers of this stage's stream; wait while the buffer of a reader is full.

        The chunks are also collected: if the stage returns None, its value is the collected text, bytes or
        list. A synchronous stage, which runs in a thread, must be a generator function.

        Raises:
            StageflowError: It was called in a thread, or the attempt has ended.

        Example:
            await ctx.send("Hello")
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None or (self._stream is not None and loop is not self._stream.loop):
            raise StageflowError(
                "ctx.send() was called in a thread; it can only be called on the event loop",
                stage=self.stage,
                run_id=str(self.run.pipeline_run_id),
                hint="make the stage a coroutine function, or a generator function that yields its chunks",
            )
        if self._stream is None:
            self._stream = self._upstream.open_stream(self)
        sending: Awaitable[None] = self._stream.send(self, value)
        return sending

    def annotate(self, fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Add fields to the `attributes` of this attempt's `stage.wide` event.

        A later value replaces an earlier one. A value that JSON cannot represent is recorded as its `repr`;
        so is a custom mapping that cannot be read, under `fields`. Fields that a thread or task adds after
        the attempt has ended are emitted immediately, as a `stage.wide.amend` event with the same `event_id`.

        Args:
            fields: Fields whose names contain dots: `{"gen_ai.request.model": "m"}`.
            more: Fields whose names are identifiers.

        Raises:
            InvalidArgumentError: `fields` is not a mapping.

        Example:
            ctx.annotate(cache_hit=True, rows=17)
        """
        if fields is not None:
            more = self._merged("annotate", fields, more)
        if self._attributes is None:
            self._attributes = more
        else:
            self._attributes.update(more)
        # Checked last: fields added concurrently with the end are in the event and in an amendment.
        if self._sealed:
            self._amend(more)

    def count(self, name: str, by: Amount = 1) -> None:
        """Add to a numeric attribute of this attempt and of the run.

        An amount that is not a number is ignored: it is logged, and counted in `stats().coerced_values`. The
        same applies to the amounts of `record_llm`, `record_embedding` and `record_retrieval`.

        Args:
            name: Name of the attribute.
            by: Amount to add; default 1. A number of any type, including those of numpy and `Decimal`.

        Raises:
            InvalidArgumentError: `name` is not a string.

        Example:
            ctx.count("cache.hit")
        """
        self._check_name("count", name, 'count("cache.hit")')
        self._add({name: by})

    def timer(self, name: str) -> Timer:
        """Return a context manager that adds to `NAME_count` and `NAME_ms` of this attempt and of the run.

        Raises:
            InvalidArgumentError: `name` is not a string.

        Example:
            with ctx.timer("db"):
                rows = await database.fetch(query)
        """
        self._check_name("timer", name, 'timer("db")')
        return Timer(name, self._add)

    def annotate_run(self, fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Add fields to the `attributes` of the run's `pipeline.wide` event.

        Fields that are added after the run has ended are emitted immediately, as a `pipeline.wide.amend`
        event.

        Args:
            fields: Fields whose names contain dots, as for `annotate`.
            more: Fields whose names are identifiers.

        Raises:
            InvalidArgumentError: `fields` is not a mapping.

        Example:
            ctx.annotate_run(customer_tier="gold")
        """
        self._recorder.annotate_run(more if fields is None else self._merged("annotate_run", fields, more))

    def record_llm(self, model: str, **usage: Unpack[LlmCall]) -> LlmUsage:
        """Record one call to a language model, with the OpenTelemetry attribute names for generative AI.

        Tokens, cost and time are summed over the calls of this attempt, and over the run. If the number of
        output tokens of a call is still unknown when the attempt ends, `usage_incomplete` is set to true on
        the attempt and the run.

        Args:
            model: Name of the requested model.
            usage: `provider`, `operation` ("chat"), `response_model`, `response_id`, `finish_reason`,
                `input_tokens` (including the cached ones), `output_tokens`, `cached_tokens`,
                `reasoning_tokens`, `cost_usd`, `time_to_first_chunk` (seconds), `temperature`, `max_tokens`.

        Returns:
            The call, whose `update()` replaces values during a stream.

        Raises:
            InvalidArgumentError: A keyword is unknown; the message suggests the closest match.
            BudgetExceededError: The run exceeds its budget; the call is recorded.

        Example:
            ctx.record_llm("m-large", provider="acme", input_tokens=812, output_tokens=96, cost_usd=0.0031)
        """
        self._check_keywords("record_llm", usage, LlmCall)
        call = LlmUsage(model, usage, self._record, self._usage_completed, self._check_budget)
        if not call.is_complete:
            self._usage_started()
        self._check_budget()
        return call

    def _usage_started(self) -> None:
        with _adding:
            self._incomplete_calls += 1

    def _usage_completed(self) -> None:
        with _adding:
            self._incomplete_calls -= 1
            is_complete = not self._incomplete_calls
        if is_complete and self._sealed:
            self.annotate(usage_incomplete=False)

    def record_embedding(self, model: str, **usage: Unpack[EmbeddingCall]) -> None:
        """Record one call that created embeddings.

        Args:
            model: Name of the requested model.
            usage: `provider`, `input_tokens`, `vectors`, `dimensions`, `cost_usd`.

        Raises:
            InvalidArgumentError: A keyword is unknown; the message suggests the closest match.
            BudgetExceededError: The run exceeds its budget; the call is recorded.
        """
        self._check_keywords("record_embedding", usage, EmbeddingCall)
        self._record(*embedding_fields(model, **usage))
        self._check_budget()

    def record_retrieval(self, source: str | None = None, **found: Unpack[Retrieval]) -> None:
        """Record one search for documents.

        Args:
            source: Name of the index, collection or table.
            found: `documents` (their number), `top_k`, `best_score`, `worst_score`.

        Raises:
            InvalidArgumentError: A keyword is unknown; the message suggests the closest match.
        """
        self._check_keywords("record_retrieval", found, Retrieval)
        self._record(*retrieval_fields(source, **found))

    def _merged(self, function: str, fields: Mapping[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**fields, **more}
        except BaseException as error:
            INTERRUPTS.contain(error)
            if not isinstance(fields, Mapping):
                raise self._invalid(
                    function,
                    "fields",
                    fields,
                    "a mapping",
                    f'write {function}(rows=17), or {function}({{"db.rows": 17}}) for names with dots',
                ) from None
            return {"fields": fields, **more}

    def _check_name(self, function: str, name: str, example: str, *, label: str = "name") -> None:
        if not isinstance(name, str):
            raise self._invalid(function, label, name, "a string", f"write {example}")

    def _check_keywords(self, function: str, given: Mapping[str, Any], keywords: Any) -> None:
        check_keywords(function, given, keywords, stage=self.stage, run_id=str(self.run.pipeline_run_id))

    def _invalid(
        self, function: str, name: str, value: object, expected: str, hint: str
    ) -> InvalidArgumentError:
        run_id = str(self.run.pipeline_run_id)
        return invalid_argument(
            f"{function}()", name, value, expected, stage=self.stage, run_id=run_id, hint=hint
        )

    def _record(self, fields: dict[str, Any], added: dict[str, Any]) -> None:
        if fields:
            self.annotate(fields)
        self._add(added)

    def _add(self, amounts: Mapping[str, Any]) -> None:
        amounts = self._as_amounts(amounts)
        with _adding:
            if self._attributes is None:
                self._attributes = {}
            totals = added(self._attributes, amounts)
            sealed = self._sealed
        self._recorder.add_to_run(amounts)
        if sealed:
            self._amend(totals)
        if (account := self._recorder.account) is not None:
            account.add(self._sequence, amounts)

    def _record_call(self, call: Call) -> bool:
        """Add a call to another service to the attributes; return False if the attempt has ended."""
        if self._sealed:
            return False
        amounts = call.amounts()
        with _adding:
            if self._calls is None:
                self._calls = CallSummary()
            if self._attributes is None:
                self._attributes = {}
            changed: dict[str, Any] = {
                **added(self._attributes, amounts),
                **self._calls.add(call),
            }
            self._attributes.update(changed)
            sealed = self._sealed
        self._recorder.add_to_run(amounts)
        if sealed:  # it ended in the meantime: the fields may be missing from its event
            self._amend(changed)
        return True

    def _check_budget(self) -> None:
        account = self._recorder.account
        if account is not None and (error := account.error(self.stage)) is not None:
            self.cancelled = True  # if this is the first step of the attempt, the engine cannot cancel it yet
            raise error

    def _as_amounts(self, amounts: Mapping[str, Any]) -> dict[str, float]:
        numbers = {}
        for name, value in amounts.items():
            number = value if type(value) is int else as_amount(value)
            if number is None:
                self._recorder.non_numeric_amount(self.stage, name, value)
            else:
                numbers[name] = number
        return numbers

    def _amend(self, fields: Mapping[str, Any]) -> None:
        self._recorder.amend_stage(self.stage, self.attempt, fields)

    def add_done_callback(self, callback: Callable[[StageResult], object]) -> None:
        """See `StageCall.add_done_callback`."""
        if self._done_callbacks is None:
            self._done_callbacks = []
        self._done_callbacks.append((copy_context(), callback))

    def report(self, result: StageResult) -> None:
        """Pass the recorded result of the attempt to its callbacks."""
        callbacks, self._done_callbacks = self._done_callbacks or (), None
        for variables, callback in callbacks:
            try:
                variables.run(callback, result)
            except BaseException as error:
                INTERRUPTS.postpone(error)
                log_safely(
                    log, "stage %r: a callback of an interceptor raised %s", self.stage, describe(error)
                )

    def _log(self, level: int, line: str) -> None:
        """Add a formatted line of a log to those of this attempt, and count a warning or an error.

        Args:
            level: Level of the line, as in `logging`.
            line: The line; see `format_line`.
        """
        if LOG_CAPTURE.size:
            (self._log_tail or self._open_log_tail()).add_line(level, line)

    def _open_log_tail(self) -> LogTail:
        # `setdefault` is atomic: two threads of the attempt may log their first lines at the same time.
        tail: LogTail = vars(self).setdefault("_log_tail", LogTail(LOG_CAPTURE.size))
        return tail

    def _logged(self, status: StageStatus) -> StageLogs | None:
        """Return what the attempt logged; with the last lines if it failed, or did not end by itself."""
        if self._log_tail is None:
            return None
        did_not_end = status is StageStatus.CANCEL and self.cancelled
        with_lines = did_not_end or status is StageStatus.FAIL or status is StageStatus.RETRY
        return self._log_tail.summary(with_lines=with_lines)

    def child_run_started(self, run_id: str) -> None:
        """Record that the attempt started a run."""
        if self._child_runs is None:
            self._child_runs = {}
        elif len(self._child_runs) == MAX_CHILD_RUNS:
            self._child_runs.popitem()
        self._child_runs[run_id] = ChildRun(run_id)
        self._child_runs_total += 1

    def child_run_ended(self, child: ChildRun) -> None:
        """Store a run that the attempt started and that has ended, if the run is listed."""
        if self._child_runs is not None and child.run_id in self._child_runs:
            self._child_runs[child.run_id] = child

    def seal(self) -> dict[str, Any]:
        """Return the attributes of this attempt, which has ended. Later attributes amend its event."""
        if self._incomplete_calls:
            self.annotate(usage_incomplete=True)
            self.annotate_run(usage_incomplete=True)
        self._sealed = True
        # A copy: a thread or task that the attempt started may continue to annotate.
        return self._attributes.copy() if self._attributes else {}

    def attributes_so_far(self) -> dict[str, Any]:
        """Return a copy of the attributes of this attempt."""
        return self._attributes.copy() if self._attributes else {}

    def add_artifact(self, type: str, payload: Any = None) -> None:
        """Add an artifact to the result of the attempt; its event contains the number, `artifacts_count`.

        Raises:
            InvalidArgumentError: `type` is not a string.
        """
        self._check_name("add_artifact", type, 'add_artifact("report", payload)')
        if self._artifacts is None:
            self._artifacts = []
        self._artifacts.append(Artifact(type, payload))

    def emit_event(self, type: str, data: Any = None) -> None:
        """Emit a custom event immediately, to the sink of the wide events of the run.

        The event includes the ids of the run and the name of the stage. It is counted in `events_count`.

        Args:
            type: Type of the event, such as "chat.tokens".
            data: Data of the event. A value that is not a mapping is stored under `payload`.

        Raises:
            InvalidArgumentError: `type` is not a string, is empty, or is reserved for the library.
        """
        self._check_name("emit_event", type, 'emit_event("chat.tokens", {"count": 3})', label="type")
        if not type or type.startswith(("stage.wide", "stage.item", "pipeline.wide")):
            raise self._invalid(
                "emit_event",
                "type",
                type,
                "a custom type such as 'chat.tokens'",
                "'stage.wide', 'stage.item' and 'pipeline.wide' are reserved",
            )
        self._events_count += 1
        self._recorder.custom_event(self.stage, self.attempt, self._events_count, type, data)

    def __repr__(self) -> str:
        return f"<StageContext {self.stage!r}, attempt {self.attempt}, run {self.run.pipeline_run_id}>"


current_stage: ContextVar[StageContext | None] = ContextVar("stageflow_stage", default=None)
"""The context of the attempt that the current code belongs to."""


StageReturn: TypeAlias = StageOutput | Mapping[str, Any] | Sequence[Any] | Set[Any] | float | bytes | None
"""The values of a synchronous function that type checkers accept; at run time, a stage can return any value.

Classes are callable, too: if any value were accepted, type checkers would accept every class as a stage.
"""


class Stage(Protocol):
    """The interface of a stage that is a class or an instance.

    The class can define `name` and `kind`; arguments of `with_stage` override them.
    """

    def execute(self, *arguments: Any, **inputs: Any) -> object:
        """Execute the stage. A coroutine runs on the event loop, a synchronous method in a thread.

        The only positional argument is the `StageContext`. Other parameters receive the values of the same
        name that dependencies return.
        """
        ...


StageRunner: TypeAlias = (
    Stage
    | type[Stage]
    | Callable[..., Awaitable[object]]
    | Callable[..., AsyncIterator[object]]
    | Callable[..., Iterator[object]]
    | Callable[..., StageReturn | Awaitable[object]]
)
"""The types of stages that `with_stage` accepts: a class, an instance, or a function."""


def annotate(fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
    """Add fields to the event of the current stage; see `StageContext.annotate`."""
    if (ctx := current_stage.get()) is not None:
        ctx.annotate(fields, **more)


def annotate_run(fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
    """Add fields to the event of the current run; see `StageContext.annotate_run`."""
    if (ctx := current_stage.get()) is not None:
        ctx.annotate_run(fields, **more)


def count(name: str, by: Amount = 1) -> None:
    """Add to a numeric attribute of the current stage and run; see `StageContext.count`."""
    if (ctx := current_stage.get()) is not None:
        ctx.count(name, by)


def timer(name: str) -> Timer:
    """Measure a block of the current stage; see `StageContext.timer`."""
    ctx = current_stage.get()
    return ctx.timer(name) if ctx is not None else Timer(name, lambda amounts: None)


def record_llm(model: str, **usage: Unpack[LlmCall]) -> LlmUsage:
    """Record one call to a language model; see `StageContext.record_llm`. No effect outside a stage."""
    if (ctx := current_stage.get()) is not None:
        return ctx.record_llm(model, **usage)
    return LlmUsage(model, usage, lambda attributes, amounts: None, lambda: None, lambda: None)


def record_embedding(model: str, **usage: Unpack[EmbeddingCall]) -> None:
    """Record one call that created embeddings; see `StageContext.record_embedding`."""
    if (ctx := current_stage.get()) is not None:
        ctx.record_embedding(model, **usage)


def record_retrieval(source: str | None = None, **found: Unpack[Retrieval]) -> None:
    """Record one search for documents; see `StageContext.record_retrieval`."""
    if (ctx := current_stage.get()) is not None:
        ctx.record_retrieval(source, **found)
