"""What all alert rules have in common."""

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

from .._files import only_one, replace_file
from .._state_file import StateFile, read_state
from .._time import rfc3339
from ..errors import AlertStateError
from ..journal import RunFilter
from ..store import LONGEST_RUN, Over, condition, text

if TYPE_CHECKING:
    from datetime import datetime

    from ..store import EventStore

__all__ = [
    "HYSTERESIS",
    "SILENCES_FILE",
    "Measured",
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
_OBEYED = re.compile(r"[\"$`\\!]")
"""What a shell obeys also between double quotes."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def rfc3339_of(moment: datetime) -> str:
    """Return a moment as events have it."""
    return rfc3339((moment - _EPOCH) // timedelta(microseconds=1))


def exactly(moment: datetime) -> str:
    """Return a moment as events have it, without a fraction where there is none.

    Example:
        >>> exactly(datetime(2026, 11, 24, 10, 30, tzinfo=UTC))
        '2026-11-24T10:30:00Z'
    """
    return rfc3339_of(moment).replace(".000000Z", "Z")


def second_of(moment: datetime) -> str:
    """Return a moment to its second, as the options of the command line take it.

    Example:
        >>> second_of(datetime(2026, 11, 24, 10, 30, tzinfo=UTC))
        '2026-11-24T10:30:00Z'
    """
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span(seconds: float) -> str:
    """Return a span of time in the largest unit that leaves no fraction.

    Example:
        >>> span(600), span(21600), span(90), span(0.5)
        ('10 min', '6 h', '90 s', '0.5 s')
    """
    for unit, name in _UNITS:
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:g} s"


def percent(share: float) -> str:
    """Return a share in percent, with as many digits as a small one needs.

    Example:
        >>> percent(0.412), percent(0.001), percent(0.0004)
        ('41.2 %', '0.1 %', '0.04 %')
    """
    digits = 1 if share >= 0.001 or share == 0 else 2
    return f"{100 * share:.{digits}f} %"


def in_shell(text: str) -> str:
    """Return text as a shell takes it for one word, in the quotes that leave it readable.

    Example:
        >>> print(in_shell("status = 'FAIL'"), in_shell("checkout"))
        "status = 'FAIL'" checkout
    """
    return f'"{text}"' if "'" in text and not _OBEYED.search(text) else shlex.quote(text)


def how_many(events: float, rows: int, noun: str) -> str:
    """Return a count, and whether it is an estimate.

    Example:
        >>> how_many(85, 85, "runs"), how_many(4200, 85, "runs")
        ('85 runs', 'estimated 4,200 runs, from 85 seen')
    """
    if round(events) == rows:
        return f"{rows:,} {noun}"
    return f"estimated {events:,.0f} {noun}, from {rows:,} seen"


class Window(Struct, frozen=True):
    """From one moment up to another, which belongs to it.

    Attributes:
        since: When it begins.
        until: When it ends.
    """

    since: datetime
    until: datetime

    @classmethod
    def ending(cls, now: datetime, seconds: float) -> Window:
        """Return the last so many seconds."""
        return cls(now - timedelta(seconds=seconds), now)

    def holds(self, column: str = "ended_at") -> str:
        """Return in SQL whether a moment is in it."""
        since, until = (text(exactly(moment)) for moment in (self.since, self.until))
        return f"{column} > {since} and {column} <= {until}"

    def rows(self, over: Over, pipeline: str | None = None, stage: str | None = None, where: str = "") -> str:
        """Return in SQL which rows of a view ended in it.

        Args:
            over: "runs" or "stages".
            pipeline: Only of this pipeline.
            stage: Only of this stage, or runs that have it.
            where: SQL predicate in addition to it.
        """
        # Files are passed over by the day on which something began. What took longer than that is missed.
        day = text((self.since - LONGEST_RUN).date().isoformat())
        own = f"{self.holds()} and day >= {day}" + (f" and ({where})" if where else "")
        return condition(over, RunFilter(pipeline=pipeline, stage=stage), own)

    def options(self, pipeline: str | None, stage: str | None) -> str:
        """Return the options of the command line that choose what it looks at."""
        named = (("--pipeline", pipeline), ("--stage", stage))
        return f"--since {second_of(self.since)}" + "".join(
            f" {option} {in_shell(name)}" for option, name in named if name
        )

    def runs(self, pipeline: str | None, stage: str | None, where: str = "") -> str:
        """Return in SQL which rows of `runs` are of it, or have a stage that is.

        Args:
            pipeline: Only of this pipeline.
            stage: Runs whose stage of this name ended in the window; None for runs that ended in it.
            where: SQL predicate in addition to it, over the stage where one is named, else over the run.
        """
        if stage is None:
            return self.rows("runs", pipeline, where=where)
        of_stage = self.rows("stages", pipeline, stage, where)
        return f"pipeline_run_id in (select pipeline_run_id from stages where {of_stage})"


_LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.05


class Silence(Struct, frozen=True, kw_only=True):
    """Holds back the notices of an alert for a while; it is evaluated all the same.

    Attributes:
        until: The moment at which it ends. Without a zone it is UTC.
        reason: Why; whoever wonders about the quiet reads it.
        since: When it begins; default None, for at once.
        rule: Name of the rule; None where the silence stands in a rule.
    """

    until: datetime
    reason: str
    since: datetime | None = None
    rule: str | None = None

    def holds(self, rule: str, now: datetime) -> bool:
        """Tell whether it keeps a rule quiet now."""
        begun = self.since is None or aware(self.since) <= now
        return begun and now < aware(self.until) and self.rule in (None, rule)


def aware(moment: datetime) -> datetime:
    """Return a moment with a zone: TOML knows moments without one, and those are UTC here."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_silenced(rule: str, silences: Iterable[Silence], now: datetime) -> Silence | None:
    """Return the silence that keeps a rule quiet now, the one that ends last."""
    held = [silence for silence in silences if silence.holds(rule, now)]
    return max(held, key=lambda silence: aware(silence.until), default=None)


# Evaluators hold the lock on the state while they send. Whoever silences an alert must not wait for a
# receiver that is slow, so silences have a file of their own, which evaluators only read.


SILENCES_FILE = StateFile(
    "alerts.silences.json",
    tuple[Silence, ...],
    "move the file away, and add the silences again with `stageflow alerts silence`",
    after="add the silences again with `stageflow alerts silence`",
)


def silences_path(state: str) -> str:
    """Return where the silences beside a state are kept.

    Example:
        >>> silences_path("journal/alerts.json")
        'journal/alerts.silences.json'
    """
    return os.path.splitext(state)[0] + ".silences.json"


def read_silences(state: str) -> tuple[Silence, ...]:
    """Return the silences beside a state.

    Raises:
        DamagedFileError: The file is damaged.
        OSError: It cannot be read.
    """
    return read_state(silences_path(state), tuple[Silence, ...], SILENCES_FILE.remedy) or ()


def add_silence(state: str, silence: Silence, now: datetime, *, lift: bool = False) -> Sequence[Silence]:
    """Add a silence beside a state, in place of the one that its rule had; return all of now.

    Those that are over are taken out.

    Args:
        state: Path of the state.
        silence: With the name of a rule.
        now: The present.
        lift: Take the rule's silence away instead.

    Raises:
        AlertStateError: Another process holds the lock.
        DamagedFileError: The file is damaged.
        OSError: It cannot be written.
    """
    path = silences_path(state)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        with only_one(path + ".lock") as mine:
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
            raise AlertStateError(path, "another process keeps it locked")
        time.sleep(_LOOK_SECONDS)


Severity = Literal["critical", "warning", "info"]


class WrongField(ValueError):
    """A field of a rule or receiver has a value that it may not have.

    Attributes:
        field: Its name, as the file has it.
        problem: What is wrong with it.
    """

    def __init__(self, where: str, field: str, problem: str) -> None:
        super().__init__(f"{where}: {field}: {problem}")
        self.field = field
        self.problem = problem


class Measured(Struct, frozen=True, kw_only=True):
    """What a rule found in one window.

    Attributes:
        value: The figure; None where there is nothing to take it from.
        summary: The measured value as text: "failure rate 41.2 %".
        threshold: What it is held against, in words: "above 5.0 %, resolves below 4.0 %".
        bad: True where the rule would fire.
        good: True where an alert that fires would resolve. Neither is true where there is too little to say.
        rows: How many events were looked at.
        events: How many they stand for, by their `sample_rate`.
        noun: What these are: "runs".
        window: The stretch of time.
        selection: SQL over the view `runs`: those that made it bad. None where no runs did.
        rest: SQL over the view `runs`: those that the selection is held against.
        runs: Ids of runs, where the rule names them itself.
        notes: Further lines for the message.
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


class Rule(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What is watched, when it fires, and whom it tells. Each kind of rule adds fields of its own.

    Attributes:
        name: By which its state is kept; unique among the rules.
        pipeline: Only of this pipeline; of a stage the topology that it ran in. Default all.
        stage: Only of this stage; default whole runs.
        window: Seconds; what ended within the last so many counts. Default 600.
        min_events: It fires only where at least so many events were seen. One that stands for many is
            one. Default 20, for kinds that count 1.
        for_: In how many evaluations in a row it must be bad before it fires; default 1. In a file: `for`.
        severity: "critical", "warning" (the default) or "info": handed on, and nothing else.
        repeat_every: Seconds after which an alert that still fires is told again; default None, for never.
        receivers: Names of the receivers that are told; default all.
        silences: When it is not told.

    Raises:
        ValueError: A field has a value that it may not have.
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
        """The kind, as a file names it: "failure_rate"."""
        return str(self.__struct_config__.tag)

    # Abstract: each subclass overrides `measure` and `commands`. `abc.ABC` cannot declare that: its metaclass
    # conflicts with the one of `msgspec.Struct`.
    def measure(self, store: EventStore, now: datetime) -> Measured:
        """Return what the rule finds in the window that ends now.

        Raises:
            QueryError: The store cannot answer.
            OSError: The store cannot be read.
        """
        raise NotImplementedError

    def commands(self, window: Window) -> Sequence[str]:
        """Return the commands that look further, without `--journal`."""
        raise NotImplementedError


def check_number(
    where: str, field: str, value: Any, *, above: float | None = None, least: float | None = None
) -> None:
    """Raise `WrongField` where a value is no number, or too small a one."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
        raise WrongField(where, field, f"expected a number, got {value!r}")
    if above is not None and not value > above:
        raise WrongField(where, field, f"expected more than {above:g}, got {value!r}")
    if least is not None and not value >= least:
        raise WrongField(where, field, f"expected {least:g} or more, got {value!r}")


HYSTERESIS = 0.8
"""Share of its threshold below which an alert resolves, unless `resolve_below` says otherwise."""


class Threshold(Rule, frozen=True, kw_only=True):
    """A rule with a figure and two thresholds. Between them an alert stays what it is.

    Attributes:
        above: It fires above this.
        resolve_below: It resolves below this; default 80 % of `above`.
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
        """Below which it resolves."""
        return self.above * HYSTERESIS if self.resolve_below is None else self.resolve_below

    def verdict(self, value: float | None, *, enough: bool, exact: bool = False) -> tuple[bool, bool]:
        """Return whether a figure is bad, and whether it is good; between the thresholds it is neither.

        Args:
            value: The figure; None where there is none.
            enough: Whether enough events were seen for one that is an estimate.
            exact: True for a count: none is none, however few events there were.
        """
        if value is None:
            return False, False
        return enough and value > self.above, (enough or exact) and (value < self.below or value == 0)
