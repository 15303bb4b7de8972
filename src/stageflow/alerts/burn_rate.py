"""`BurnRate`: an error budget is used up too fast, over a long window and a short one.

These are the multiwindow, multi-burn-rate alerts of "The Site Reliability Workbook" (Google, 2018),
chapter 5, "Alerting on SLOs", with its figures as defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from .failure_rate import COUNTED, FAILED, failed_share
from .rule import Measured, Rule, WrongField, check_number
from .threshold import HYSTERESIS
from .window import Window
from .wording import in_shell, percent, span

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = ["BurnRate", "BurnWindows"]


class BurnWindows(Struct, frozen=True, kw_only=True):
    """Two windows, and a burn rate that must be exceeded in both.

    The long one says that it matters, the short one that it still goes on.

    Attributes:
        long: Seconds.
        short: Seconds.
        above: How many times as fast as the budget allows.
    """

    long: float
    short: float
    above: float

    def __str__(self) -> str:
        return f"{self.above:g}x over {span(self.long)} and {span(self.short)}"


class BurnRate(Rule, frozen=True, kw_only=True, tag="burn_rate"):
    """Fires where errors use up the budget of an SLO too fast, in both windows of a pair.

    A burn rate of 1 uses up the whole budget in just the period of the SLO. It resolves when the burn
    rate of every short window is below 80 % of what it fires above. `min_events` counts in the long
    window. `window` means nothing to it.

    Attributes:
        slo: The share that should be good: 0.999.
        slower_than: Seconds; runs or stages that took longer also count as bad. Default None: only failures
            do. Runs that were cancelled externally count neither as good nor as bad, as in `FailureRate`.
        windows: The pairs; default 14.4x over 1 h and 5 min, and 6x over 6 h and 30 min, which use
            2 % and 5 % of the budget of 30 days.
        resolve_share: Of `above`, for the short windows; default 0.8.

    Example:
        >>> print(*BurnRate(name="budget", slo=0.999).windows, sep="; ")
        14.4x over 1 h and 5 min; 6x over 6 h and 30 min
    """

    slo: float
    slower_than: float | None = None
    windows: tuple[BurnWindows, ...] = (
        BurnWindows(long=3600, short=300, above=14.4),
        BurnWindows(long=21600, short=1800, above=6.0),
    )
    resolve_share: float = HYSTERESIS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "slo", self.slo, above=0)
        if self.slo >= 1:
            raise WrongField(self.name, "slo", f"expected a share below 1 (0.999), got {self.slo!r}")
        if self.slower_than is not None:
            check_number(self.name, "slower_than", self.slower_than, above=0)
        check_number(self.name, "resolve_share", self.resolve_share, above=0)
        if not self.windows:
            raise WrongField(self.name, "windows", "must not be empty; expected at least one pair")
        for number, pair in enumerate(self.windows):
            for name in ("long", "short", "above"):
                check_number(self.name, f"windows[{number}].{name}", getattr(pair, name), above=0)
            if pair.short >= pair.long:
                problem = f"expected less than long = {pair.long:g}, got {pair.short:g}"
                raise WrongField(self.name, f"windows[{number}].short", problem)
            if pair.above > 1 / (1 - self.slo):
                # Not one request could be good, and still it would not fire.
                problem = f"a burn rate cannot exceed {1 / (1 - self.slo):.4g} with slo = {self.slo:g}"
                raise WrongField(self.name, f"windows[{number}].above", problem)

    @property
    def _failed(self) -> str:
        if self.slower_than is None:
            return FAILED
        return f"({FAILED} or duration_ms > {self.slower_than * 1000:.15g})"

    def measure(self, store: EventStore, now: datetime) -> Measured:
        budget = 1 - self.slo
        found = []
        for pair in self.windows:
            long = Window.ending(now, pair.long)
            of_long = failed_share(store, long, self.pipeline, self.stage, self._failed)
            short = Window.ending(now, pair.short)
            of_short = failed_share(store, short, self.pipeline, self.stage, self._failed)
            burns = tuple(None if share is None else share / budget for *_, share in (of_long, of_short))
            found.append((pair, long, of_long, burns))

        def exceeds(burns: tuple[float | None, ...], pair: BurnWindows, rows: int) -> bool:
            return rows >= self.min_events and all(burn is not None and burn > pair.above for burn in burns)

        bad = [one for one in found if exceeds(one[3], one[0], one[2][0])]
        # Where a short window is empty nobody knows whether it still goes on.
        good = not bad and all(
            burns[1] is not None and burns[1] < pair.above * self.resolve_share for pair, _, _, burns in found
        )
        # Told is the pair that exceeds its threshold most.
        pair, window, (rows, events, _), burns = max(
            bad or found, key=lambda one: min(burn or 0.0 for burn in one[3]) / one[0].above
        )
        told = " and ".join("unknown" if burn is None else f"{burn:.1f}x" for burn in burns)
        pairs = " or ".join(map(str, self.windows))
        return Measured(
            value=burns[0],
            says=f"burn rate {told} over {span(pair.long)} and {span(pair.short)}",
            threshold=f"above {pairs}, of the {percent(budget)} that SLO {100 * self.slo:g} % allows",
            bad=bool(bad),
            good=good,
            rows=rows,
            events=events,
            noun=f"ends of stage {self.stage}" if self.stage else "runs",
            window=window,
            selection=window.runs(self.pipeline, self.stage, f"{COUNTED} and {self._failed}"),
            rest=window.runs(self.pipeline, self.stage, COUNTED),
        )

    def commands(self, window: Window) -> Sequence[str]:
        these = window.options(self.pipeline, self.stage)
        which = "failed" if self.slower_than is None else in_shell(self._failed)
        return [f"stageflow errors {these}", f"stageflow explain {which} {these}"]
