"""The findings of an overview: whether runs fail or are slow, when it started, and what the runs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct, structs

from .._explained import Difference, Location
from .._quantities import duration, onset_text, percent
from .._time import epoch_us
from ..journal import RunFilter
from ._columns import FAILED, text as sql_text
from ._compared import (
    Compared,
    Matches,
    Rates,
    Selected,
    compare,
    matches,
    pipelines_that_match,
    rates_around,
    start_of_baseline,
)
from ._explain._explanation import Explanation
from ._queries import Queries
from ._selection import Over
from ._snapshot import Scope
from ._statistics import Stat

__all__ = ["OverviewFinding", "Statistics", "find", "findings_of"]


_MIN_FAILURES = 3
"""Minimum number of failures for a finding about failures."""

_MIN_CONTINUED = 2
"""Minimum number of affected runs in the range if the cause is known from the baseline."""

_MIN_RUNS = 20
"""Minimum number of recent runs for a finding about durations."""

_NOTABLE = 1.5
"""A failure rate or a duration is notable if it is at least this multiple of the earlier one."""

_STANDARD_DEVIATIONS = 3
"""Minimum number of standard deviations by which a number of failures must exceed the expected number."""

_MAX_PIPELINES = 3
"""Maximum number of pipelines that are named."""

_MOST = 0.5
"""A finding names a stage if at least this share of the additional time is spent in it."""

_HIGH_RATE = 0.05
"""A failure rate that is notable even if it has not changed."""


class OverviewFinding(Struct, frozen=True, kw_only=True):
    """A sentence about the runs of an overview.

    Attributes:
        kind: What it is about: "failures", "crashes" or "durations"; "none" if nothing is unusual.
        level: Its severity; "ok" if nothing is unusual.
        text: The sentence.
        where: The predicate that selects the affected runs, to compare them with the rest; or None.
        cause: The predicate of the runs that are affected more often than others; None if it is unknown.
        condition: The same in words, without the time of the onset: "org_id in (acme, globex)".
        stage: The stage in which most of these runs fail, or that takes most of their additional time.
        since: When it started, RFC 3339; None if unknown. It is the same for all findings about an incident.
        since_range: The earliest and the latest time at which it can have started; None if unknown.
    """

    kind: Literal["failures", "crashes", "durations", "none"]
    level: Literal["bad", "warning", "info", "ok"]
    text: str
    where: str | None = None
    cause: str | None = None
    condition: str | None = None
    stage: str | None = None
    since: str | None = None
    since_range: tuple[str, str] | None = None


class Statistics(Protocol):
    """The methods of `EventStore` on which the overview is based."""

    def stats(self, over: Over, filter: RunFilter, *, where: str | None) -> list[Stat]: ...

    def explain(self, *, filter: RunFilter, within: str | None) -> Explanation: ...

    def explain_slow(self, over: Over, filter: RunFilter, *, within: str | None) -> Explanation: ...


def find(
    store: Statistics, queries: Queries, filter: RunFilter, where: str | None, *, explain: bool
) -> tuple[OverviewFinding, ...]:
    """Return the findings; see `EventStore.findings`.

    Raises:
        QueryError: The predicate is invalid.
    """
    selected = Selected(filter, where)
    compared = queries.run(
        lambda cursor: compare(cursor, queries.weighted, selected),
        "findings",
        predicates=[where],
        over=["runs"],
        scope=Scope.began_since(start_of_baseline(filter)),
    )
    return findings_of(store, queries, selected, compared, explain=explain)


class _Onset(Struct, frozen=True):
    """When something started, and the range of times at which it can have started."""

    at: str
    within: tuple[str, str] | None

    @classmethod
    def of(cls, explanation: Explanation | None) -> _Onset | None:
        if explanation is None or explanation.onset is None:
            return None
        return cls(explanation.onset, explanation.onset_range)

    @property
    def range_us(self) -> tuple[int, int]:
        earliest, latest = self.within or (self.at, self.at)
        return epoch_us(earliest), epoch_us(latest)

    def is_after(self, time: str) -> bool:
        return epoch_us(self.at) > epoch_us(time)

    def text(self, compared: Compared) -> str:
        before = "" if self.is_after(compared.since) else ", before the start of this time range"
        return onset_text(self.at, self.within) + before


class _Cause(Struct, frozen=True):
    """What affected runs have in common.

    Attributes:
        difference: The difference.
        matches: The runs of the time range that match it.
        since: The onset, if `matches` contains only the runs since then; otherwise None.
        pipelines: The pipelines whose runs are affected; empty if those of all pipelines are.
    """

    difference: Difference
    matches: Matches
    since: str | None = None
    pipelines: tuple[str, ...] = ()

    @property
    def condition(self) -> str:
        """The predicate."""
        if not self.pipelines:
            return self.difference.condition
        return f"{self.difference.condition} AND {_one_of('pipeline_name', self.pipelines)}"

    def since_then(self, onset: _Onset | None) -> str:
        """Return the time since which runs were counted, as a part of a sentence that may state the onset."""
        if self.since is None:
            return ""
        return " since then" if onset is not None else f" {onset_text(self.since, None)}"

    @property
    def values(self) -> set[tuple[str, str]]:
        """The values of its fields, without times."""
        difference = self.difference
        values = difference.value if difference.shape == "combination" else [difference.value]
        return {
            (field, repr(each))
            for field, value in zip(difference.fields, values, strict=True)
            if field != "started_at"
            for each in (value if isinstance(value, list | tuple) else [value])
        }

    def rates(self, verb: str) -> str:
        """Return the rates of the runs that match and of the others, as a part of a sentence."""
        rate, other_rate = percent(self.matches.rate), self.matches.other_rate
        others = f", compared with {percent(other_rate)} of the others" if other_rate is not None else ""
        users = self.matches.users
        affected = f"; {users:,} {'user is' if users == 1 else 'users are'} affected" if users else ""
        return f"{rate} of the matching runs {verb}{others}{affected}"

    def text(self, onset: _Onset | None) -> str:
        """Return its condition, without the time if the onset is known."""
        difference = self.difference
        text = difference.description
        if onset is not None and difference.parts:
            parts = zip(difference.fields, difference.parts, strict=True)
            text = " and ".join(part for field, part in parts if field != "started_at")
        if not self.pipelines:
            return text
        if len(self.pipelines) == 1:
            return f"{text} and pipeline_name = {self.pipelines[0]}"
        return f"{text} and pipeline_name in ({', '.join(self.pipelines)})"


def _one_of(field: str, values: Sequence[str]) -> str:
    return f"{field} IN ({', '.join(map(sql_text, values))})"


class _Explained(Struct, frozen=True):
    """Why runs fail, or are slow.

    Attributes:
        affected: The predicate of these runs.
        explanation: The explanation of the range and its baseline; None if it was not requested.
        cause: The first difference that is not a time and that still has an effect in the range.
        onset: When the runs became more frequent, if it is known.
    """

    affected: str
    explanation: Explanation | None = None
    cause: _Cause | None = None
    onset: _Onset | None = None

    @classmethod
    def of(
        cls, queries: Queries, selected: Selected, compared: Compared, affected: str, explanation: Explanation
    ) -> _Explained:
        onset = _Onset.of(explanation)
        causes = [each for each in explanation.differences if _is_possible(each)]
        if not causes:
            return cls(affected, explanation, None, onset)
        conditions = [each.condition for each in causes]
        counted = matches(queries, selected, compared.since, affected, conditions)
        of_range = [_Cause(*each) for each in zip(causes, counted, strict=True)]
        # The runs of the explanation include earlier ones, so a cause may have ended before the range.
        # If it is known from the baseline, fewer runs show that it has not ended.
        is_known = onset is not None and not onset.is_after(compared.since)
        minimum = _MIN_CONTINUED if is_known else _MIN_FAILURES
        first = next((each for each in of_range if _has_effect(each.matches, minimum)), None)
        # The onset is that of the first difference.
        return cls(affected, explanation, first, onset if first is of_range[0] else None)

    @property
    def location(self) -> Location | None:
        """Where most of the runs that match the cause fail, or spend their additional time."""
        locations = self.explanation.locations if self.explanation is not None else ()
        found = max(locations, key=lambda each: each.cause_share or 0.0, default=None)
        return found if found is not None and (found.cause_share or 0.0) >= _MOST else None

    @property
    def stage(self) -> str | None:
        return self.location.stage if self.cause is not None and self.location is not None else None

    def fields(self, onset: _Onset | None) -> dict[str, Any]:
        """Return the fields of a finding that depend on the cause and on the onset that it states."""
        cause = self.cause
        return {
            "cause": cause.condition if cause is not None else None,
            "condition": cause.text(onset) if cause is not None else None,
            "stage": self.stage,
            "since": onset.at if onset is not None else None,
            "since_range": onset.within if onset is not None else None,
        }

    def counted(
        self, queries: Queries, selected: Selected, compared: Compared, pipelines: tuple[str, ...] = ()
    ) -> _Explained:
        """Return the same, with the runs since the onset that match the cause, and their pipelines.

        Args:
            queries: The queries of the store.
            selected: The runs.
            compared: Their statistics.
            pipelines: The pipelines; default those whose runs are affected.
        """
        if self.cause is None:
            return self
        difference, onset = self.cause.difference, self.onset
        is_within = onset is not None and onset.is_after(compared.since)
        since = onset.at if onset is not None and is_within else compared.since
        if not pipelines and not {"pipeline_name", "topology"} & set(difference.fields):
            began = onset.at if onset is not None else compared.since
            all_rows = selected.with_baseline(compared.before)
            pipelines = _affected_pipelines(queries, all_rows, began, self.affected, difference)
        cause = structs.replace(self.cause, pipelines=pipelines)
        (found,) = matches(queries, selected, since, self.affected, [cause.condition])
        if is_within and found.matching < found.count:
            return structs.replace(self, cause=structs.replace(cause, matches=found, since=since))
        # If all runs since the onset match, the effect is visible only in comparison with earlier runs.
        if is_within:
            (found,) = matches(queries, selected, compared.since, self.affected, [cause.condition])
        return structs.replace(self, cause=structs.replace(cause, matches=found))


def _affected_pipelines(
    queries: Queries, selected: Selected, since: str, affected: str, difference: Difference
) -> tuple[str, ...]:
    """Return the pipelines whose runs a cause affects; empty if it affects those of all pipelines.

    Slow runs are slow for their pipeline, so the pipeline is not compared.
    """
    found = pipelines_that_match(queries, selected, since, affected, difference.condition)
    for n in range(1, len(found)):
        inside, outside = found[:n], found[n:]
        rate = sum(both for _, _, both in inside) / sum(runs for _, runs, _ in inside)
        expected = rate * sum(runs for _, runs, _ in outside)
        if n <= _MAX_PIPELINES and _exceeds(expected, sum(both for _, _, both in outside), expected):
            return tuple(name for name, _, _ in inside)
    return ()


def _is_possible(difference: Difference) -> bool:
    is_time = difference.shape in ("date", "hour", "weekday") or difference.fields == ("started_at",)
    return not is_time and difference.verdict != "explained"


def _has_effect(found: Matches, minimum: int) -> bool:
    return found.both >= minimum and found.rate >= _NOTABLE * (found.other_rate or 0.0)


def findings_of(
    store: Statistics, queries: Queries, selected: Selected, compared: Compared, *, explain: bool
) -> tuple[OverviewFinding, ...]:
    """Return what is unusual, worst first; at least one finding."""
    failures, slow = _Explained(FAILED), _Explained("false")
    filter, within = selected.with_baseline(compared.before).filter, selected.where
    if explain and _can_judge_failures(compared):
        explanation = store.explain(filter=filter, within=within)
        failures = _Explained.of(queries, selected, compared, FAILED, explanation)
    if explain and _can_judge_durations(compared):
        explanation = store.explain_slow("runs", filter, within=within)
        slow = _Explained.of(queries, selected, compared, explanation.where, explanation)
        failures = _with_cause_of_slow(queries, selected, compared, failures, slow)
    failures, slow = _agreed(failures, slow)
    slow = slow.counted(queries, selected, compared)
    failures = failures.counted(queries, selected, compared, _shared_pipelines(failures, slow))
    found = [
        *_failures(queries, selected, compared, failures),
        *_durations(queries, selected, compared, slow, failures.onset),
    ]
    order = ("bad", "warning", "info", "ok")
    found.sort(key=lambda finding: (order.index(finding.level), finding.cause is None))
    return tuple(found) or (_nothing_unusual(compared),)


def _can_judge_failures(compared: Compared) -> bool:
    return compared.shown.failed >= _MIN_FAILURES


def _can_judge_durations(compared: Compared) -> bool:
    known = compared.earlier.p95_ms is not None and compared.recent.p95_ms is not None
    return known and compared.recent.count >= _MIN_RUNS


def _with_cause_of_slow(
    queries: Queries, selected: Selected, compared: Compared, failures: _Explained, slow: _Explained
) -> _Explained:
    """Return why runs fail: because of the cause of slow runs, unless another cause explains more.

    This is a single comparison, which requires far fewer failures than a search in all fields.
    """
    if slow.cause is None or not _can_judge_failures(compared):
        return failures
    conditions = [each.cause.difference.condition for each in (slow, failures) if each.cause is not None]
    of_slow, *own = matches(
        queries, selected.with_baseline(compared.before), compared.before, FAILED, conditions
    )
    has_effect = _has_effect(of_slow, _MIN_FAILURES) and _exceeds(
        of_slow.both, (of_slow.other_rate or 0.0) * of_slow.matching
    )
    if not has_effect or (own and own[0].deviance > of_slow.deviance):
        return failures
    return structs.replace(failures, cause=slow.cause, onset=slow.onset)


def _shared_pipelines(failures: _Explained, slow: _Explained) -> tuple[str, ...]:
    """Return the pipelines whose runs are slow, if failures have the same cause."""
    if failures.cause is None or slow.cause is None or failures.cause.difference is not slow.cause.difference:
        return ()
    return slow.cause.pipelines


def _agreed(one: _Explained, other: _Explained) -> tuple[_Explained, _Explained]:
    """Return both with the more precise of their onsets, if they are about the same incident.

    They are about the same incident if their causes share a value and the ranges of their onsets overlap.
    """
    if one.cause is None or other.cause is None or not one.cause.values & other.cause.values:
        return one, other
    known = [each.onset for each in (one, other) if each.onset is not None]
    if not known or max(each.range_us[0] for each in known) > min(each.range_us[1] for each in known):
        return one, other
    best = min(known, key=lambda each: each.range_us[1] - each.range_us[0])
    return structs.replace(one, onset=best), structs.replace(other, onset=best)


def _failures(
    queries: Queries, selected: Selected, compared: Compared, explained: _Explained
) -> list[OverviewFinding]:
    if not _can_judge_failures(compared):
        return []
    earlier, recent, shown = compared.earlier, compared.recent, compared.shown
    rate = shown.rate or 0.0
    onset, cause = explained.onset, explained.cause
    before = after = None
    if onset is not None:
        before, after = (each.rate for each in rates_around(queries, selected, compared, onset.at))
    is_higher = before is not None and after is not None and after > 0 and after >= _NOTABLE * before
    if onset is not None and before is not None and after is not None and is_higher:
        sentence = (
            f"The failure rate has been {percent(after)}, up from {percent(before)}, {onset.text(compared)}"
        )
        now, level_rate = after, after / before if before else _NOTABLE
    else:
        onset = None
        sentence = f"{percent(rate)} of the runs fail ({shown.failed:,.0f} of {shown.count:,.0f})"
        now, level_rate = rate, 1.0
        if recent.rate is not None and _fails_more(recent, earlier):
            now, level_rate = recent.rate, _ratio(recent.rate, earlier.rate)
            if compared.recent_since != compared.since:
                sentence += f", {percent(now)} {compared.recent_text}"
            sentence += f", up from {percent(earlier.rate or 0)} before"
    if cause is not None:
        time = cause.since_then(onset)
        sentence += (
            f". {percent(cause.matches.share)} of the failures{time} match {cause.text(onset)}:"
            f" {cause.rates('fail')}"
        )
    is_bad = now >= _HIGH_RATE or level_rate >= _NOTABLE
    found = [
        OverviewFinding(
            kind="failures",
            level="bad" if is_bad else "info",
            text=f"{sentence}.",
            where=FAILED,
            **explained.fields(onset),
        )
    ]
    if crashed := shown.crashed:
        noun = "run was" if crashed == 1 else "runs were"
        found.append(
            OverviewFinding(
                kind="crashes",
                level="warning",
                text=f"{crashed:,.0f} {noun} interrupted because the process died.",
                where="outcome = 'crashed'",
            )
        )
    return found


def _fails_more(recent: Rates, earlier: Rates) -> bool:
    if earlier.rate is None:
        return False
    expected = earlier.rate * recent.rated
    is_notable = recent.failed >= max(_MIN_FAILURES, _NOTABLE * expected)
    return is_notable and _exceeds(recent.failed, expected)


def _exceeds(number: float, expected: float, variance: float | None = None) -> bool:
    """Return whether a number is larger than chance explains, if it is a count of events (Poisson).

    Args:
        number: The number.
        expected: The expected number.
        variance: The variance of the difference; default `expected`.
    """
    variance = expected if variance is None else variance
    return number - expected > _STANDARD_DEVIATIONS * math.sqrt(variance)


def _durations(
    queries: Queries,
    selected: Selected,
    compared: Compared,
    explained: _Explained,
    of_failures: _Onset | None,
) -> list[OverviewFinding]:
    if not _can_judge_durations(compared):
        return []
    before, after = compared.earlier.p95_ms, compared.recent.p95_ms
    onset, explanation, cause = explained.onset, explained.explanation, explained.cause
    time = compared.recent_text
    if (possible := onset or of_failures) is not None:
        around = rates_around(queries, selected, compared, possible.at)
        # If the onset of slow runs is unknown, the durations may have increased when the failures did.
        if onset is not None or _ratio(around[1].p95_ms, around[0].p95_ms) >= _ratio(after, before):
            onset, time = possible, possible.text(compared)
            before, after = (each.p95_ms for each in around)
    sentences = []
    if is_bad := _ratio(after, before) >= _NOTABLE:
        verb = "is" if onset is None else "has been"
        sentences.append(f"The p95 duration {verb} {duration(after)}, up from {duration(before)}, {time}.")
    where = f"duration_ms > {compared.earlier.p95_ms!r}"
    if explanation is not None and cause is not None:
        if onset is not None and not is_bad:
            sentences.append(f"More runs have been slow {onset.text(compared)}.")
        slow = explanation.selection.count / (explanation.selection.count + explanation.rest.count)
        of = f"of the runs{cause.since_then(onset)} that are slower than {percent(1 - slow)} of "
        of += "the runs of their pipeline" if explanation.described is not None else "all runs"
        sentences.append(
            f"{percent(cause.matches.share)} {of} match {cause.text(onset)}: {cause.rates('are that slow')}."
        )
        stage = explained.location
        if stage is not None:
            share = percent(stage.cause_share or 0.0)
            sentences.append(f"{share} of their additional time is spent in {stage.stage}.")
        where = explanation.where
    if not sentences:
        return []
    return [
        OverviewFinding(
            kind="durations",
            level="bad" if is_bad else "warning",
            text=" ".join(sentences),
            where=where,
            **explained.fields(onset),
        )
    ]


def _ratio(recent: float | None, earlier: float | None) -> float:
    if recent is None or earlier is None:
        return 1.0
    return recent / earlier if earlier else (_NOTABLE if recent else 1.0)


def _nothing_unusual(compared: Compared) -> OverviewFinding:
    shown = compared.shown
    if not shown.count:
        sentence = "There are no runs in this time range."
    else:
        failures = "none failed" if not shown.failed else f"{shown.failed:,.0f} failed"
        sentence = f"Nothing unusual: {shown.count:,.0f} runs, {failures}, p95 {duration(shown.p95_ms)}."
    return OverviewFinding(kind="none", level="ok", text=sentence)
