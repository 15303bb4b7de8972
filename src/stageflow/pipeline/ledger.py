"""What is known of every stage of one run, and what follows from each result."""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from ..context import StageContext
from ..observability.recorder import RunRecorder
from ..stages import StageOutput, StageResult, StageStatus
from .node import Node
from .plan import Plan

__all__ = ["Ledger"]

SKIP, FAIL, CANCEL = StageStatus.SKIP, StageStatus.FAIL, StageStatus.CANCEL


class Ledger:
    """Lists by stage number, so that a stage costs no look-up by name.

    Attributes:
        left: How many stages have no terminal result yet.
        retries: The result of the last attempt of each stage that was retried.
        first_started: When the first attempt of each such stage began, nanoseconds since the epoch.
        first_failed: The first stage to fail that was not optional.
    """

    __slots__ = (
        "_origin",
        "_plan",
        "_ready_at",
        "_recorder",
        "_routes",
        "_slots",
        "_waiting",
        "first_failed",
        "first_started",
        "left",
        "pipeline_name",
        "retries",
        "run_id",
    )

    def __init__(self, plan: Plan, recorder: RunRecorder, run_id: str, began: int, origin: int) -> None:
        size = len(plan.nodes)
        self.pipeline_name = plan.name
        self.run_id = run_id
        self.left = size
        self.retries: dict[int, StageResult] = {}
        self.first_started: dict[int, int] = {}
        self.first_failed: StageResult | None = None
        self._plan = plan
        self._recorder = recorder
        self._origin = origin
        self._waiting = plan.waiting.copy()
        self._slots: list[StageResult | None] = [None] * size
        self._ready_at = [began] * size
        self._routes: dict[int, tuple[str, ...]] = {}

    def result(
        self,
        node: Node,
        ctx: StageContext | None,
        output: StageOutput,
        attempts: int,
        began: int,
        ended: int,
        abandoned: bool = False,
    ) -> StageResult:
        """Return what an attempt came to as a result; times are monotonic nanoseconds."""
        origin = self._origin
        return StageResult(
            node.name,
            output.status,
            output.data,
            output.error,
            output.exception,
            output.reason,
            attempts,  # attempt
            attempts,
            self._ready_at[node.index] + origin,
            began + origin,
            ended + origin,
            node.kind,
            node.dependencies,
            node.optional,
            ctx.seal() if ctx else {},
            tuple(ctx._artifacts) if ctx and ctx._artifacts else (),
            ctx._events_count if ctx else 0,
            ctx.missing_inputs if ctx else (),
            output.after,
            abandoned,
            ctx.outcome_by if ctx else None,
            node.index,
        )

    def retry(self, node: Node, result: StageResult) -> None:
        """Take in the result of an attempt that will be tried again."""
        self.retries[node.index] = result
        self.first_started.setdefault(node.index, result.started_ns)
        if self._recorder.stages:
            self._recorder.stage_ended(result)

    def first_began(self, node: Node, began: int) -> int:
        """Return when the first attempt of a stage began, if the one at hand `began` then."""
        first = self.first_started.get(node.index)
        return began if first is None else first - self._origin

    def keep(self, node: Node, result: StageResult) -> None:
        """Take in the terminal result of a stage, and emit it."""
        self._slots[node.index] = result
        self.left -= 1
        if self._recorder.stages:
            self._recorder.stage_ended(result)

    def route(self, node: Node, labels: tuple[str, ...]) -> None:
        """Take in where a router went."""
        self._routes[node.index] = labels

    def release(self, node: Node, at: int) -> list[int]:
        """Return the stages that `node` was the last to hold up; settle those it makes skip."""
        nodes, waiting, slots = self._plan.nodes, self._waiting, self._slots
        ready: list[int] = []
        skipped: list[Node] = []
        while True:
            for index in node.dependents:
                waiting[index] -= 1
                if waiting[index] or slots[index] is not None:
                    continue
                self._ready_at[index] = at
                after = nodes[index]
                if after.gated and (reason := self._skip_reason(after)) is not None:
                    self._settle_unstarted(after, SKIP, reason, at)
                    skipped.append(after)
                else:
                    ready.append(index)
            if not skipped:
                return ready
            node = skipped.pop()

    def _skip_reason(self, node: Node) -> str | None:
        """Return why its dependencies skip a stage, or None where they do not."""
        index = self._plan.index
        if node.route is not None:
            routers = [name for name in node.dependencies if index[name] in self._routes]
            chosen = [label for name in routers for label in self._routes[index[name]]]
            if node.route not in chosen:
                went = ", ".join(repr(label) for label in chosen) or "nowhere"
                by = ", ".join(repr(name) for name in routers) or "a router that did not end well"
                return f"its route is {node.route!r}; {by} went to {went}"
        if node.conditional:
            results = [self._slots[index[name]] for name in node.dependencies]
            if all(result is None or result.status in (SKIP, FAIL) for result in results):
                return "every one of its dependencies was skipped"
        return None

    def cancel_downstream(self, node: Node, at: int) -> None:
        """Settle everything that can no longer start because `node` failed."""
        reason = f"it depends on {node.name!r}, which failed"
        following = [node]
        while following:
            for index in following.pop().dependents:
                if self._slots[index] is None:
                    after = self._plan.nodes[index]
                    self._ready_at[index] = at
                    self._settle_unstarted(after, CANCEL, reason, at)
                    following.append(after)

    def settle_rest(self, at: int, why: str) -> None:
        """Settle every stage that has no terminal result, because the run ended."""
        origin = self._origin
        for node in self._plan.nodes:
            if self._slots[node.index] is not None:
                continue
            last = self.retries.get(node.index)
            if last is None:
                self._ready_at[node.index] = at
                self._settle_unstarted(node, CANCEL, f"never started: {why}", at)
                continue
            # It waited for its next attempt: its end is that of its last one.
            output = StageOutput(CANCEL, {}, last.error, last.exception, f"not tried again: {why}")
            began, ended = last.started_ns - origin, last.ended_ns - origin
            result = self.result(node, None, output, last.attempts, began, ended)
            # The attempt that never began gives the end of the stage an id of its own.
            self.keep(node, replace(result, attempt=last.attempts + 1))

    def _settle_unstarted(self, node: Node, status: StageStatus, reason: str, at: int) -> None:
        output = StageOutput(status, {}, reason=reason)
        self.keep(node, self.result(node, None, output, 0, at, at))

    def results(self) -> list[StageResult]:
        """Return the terminal results so far, in the order of the pipeline."""
        return [result for result in self._slots if result is not None]

    # What the inputs of a stage ask; see `context.Upstream`.

    def ancestor(self, reader: int, stage: str) -> StageResult | None:
        plan = self._plan
        if stage in plan.nodes[reader].dependency_set or stage in plan.ancestors(reader):
            return self._slots[plan.index[stage]]
        return None

    def ancestors(self, reader: int) -> Collection[str]:
        return self._plan.ancestors(reader)
