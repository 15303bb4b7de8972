"""The values that stages return and results contain: kinds, statuses, outputs and results."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Protocol, TypeVar, cast

from msgspec import UNSET, Struct, field

from ._interrupts import INTERRUPTS, is_a
from ._log_tail import StageLogs
from .errors import InvalidArgumentError, as_text, describe, invalid_argument
from .schema import Items, Stream, Worker

if TYPE_CHECKING:
    from .results import PipelineResults

__all__ = [
    "Artifact",
    "ChildRun",
    "Chunk",
    "ChunkIterator",
    "ChunksRef",
    "ItemFailure",
    "StageKind",
    "StageOutput",
    "StageRef",
    "StageResult",
    "StageStatus",
    "StreamRef",
    "is_missing",
]

T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")


class StageKind(StrEnum):
    """The purpose of a stage: a label in its events, by which runs can be grouped and filtered.

    Only ROUTE changes how a stage runs: a ROUTE stage can return `StageOutput.route`.

    Attributes:
        TRANSFORM: Computes its output from its inputs; the default.
        ENRICH: Adds data from another source, such as a database or a search index.
        ROUTE: Selects which of the stages that depend on it run.
        GUARD: Checks its input, and stops or fails the run if the input is not acceptable.
        WORK: Has an effect outside the run, such as a write or a request to another service.
        AGENT: Calls a model that selects its own steps.
    """

    TRANSFORM = "transform"
    ENRICH = "enrich"
    ROUTE = "route"
    GUARD = "guard"
    WORK = "work"
    AGENT = "agent"


class StageStatus(StrEnum):
    """The status of an attempt. All except RETRY are terminal; a stage has exactly one terminal status."""

    OK = "OK"
    SKIP = "SKIP"
    RETRY = "RETRY"
    FAIL = "FAIL"
    CANCEL = "CANCEL"


_EMPTY: Mapping[str, Any] = {}


class StageOutput(Struct, frozen=True, eq=False):
    """The outcome of one attempt; create one with `ok`, `skip`, `fail`, `stop`, `retry` or `route`.

    Returning a mapping is short for `StageOutput.ok(mapping)`. A stage can also return any other value: the
    fields of a dataclass, a msgspec Struct or a pydantic model are its `data`; of another value, such as a
    list, `data` is `{"value": value}`.

    An error or reason is text or an exception; of any other object the record contains the `str()`. None is
    not accepted: a record would contain the word "None" where a value was missing.

    Example:
        >>> StageOutput.ok(answer=42).data
        {'answer': 42}
        >>> StageOutput.skip("nothing to do").status
        <StageStatus.SKIP: 'SKIP'>
    """

    status: StageStatus
    data: dict[str, Any]
    error: str | None = None
    exception: BaseException | None = None
    reason: str | None = None
    after: float | None = None
    routes: tuple[str, ...] | None = None
    returned: Any = UNSET
    """The value that the stage returned if it is not a mapping; see `value`."""

    @property
    def value(self) -> Any:
        """The value of the stage: the returned value, or `data` if it returned a mapping or `StageOutput`."""
        return self.data if self.returned is UNSET else self.returned

    @staticmethod
    def ok(data: Mapping[str, Any] = _EMPTY, /, **fields: Any) -> StageOutput:
        """The stage succeeded; its dependents read `data` and `fields` through `ctx.inputs`.

        Raises:
            InvalidArgumentError: `data` is not a mapping.
        """
        if type(data) is not dict and not isinstance(data, Mapping) and not hasattr(data, "keys"):
            raise invalid_argument(
                "StageOutput.ok()",
                "data",
                data,
                "a mapping",
                hint="pass the value under a name, as in StageOutput.ok(items=[...])",
            )
        return StageOutput(StageStatus.OK, {**data, **fields})

    @staticmethod
    def skip(reason: object = "", /, **fields: Any) -> StageOutput:
        """The stage had nothing to do; its dependents still run.

        Raises:
            InvalidArgumentError: `reason` is None.
        """
        text = _reason("skip", reason) or "skipped by the stage"
        return StageOutput(StageStatus.SKIP, fields, reason=text)

    @staticmethod
    def fail(error: str | BaseException, /, **fields: Any) -> StageOutput:
        """The stage failed. The retry policy does not apply: it is not retried.

        Raises:
            InvalidArgumentError: `error` is None, or an exception class that needs arguments.
        """
        text, exception = _describe_error("fail", error)
        return StageOutput(StageStatus.FAIL, fields, error=text, exception=exception)

    @staticmethod
    def stop(reason: object = "", /, **fields: Any) -> StageOutput:
        """Stop the whole run gracefully: this is not an error, and the status of the run is OK.

        The stages that are running are cancelled, and no further stage starts. `cancel` is an alias.

        Raises:
            InvalidArgumentError: `reason` is None.

        Example:
            >>> StageOutput.stop("the question was off topic").reason
            'the question was off topic'
        """
        text = _reason("stop", reason) or "stopped by the stage"
        return StageOutput(StageStatus.CANCEL, fields, reason=text)

    cancel = stop  # the name in stageflow-core

    @staticmethod
    def retry(error: str | BaseException, /, *, after: float | None = None) -> StageOutput:
        """Retry the stage `after` seconds from now (default: the wait of its `Retry` policy).

        A stage without a policy has three attempts. When no attempt is left, the stage fails with `error`.

        Raises:
            InvalidArgumentError: `error` is None or an exception class that needs arguments, or `after` is
                not a number greater than or equal to 0.
        """
        if after is not None and not _is_duration(after):
            raise invalid_argument(
                "StageOutput.retry()",
                "after",
                after,
                "0 or more seconds",
                hint="write StageOutput.retry(error, after=2.5)",
            )
        text, exception = _describe_error("retry", error)
        return StageOutput(StageStatus.RETRY, {}, error=text, exception=exception, after=after)

    @staticmethod
    def route(*labels: str, **fields: Any) -> StageOutput:
        """Run the dependents whose `route=` is one of these labels, and skip those with another `route=`.

        Without a label, all dependents with a `route=` are skipped. Dependents without a `route=` always run.

        Raises:
            InvalidArgumentError: A label is not a string.
        """
        for label in labels:
            if not isinstance(label, str):
                raise invalid_argument(
                    "StageOutput.route()",
                    "labels",
                    label,
                    "strings",
                    hint='write StageOutput.route("short"), or StageOutput.route() to skip all dependents'
                    " with a route",
                )
        return StageOutput(StageStatus.OK, fields, routes=labels)


def _is_duration(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < float("inf")


def _reason(function: str, reason: object) -> str:
    if reason is None:
        raise invalid_argument(
            f"StageOutput.{function}()",
            "reason",
            reason,
            "text",
            hint=f'write StageOutput.{function}("...") with the reason, or omit the argument',
        )
    return as_text(reason)


def _describe_error(function: str, error: str | BaseException) -> tuple[str, BaseException | None]:
    if error is None:
        raise invalid_argument(
            f"StageOutput.{function}()",
            "error",
            error,
            "text or an exception",
            hint=f'write StageOutput.{function}("...") with a description, or pass the exception',
        )
    if is_a(error, type) and issubclass(cast("type", error), BaseException):
        error = _instantiate(function, cast("type[BaseException]", error))
    if is_a(error, BaseException):
        exception = cast("BaseException", error)
        return describe(exception), exception
    return as_text(error), None


def _instantiate(function: str, kind: type[BaseException]) -> BaseException:
    """Return an instance of an exception class, as `raise` does."""
    try:
        return kind()
    except BaseException as raised:
        INTERRUPTS.contain(raised)
        name = type.__dict__["__name__"].__get__(kind)
        raise InvalidArgumentError(
            f"StageOutput.{function}() cannot create the exception {name}: {describe(raised)}",
            hint="pass an instance of the exception",
        ) from None


class Artifact(Struct, frozen=True):
    """An artifact that a stage stores in addition to its data: a file, an image, a prompt."""

    type: str
    payload: Any = None


class ChildRun(Struct, frozen=True, eq=False):
    """A run that was started inside a stage.

    Attributes:
        run_id: Its `pipeline_run_id`.
        results: Its results if the stage is a pipeline or a loop and the run has ended; otherwise None.

    Example:
        >>> ChildRun("01a20a3d").results is None
        True
    """

    run_id: str
    results: PipelineResults | None = None


class ItemFailure(Struct, frozen=True, eq=False):
    """The value of a failed item of a mapped stage with `on_item_failure="collect"`.

    Attributes:
        index: Position of the item, starting at 0.
        key: The result of `item_key=`, or the index as text.
        error: Description of the error.
        exception: The exception, or None if the function returned `StageOutput.fail` with a string.
        attempts: Number of attempts.

    Example:
        >>> ItemFailure(3, "3", "ValueError: empty").error
        'ValueError: empty'
    """

    index: int
    key: str
    error: str
    exception: BaseException | None = None
    attempts: int = 1


class StageRef(Struct, Generic[T_co], frozen=True):
    """A reference to the value of a stage, as returned by `Flow.add`: an input of another stage.

    Attributes:
        name: Name of the stage.
        if_missing: What happens if the stage was skipped, or is optional and failed: "skip" skips the stages
            that this reference is an input of; "default" passes `default` to them.
        default: The value that replaces a missing one.

    Example:
        >>> StageRef("search").or_none()
        StageRef(name='search', if_missing='default', default=None)
    """

    name: str
    if_missing: Literal["skip", "default"] = "skip"
    default: Any = None

    def or_none(self) -> StageRef[T_co | None]:
        """Return a reference that provides None if the stage was skipped, or is optional and failed."""
        return StageRef(self.name, "default", None)

    def or_default(self, default: D) -> StageRef[T_co | D]:
        """Return a reference that provides `default` if the stage was skipped, or is optional and failed."""
        return StageRef(self.name, "default", default)


class ChunkIterator(Protocol[T_co]):
    """The stream of another stage, as a stage reads it: an `AsyncIterator`, and in a thread an `Iterator`."""

    def __aiter__(self) -> ChunkIterator[T_co]: ...

    async def __anext__(self) -> T_co: ...

    def __iter__(self) -> ChunkIterator[T_co]: ...

    def __next__(self) -> T_co: ...

    async def aclose(self) -> None:
        """Stop reading: the other stage no longer waits for this one."""
        ...


class ChunksRef(StageRef[T_co], frozen=True):
    """A reference to the stream of a stage, as returned by `StreamRef.chunks`: an input of another stage.

    Attributes:
        buffer: Maximum number of chunks that wait for the reader, or "collect" for no such limit.
    """

    buffer: int | Literal["collect"] = 64

    def or_none(self) -> NoReturn:
        """Raise an error: a missing stream cannot be replaced.

        Raises:
            InvalidArgumentError: Always.
        """
        raise _not_replaceable("or_none", self.name)

    def or_default(self, default: object) -> NoReturn:
        """Raise an error: a missing stream cannot be replaced.

        Raises:
            InvalidArgumentError: Always.
        """
        raise _not_replaceable("or_default", self.name)


def _not_replaceable(method: str, stage: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"chunks().{method}(): the stream of a stage that was skipped or failed cannot be replaced",
        stage=stage,
        hint=f"read it by name, with streams=({stage!r},) and ctx.inputs.stream({stage!r}): the stream of a"
        " stage that was skipped or failed is then empty",
    )


class StreamRef(StageRef[Any], Generic[T_co], frozen=True):
    """A reference to a streaming stage, as returned by `Flow.add` for a generator function.

    As an input of another stage, it provides the collected value: text, bytes or a list. `chunks()` is a
    reference to the stream itself.
    """

    def chunks(self, *, buffer: int | Literal["collect"] = 64) -> ChunksRef[ChunkIterator[T_co]]:
        """Return a reference to the stream: the stage that it is an input of starts with the first chunk.

        Args:
            buffer: Maximum number of chunks that wait for the reader. The stream waits while that many do.
                With "collect", it never waits, and fails if the chunks exceed the maximum size of a
                collected value.

        Example:
            >>> StreamRef("write").chunks().buffer
            64
        """
        return ChunksRef(self.name, buffer=buffer)


class Chunk(Struct, frozen=True, eq=False):
    """A value that a streaming stage sent, as read from `graph.stream()`.

    Attributes:
        stage: Name of the stage.
        number: Position of the chunk in the stream of the stage, starting at 0; -1 for a restart.
        value: The value; None for a restart.
        restart: True for a restart: the stage failed and is retried with `restart=True`. The chunks that were
            read from it before are no longer valid.

    Example:
        >>> Chunk("write", 0, "Hello").value
        'Hello'
    """

    stage: str
    number: int
    value: Any
    restart: bool = False


class StageResult(Struct, frozen=True, eq=False):
    """The result of a stage: its terminal status, data, times and annotations.

    The record of a run contains the type, message and stack of an exception; the result contains the
    `exception` itself. The fields for times are integers, nanoseconds since the Unix epoch; the properties
    return the values in the events.

    Example:
        >>> result = StageResult("search", StageStatus.OK, {"hits": 3}, ended_ns=1_500_000)
        >>> result.ok, result.duration_ms
        (True, 1.5)
    """

    name: str
    status: StageStatus
    data: Mapping[str, Any] = {}
    error: str | None = None
    exception: BaseException | None = None
    reason: str | None = None
    attempt: int = 1
    """Number of the last attempt, or of the next one if the run ended while the stage waited for it; 0 for a
    stage that never started."""
    attempts: int = 1
    """Number of attempts that started."""
    ready_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    kind: StageKind | None = None
    dependencies: tuple[str, ...] = ()
    optional: bool = False
    attributes: Mapping[str, Any] = {}
    artifacts: tuple[Artifact, ...] = ()
    events_count: int = 0
    missing_inputs: tuple[str, ...] = ()
    retry_after: float | None = None
    abandoned: bool = False
    outcome_by: str | None = None
    """Name of the interceptor that determined the outcome, or None if the stage did."""
    sequence: int = field(default=0)
    """Position of the stage in its pipeline, starting at 0."""
    loop_blocked_ms: float | None = None
    """Milliseconds for which one step of the last attempt blocked the event loop; None for 50 or less."""
    returned: Any = UNSET
    """The value that the stage returned if it is not a mapping; see `value`."""
    items: Items | None = None
    """The number of items of a mapped stage, their durations and their failures; None for other stages."""
    child_runs: tuple[ChildRun, ...] = ()
    """The runs that the last attempt started, in order; if there are more than 1,000, only the first 999
    and the last."""
    child_runs_total: int = 0
    """Number of runs that the last attempt started."""
    stream: Stream | None = None
    """The stream of the last attempt; None if it sent no chunk and is not a generator function."""
    worker: Worker | None = None
    """The worker that ran the last attempt; None without an executor."""
    logs: StageLogs | None = None
    """What the last attempt logged: the number of warnings and errors, and the last lines if it failed; None
    if it logged nothing, or if log lines are not recorded."""

    @property
    def children(self) -> tuple[PipelineResults, ...]:
        """The results of the child runs of a stage that is a pipeline or a loop, in order; otherwise empty.

        Example:
            results["research"].children[0].data("search")
        """
        return tuple(run.results for run in self.child_runs if run.results is not None)

    @property
    def value(self) -> Any:
        """The value of the stage: the returned value, or `data` if it returned a mapping or `StageOutput`."""
        return self.data if self.returned is UNSET else self.returned

    @property
    def ok(self) -> bool:
        """True if the status is OK."""
        return self.status is StageStatus.OK

    @property
    def duration_ms(self) -> float:
        """Duration of the last attempt in milliseconds; 0 for a stage that never started."""
        return (self.ended_ns // 1000 - self.started_ns // 1000) / 1000

    @property
    def queue_ms(self) -> float:
        """Milliseconds from when the stage became ready until its last attempt started, including waits."""
        return (self.started_ns // 1000 - (self.ready_ns or self.started_ns) // 1000) / 1000

    @property
    def total_ms(self) -> float:
        """Milliseconds from when the stage became ready until it ended, including all attempts and waits."""
        return (self.ended_ns // 1000 - (self.ready_ns or self.started_ns) // 1000) / 1000

    @property
    def started_at(self) -> datetime:
        """Start of the last attempt, UTC."""
        return datetime.fromtimestamp(self.started_ns / 1e9, UTC)

    @property
    def ended_at(self) -> datetime:
        """End of the last attempt, UTC."""
        return datetime.fromtimestamp(self.ended_ns / 1e9, UTC)


def is_missing(result: StageResult) -> bool:
    """Return whether a stage that has ended provides no value, although its dependents still run."""
    status = result.status
    return status is StageStatus.SKIP or (status is StageStatus.FAIL and result.optional)
