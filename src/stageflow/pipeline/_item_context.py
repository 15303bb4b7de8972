"""`ItemContext`: the context of one attempt of an item of a mapped stage."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from .._calls import Call
from .._inputs import StageInputs
from .._log_tail import LogTail
from ..context import StageContext
from ..schema import Items

__all__ = ["ItemContext"]


class ItemContext(StageContext):
    """The context of one attempt of an item.

    What it records belongs to the stage. `attempt`, `cancelled`, `timed_out` and `abandoned` are those of the
    item.
    """

    def __init__(self, stage: StageContext, attempt: int) -> None:
        super().__init__(
            stage.run, stage.stage, stage.kind, attempt, stage._sequence, stage._upstream, stage._recorder
        )
        self._of_stage = stage
        self._abandoned = False

    @property
    def abandoned(self) -> bool:
        return self._abandoned or self._of_stage.abandoned

    @abandoned.setter
    def abandoned(self, value: bool) -> None:
        self._abandoned = value

    @property
    def items(self) -> Items | None:
        return self._of_stage.items

    @property
    def missing_inputs(self) -> tuple[str, ...]:
        return self._of_stage.missing_inputs

    @property
    def inputs(self) -> StageInputs:
        return self._of_stage.inputs

    @property
    def traceparent(self) -> str:
        return self._of_stage.traceparent

    def annotate(self, fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        self._of_stage.annotate(fields, **more)

    def send(self, value: Any) -> Awaitable[None]:
        return self._of_stage.send(value)

    def _record_call(self, call: Call) -> bool:
        return self._of_stage._record_call(call)

    def _usage_started(self) -> None:
        self._of_stage._usage_started()

    def _usage_completed(self) -> None:
        self._of_stage._usage_completed()

    def _open_log_tail(self) -> LogTail:
        return self._of_stage._log_tail or self._of_stage._open_log_tail()

    def add_artifact(self, type: str, payload: Any = None) -> None:
        self._of_stage.add_artifact(type, payload)

    def child_run_started(self, run_id: str) -> None:
        self._of_stage.child_run_started(run_id)

    def emit_event(self, type: str, data: Any = None) -> None:
        self._of_stage.emit_event(type, data)

    def _add(self, amounts: Mapping[str, Any]) -> None:
        self._of_stage._add(amounts)
