"""What one attempt of a stage is given, and through which it speaks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar, copy_context
from typing import Any, Unpack

from .._safe_log import log_safely
from ..errors import InvalidArgumentError, describe, did_you_mean, type_name
from ..interrupts import INTERRUPTS
from ..stages import Artifact, StageKind, StageResult
from .genai import Amount, EmbeddingCall, LlmCall, Retrieval, embedding_fields, llm_fields, retrieval_fields
from .inputs import StageInputs, Upstream
from .pipeline_context import PipelineContext
from .recorder import Recorder
from .timer import Timer
from .totals import added, as_amount

__all__ = ["StageContext", "current_stage"]

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
                self._recorder.no_amount(self.stage, name, value)
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
