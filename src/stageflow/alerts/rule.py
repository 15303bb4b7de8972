"""`Rule`: what every kind of rule has in common, and what a rule measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, field

from .silence import Silence
from .window import Window

if TYPE_CHECKING:
    from datetime import datetime

    from ..store import EventStore

__all__ = ["Measured", "Rule", "Severity", "WrongField", "check_number"]

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
        says: The figure in words: "failure rate 41.2 %".
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
    says: str
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
