"""The context of a run and of a stage: input, dependencies, attributes, measurements."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, ContextVar, copy_context
from types import TracebackType
from typing import Any, Protocol, TypeAlias, Unpack
from uuid import UUID

from msgspec import Struct, field
from msgspec.structs import replace

from ._genai import Amount, EmbeddingCall, LlmCall, Retrieval, embedding_fields, llm_fields, retrieval_fields
from ._inputs import StageInputs, Upstream
from ._interrupts import INTERRUPTS
from ._log import log_safely
from ._numbers import as_number
from ._time import get_clock
from ._value import ValueType
from .errors import InvalidArgumentError, describe, did_you_mean, type_name
from .stages import Artifact, StageKind, StageOutput, StageResult

__all__ = [
    "ContextOfRun",
    "PipelineContext",
    "Recorder",
    "Stage",
    "StageContext",
    "StageInputs",
    "StageLogFilter",
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


class Recorder(Protocol):
    """Takes what stages say beyond their result."""

    def custom_event(self, stage: str, attempt: int, number: int, type: str, data: Any) -> None:
        """Send an event of the stage's own, the `number`th of this attempt, correlated with its run."""
        ...

    def annotate_run(self, fields: Mapping[str, Any]) -> None:
        """Set fields of the run; after its end, amend its event."""
        ...

    def add_to_run(self, amounts: Mapping[str, float]) -> None:
        """Add to numbers of the run; after its end, amend its event."""
        ...

    def non_numeric_amount(self, stage: str, name: str, value: Any) -> None:
        """Note that something was to be added up that is no number."""
        ...

    def amend_stage(self, stage: str, attempt: int, fields: Mapping[str, Any]) -> None:
        """Send what an attempt said after its end."""
        ...

    def traceparent(self, sequence: int, attempt: int) -> str:
        """Return the W3C `traceparent` of an attempt."""
        ...


def added(fields: dict[str, Any], amounts: Mapping[str, float]) -> dict[str, float]:
    """Add each amount to the field of its name, and return the new totals. What was no number gives way.

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
        except OverflowError:  # a whole number that no float can hold
            total = amount
        # To the millionth: 0.1 + 0.2 is 0.3 for who reads it.
        totals[name] = round(total, 6) if type(total) is float else total
    fields.update(totals)
    return totals


def as_amount(value: Any) -> int | float | None:
    """Return a value as a number that can be added up, or None.

    Example:
        >>> [as_amount(value) for value in (2, 0.5, "x", None, float("nan"))]
        [2, 0.5, None, None, None]
    """
    number = as_number(value)
    return int(number) if type(number) is bool else number


Id = str | UUID | None


class PipelineContext(Struct, metaclass=ValueType, frozen=True, kw_only=True, eq=False, weakref=True):
    """The context of a run. Every field is optional.

    A context is immutable. Each run works on a copy with all fields filled in, so concurrent runs can share
    one context.

    Args:
        pipeline_run_id: Id of the run; a UUIDv7 is made where there is none. Give one only if no
            other run has it: events with the same id count once.
        request_id: Id of the request that the run answers.
        session_id: Id of the session or conversation.
        user_id: Id of the user.
        org_id: Id of the organisation.
        service: Name of the service, as in OpenTelemetry's `service.name`.
        topology: Which pipeline this is; default: the pipeline's name.
        execution_mode: A label of your own, for "practice", "batch" and the like.
        data: The input of the run, read by stages as `ctx.run.data`. A dict is copied, one level deep.
        resources: Shared clients and the like, by name. They are never recorded.
        traceparent: The W3C `traceparent` header of the caller, to continue its trace.

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

    A run started with such a context inherits the labels and ids that the caller set, but gets its own
    `pipeline_run_id`.

    Attributes:
        defaults: Names of the labels that the engine filled in: another run gets its own.
    """

    defaults: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        names = PipelineContext.__struct_fields__
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{PipelineContext.__name__}({fields})"


class Timer:
    """Adds 1 to `NAME_count` and the milliseconds to `NAME_ms` when its block ends, however it does.

    It may be entered again while it is open: in its own block, by other tasks and by other threads.
    Each block counts for itself, with all of its time.

    Attributes:
        ms: Milliseconds that the block that ended last took; 0 before one has ended.
    """

    __slots__ = ("_add", "_began", "_name", "ms")

    def __init__(self, name: str, add: Callable[[Mapping[str, float]], None]) -> None:
        self._name = name
        self._add = add
        self._began: dict[object, list[int]] = {}
        self.ms = 0.0

    def __enter__(self) -> Timer:
        self._began.setdefault(_whoever_asks(), []).append(get_clock().monotonic_ns())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = get_clock().monotonic_ns()
        who = _whoever_asks()
        if who not in self._began:  # an exit stack, say, that another task closes
            who = next(iter(self._began), None)
        if who is None:
            return
        began = self._began[who].pop()
        if not self._began[who]:
            del self._began[who]
        self.ms = (ended - began) // 1000 / 1000
        self._add({f"{self._name}_count": 1, f"{self._name}_ms": self.ms})


def _whoever_asks() -> object:
    """Return the task at hand, or the thread where there is none."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:  # no loop runs here
        return threading.get_ident()


log = logging.getLogger("stageflow.pipeline")

# One for all: it is held for some additions. Reentrant: a signal handler may count as well.
_adding = threading.RLock()


class StageContext:
    """Handed to `execute(ctx)`: the run, the inputs, and ways to add to the record.

    Attributes:
        run: The run's own `PipelineContext`; its input is `ctx.run.data`.
        stage: Name of the stage.
        kind: Kind of the stage.
        attempt: Number of this attempt, counted from 1; 0 while `when=` is asked.
        cancelled: True once the attempt was told to end. A coroutine gets `CancelledError`; a
            plain function runs in a thread, which nothing can interrupt: a long one should
            look here now and then, and return.
        timed_out: True once the attempt was told to end because its `timeout` had passed.
        abandoned: True once the run no longer waits for this attempt.
        outcome_by: Name of the interceptor that made the outcome, where one did.
        loop_blocked_ms: Milliseconds for which one step of an attempt that has ended blocked the event loop;
            None for at most 50.
    """

    # Class attributes: creating an attempt that sets none of them takes half the time.
    cancelled = False
    timed_out = False
    abandoned = False
    outcome_by: str | None = None
    loop_blocked_ms: float | None = None
    _artifacts: list[Artifact] | None = None
    _attributes: dict[str, Any] | None = None
    _done_callbacks: list[tuple[Context, Callable[[StageResult], object]]] | None = None
    _events_count = 0
    _inputs: StageInputs | None = None
    _sealed = False

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
        """What the stages before this one gave."""
        inputs = self._inputs
        if inputs is None:
            inputs = self._inputs = StageInputs(self._upstream, self.stage, self._sequence)
        return inputs

    @property
    def missing_inputs(self) -> tuple[str, ...]:
        """What was asked of `inputs` and not found, as `stage.key`."""
        return tuple(self._inputs.missing) if self._inputs is not None else ()

    @property
    def traceparent(self) -> str:
        """The W3C `traceparent` header for a call to another service, whose spans are then children of this.

        Example:
            await client.post(url, headers={"traceparent": ctx.traceparent})
        """
        return self._recorder.traceparent(self._sequence, self.attempt)

    def annotate(self, fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Add fields to the `attributes` of this attempt's `stage.wide` event.

        A later value replaces an earlier one. A value that JSON cannot carry is recorded by its
        `repr`; so is a mapping of your own that cannot be read, under `fields`. What comes after
        the attempt has ended, from a thread or a task that it left behind, goes out at once as a
        `stage.wide.amend` event of the same `event_id`.

        Args:
            fields: Names with dots, `{"gen_ai.request.model": "m"}`.
            more: Names without.

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
        # Looked at last: what came in between is in the event, and once more in the amendment.
        if self._sealed:
            self._amend(more)

    def count(self, name: str, by: Amount = 1) -> None:
        """Add to a number among the `attributes` of this attempt, and of the run as a whole.

        What is no number adds nothing, and fails nothing: it is logged, and counted in
        `stats().coerced_values`. So it is with the amounts of `record_llm` and the like.

        Args:
            name: Of the number.
            by: What to add; default 1. A number of any type: also one of numpy, or a `Decimal`.

        Raises:
            InvalidArgumentError: `name` is not text.

        Example:
            ctx.count("cache.hit")
        """
        self._must_be_name("count", name, 'count("cache.hit")')
        self._add({name: by})

    def timer(self, name: str) -> Timer:
        """Return a context manager that adds to `NAME_count` and `NAME_ms`, here and for the run.

        Raises:
            InvalidArgumentError: `name` is not text.

        Example:
            with ctx.timer("db"):
                rows = await database.fetch(query)
        """
        self._must_be_name("timer", name, 'timer("db")')
        return Timer(name, self._add)

    def annotate_run(self, fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Add fields to the `attributes` of the run's `pipeline.wide` event.

        After the run has ended they go out at once, as a `pipeline.wide.amend` event.

        Args:
            fields: Names with dots, as for `annotate`.
            more: Names without.

        Raises:
            InvalidArgumentError: `fields` is not a mapping.

        Example:
            ctx.annotate_run(customer_tier="gold")
        """
        self._recorder.annotate_run(more if fields is None else self._merged("annotate_run", fields, more))

    def record_llm(self, model: str, **usage: Unpack[LlmCall]) -> None:
        """Record one call of a language model, under the OpenTelemetry names for generative AI.

        Tokens, cost and time are added up: over the calls of this attempt, and over the run.

        Args:
            model: The model that was asked for.
            usage: `provider`, `operation` ("chat"), `response_model`, `response_id`, `finish_reason`,
                `input_tokens` (the cached ones included), `output_tokens`, `cached_tokens`,
                `reasoning_tokens`, `cost_usd`, `time_to_first_chunk` (seconds), `temperature`, `max_tokens`.

        Raises:
            InvalidArgumentError: A keyword is unknown; the message suggests the closest match.

        Example:
            ctx.record_llm("m-large", provider="acme", input_tokens=812, output_tokens=96, cost_usd=0.0031)
        """
        self._must_be_known("record_llm", usage, LlmCall)
        self._take(*llm_fields(model, **usage))

    def record_embedding(self, model: str, **usage: Unpack[EmbeddingCall]) -> None:
        """Record one call that made embeddings.

        Args:
            model: The model that was asked for.
            usage: `provider`, `input_tokens`, `vectors`, `dimensions`, `cost_usd`.

        Raises:
            InvalidArgumentError: A keyword is unknown; the message suggests the closest match.
        """
        self._must_be_known("record_embedding", usage, EmbeddingCall)
        self._take(*embedding_fields(model, **usage))

    def record_retrieval(self, source: str | None = None, **found: Unpack[Retrieval]) -> None:
        """Record one search for documents.

        Args:
            source: Name of the index, the collection, the table.
            found: `documents` (how many), `top_k`, `best_score`, `worst_score`.

        Raises:
            InvalidArgumentError: A keyword is unknown; the message suggests the closest match.
        """
        self._must_be_known("record_retrieval", found, Retrieval)
        self._take(*retrieval_fields(source, **found))

    def _merged(self, function: str, fields: Mapping[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**fields, **more}
        except BaseException as error:
            INTERRUPTS.contain(error)
            if not isinstance(fields, Mapping):
                raise self._invalid(
                    f"{function}() takes a mapping, not {type_name(fields)}",
                    f'write {function}(rows=17), or {function}({{"db.rows": 17}}) for names with dots',
                ) from None
            return {"fields": fields, **more}

    def _must_be_name(self, function: str, name: str, example: str) -> None:
        if not isinstance(name, str):
            raise self._invalid(
                f"{function}() takes a name as text, not {type_name(name)}", f"write {example}"
            )

    def _must_be_known(self, function: str, given: Mapping[str, Any], keywords: Any) -> None:
        known: frozenset[str] = keywords.__optional_keys__
        if not given.keys() <= known:
            unknown = next(name for name in given if name not in known)
            raise self._invalid(
                f"{function}() has no argument {unknown!r}{did_you_mean(unknown, known)}",
                f"its keyword arguments are {', '.join(keywords.__annotations__)}",
            )

    def _invalid(self, message: str, hint: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            message, stage=self.stage, run_id=str(self.run.pipeline_run_id), hint=hint
        )

    def _take(self, fields: dict[str, Any], added: dict[str, Any]) -> None:
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
        """Pass the recorded result of the attempt to the callbacks that were added for it."""
        callbacks, self._done_callbacks = self._done_callbacks or (), None
        for variables, callback in callbacks:
            try:
                variables.run(callback, result)
            except BaseException as error:
                INTERRUPTS.postpone(error)
                log_safely(
                    log, "stage %r: a callback of an interceptor raised %s", self.stage, describe(error)
                )

    def seal(self) -> dict[str, Any]:
        """Return the attributes of this attempt, which has ended: what comes later amends its event."""
        self._sealed = True
        # A copy: what the attempt left behind may go on annotating.
        return self._attributes.copy() if self._attributes else {}

    def attributes_so_far(self) -> dict[str, Any]:
        """Return a copy of the attributes of this attempt."""
        return self._attributes.copy() if self._attributes else {}

    def add_artifact(self, type: str, payload: Any = None) -> None:
        """Keep something beside the data; `artifacts_count` counts it, the result carries it.

        Raises:
            InvalidArgumentError: `type` is not text.
        """
        self._must_be_name("add_artifact", type, 'add_artifact("report", payload)')
        if self._artifacts is None:
            self._artifacts = []
        self._artifacts.append(Artifact(type, payload))

    def emit_event(self, type: str, data: Any = None) -> None:
        """Send an event of the stage's own to the sink of the run's wide events, at once.

        It carries the ids of the run and the name of the stage, and counts in `events_count`.

        Args:
            type: A name of your own, such as "chat.tokens".
            data: What to send. What is no mapping stands under `payload`.

        Raises:
            InvalidArgumentError: The type is not text.
            ValueError: The type is empty, or one of the library's own.
        """
        self._must_be_name("emit_event", type, 'emit_event("chat.tokens", {"count": 3})')
        if not type or type.startswith(("stage.wide", "pipeline.wide")):
            raise ValueError(
                f"stage {self.stage!r}: emit_event({type!r}): give the event a name of your own, "
                "such as 'chat.tokens'; 'stage.wide' and 'pipeline.wide' are the library's"
            )
        self._events_count += 1
        self._recorder.custom_event(self.stage, self.attempt, self._events_count, type, data)

    def __repr__(self) -> str:
        return f"<StageContext {self.stage!r}, attempt {self.attempt}, run {self.run.pipeline_run_id}>"


current_stage: ContextVar[StageContext | None] = ContextVar("stageflow_stage", default=None)
"""The attempt in which the code at hand runs."""


StageReturn: TypeAlias = StageOutput | Mapping[str, Any] | None
"""The values that a stage can return. A mapping is the data of an output with status OK; None has no data."""


class Stage(Protocol):
    """The interface of a stage that is a class or an instance.

    The class can define `name` and `kind`; arguments of `with_stage` override them.
    """

    def execute(self, *arguments: Any, **inputs: Any) -> StageReturn | Awaitable[StageReturn]:
        """Execute the stage. A coroutine runs on the event loop, a synchronous method in a thread.

        The only positional argument is the `StageContext`. Other parameters receive the values of the same
        name that dependencies return.
        """
        ...


StageRunner: TypeAlias = Stage | type[Stage] | Callable[..., StageReturn | Awaitable[StageReturn]]
"""The types of stages that `with_stage` accepts: a class, an instance, or a function."""


def annotate(fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
    """Add fields to the event of the stage at hand; see `StageContext.annotate`."""
    if (ctx := current_stage.get()) is not None:
        ctx.annotate(fields, **more)


def annotate_run(fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
    """Add fields to the event of the run at hand; see `StageContext.annotate_run`."""
    if (ctx := current_stage.get()) is not None:
        ctx.annotate_run(fields, **more)


def count(name: str, by: Amount = 1) -> None:
    """Add to a number of the stage and the run at hand; see `StageContext.count`."""
    if (ctx := current_stage.get()) is not None:
        ctx.count(name, by)


def timer(name: str) -> Timer:
    """Measure a block of the stage at hand; see `StageContext.timer`."""
    ctx = current_stage.get()
    return ctx.timer(name) if ctx is not None else Timer(name, lambda amounts: None)


def record_llm(model: str, **usage: Unpack[LlmCall]) -> None:
    """Record one call of a language model; see `StageContext.record_llm`."""
    if (ctx := current_stage.get()) is not None:
        ctx.record_llm(model, **usage)


def record_embedding(model: str, **usage: Unpack[EmbeddingCall]) -> None:
    """Record one call that made embeddings; see `StageContext.record_embedding`."""
    if (ctx := current_stage.get()) is not None:
        ctx.record_embedding(model, **usage)


def record_retrieval(source: str | None = None, **found: Unpack[Retrieval]) -> None:
    """Record one search for documents; see `StageContext.record_retrieval`."""
    if (ctx := current_stage.get()) is not None:
        ctx.record_retrieval(source, **found)


class StageLogFilter(logging.Filter):
    """Sets `stage`, `pipeline_run_id` and `topology` on each record; "-" outside of a run.

    Add it to a handler, so that it sees the lines of every logger.

    Example:
        >>> handler = logging.StreamHandler()
        >>> handler.addFilter(StageLogFilter())
        >>> handler.setFormatter(logging.Formatter("%(stage)s %(pipeline_run_id)s %(message)s"))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the three fields, and let the record pass."""
        ctx = current_stage.get()
        record.stage = ctx.stage if ctx else "-"
        record.pipeline_run_id = str(ctx.run.pipeline_run_id) if ctx else "-"
        record.topology = ctx.run.topology if ctx else "-"
        return True
