"""Access of a stage to the outputs of its ancestors."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol, TypeVar, cast

from .errors import MissingInputError, UnknownInputError, did_you_mean
from .stages import ChunkIterator, ChunksRef, StageRef, StageResult, StageStatus, is_missing

__all__ = ["StageInputs", "Upstream"]

T = TypeVar("T")


class Upstream(Protocol):
    """The parts of a run that `StageInputs` uses."""

    @property
    def pipeline_name(self) -> str: ...

    @property
    def run_id(self) -> str: ...

    def ancestor(self, reader: int, stage: str) -> StageResult | None:
        """Return the result of `stage` if it is an ancestor of stage number `reader`, else None."""
        ...

    def ancestors(self, reader: int) -> Collection[str]:
        """Return the names of all ancestors of stage number `reader`."""
        ...

    def is_running(self, stage: str) -> bool:
        """Return whether a stage exists and has not ended."""
        ...

    def stream(self, reader: int, stage: str) -> ChunkIterator[Any]:
        """Return the stream of `stage` for stage number `reader`."""
        ...

    def has_reader(self, sender: int) -> bool:
        """Return whether anything reads the stream of stage number `sender`."""
        ...

    def open_stream(self, ctx: Any) -> Any:
        """Return the stream of an attempt, which sends its first chunk."""
        ...


class StageInputs:
    """Reads the outputs of a stage's ancestors: of its dependencies, theirs, and so on."""

    __slots__ = ("_missing", "_reader", "_stage", "_upstream")

    def __init__(self, upstream: Upstream, stage: str, reader: int) -> None:
        self._upstream = upstream
        self._stage = stage
        self._reader = reader
        # A dict, as an ordered set: a stage may have thousands of dependencies that all lack its parameter.
        self._missing: dict[str, None] = {}

    @property
    def missing(self) -> list[str]:
        """The keys that were requested and not found, as `stage.key`; recorded as `missing_inputs`."""
        return list(self._missing)

    def get_from(self, stage: str, key: str, default: Any = None) -> Any:
        """Return the value that `stage` returned under `key`, or `default` if it returned none.

        A key that is not found is recorded in `missing_inputs`, so that a typo is visible.

        Raises:
            UnknownInputError: `stage` is not an ancestor of this stage.
        """
        data = self._result(stage).data
        if key in data:
            return data[key]
        self._add_missing(stage, key)
        return default

    def require_from(self, stage: str, key: str) -> Any:
        """Return the value that `stage` returned under `key`.

        Raises:
            UnknownInputError: `stage` is not an ancestor of this stage.
            MissingInputError: `stage` was skipped, or did not return the key.
        """
        result = self._result(stage)
        if result.status is StageStatus.OK and key in result.data:
            return result.data[key]
        self._add_missing(stage, key)
        if result.status is not StageStatus.OK:
            why = result.error or result.reason
            raise MissingInputError(
                f"{stage!r} did not return {key!r}: it ended with {result.status} ({why})",
                hint=f"use get_from({stage!r}, {key!r}, default) to run without it, "
                "or conditional=True to skip this stage when the value is missing",
                **self._where(),
            )
        keys = [str(known) for known in result.data]
        raise MissingInputError(
            f"{stage!r} did not return {key!r}{did_you_mean(str(key), keys)}",
            hint=f"it returned {_listed(keys)}",
            **self._where(),
        )

    def value(self, ref: StageRef[T]) -> T:
        """Return the value of the stage that a reference from `Flow.add` refers to.

        Raises:
            UnknownInputError: The stage is not an ancestor of this stage.
            MissingInputError: The status of the stage is not OK, and the reference has no default.

        Example:
            documents = ctx.inputs.value(search)
        """
        if isinstance(ref, ChunksRef):
            return cast("T", self._upstream.stream(self._reader, ref.name))
        result = self._result(ref.name)
        if result.status is StageStatus.OK:
            value: T = result.value
            return value
        if ref.if_missing == "default" and is_missing(result):
            default: T = ref.default
            return default
        raise MissingInputError(
            f"{ref.name!r} has no value: it ended with {result.status} ({result.error or result.reason})",
            hint="use or_none() or or_default(...) on the reference to run without it",
            **self._where(),
        )

    def stream(self, stage: str) -> ChunkIterator[Any]:
        """Return an iterator over the chunks of a stage in `streams=`, which may still be running.

        The iterator ends when that stage has ended. Every call returns an iterator over the remaining chunks.
        A synchronous stage iterates with `for`.

        Raises:
            InputError: `stage` is not one of the `streams=` of this stage.

        Example:
            async for text in ctx.inputs.stream("write"):
                print(text)
        """
        return self._upstream.stream(self._reader, stage)

    def result_from(self, stage: str) -> StageResult:
        """Return the complete result of an ancestor, including its status and reason.

        Raises:
            UnknownInputError: `stage` is not an ancestor of this stage.
        """
        return self._result(stage)

    def _result(self, stage: str) -> StageResult:
        result = self._upstream.ancestor(self._reader, stage)
        if result is not None:
            return result
        readable = sorted(self._upstream.ancestors(self._reader))
        if stage in readable and self._upstream.is_running(stage):
            raise MissingInputError(
                f"{stage!r} has not ended: {self._stage!r} reads its stream",
                hint=f"read its chunks with ctx.inputs.stream({stage!r})",
                **self._where(),
            )
        raise UnknownInputError(
            f"{stage!r} is not an ancestor of {self._stage!r}{did_you_mean(str(stage), readable)}",
            hint=f"it can read {_listed(readable)}; add {stage!r} to its dependencies to read it",
            **self._where(),
        )

    def note_missing(self, key: str, stages: Iterable[str]) -> None:
        """Record that none of `stages` returned `key`."""
        for stage in stages:
            self._add_missing(stage, key)

    def add_missing(self, names: Iterable[str]) -> None:
        """Record keys, as `stage.key`, that were requested in another process and not found."""
        self._missing.update(dict.fromkeys(names))

    def _add_missing(self, stage: str, key: str) -> None:
        self._missing[f"{stage}.{key}"] = None

    def _where(self) -> dict[str, str]:
        upstream = self._upstream
        return {
            "pipeline": upstream.pipeline_name,
            "stage": self._stage,
            "run_id": upstream.run_id,
        }


def _listed(names: list[str], limit: int = 12) -> str:
    if not names:
        return "nothing"
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
