"""The exception hierarchy, and functions that describe exceptions.

StageflowError
├── PipelineValidationError      the definition of a pipeline is invalid (also a ValueError)
├── InvalidArgumentError         an argument is unknown or invalid (also a ValueError and a TypeError)
├── InputError                   a stage cannot read an input (also a LookupError)
│   ├── UnknownInputError        the stage to read from is not an ancestor of the stage that reads
│   └── MissingInputError        the ancestor was skipped, or did not return the key
├── StageNotFinishedError        a stage has no value, because its status is not OK (also a LookupError)
├── StageOutputError             a stage returned an invalid value (also a TypeError)
├── StageTimeoutError            an attempt took longer than its `timeout` (also a TimeoutError)
├── BudgetExceededError          a run spent more than its `budget`
├── LoopLimitError               a loop ran its maximum number of iterations without reaching its end
├── LimitDeadlockError           a stage would wait indefinitely for a limit
├── CircuitOpenError             a circuit breaker rejected an attempt
├── WorkerLostError              the worker of an executor ended before it returned a value
├── SerializationError           a value cannot be sent to a worker, or from it (also a TypeError)
├── DeadlineExceededError        a run took longer than its `deadline` (also a TimeoutError)
├── StageFailedError             a stage returned `StageOutput.fail("text")`, so there is no other exception
├── RunFailedError               raised by `results.raise_on_failure()`; contains the results
├── MissingExtraError            the packages of an extra are not installed (also an ImportError)
├── SettingsError                a setting is unknown or has an invalid value (also a ValueError)
├── JournalNotFoundError         there is no journal at the path (also a FileNotFoundError)
├── RunNotFoundError             a journal does not contain the run (also a LookupError)
├── QueryError                   a query to the store is invalid (also a ValueError)
├── ArchiveAddressError          another archive has events of the journal (also a ValueError)
├── ArchiveDamagedError          a file of an archive is damaged or missing (also an OSError)
├── CursorInUseError             another reader uses the same cursor
├── ClosedError                  the reader or store is closed (also a ValueError)
├── DamagedFileError             a stored file is damaged (also an OSError and a ValueError)
├── AlertRuleError               a file of alert rules is invalid (also a ValueError)
└── AlertStateError              the state of alerts cannot be read or changed
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from ._interrupts import INTERRUPTS, is_a

__all__ = [
    "AlertRuleError",
    "AlertStateError",
    "ArchiveAddressError",
    "ArchiveDamagedError",
    "BudgetExceededError",
    "CircuitOpenError",
    "ClosedError",
    "CursorInUseError",
    "DamagedFileError",
    "DeadlineExceededError",
    "InputError",
    "InvalidArgumentError",
    "JournalNotFoundError",
    "LimitDeadlockError",
    "LoopLimitError",
    "MissingExtraError",
    "MissingInputError",
    "PipelineValidationError",
    "QueryError",
    "RunFailedError",
    "RunNotFoundError",
    "SerializationError",
    "SettingsError",
    "StageFailedError",
    "StageNotFinishedError",
    "StageOutputError",
    "StageTimeoutError",
    "StageflowError",
    "UnknownInputError",
    "WorkerLostError",
    "as_text",
    "describe",
    "did_you_mean",
    "invalid_argument",
    "is_internal_code",
    "leaves_of",
    "name_of_error",
    "type_name",
    "with_message",
]


_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_ENGINE = tuple(
    os.path.join(_PACKAGE, name, "") for name in ("pipeline", "executors", "observability", "testing")
)

# The descriptors of the built-in classes: a subclass or a metaclass can override the attributes.
_NAME_OF_TYPE = type.__dict__["__name__"]
_EXCEPTIONS_OF_GROUP: Any = BaseExceptionGroup.__dict__["exceptions"]


_MAX_VALUE = 200
"""Maximum length of the value in an error about an argument, in characters."""


class StageflowError(Exception):
    """Base class of all errors of the library: what happened, where, and how to fix it.

    Attributes:
        message: What happened, in one sentence.
        pipeline: Name of the pipeline, or None if it is unknown.
        stage: Name of the stage, or None if it is unknown.
        run_id: `pipeline_run_id` of the run, or None if it is unknown.
        hint: How to fix it, or None.
    """

    # Class attributes, so that subclasses that do not call `super().__init__` work too.
    message: str = ""
    pipeline: str | None = None
    stage: str | None = None
    run_id: str | None = None
    hint: str | None = None

    def __init__(
        self,
        message: str,
        *,
        pipeline: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.pipeline = pipeline
        self.stage = stage
        self.run_id = run_id
        self.hint = hint

    def __str__(self) -> str:
        where = [
            f"{label} {value!r}" if label != "run" else f"run {value}"
            for label, value in (
                ("stage", self.stage),
                ("pipeline", self.pipeline),
                ("run", self.run_id),
            )
            if value is not None
        ]
        text = self.message or super().__str__()
        if where:
            text += f" [{', '.join(where)}]"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text

    def locate(self, pipeline: str, stage: str, run_id: str) -> None:
        """Set the location, except for the parts that are already set."""
        self.pipeline = self.pipeline or pipeline
        self.stage = self.stage or stage
        self.run_id = self.run_id or run_id

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions.
        return (_restore, (type(self), self.args, self.__dict__))


def _restore(cls: type[StageflowError], args: tuple[Any, ...], state: dict[str, Any]) -> StageflowError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class PipelineValidationError(StageflowError, ValueError):
    """The definition of a pipeline is invalid. The error lists all problems, not only the first.

    Attributes:
        problems: One sentence per problem, with the name of the stage and a hint.
    """

    def __init__(self, pipeline: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = "\n".join(f"  {n}. {problem}" for n, problem in enumerate(self.problems, 1))
        super().__init__(
            f"pipeline {pipeline!r} cannot be built: {count} problem{'s' if count != 1 else ''}\n{lines}",
        )
        self.pipeline = pipeline

    def __str__(self) -> str:
        return self.message


class InvalidArgumentError(StageflowError, ValueError, TypeError):
    """A function or class of the library was called with an unknown argument, or with an invalid value."""


class InputError(StageflowError, LookupError):
    """A stage cannot read an input."""


class UnknownInputError(InputError):
    """The stage to read from is not an ancestor of the stage that reads, so it may not have run yet."""


class MissingInputError(InputError):
    """The ancestor was skipped, or did not return the key."""


class StageNotFinishedError(StageflowError, LookupError):
    """The value of a stage was requested that was skipped, failed, was cancelled or has not run."""


class StageOutputError(StageflowError, TypeError):
    """A stage returned an invalid value, or an interceptor violated its contract."""


class StageTimeoutError(StageflowError, TimeoutError):
    """An attempt took longer than the stage's `timeout`."""


class CircuitOpenError(StageflowError):
    """A circuit breaker rejected an attempt, because the previous ones failed."""


class WorkerLostError(StageflowError):
    """The worker of an executor ended before it returned the value of a stage: it crashed or was killed.

    Attributes:
        exit_code: The exit code of its process, negative for a signal; None if it is unknown.
    """

    exit_code: int | None = None


class SerializationError(StageflowError, TypeError):
    """A value cannot be sent to a worker of an executor, or from it, because it cannot be pickled."""


class LimitDeadlockError(StageflowError):
    """A stage would wait indefinitely for a limit, because all permits are held by stages that wait for it.

    Attributes:
        limit: Name of the limit.
        holders: Pipeline, stage and run id of each stage that holds a permit.
    """

    def __init__(
        self, message: str, *, limit: str, holders: Sequence[tuple[str, str, str]], **where: str | None
    ) -> None:
        super().__init__(message, **where)
        self.limit = limit
        self.holders = tuple(holders)


class BudgetExceededError(StageflowError):
    """A run, including its child runs, spent more than its budget.

    Attributes:
        unit: The limit that was exceeded: "usd", "tokens" or "attempts".
        limit: The value of that limit.
        spent: The amount with which the run exceeded it; for attempts, the number that had started.
        budget_run_id: Id of the run with the budget: the run `run_id`, or an outer run.
    """

    def __init__(
        self,
        message: str,
        *,
        unit: str,
        limit: float,
        spent: float,
        budget_run_id: str,
        **where: str | None,
    ) -> None:
        super().__init__(message, **where)
        self.unit = unit
        self.limit = limit
        self.spent = spent
        self.budget_run_id = budget_run_id


class LoopLimitError(StageflowError):
    """A loop ran its maximum number of iterations, and `until` was still false.

    Attributes:
        results: The `PipelineResults` of the last iteration.
    """

    def __init__(self, message: str, *, results: Any, **where: Any) -> None:
        super().__init__(message, **where)
        self.results = results


class DeadlineExceededError(StageflowError, TimeoutError):
    """A run took longer than its `deadline`."""


class StageFailedError(StageflowError):
    """The cause of a `RunFailedError` if the stage returned `StageOutput.fail("text")`."""


class RunFailedError(StageflowError):
    """A run ended with status FAIL; raised by `PipelineResults.raise_on_failure()`.

    Attributes:
        results: The complete `PipelineResults` of the run.
    """

    def __init__(self, message: str, *, results: Any, **where: Any) -> None:
        super().__init__(message, **where)
        self.results = results


class MissingExtraError(StageflowError, ImportError):
    """A feature requires packages that are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed", hint=f'pip install "stageflow[{extra}]"'
        )


class SettingsError(StageflowError, ValueError):
    """A setting is unknown or has an invalid value.

    Attributes:
        origin: Source of the setting: "argument", the name of an environment variable, or a file.
    """

    def __init__(self, message: str, origin: str) -> None:
        super().__init__(f"{message} (from: {origin})")
        self.origin = origin


class JournalNotFoundError(StageflowError, FileNotFoundError):
    """There is no journal at this path."""

    def __init__(self, path: str, why: str = "") -> None:
        super().__init__(
            f"there is no journal at {path!r}{why and ': '}{why}",
            hint="pass the directory of a journal; `stageflow demo` creates one in .stageflow/demo",
        )


class RunNotFoundError(StageflowError, LookupError):
    """A journal does not contain the run, or more than one run matches."""


class QueryError(StageflowError, ValueError):
    """A query to the store is invalid.

    Attributes:
        sql: The predicate or the query.
    """

    def __init__(self, message: str, *, sql: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sql = sql


class ArchiveDamagedError(StageflowError, OSError):
    """Files of an archive are damaged or missing.

    Attributes:
        files: Paths of the files.
    """

    def __init__(self, message: str, *, files: Sequence[str], hint: str) -> None:
        super().__init__(message, hint=hint)
        self.files = tuple(files)


class ClosedError(StageflowError, ValueError):
    """A reader or a store was used after it was closed, or in a forked child."""


class ArchiveAddressError(StageflowError, ValueError):
    """The address of a journal's archive cannot be changed as requested, because events would not be visible.

    Attributes:
        events: Number of archived events that the journal no longer has; None if they cannot be counted.
        runs: Number of completed runs in these events; None if they cannot be counted.
    """

    def __init__(
        self, message: str, *, hint: str, events: int | None = None, runs: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.events = events
        self.runs = runs


class CursorInUseError(StageflowError):
    """Another reader uses the same cursor."""


class DamagedFileError(StageflowError, OSError, ValueError):
    """The content of a stored file is damaged, or it is not a regular file.

    Attributes:
        file: Path of the file.
        reason: Description of the damage.
    """

    def __init__(self, file: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{file} is damaged: {reason}", hint=hint)
        self.file = file
        self.reason = reason


class AlertRuleError(StageflowError, ValueError):
    """A file of alert rules is invalid. The error lists all problems, not only the first.

    Attributes:
        file: Path of the file.
        problems: One sentence per problem, with its location: "at $.rules[2].above: expected a number".
    """

    def __init__(self, file: str, problems: Sequence[str], *, hint: str | None = None) -> None:
        self.file = file
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{file} cannot be used:\n{lines}", hint=hint)


class AlertStateError(StageflowError):
    """The stored state of alerts cannot be read or changed.

    Attributes:
        file: Path of the file that stores the state.
    """

    def __init__(self, file: str, why: str) -> None:
        where = f" in {file!r}" if file else ""
        super().__init__(
            f"the state of alerts{where} cannot be used: {why}",
            hint="it records which notifications were sent; to start over, move the file away"
            if file
            else None,
        )
        self.file = file


def is_internal_code(filename: str) -> bool:
    """Return whether a source file belongs to the engine, which calls every stage.

    The record of an exception omits the frames of the engine. It contains those of the rest of this package,
    because a stage can, for instance, read a journal.
    """
    return filename.startswith(_ENGINE) or os.path.dirname(filename) == _PACKAGE


def invalid_argument(
    call: str,
    name: str,
    value: object,
    expected: str,
    *,
    known: Iterable[str] = (),
    pipeline: str | None = None,
    stage: str | None = None,
    run_id: str | None = None,
    hint: str | None = None,
) -> InvalidArgumentError:
    """Return the error about an invalid value of an argument.

    Args:
        call: The class or function, such as "Retry" or "read()".
        name: Name of the argument.
        value: Its value; a long one is truncated.
        expected: The valid values, such as "a positive integer".
        known: The valid values, if the error should suggest the closest one.
        pipeline: Name of the pipeline, or None.
        stage: Name of the stage, or None.
        run_id: Id of the run, or None.
        hint: How to fix it, or None.

    Example:
        >>> str(invalid_argument("Retry", "attempts", 0, "a positive integer"))
        'Retry: attempts must be a positive integer, got 0'
    """
    try:
        given = repr(value)
    except BaseException as error:
        INTERRUPTS.contain(error)
        given = f"<repr() of {type_name(value)} failed: {type_name(error)}>"
    if len(given) > _MAX_VALUE:
        given = given[:_MAX_VALUE] + "..."
    near = did_you_mean(value, known) if isinstance(value, str) else ""
    return InvalidArgumentError(
        f"{call}: {name} must be {expected}, got {given}{near}",
        pipeline=pipeline,
        stage=stage,
        run_id=run_id,
        hint=hint,
    )


def as_text(value: object) -> str:
    """Return `str(value)` as a plain `str`, or a placeholder if `__str__` raises any exception.

    Raises:
        KeyboardInterrupt: Ctrl-C arrived during the call, outside a section that writes a record.
    """
    try:
        return str.__str__(str(value))  # `str(value)` may return a subclass that overrides `__str__`
    except BaseException as error:
        INTERRUPTS.contain(error)
        return f"<str() of {type_name(value)} failed: {type_name(error)}>"


def type_name(value: object) -> str:
    """Return the name of the type of a value, even if its metaclass overrides `__name__`."""
    name: str = _NAME_OF_TYPE.__get__(type(value))
    return name


def describe(error: BaseException) -> str:
    """Return `Type: message` of an exception, even if its `__str__` raises.

    For a StageflowError, this omits the location and the hint, which would make every text different. For an
    exception group, it describes the first leaf and adds the number of others.

    Example:
        >>> describe(ExceptionGroup("two tasks failed", [ValueError("a"), KeyError("b")]))
        'ValueError: a (and 1 other)'
    """
    first, *others = leaves_of(error)
    message = as_text(_message(first)) if is_a(first, StageflowError) else as_text(first)
    name = type_name(first)
    text = f"{name}: {message}" if message else name
    return f"{text} ({_and_others(len(others))})" if others else text


def with_message(text: str, error: BaseException | None) -> str:
    """Return `text` with the message of an exception, such as that of `task.cancel("client went away")`.

    Example:
        >>> with_message("cancelled externally", InterruptedError("client went away"))
        'cancelled externally: client went away'
    """
    message = "" if error is None else as_text(error)
    return f"{text}: {message}" if message else text


def name_of_error(error: BaseException) -> str:
    """Return the `error_type` of an exception; for a group, that of the first leaf and the number of others.

    Example:
        >>> name_of_error(ExceptionGroup("two tasks failed", [ValueError("a"), KeyError("b")]))
        'ValueError and 1 other'
    """
    first, *others = leaves_of(error)
    try:
        name = str.__str__(type(first).__qualname__)
    except BaseException as raised:  # raised by a metaclass
        INTERRUPTS.contain(raised)
        name = type_name(first)
    return f"{name} {_and_others(len(others))}" if others else name


def _and_others(count: int) -> str:
    return f"and {count} other{'s' if count > 1 else ''}"


def leaves_of(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a group and in all groups inside it, in order; otherwise the exception itself.

    Example:
        >>> leaves_of(ExceptionGroup("outer", [ExceptionGroup("inner", [ValueError("a")]), KeyError("b")]))
        [ValueError('a'), KeyError('b')]
    """
    if not is_a(error, BaseExceptionGroup):
        return [error]
    leaves: list[BaseException] = []
    seen: set[int] = set()
    following = [error]
    while following:
        at = following.pop()
        if not is_a(at, BaseExceptionGroup):
            leaves.append(at)
        elif id(at) not in seen:
            seen.add(id(at))
            following.extend(reversed(_EXCEPTIONS_OF_GROUP.__get__(at)))
    return leaves


def _message(error: Any) -> object:
    try:
        return error.message
    except BaseException as raised:  # raised by a property of a subclass
        INTERRUPTS.contain(raised)
        return ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest match in `known`, or an empty string.

    Example:
        >>> did_you_mean("serch", ["search", "answer"])
        "; did you mean 'search'?"
    """
    import difflib  # needed only for an error message

    by_lower_case = {each.lower(): each for each in known}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    return f"; did you mean {by_lower_case[matches[0]]!r}?" if matches else ""
