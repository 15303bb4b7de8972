"""What one attempt of a stage is given, and through which it speaks."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from ..stages import Artifact, StageKind
from .inputs import StageInputs, Upstream
from .pipeline_context import PipelineContext
from .recorder import Recorder

__all__ = ["StageContext", "current_stage"]


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
    """

    __slots__ = (
        "_artifacts",
        "_attributes",
        "_events_count",
        "_inputs",
        "_recorder",
        "_sequence",
        "_upstream",
        "abandoned",
        "attempt",
        "cancelled",
        "kind",
        "outcome_by",
        "run",
        "stage",
        "timed_out",
    )

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
        self.cancelled = False
        self.abandoned = False
        self.timed_out = False
        self.outcome_by: str | None = None
        self._events_count = 0
        self._attributes: dict[str, Any] | None = None
        self._artifacts: list[Artifact] | None = None
        self._sequence = sequence
        self._inputs: StageInputs | None = None
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

    def annotate(self, **fields: Any) -> None:
        """Add fields to the `attributes` of this attempt's `stage.wide` event.

        Names with dots go by `annotate(**{"gen_ai.request.model": "m"})`. A later value replaces
        an earlier one. A value that JSON cannot carry is recorded by its `repr`.

        Example:
            ctx.annotate(cache_hit=True, rows=17)
        """
        if self._attributes is None:
            self._attributes = fields
        else:
            self._attributes.update(fields)

    def add_artifact(self, type: str, payload: Any = None) -> None:
        """Keep something beside the data; `artifacts_count` counts it, the result carries it."""
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
            ValueError: The type is empty, or one of the library's own.
        """
        if not isinstance(type, str) or not type or type.startswith(("stage.wide", "pipeline.wide")):
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
