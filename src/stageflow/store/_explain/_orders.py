"""Conditions on the order of numbers and times: a threshold, an interval, a short window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

import numpy as np

from ..._explained import Shape
from ._fields import Field, literal
from ._finding import Finding
from ._sample import Cohorts, Floats, Mask
from ._significance import (
    MIN_ROWS,
    counts_of_masks,
    deviance,
    interval_p,
    p_values,
    rank_p,
    sizes,
    threshold_p,
)
from ._values import Counts

__all__ = ["find_orders", "iso"]


_MAX_TIED_SHARE = 0.5
"""If a single number has a larger share, mean ranks are not compared: the test assumes few ties."""

_LONG_WINDOWS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.0625)
"""Lengths of windows, as shares of the rows."""

_SHORT_WINDOWS = tuple(0.05 / 2**n for n in range(12))
"""Lengths of short windows, which are many and are therefore corrected separately."""

_MIN_WINDOW_ROWS = 8


@dataclass(frozen=True)
class _Cut:
    """The values after index `low` up to index `high`, or all others."""

    low: int
    high: int
    outside: bool
    p: float
    cost: float


@dataclass(frozen=True)
class _Ordered:
    """The rows with a value in ascending order, grouped by value.

    Attributes:
        values: The distinct values.
        cumulative: The sum of the weights up to each value, in the selection and in the rest.
        rows: Number of rows up to each value, in both.
        n: Effective number of selected rows.
        m: Effective number of other rows.
    """

    values: Floats
    cumulative: tuple[Floats, Floats]
    rows: tuple[Floats, Floats]
    n: float
    m: float

    @classmethod
    def of(cls, numbers: Floats, cohorts: Cohorts) -> _Ordered | None:
        present = ~np.isnan(numbers)
        here = cohorts if present.all() else cohorts.subset(present)
        values = numbers if present.all() else numbers[present]
        if not len(values) or 0.0 in here.totals:
            return None
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
        if len(ends) < 2:
            return None
        weights, selected = here.weights[order], here.selected[order]
        masks = (selected, ~selected)
        everything = np.ones(len(values), bool)
        totals = counts_of_masks([everything], here)
        _, size = sizes(totals, totals, cohorts.design_effect)
        cumulative = [np.cumsum(np.where(mask, weights, 0.0))[ends] for mask in masks]
        rows = [np.cumsum(mask)[ends].astype(float) for mask in masks]
        return cls(
            ordered[ends],
            (cumulative[0], cumulative[1]),
            (rows[0], rows[1]),
            float(size[0, 0]),
            float(size[1, 0]),
        )

    def between(self, low: int, high: int) -> tuple[float, float, float]:
        """Return the weights in both cohorts, and the selected rows, after `low` up to `high`."""
        before = [0.0 if low < 0 else float(part[low]) for part in (*self.cumulative, self.rows[0])]
        upto = [float(part[high]) for part in (*self.cumulative, self.rows[0])]
        return upto[0] - before[0], upto[1] - before[1], upto[2] - before[2]

    def deviance(self, cut: _Cut) -> float:
        """Return the deviance that a cut explains."""
        selected, rest, _ = self.between(cut.low, cut.high)
        totals = [float(part[-1]) for part in self.cumulative]
        counts = np.array([[selected], [rest]])
        whole = np.array([[totals[0]], [totals[1]]])
        return float(deviance(Counts(counts, counts, counts), Counts(whole, whole, whole))[0])


def find_orders(
    field: Field, numbers: Floats, cohorts: Cohorts, rows: Mask | None = None, *, outside: bool = True
) -> tuple[list[Finding], int, float]:
    """Compare the order of the values of a field, in the sampled rows.

    Args:
        field: The field.
        numbers: The value of each sampled row; nan if it has none.
        cohorts: The selection and the rest.
        rows: The rows to compare; default all. The mask of the finding always contains all rows.
        outside: Whether the finding may be that a value is outside of an interval.

    Returns:
        The condition that explains the most, not yet corrected, or none; the number of comparisons; and the
        lowest p-value of all.
    """
    ordered = _Ordered.of(numbers if rows is None else np.where(rows, numbers, np.nan), cohorts)
    if ordered is None or not ordered.n or not ordered.m:
        return [], 0, 1.0
    selection, rest = (part / part[-1] for part in ordered.cumulative)
    distance = selection - rest
    n, m = ordered.n, ordered.m
    at = int(np.argmax(np.abs(distance[:-1])))
    p = threshold_p(float(abs(distance[at])), max(1, round(n)), max(1, round(m)))
    comparisons = 1
    pooled = ordered.cumulative[0] + ordered.cumulative[1]
    tied_shares = np.diff(pooled, prepend=0.0) / pooled[-1]
    if tied_shares.max() <= _MAX_TIED_SHARE:
        comparisons += 1
        ranks = np.cumsum(tied_shares) - tied_shares / 2
        p = min(p, rank_p(ranks, selection, rest, n, m))
    last = len(ordered.values) - 1
    cut = 2 * math.log(len(ordered.values))
    found = [_Cut(-1, at, False, p, cut) if distance[at] > 0 else _Cut(at, last, False, p, cut)]
    lowest = p
    if last >= 2:
        comparisons += 1
        highest = int(np.argmax(distance))
        least = int(np.argmin(distance))
        p = interval_p(float(distance[highest] - distance[least]), n, m)
        lowest = min(lowest, p)
        if 0 <= least < highest < last:
            found.append(_Cut(least, highest, False, p, 2 * cut))
        elif outside and 0 <= highest < least < last:
            found.append(_Cut(highest, least, True, p, 2 * cut))
        total = float((ordered.rows[0] + ordered.rows[1])[-1])
        long = [(total * share, total * min(share, 1 - share) / 6) for share in _LONG_WINDOWS]
        lengths = [total * share for share in _SHORT_WINDOWS]
        short = [(length, length / 2) for length in lengths if length >= _MIN_WINDOW_ROWS]
        for window in (_scan(ordered, long, outside=outside), _scan(ordered, short, outside=False)):
            comparisons += 1
            if window is not None:
                found.append(window)
                lowest = min(lowest, window.p)
    gains = [ordered.deviance(one) / cohorts.design_effect for one in found]
    best = max(range(len(found)), key=lambda n: gains[n] - found[n].cost)
    return [_finding(field, numbers, cohorts, ordered, found[best], gains[best])], comparisons, lowest


def _scan(ordered: _Ordered, windows: Sequence[tuple[float, float]], *, outside: bool) -> _Cut | None:
    """Return the window with the most conspicuous share of selected rows, inside or outside of it.

    A scan over windows of several lengths that overlap. The p-value is corrected for all of them. The limits
    of the result are then moved to where the likelihood is highest.

    Args:
        ordered: The values.
        windows: The lengths of the windows, each with the distance between the starts of two, in rows.
        outside: Whether the share may be higher outside of the window.
    """
    rows = ordered.rows[0] + ordered.rows[1]
    if not windows:
        return None
    starts = [np.arange(0, rows[-1] - length + step, step) for length, step in windows]
    ends = [begin + length for begin, (length, _) in zip(starts, windows, strict=True)]
    low = np.searchsorted(rows, np.concatenate(starts), side="right") - 1
    high = np.minimum(np.searchsorted(rows, np.concatenate(ends), side="left"), len(rows) - 1)
    usable = (high > low) & (high - low < len(rows))
    lows, highs = low[usable], high[usable]
    if not len(lows):
        return None
    weights = np.stack(
        [np.append(part, 0.0)[highs] - np.append(part, 0.0)[lows] for part in ordered.cumulative]
    )
    selected_rows = np.append(ordered.rows[0], 0.0)[highs] - np.append(ordered.rows[0], 0.0)[lows]
    everything = np.array([[part[-1]] for part in ordered.cumulative])
    share = weights / everything
    g2 = deviance(Counts(weights, weights, weights), Counts(everything, everything, everything))
    is_inside = share[0] > share[1]
    rows_with = np.where(is_inside, selected_rows, ordered.rows[0][-1] - selected_rows)
    g2[(rows_with < MIN_ROWS) | ~(is_inside | outside)] = 0
    at = int(np.argmax(g2))
    if g2[at] <= 0:
        return None
    # A table with the effective sizes: weights and clusters reduce them.
    sizes_ = np.array([[ordered.n], [ordered.m]])
    effective = (share[:, [at]] if is_inside[at] else 1 - share[:, [at]]) * sizes_
    p = float(p_values(Counts(effective, effective, effective), Counts(sizes_, sizes_, sizes_), 1.0)[0])
    first, last = _sharpened(ordered, int(lows[at]), int(highs[at]))
    p, cost, end = min(1.0, p * len(lows)), 4 * math.log(len(rows)), len(rows) - 1
    if is_inside[at]:
        return _Cut(first, last, False, p, cost)
    # The rows outside of a window at one end are a single interval.
    if first < 0:
        return _Cut(last, end, False, p, cost)
    return _Cut(-1, first, False, p, cost) if last == end else _Cut(first, last, True, p, cost)


def _sharpened(ordered: _Ordered, low: int, high: int) -> tuple[int, int]:
    """Return the nearby interval that has its rate with the highest likelihood (Kadane's algorithm)."""
    selected, rest, _ = ordered.between(low, high)
    whole_selected, whole_rest = (float(part[-1]) for part in ordered.cumulative)
    rate = (selected + 0.5) / (selected + rest + 1)
    base = (whole_selected - selected + 0.5) / (whole_selected + whole_rest - selected - rest + 1)
    width = high - low
    first, last = max(0, low + 1 - 2 * width), min(len(ordered.values) - 1, high + 2 * width)
    here = [np.diff(part, prepend=0.0)[first : last + 1] for part in ordered.cumulative]
    gain = here[0] * math.log(rate / base) + here[1] * math.log((1 - rate) / (1 - base))
    sums = np.concatenate([[0.0], np.cumsum(gain)])
    least = np.minimum.accumulate(sums)
    end = int(np.argmax(sums - least))
    begin = int(np.argmin(sums[: end + 1]))
    # All values are not a condition.
    if end <= begin or (first + begin == 0 and first + end == len(ordered.values)):
        return low, high
    return first + begin - 1, first + end - 1


def _finding(
    field: Field, numbers: Floats, cohorts: Cohorts, ordered: _Ordered, cut: _Cut, gain: float
) -> Finding:
    values, last = ordered.values, len(ordered.values) - 1
    low, high = cut.low, cut.high
    with np.errstate(invalid="ignore"):
        inside = np.ones(len(numbers), bool) if low < 0 else numbers > values[low]
        if high < last:
            inside &= numbers <= values[high]
    mask: Mask = np.asarray(~inside if cut.outside else inside) & ~np.isnan(numbers)
    limits: list[Any] = [None, None]
    if low >= 0:
        limits[0] = _between(field, float(values[low]), float(values[low + 1]))
    if high < last:
        limits[1] = _between(field, float(values[high]), float(values[high + 1]))
    shape: Shape = "threshold" if None in limits else "interval"
    text, condition = _written(field, limits, outside=cut.outside)
    return Finding(
        fields=(field,),
        shape=shape,
        text=f"{field.name} {text}",
        value=limits if shape == "interval" else limits[0] if limits[0] is not None else limits[1],
        condition=field.condition(condition),
        mask=mask,
        counts=counts_of_masks([mask], cohorts),
        totals=counts_of_masks([np.ones(len(mask), bool)], cohorts),
        gain=gain,
        cost=cut.cost,
        p=cut.p,
    )


def _written(field: Field, limits: list[Any], *, outside: bool) -> tuple[str, str]:
    """Return an interval as text and as a predicate over the row that has the field."""
    order = field.order
    shown = [limit if field.is_time else None if limit is None else _format(limit) for limit in limits]
    sql = [None if limit is None else _limit_literal(field, limit) for limit in limits]
    low, high = shown
    if outside:
        return f"<= {low} or > {high}", f"({order} <= {sql[0]} OR {order} > {sql[1]})"
    if high is None:
        return f"> {low}", f"{order} > {sql[0]}"
    if low is None:
        return f"<= {high}", f"{order} <= {sql[1]}"
    return f"> {low} and <= {high}", f"({order} > {sql[0]} AND {order} <= {sql[1]})"


def _limit_literal(field: Field, limit: Any) -> str:
    return f"{field.time_type} '{limit}'" if field.is_time else literal(limit)


def _between(field: Field, low: float, high: float) -> Any:
    if not field.is_time:
        return _number_between(low, high)
    return _time_between(low, high) + ("" if field.time_type == "TIMESTAMP" else "Z")


def _number_between(low: float, high: float) -> float:
    """Return the shortest number that is at least `low` and less than `high`."""
    if low.is_integer() and abs(low) < 1e15 and high - low >= 1:
        return low
    middle = (low + high) / 2
    for digits in range(1, 18):
        number = float(f"{middle:.{digits}g}")
        if low <= number < high:
            return number
    return low


def _time_between(low: float, high: float) -> str:
    """Return the roundest time from `low` to before `high`, in UTC. Both are in seconds since 1970."""
    for step in (3600, 60, 1):
        rounded = high // step * step
        if low <= rounded < high:
            return iso(rounded)
    return iso(low)


def iso(seconds: float) -> str:
    """Return seconds since 1970 as a time in UTC, without the zone."""
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=round(seconds * 1e6))
    return time.replace(tzinfo=None).isoformat(timespec="auto")


def _format(value: float) -> str:
    if isfinite(value) and value.is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return repr(value)
