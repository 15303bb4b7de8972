"""The data of a run for its stages: the results of ancestors, and streams."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ..errors import StageflowError
from ..stages import StageResult
from ._plan import Plan
from ._run_state import RunState

if TYPE_CHECKING:
    from ..context import StageContext
    from ._streams import ChunkReader, StageStream, Streams

__all__ = ["UpstreamOfRun"]


class UpstreamOfRun:
    """The data of one run; see `context.Upstream`.

    Attributes:
        streams: The streams of the run; None after its end.
    """

    __slots__ = ("_plan", "_state", "streams")

    def __init__(self, plan: Plan, state: RunState, streams: Streams) -> None:
        self._plan = plan
        self._state = state
        self.streams: Streams | None = streams

    @property
    def pipeline_name(self) -> str:
        return self._plan.name

    @property
    def run_id(self) -> str:
        return self._state.run_id

    def ancestor(self, reader: int, stage: str) -> StageResult | None:
        plan = self._plan
        index = plan.index.get(stage)
        if index is None:
            return None
        if stage in plan.nodes[reader].dependency_set or plan.ancestry.contains(reader, index):
            return self._state.results[index]
        return None

    def ancestors(self, reader: int) -> Collection[str]:
        return self._plan.ancestry.names(reader)

    def is_running(self, stage: str) -> bool:
        index = self._plan.index.get(stage)
        return index is not None and self._state.results[index] is None

    def stream(self, reader: int, stage: str) -> ChunkReader:
        return self._open_streams(reader).reader(reader, stage)

    def open_stream(self, ctx: StageContext) -> StageStream:
        return self._open_streams(ctx._sequence).open(ctx)

    def _open_streams(self, index: int) -> Streams:
        if self.streams is None:
            raise StageflowError(
                "the run has ended",
                pipeline=self.pipeline_name,
                stage=self._plan.nodes[index].name,
                run_id=self.run_id,
            )
        return self.streams
