"""The alert rules."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from .._state_file import decode_stored
from ..journal import Journal, RunFilter
from ..render import on_one_line
from ..store import (
    FAILED,
    FAILURE_COLUMNS,
    condition,
    count_if,
    failure_condition,
    percentiles,
    ranked,
    text,
)
from ._rule import (
    HYSTERESIS,
    Measurement,
    Rule,
    Threshold,
    Window,
    WrongField,
    check_number,
    exactly,
    in_shell,
    percent,
    rfc3339_of,
    second_of,
    span,
)

if TYPE_CHECKING:
    from ..store import EventStore, Over

__all__ = [
    "COUNTED",
    "BurnRate",
    "BurnWindows",
    "CrashedRuns",
    "EventsDropped",
    "FailureRate",
    "NewError",
    "NoRuns",
    "SlowerThan",
    "SqlRows",
    "failed_share",
]


COUNTED = f"{FAILED} is not null"
"""SQL: true for the runs and executions of stages that a failure rate counts."""


class FailureRate(Threshold, frozen=True, kw_only=True, tag="failure_rate"):
    """Fires if the share of failures is above a threshold.

    Runs whose outcome counts as a failure (by default `failed`, `timeout` and `crashed`) are divided by all
    runs except those that were cancelled externally. For a stage, ends with status FAIL are divided by all
    ends except cancelled ones.

    Attributes:
        above: A share: 0.05 is 5%.
        resolve_below: A share as well.

    Example:
        >>> FailureRate(name="checkout fails", pipeline="checkout", above=0.05).kind
        'failure_rate'
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.above >= 1:
            raise WrongField(self.name, "above", f"expected a share below 1 (0.05 is 5%), got {self.above!r}")

    def measure(self, store: EventStore, now: datetime) -> Measurement:
        window = Window.ending(now, self.window)
        rows, events, share = failed_share(store, window, self.pipeline, self.stage)
        bad, good = self.verdict(share, enough=rows >= self.min_events)
        return Measurement(
            value=share,
            summary=f"failure rate {percent(share)}" if share is not None else "failure rate unknown",
            threshold=f"above {percent(self.above)}, resolves below {percent(self.below)}",
            bad=bad,
            good=good,
            rows=rows,
            events=events,
            noun=f"executions of stage {self.stage}" if self.stage else "runs",
            window=window,
            selection=window.runs(self.pipeline, self.stage, FAILED),
            rest=window.runs(self.pipeline, self.stage, COUNTED),
        )

    def commands(self, window: Window) -> Sequence[str]:
        these = window.options(self.pipeline, self.stage)
        return [f"stageflow errors {these}", f"stageflow explain failed {these}"]


def failed_share(
    store: EventStore, window: Window, pipeline: str | None, stage: str | None, failed: str = FAILED
) -> tuple[int, float, float | None]:
    """Return the number of stored events, the number that they represent, and the share that failed.

    Args:
        store: The store.
        window: The window in which they ended.
        pipeline: Only this pipeline.
        stage: Only this stage; None for runs.
        failed: SQL predicate for failures.
    """
    over: Over = "stages" if stage else "runs"
    ended = window.rows(over, pipeline, stage, COUNTED)
    query = f"select count(*), {count_if()}, {count_if(failed)} from {over} where {ended}"
    ((rows, events, bad),) = store.sql(query, since=window.since).rows
    return rows, float(events), float(bad) / float(events) if rows else None


_RAN = "status <> 'RETRY' and attempts > 0"


class SlowerThan(Threshold, frozen=True, kw_only=True, tag="slower_than"):
    """Fires if a percentile of durations is above a threshold.

    For a stage, the last attempt of each execution counts, unless it was skipped or cancelled before it ran.

    Attributes:
        above: Seconds.
        resolve_below: Seconds; default 80% of `above`.
        quantile: "p50", "p90", "p95" (the default) or "p99".

    Example:
        >>> SlowerThan(name="search is slow", stage="search", quantile="p99", above=0.5).below
        0.4
    """

    quantile: Literal["p50", "p90", "p95", "p99"] = "p95"

    @property
    def _slow(self) -> str:
        return f"duration_ms > {self.above * 1000:.15g}"

    def measure(self, store: EventStore, now: datetime) -> Measurement:
        window = Window.ending(now, self.window)
        over: Literal["runs", "stages"] = "stages" if self.stage else "runs"
        ran = _RAN if self.stage else ""
        rows = window.rows(over, self.pipeline, self.stage, ran)
        # Weighted even if nothing was sampled: for the rows of one window, this costs little.
        rank = int(self.quantile[1:]) / 100
        source = ranked(f"select * from {over} where {rows}", "duration_ms", (), weighted=True)
        query = f"select count(*), {count_if()}, {percentiles([rank], weighted=True)}[1] from {source}"
        ((seen, events, value),) = store.sql(query, since=window.since).rows
        seconds = None if value is None else value / 1000
        bad, good = self.verdict(seconds, enough=seen >= self.min_events)
        slow = self._slow
        return Measurement(
            value=seconds,
            summary=f"{self.quantile} {value:,.0f} ms" if value is not None else f"{self.quantile} unknown",
            threshold=f"above {self.above * 1000:,.0f} ms, resolves below {self.below * 1000:,.0f} ms",
            bad=bad,
            good=good,
            rows=seen,
            events=float(events),
            noun=f"executions of stage {self.stage}" if self.stage else "runs",
            window=window,
            selection=window.runs(self.pipeline, self.stage, f"{ran} and {slow}" if ran else slow),
            rest=window.runs(self.pipeline, self.stage, ran),
        )

    def commands(self, window: Window) -> Sequence[str]:
        these = window.options(self.pipeline, self.stage)
        slow = in_shell(self._slow)
        stages = " --over stages" if self.stage else ""
        return [f"stageflow slowest{stages} {these}", f"stageflow explain {slow} {these}"]


class BurnWindows(Struct, frozen=True, kw_only=True):
    """Two windows, and a burn rate that must be exceeded in both.

    The long window ensures that the problem matters, the short one that it still persists.

    Attributes:
        long: Seconds.
        short: Seconds.
        above: Burn rate, as a multiple of the rate that the budget allows.
    """

    long: float
    short: float
    above: float

    def __str__(self) -> str:
        return f"{self.above:g}x over both {span(self.long)} and {span(self.short)}"


class BurnRate(Rule, frozen=True, kw_only=True, tag="burn_rate"):
    """Fires if errors consume the error budget of an SLO too fast, in both windows of a pair.

    A burn rate of 1 consumes the whole budget in exactly the period of the SLO. The alert resolves when the
    burn rate of every short window is below 80% of its threshold. `min_events` applies to the long window;
    `window` has no effect.

    Attributes:
        slo: The share that should be good: 0.999.
        slower_than: Seconds; runs or stages that took longer also count as bad. Default None: only failures
            do. Runs that were cancelled externally count neither as good nor as bad, as in `FailureRate`.
        windows: The pairs; default 14.4x over both 1 h and 5 min, and 6x over both 6 h and 30 min,
            which consume 2% and 5% of a 30-day budget.
        resolve_share: Share of `above` below which the short windows resolve; default 0.8.

    Example:
        >>> print(*BurnRate(name="budget", slo=0.999).windows, sep="; ")
        14.4x over both 1 h and 5 min; 6x over both 6 h and 30 min
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
                # Even if every request failed, it would not fire.
                problem = f"a burn rate cannot exceed {1 / (1 - self.slo):.4g} with slo = {self.slo:g}"
                raise WrongField(self.name, f"windows[{number}].above", problem)

    @property
    def _failed(self) -> str:
        if self.slower_than is None:
            return FAILED
        return f"({FAILED} or duration_ms > {self.slower_than * 1000:.15g})"

    def measure(self, store: EventStore, now: datetime) -> Measurement:
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
        # If a short window is empty, it is unknown whether the problem persists.
        good = not bad and all(
            burns[1] is not None and burns[1] < pair.above * self.resolve_share for pair, _, _, burns in found
        )
        # Report the pair that exceeds its threshold most.
        pair, window, (rows, events, _), burns = max(
            bad or found, key=lambda one: min(burn or 0.0 for burn in one[3]) / one[0].above
        )
        rates = ", ".join(
            f"{'unknown' if burn is None else f'{burn:.1f}x'} over {span(seconds)}"
            for burn, seconds in zip(burns, (pair.long, pair.short), strict=True)
        )
        pairs = ", or above ".join(map(str, self.windows))
        return Measurement(
            value=burns[0],
            summary=f"burn rate {rates}",
            threshold=f"above {pairs}, of the {percent(budget)} that SLO {100 * self.slo:g} % allows",
            bad=bool(bad),
            good=good,
            rows=rows,
            events=events,
            noun=f"executions of stage {self.stage}" if self.stage else "runs",
            window=window,
            selection=window.runs(self.pipeline, self.stage, f"{COUNTED} and {self._failed}"),
            rest=window.runs(self.pipeline, self.stage, COUNTED),
        )

    def commands(self, window: Window) -> Sequence[str]:
        these = window.options(self.pipeline, self.stage)
        which = "failed" if self.slower_than is None else in_shell(self._failed)
        return [f"stageflow errors {these}", f"stageflow explain {which} {these}"]


class NoRuns(Rule, frozen=True, kw_only=True, tag="no_runs"):
    """Fires if fewer runs than expected started or ended in the window, or if there has never been a run.

    Runs in progress that started in the window count as well. `min_events` has no effect.

    Attributes:
        fewer_than: Minimum number of expected runs; default 1.

    Example:
        >>> NoRuns(name="the nightly import", pipeline="import", window=26 * 3600).fewer_than
        1
    """

    fewer_than: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "fewer_than", self.fewer_than, least=1)

    def measure(self, store: EventStore, now: datetime) -> Measurement:
        window = Window.ending(now, self.window)
        where = RunFilter(pipeline=self.pipeline, stage=self.stage)
        # A run that started in the window has ended in it, or has not ended.
        query = (
            f"select count(*), {count_if()} from runs where {window.rows('runs', self.pipeline, self.stage)}"
        )
        ((rows, events),) = store.sql(query, since=window.since).rows
        if events < self.fewer_than and store.path is not None:
            since = RunFilter(pipeline=self.pipeline, stage=self.stage, since=rfc3339_of(window.since))
            in_progress = len(Journal(store.path).in_progress(since))
            rows, events = rows + in_progress, float(events) + in_progress
        bad = events < self.fewer_than
        notes = [self._last(store, condition("runs", where, f"ended_at <= '{exactly(now)}'"))] if bad else []
        runs = f"{events:,.0f} runs in {span(self.window)}"
        return Measurement(
            value=float(events),
            summary=runs if events else f"no runs in {span(self.window)}",
            threshold=f"fewer than {self.fewer_than:,}",
            bad=bad,
            good=not bad,
            rows=rows,
            events=float(events),
            noun="runs",
            window=window,
            notes=tuple(notes),
        )

    def is_worse(self, value: float, than: float) -> bool:
        return value < than

    def _last(self, store: EventStore, before: str) -> str:
        try:
            ((last,),) = store.sql(f"select max(ended_at) from runs where {before}").rows
        except OSError:  # unknown without the archive; the alert does not depend on it
            return "the end of the last run is unknown: the archive cannot be read"
        return f"the last run ended {second_of(last)}" if last else "no run has ended yet"

    def commands(self, window: Window) -> Sequence[str]:
        return [
            f"stageflow runs --pipeline {shlex.quote(self.pipeline)}" if self.pipeline else "stageflow runs"
        ]


_CRASHED = "outcome = 'crashed'"


class CrashedRuns(Threshold, frozen=True, kw_only=True, tag="crashed_runs"):
    """Fires if more than a number of runs crashed, because their process died.

    A crashed run ended when its process last wrote to the journal, so the window should be longer than the
    longest period in which a process writes nothing. Default one hour.

    Attributes:
        above: A count; default 0, so that one is enough.
        resolve_below: A count as well. An alert also resolves if there are none.
        min_events: Minimum number of runs that ended in the window; default 1.

    Example:
        >>> CrashedRuns(name="crashes", severity="critical").above
        0.0
    """

    above: float = 0.0
    window: float = 3600.0
    min_events: int = 1

    def measure(self, store: EventStore, now: datetime) -> Measurement:
        window = Window.ending(now, self.window)
        ended = window.rows("runs", self.pipeline, self.stage)
        query = f"select count(*), {count_if()}, {count_if(_CRASHED)} from runs where {ended}"
        ((rows, events, crashed),) = store.sql(query, since=window.since).rows
        bad, good = self.verdict(float(crashed), enough=rows >= self.min_events, exact=True)
        crashes = window.rows("runs", self.pipeline, self.stage, _CRASHED)
        return Measurement(
            value=float(crashed),
            summary=f"{crashed:,.0f} crashed runs",
            threshold=f"above {self.above:g}",
            bad=bad,
            good=good,
            rows=rows,
            events=float(events),
            noun="runs",
            window=window,
            selection=crashes,
            rest=ended,
        )

    def commands(self, window: Window) -> Sequence[str]:
        these = window.options(self.pipeline, None)
        return [
            f"stageflow runs --status crashed {these}",
            f"stageflow explain {in_shell(_CRASHED)} {these}",
        ]


_MAX_ERRORS = 1000
_MAX_NOTES = 3
_MAX_NOTE_CHARS = 160

_VERSION = "split_part({}, ':', 1)"
"""SQL: the version of the algorithm of a fingerprint; null without a fingerprint."""


class NewError(Rule, frozen=True, kw_only=True, tag="new_error"):
    """Fires if an error occurs that did not occur in the baseline before the window.

    Errors are distinguished by their `error_fingerprint`. While the alert fires, each further new error
    causes another notification. It resolves when no error in the window is new: it is then part of the
    baseline, and does not fire again until it has not occurred for the length of the baseline.

    Failures in the baseline with fingerprints of another version of the algorithm, or without one, are
    compared by stage and class, so that a change of the algorithm causes no notification.

    Attributes:
        baseline: Seconds before the window in which a known error occurred; default 604,800 (7 days).
        stage: Only errors of this stage; default those of all stages and of runs.
        min_events: Minimum number of failures with the error in the window; default 1.

    Example:
        >>> NewError(name="new errors", pipeline="checkout").baseline
        604800.0
    """

    baseline: float = 7 * 86400.0
    min_events: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "baseline", self.baseline, above=0)

    def _failures(self, window: Window) -> str:
        """Return the SQL condition over `events` for the failures in a window."""
        of_stages = window.rows("stages", self.pipeline, self.stage)
        of_runs = "false" if self.stage else window.rows("runs", self.pipeline)
        return failure_condition(of_stages, of_runs)

    def measure(self, store: EventStore, now: datetime) -> Measurement:
        window = Window.ending(now, self.window)
        before = Window.ending(window.since, self.baseline)
        # The number of other exceptions in a group is not part of the class.
        same_class = "split_part(old.kind, ' ', 1) = split_part(new.kind, ' ', 1)"
        same_place = """old.stage is not distinct from new.stage
            and (new.stage is not null or old.pipeline is not distinct from new.pipeline)"""
        found = store.sql(
            f"""with new as (
                select fingerprint, stage, any_value(pipeline) as pipeline, arg_max(kind, ended_at) as kind,
                    arg_max(message, ended_at) as message, count(*) as rows, {count_if()} as events,
                    min(ended_at) as first, arg_min(pipeline_run_id, ended_at) as first_run
                from (select {FAILURE_COLUMNS} from events where {self._failures(window)})
                where fingerprint is not null
                group by fingerprint, stage having count(*) >= {self.min_events!r}
            ), old as (
                select distinct fingerprint, pipeline, stage, kind
                from (select {FAILURE_COLUMNS} from events where {self._failures(before)})
            )
            select * from new where not exists (
                from old where old.fingerprint = new.fingerprint
                    or ({_VERSION.format("old.fingerprint")} is distinct from
                        {_VERSION.format("new.fingerprint")} and {same_place} and {same_class})
            ) order by first desc, fingerprint""",
            limit=_MAX_ERRORS,
            since=before.since,
        ).dicts()
        prints = tuple(str(error["fingerprint"]) for error in found)
        affected = f"{self._failures(window)} and error_fingerprint in ({text(*prints)})"
        notes = [_note(error) for error in found[:_MAX_NOTES]]
        if len(found) > _MAX_NOTES:
            notes.append(f"and {len(found) - _MAX_NOTES:,} other new errors")
        return Measurement(
            value=float(len(found)),
            summary=_summary(found),
            threshold=f"any error that did not occur in the {span(self.baseline)} before",
            bad=bool(found),
            good=not found,
            rows=sum(error["rows"] for error in found),
            events=float(sum(error["events"] for error in found)),
            noun="failures",
            window=window,
            selection=f"pipeline_run_id in (select pipeline_run_id from events where {affected})"
            if found
            else None,
            rest=window.rows("runs", self.pipeline, where=COUNTED),
            runs=tuple(str(error["first_run"]) for error in found if error["first_run"] is not None),
            notes=tuple(notes),
            subjects=prints,
        )

    def commands(self, window: Window) -> Sequence[str]:
        these = window.options(self.pipeline, self.stage)
        return [f"stageflow errors {these}", f"stageflow explain failed {these}"]


_OUTCOMES = {"failed": "failure", "crashed": "crash", "cancelled": "cancellation"}
"""Nouns for the outcomes of runs without an exception; those that are missing are nouns."""


def _summary(errors: Sequence[Mapping[str, Any]]) -> str:
    if not errors:
        return "no new errors"
    kind = errors[0]["kind"]
    newest = f"{_OUTCOMES.get(kind) or on_one_line(kind)} in {_place(errors[0])}"
    return f"new error: {newest}" if len(errors) == 1 else f"{len(errors):,} new errors, the last: {newest}"


def _place(error: Mapping[str, Any]) -> str:
    stage, pipeline = error["stage"], error["pipeline"]
    return on_one_line(f"stage {stage}" if stage is not None else f"pipeline {pipeline}")


def _note(error: Mapping[str, Any]) -> str:
    message = on_one_line(error["message"] or error["kind"])
    if len(message) > _MAX_NOTE_CHARS:
        message = message[: _MAX_NOTE_CHARS - 1] + "…"
    return f"{_place(error)}: {message} (first run {error['first_run']}, fingerprint {error['fingerprint']})"


_LOOK_BACK = timedelta(days=1)
_SAME_START = 5.0
"""Tolerance in seconds between two calculations of the start of one process."""


class EventsDropped(Threshold, frozen=True, kw_only=True, tag="events_dropped"):
    """Fires if `stageflow.health` events report more than a number of dropped or rejected events.

    The counters of a process accumulate from its start; the rule uses their increase in the window.
    `pipeline` and `stage` have no effect, because a lost event has neither.

    Attributes:
        above: A count; default 0, so that one is enough.
        resolve_below: A count as well. An alert also resolves if there are none.
        min_events: Minimum number of `stageflow.health` events in the window; default 1.

    Example:
        >>> EventsDropped(name="events are lost", window=900).min_events
        1
    """

    above: float = 0.0
    min_events: int = 1

    def measure(self, store: EventStore, now: datetime) -> Measurement:
        window = Window.ending(now, self.window)
        back = window.since - _LOOK_BACK
        found = store.sql(
            f"""select rest from events where type = 'stageflow.health'
            and emitted_at > {text(rfc3339_of(back))}::timestamptz
            and emitted_at <= {text(rfc3339_of(window.until))}::timestamptz order by emitted_at""",
            limit=None,
            since=back,
        )
        rows, lost = _growth((row[0] for row in found.rows), rfc3339_of(window.since), rfc3339_of(back))
        whole = sum(lost.values())
        bad, good = self.verdict(float(whole), enough=rows >= self.min_events, exact=True)
        why = sorted(lost.items(), key=lambda item: (-item[1], item[0]))
        return Measurement(
            value=float(whole),
            summary=f"{whole:,} events lost",
            threshold=f"above {self.above:g}",
            bad=bad,
            good=good,
            rows=rows,
            events=float(rows),
            noun="health events",
            window=window,
            notes=tuple(f"{many:,} by {where}" for where, many in why[:3]),
        )

    def commands(self, window: Window) -> Sequence[str]:
        return [f"stageflow tail --type stageflow.health -n 20  # since {second_of(window.since)}"]


def _growth(lines: Iterable[str | None], since: str, back: str) -> tuple[int, dict[str, int]]:
    """Return the number of events since a time, and the increase of each counter since then."""
    known: dict[tuple[Any, ...], tuple[str, dict[str, int]]] = {}
    rows, lost = 0, dict[str, int]()
    for line in lines:
        try:
            data = decode_stored((line or "").encode(), dict[str, Any])
            where = (data["resource"]["host"], data["resource"]["pid"])
            began = msgspec.convert(data["emitted_at"], datetime) - timedelta(
                seconds=data["process"]["uptime_s"]
            )
            counters = _counters(data["sinks"])
            emitted = str(data["emitted_at"])
        except (msgspec.MsgspecError, AttributeError, KeyError, TypeError, ValueError, OverflowError):
            continue  # an application can emit anything under this name
        # The system reuses pids: a process that started later is another one, whose counters started at 0.
        earlier = next(
            (
                (process, seen)
                for process, seen in known.items()
                if process[:2] == where and abs((process[2] - began).total_seconds()) < _SAME_START
            ),
            None,
        )
        process = earlier[0] if earlier else (*where, began)
        if emitted > since:
            rows += 1
            # If the process is older than the events that were read, the time of the increase is unknown.
            before = earlier[1][1] if earlier else {} if rfc3339_of(began) > back else counters
            for name, many in counters.items():
                grown = many - before.get(name, 0)
                if grown > 0:
                    lost[name] = lost.get(name, 0) + grown
        known[process] = (emitted, counters)
    return rows, lost


def _counters(sinks: Iterable[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for sink in sinks:
        for reason, many in (*sink["dropped"].items(), *sink["rejected"].items()):
            name = f"{sink['sink']}: {reason}"
            found[name] = found.get(name, 0) + int(many)
    return found


_MAX_ROWS = 1000
_PARAMETER = re.compile(r"\$(since|now)\b")


class SqlRows(Threshold, frozen=True, kw_only=True, tag="sql"):
    """Fires if a query over `runs`, `stages` and `events` returns more than a number of rows.

    `$now` and `$since` are the bounds of the window. The notification contains the first rows; the
    `pipeline_run_id` column identifies the affected runs. `pipeline` and `stage` have no effect.

    Attributes:
        sql: The query, in DuckDB's SQL.
        above: Number of rows; default 0, so that one is enough.
        resolve_below: Number of rows as well. An alert also resolves if there are none.
        min_events: Minimum number of rows; default 1.

    Example:
        >>> SqlRows(name="dear runs", sql="select * from runs where ended_at > $since").parameters(
        ...     Window(datetime(2026, 11, 24), datetime(2026, 11, 25))
        ... ).keys()
        dict_keys(['since'])
    """

    sql: str
    above: float = 0.0
    min_events: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sql.strip():
            raise WrongField(self.name, "sql", "must not be empty; expected a query")

    def parameters(self, window: Window) -> Mapping[str, Any]:
        """Return values for those of the parameters `$since` and `$now` that the query uses."""
        given = {"since": window.since, "now": window.until}
        return {name: given[name] for name in sorted(set(_PARAMETER.findall(self.sql)))}

    def measure(self, store: EventStore, now: datetime) -> Measurement:
        window = Window.ending(now, self.window)
        found = store.sql(self.sql, self.parameters(window) or None, limit=_MAX_ROWS)
        many = len(found.rows)
        bad, good = self.verdict(float(many), enough=many >= self.min_events, exact=True)
        runs = [
            str(row["pipeline_run_id"]) for row in found.dicts() if row.get("pipeline_run_id") is not None
        ]
        return Measurement(
            value=float(many),
            summary=f"{many:,} {'row' if many == 1 else 'rows'}{' and more' if found.more else ''}",
            threshold=f"above {self.above:g}",
            bad=bad,
            good=good,
            rows=many,
            events=float(many),
            noun="rows",
            window=window,
            runs=tuple(dict.fromkeys(runs)),
            notes=tuple(_as_text(row) for row in found.dicts()[:3]),
        )

    def commands(self, window: Window) -> Sequence[str]:
        query = self.sql
        for name, moment in self.parameters(window).items():
            query = re.sub(rf"\${name}\b", f"timestamptz '{exactly(moment)}'", query)
        return [f"stageflow query {in_shell(query.strip())}"]


def _as_text(row: Mapping[str, Any]) -> str:
    text = "  ".join(f"{name}={_short(value)}" for name, value in row.items() if value is not None)
    return text if len(text) <= 200 else text[:199] + "…"


def _short(value: Any) -> str:
    return rfc3339_of(value) if isinstance(value, datetime) and value.tzinfo else on_one_line(value)
