"""A checked pipeline, compiled: all that its runs share, and none of them changes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import msgspec

from ..observability import WideEventEmitter
from ..schema import StageOutline
from ._ancestry import Ancestry
from .node import Around, Node, compile_nodes
from .spec import StageSpec

__all__ = ["Plan"]


class Plan:
    """Nodes, their order, and how runs go.

    Attributes:
        name: Name of the pipeline.
        specs: The description it was made from.
        nodes: The stages, in the order of the description; a stage's number is its place here.
        index: From the name of a stage to its number.
        waiting: How many dependencies each stage has.
        roots: Numbers of the stages that have none.
        emitter: What emits.
        emits_stages: Emit `stage.wide`; None where `stageflow.configure` decides.
        emits_pipeline: Emit `pipeline.wide`; None likewise.
        fail_fast: True where a failure ends the run.
        max_concurrency: How many stages of a run may be under way at once; None for no limit.
        grace: Seconds that a cancelled stage has to end.
        limited: True where a stage takes places at a shared limit.
        outline: The stages as a mark of a run's beginning has them, in JSON.
    """

    def __init__(
        self,
        name: str,
        specs: Sequence[StageSpec],
        *,
        emitter: WideEventEmitter,
        emits_stages: bool | None,
        emits_pipeline: bool | None,
        fail_fast: bool,
        max_concurrency: int | None,
        grace: float,
        around: Around,
    ) -> None:
        self.name = name
        self.specs = tuple(specs)
        self.nodes: tuple[Node, ...] = compile_nodes(specs, name, around)
        self.index = {node.name: node.index for node in self.nodes}
        self.waiting = [len(node.dependencies) for node in self.nodes]
        self.roots = tuple(node.index for node in self.nodes if not node.dependencies)
        self.emitter = emitter
        self.emits_stages = emits_stages
        self.emits_pipeline = emits_pipeline
        self.fail_fast = fail_fast
        self.max_concurrency = max_concurrency
        self.grace = grace
        self.limited = any(node.shared_limit is not None for node in self.nodes)
        self.outline = msgspec.Raw(
            msgspec.json.encode(
                [
                    StageOutline(
                        node.name,
                        node.kind.value if node.kind else None,
                        list(node.dependencies),
                        node.optional,
                    )
                    for node in self.nodes
                ]
            )
        )

    @cached_property
    def ancestry(self) -> Ancestry:
        """Which stage may read from which. Built on first use: few stages read beyond their dependencies."""
        return Ancestry(self.nodes)
