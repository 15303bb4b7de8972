"""The base class of alert rules, with windows, thresholds and silences."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct, field

from .._files import replace_file, try_lock
from .._state_file import StateFile, read_state
from .._time import rfc3339
from ..errors import AlertStateError, InvalidArgumentError
from ..journal import RunFilter
from ..store import LONGEST_RUN, Over, condition, text

if TYPE_CHECKING:
    from datetime import datetime

    from ..store import EventStore

__all__ = [
    "HYSTERESIS",
    "SILENCES_FILE",
    "Measurement",
    "Rule",
    "Severity",
    "Silence",
    "Threshold",
    "Window",
    "WrongField",
    "add_silence",
    "check_number",
    "exactly",
    "how_many",
    "in_shell",
    "is_silenced",
    "percent",
    "read_silences",
    "rfc3339_of",
    "second_of",
    "silences_path",
    "span",
]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPECIAL = re.compile(r"[\"$`\\!]")
"""Characters that a shell interprets within double quotes."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def rfc3339_of(moment: datetime) -> str:
    """Return a time in the format of events."""
    return rfc3339((moment - _EPOCH) // timedelta(microseconds=1))


def exactly(moment: datetime) -> str:
    """Return a time in the format of events, without a fraction of zero.

    Example:
        >>> exactly(datetime(2026, 11, 24, 10, 30, tzinfo=UTC))
        '2026-11-24T10:30:00Z'
    """
    return rfc3339_of(moment).replace(".000000Z", "Z")


def second_of(moment: datetime) -> str:
    """Return a time without its fraction, in the format of command line options.

    Example:
        >>> second_of(datetime(2026, 11, 24, 10, 30, tzinfo=UTC))
        '2026-11-24T10:30:00Z'
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span(seconds: float) -> str:
    """Return a time span in the largest unit that divides it.

    Example:
        >>> span(600), span(21600), span(90), span(0.5)
        ('10 min', '6 h', '90 s', '0.5 s')
    """
    for unit, name in _UNITS:
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:g} s"


def percent(share: float) -> str:
    """Return a share in percent, with two decimals if it is small.

    Example:
        >>> percent(0.412), percent(0.001), percent(0.0004)
        ('41.2 %', '0.1 %', '0.04 %')
    """
    digits = 1 if share >= 0.001 or share == 0 else 2
    return f"{100 * share:.{digits}f} %"


def in_shell(text: str) -> str:
    """Return text quoted for a shell, readably if possible.

    Example:
        >>> print(in_shell("user_id = 'u1'"), in_shell("checkout"))
        "user_id = 'u1'" checkout
    """
    return f'"{text}"' if "'" in text and not _SPECIAL.search(text) else shlex.quote(text)


def how_many(events: float, rows: int, noun: str) -> str:
    """Return a count as text, which contains whether it is an estimate.

    Example:
        >>> how_many(85, 85, "runs"), how_many(4200, 85, "runs")
        ('85 runs', 'estimated 4,200 runs, from 85 seen')
    """
    if round(events) == rows:
        return f"{rows:,} {noun}"
    return f"estimated {events:,.0f} {noun}, from {rows:,} seen"


class Window(Struct, frozen=True):
    """A time window that includes its end, but not its start.

    Attributes:
        since: Start.
        until: End.
    """

    since: datetime
    until: datetime

    @classmethod
    def ending(cls, now: datetime, seconds: float) -> Window:
        """Return the window of this length that ends at `now`."""
        return cls(now - timedelta(seconds=seconds), now)

    def contains(self, column: str = "ended_at") -> str:
        """Return the SQL condition that a timestamp lies in the window."""
        since, until = (text(exactly(moment)) for moment in (self.since, self.until))
        return f"{column} > {since} and {column} <= {until}"

    def rows(self, over: Over, pipeline: str | None = None, stage: str | None = None, where: str = "") -> str:
        """Return the SQL condition for the rows of a view that ended in the window.

        Args:
            over: "runs" or "stages".
            pipeline: Only this pipeline.
            stage: Only this stage, or runs that have it.
            where: Additional SQL predicate.
        """
        # Files are pruned by the day of the start. Runs and stages that took longer than this are missed.
        day = text((self.since - LONGEST_RUN).date().isoformat())
        own = f"{self.contains()} and day >= {day}" + (f" and ({where})" if where else "")
        return condition(over, RunFilter(pipeline=pipeline, stage=stage), own)

    def options(self, pipeline: str | None, stage: str | None) -> str:
        """Return the command line options that select the rows of the window."""
        named = (("--pipeline", pipeline), ("--stage", stage))
        return f"--since {second_of(self.since)}" + "".join(
            f" {option} {in_shell(name)}" for option, name in named if name
        )

    def runs(self, pipeline: str | None, stage: str | None, where: str = "") -> str:
        """Return the SQL condition for runs that ended in the window, or that have a stage that did.

        Args:
            pipeline: Only this pipeline.
            stage: Select runs whose stage of this name ended in the window; None for runs that ended in it.
            where: Additional SQL predicate over the stage, or over the run if `stage` is None.
        """
        if stage is None:
            return self.rows("runs", pipeline, where=where)
        of_stage = self.rows("stages", pipeline, stage, where)
        return f"pipeline_run_id in (select pipeline_run_id from stages where {of_stage})"


_LOCK_SECONDS = 10.0
_POLL_SECONDS = 0.05


class Silence(Struct, frozen=True, kw_only=True):
    """Temporarily suppresses the notifications of an alert; the rule is still evaluated.

    Attributes:
        until: End. UTC if it has no time zone.
        reason: The reason, which `alerts list` shows.
        since: Start; default None, for immediately.
        rule: Name of the rule; None for a silence within a rule.
        by: Who added it; None if it is unknown.
    """

    until: datetime
    reason: str
    since: datetime | None = None
    rule: str | None = None
    by: str | None = None

    def applies(self, rule: str, now: datetime) -> bool:
        """Return whether it silences a rule now."""
        started = self.since is None or aware(self.since) <= now
        return started and now < aware(self.until) and self.rule in (None, rule)


def aware(moment: datetime) -> datetime:
    """Return a time with a time zone: TOML allows times without one, which are UTC here."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_silenced(rule: str, silences: Iterable[Silence], now: datetime) -> Silence | None:
    """Return the silence of a rule that applies now and ends last."""
    active = [silence for silence in silences if silence.applies(rule, now)]
    return max(active, key=lambda silence: aware(silence.until), default=None)


# Evaluations hold the lock on the state while they send. Adding a silence must not wait for a slow receiver,
# so silences have a separate file, which evaluations only read.


SILENCES_FILE = StateFile(
    "alerts.silences.json",
    tuple[Silence, ...],
    "move the file away, and add the silences again with `stageflow alerts silence`",
    after="add the silences again with `stageflow alerts silence`",
)


def silences_path(state: str) -> str:
    """Return the path of the file of silences for a state file.

    Example:
        >>> silences_path("journal/alerts.json")
        'journal/alerts.silences.json'
    """
    return os.path.splitext(state)[0] + ".silences.json"


def read_silences(state: str) -> tuple[Silence, ...]:
    """Return the silences that belong to a state file.

    Raises:
        DamagedFileError: The file is damaged.
        OSError: It cannot be read.
    """
    return read_state(silences_path(state), tuple[Silence, ...], SILENCES_FILE.remedy) or ()


def add_silence(state: str, silence: Silence, now: datetime, *, lift: bool = False) -> Sequence[Silence]:
    """Add a silence, which replaces the previous one of its rule, and return all silences.

    Expired silences are removed.

    Args:
        state: Path of the state file.
        silence: The silence, with the name of a rule.
        now: The current time.
        lift: Remove the silence of the rule instead.

    Raises:
        AlertStateError: Another process holds the lock.
        DamagedFileError: The file is damaged.
        OSError: The file cannot be written.
    """
    path = silences_path(state)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        with try_lock(path + ".lock") as mine:
            if mine:
                kept = [
                    each
                    for each in read_silences(state)
                    if each.rule != silence.rule and now < aware(each.until)
                ]
                kept += [] if lift else [silence]
                replace_file(os.path.abspath(path), msgspec.json.encode(kept))
                return kept
        if time.monotonic() > deadline:
            raise AlertStateError(path, "another process holds its lock")
        time.sleep(_POLL_SECONDS)


Severity = Literal["critical", "warning", "info"]


class WrongField(InvalidArgumentError):
    """A field of a rule or receiver has an invalid value.

    Attributes:
        field: Name of the field in the file.
        problem: Description of the problem.
    """

    def __init__(self, where: str, field: str, problem: str) -> None:
        super().__init__(f"{where}: {field}: {problem}")
        self.field = field
        self.problem = problem


class Measurement(Struct, frozen=True, kw_only=True):
    """The result of measuring a rule in one window.

    Attributes:
        value: The measured value; None if there are no events to calculate it from.
        summary: The measured value as text: "failure rate 41.2 %".
        threshold: The threshold as text: "above 5.0 %, resolves below 4.0 %".
        bad: Whether the rule would fire.
        good: Whether a firing alert would resolve. Both are False if there are too few events.
        rows: Number of events that were read.
        events: Number of events that they represent, by their `sample_rate`.
        noun: Noun for the events: "runs".
        window: The time window.
        selection: SQL predicate over the `runs` view for the affected runs; None if there are none.
        rest: SQL predicate over the `runs` view for the runs to compare them with.
        runs: Ids of affected runs, if the rule determines them itself.
        notes: Additional lines for the notification.
        subjects: What the rule fires about, if each needs a notification: errors. While the alert fires, a
            subject that was not in an earlier notification causes another one. Default none.
    """

    value: float | None
    summary: str
    threshold: str
    bad: bool
    good: bool
    rows: int
    events: float
    noun: str
    window: Window
    selection: str | None = None
    rest: str | None = None
    runs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()


class Rule(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The base class of alert rules. Each kind of rule adds fields.

    Attributes:
        name: Unique name; the state is stored under it.
        pipeline: Only this pipeline; for stages, their topology. Default all.
        stage: Only this stage; default whole runs.
        window: Seconds; runs or stages that ended in this period before the evaluation count. Default 600.
        min_events: Minimum number of stored events to fire; a sampled event counts once. Default 20; for
            kinds that count, 1.
        for_: Number of consecutive evaluations in which it must be bad to fire; default 1. In a file: `for`.
        severity: "critical", "warning" (default) or "info"; passed on to receivers.
        repeat_every: Seconds after which a firing alert is sent again; default None, for no repetition.
        receivers: Names of the receivers to notify; default all.
        silences: Silences of this rule.

    Raises:
        InvalidArgumentError: A field has an invalid value.
    """

    name: str
    pipeline: str | None = None
    stage: str | None = None
    window: float = 600.0
    min_events: int = 20
    for_: int = field(default=1, name="for")
    severity: Severity = "warning"
    repeat_every: float | None = None
    receivers: tuple[str, ...] = ()
    silences: tuple[Silence, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable():
            raise WrongField("rule", "name", f"expected text on one line, got {self.name!r}")
        for name in ("pipeline", "stage"):
            if getattr(self, name) == "":
                raise WrongField(self.name, name, "must not be empty; omit the key to select all")
        check_number(self.name, "window", self.window, above=0)
        check_number(self.name, "min_events", self.min_events, least=0)
        check_number(self.name, "for", self.for_, least=1)
        if self.repeat_every is not None:
            check_number(self.name, "repeat_every", self.repeat_every, above=0)

    @property
    def kind(self) -> str:
        """The kind in a file: "failure_rate"."""
        return str(self.__struct_config__.tag)

    # Not an `abc.ABC`: its metaclass conflicts with the one of `msgspec.Struct`.
    def measure(self, store: EventStore, now: datetime) -> Measurement:
        """Measure the rule in the window that ends now.

        Raises:
            QueryError: The store cannot execute a query.
            OSError: The store cannot be read.
        """
        raise NotImplementedError  # each subclass overrides it

    def commands(self, window: Window) -> Sequence[str]:
        """Return commands for further investigation, without `--journal`."""
        raise NotImplementedError  # each subclass overrides it

    def is_worse(self, value: float, than: float) -> bool:
        """Return whether a measured value is worse than another; by default, whether it is higher."""
        return value > than


def check_number(
    where: str, field: str, value: Any, *, above: float | None = None, least: float | None = None
) -> None:
    """Raise `WrongField` if a value is not a number, or too small."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
        raise WrongField(where, field, f"expected a number, got {value!r}")
    if above is not None and not value > above:
        raise WrongField(where, field, f"expected more than {above:g}, got {value!r}")
    if least is not None and not value >= least:
        raise WrongField(where, field, f"expected {least:g} or more, got {value!r}")


HYSTERESIS = 0.8
"""Default for `resolve_below`, as a share of `above`."""


class Threshold(Rule, frozen=True, kw_only=True):
    """A rule with a value and two thresholds. Between them, an alert keeps its status.

    Attributes:
        above: Threshold above which it fires.
        resolve_below: Threshold below which it resolves; default 80% of `above`.
    """

    above: float
    resolve_below: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "above", self.above, least=0)
        if self.resolve_below is not None:
            check_number(self.name, "resolve_below", self.resolve_below, least=0)
            if self.resolve_below > self.above:
                problem = f"expected no more than above = {self.above:g}, got {self.resolve_below:g}"
                raise WrongField(self.name, "resolve_below", problem)

    @property
    def below(self) -> float:
        """The threshold below which it resolves."""
        return self.above * HYSTERESIS if self.resolve_below is None else self.resolve_below

    def verdict(self, value: float | None, *, enough: bool, exact: bool = False) -> tuple[bool, bool]:
        """Return whether a value is bad, and whether it is good; between the thresholds it is neither.

        Args:
            value: The value; None if it is unknown.
            enough: Whether there are enough events for an estimate.
            exact: True for a count, which is exact however few events there are.
        """
        if value is None:
            return False, False
        return enough and value > self.above, (enough or exact) and (value < self.below or value == 0)
