"""The data of a run for its stages: the results of ancestors, and streams."""

from __future__ import annotations

from collections.abc import Collection

from ..context import StageContext
from ..errors import StageflowError
from ..stages import StageResult
from ._plan import Plan
from ._run_state import RunState
from ._streams import ChunkReader, Owner, StageStream, Streams

__all__ = ["UpstreamOfRun"]


class UpstreamOfRun:
    """The data of one run; see `context.Upstream`.

    Args:
        owner: The scheduler of the run.
        plan: The pipeline.
        state: The state of the run.

    Attributes:
        streams: The streams of the run; None before the first one and after the end of the run.
    """

    __slots__ = ("_owner", "_plan", "_state", "streams")

    def __init__(self, owner: Owner, plan: Plan, state: RunState) -> None:
        self._owner: Owner | None = owner
        self._plan = plan
        self._state = state
        self.streams: Streams | None = None

    def open_streams(self) -> Streams:
        """Return the streams of the run.

        Raises:
            StageflowError: The run has ended.
        """
        if self.streams is None:
            if self._owner is None:
                raise StageflowError("the run has ended", pipeline=self.pipeline_name, run_id=self.run_id)
            self.streams = Streams(self._owner, self._plan, self._state)
        return self.streams

    def close(self) -> None:
        """The run has ended."""
        self._owner = None
        if self.streams is not None:
            self.streams.close()
            self.streams = None

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
        return self.open_streams().reader(reader, stage)

    def open_stream(self, ctx: StageContext) -> StageStream:
        return self.open_streams().open(ctx)

    def has_reader(self, sender: int) -> bool:
        return bool(self._plan.nodes[sender].stream_dependents) or (
            self.streams is not None and self.streams.is_selected(sender)
        )
