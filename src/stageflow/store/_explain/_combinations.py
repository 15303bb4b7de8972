"""Combinations of two or three conditions, and a time, that explain the selection only if combined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ._categories import Named, single_value
from ._comparing import FieldValues, find_in, find_set
from ._fields import Condition
from ._finding import Finding, Tested
from ._orders import find_orders
from ._sample import Cohorts, Floats, Mask
from ._significance import counts_of_masks, deviance, p_values
from ._values import Counts, ValueTable

__all__ = ["find_combinations"]


_MAX_LEVELS = 20
"""Maximum number of values of a field that are combined: the most frequent ones."""

_RANGES = 16
"""Number of intervals between quantiles that the ranges of a numeric field consist of."""

_LOW, _HIGH = np.triu_indices(_RANGES)

_MAX_FIELDS = 48
"""Maximum number of fields that are combined: those that explain the most on their own."""

_MAX_FIRST = 120
"""Maximum number of conditions that are combined with others: those that explain the most alone."""

_MAX_FIRST_RANGES = 3
"""Number of ranges of a numeric field that are combined with other conditions."""

_MAX_EXTENDED = 30
"""Maximum number of pairs that are extended by a third condition."""

_MAX_TESTED = 4
"""Number of combinations to test; each is a comparison."""

_MAX_FIELDS_OF_GROUP = 3
"""Maximum number of fields of a combination; if one of them is the time, a fourth one is possible."""

_MIN_GAIN = 1.1
"""A combination must explain at least this many times the deviance that any part of it explains."""

_TIME = "started_at"

_MIN_GAIN_OF_TIME = 6.0
"""A condition on the time replaces a value that stands for a time if it explains this much more deviance.

Its limits are chosen among many, so it explains somewhat more by chance.
"""

_NEARLY_ALL = 0.95
"""The share of the rows of a period that have a value that stands for it."""

_MIN_ROWS = 5
"""Minimum number of selected rows in the half that is searched for combinations."""


@dataclass(frozen=True)
class _Levels:
    """The values of a field, as a few levels: single values, or the quantiles of a numeric field.

    Attributes:
        values: The values.
        table: The table of the values; None for the quantiles of a numeric field.
        codes: The level of each sampled row; -1 if its value is missing or too rare.
        of_level: For each level, the index of its value in the table.
    """

    values: FieldValues
    table: ValueTable | None
    codes: NDArray[np.intp]
    of_level: NDArray[np.intp]

    @property
    def name(self) -> str:
        """The name of the field."""
        return self.values.field.name

    @property
    def conditions(self) -> int:
        """Number of conditions to choose from: each value, or each range of quantiles."""
        return len(self.of_level) if self.table is not None else len(_LOW)


class _Block:
    """The levels of several fields, which are counted in one pass.

    Args:
        levels: The fields: all by single values, or all by ranges of quantiles.
        rows: The rows to search.
        weights: The weight of each of these rows.
        selected: Whether each of these rows is selected.
    """

    def __init__(
        self, levels: Sequence[_Levels], rows: NDArray[np.intp], weights: Floats, selected: Mask
    ) -> None:
        self.levels = levels
        self._is_ranges = bool(levels) and levels[0].table is None
        sizes = [_RANGES if one.table is None else len(one.of_level) for one in levels]
        starts = np.cumsum([0, *sizes])
        # Missing values are counted after all levels, and dropped.
        self._size = int(starts[-1])
        columns = [
            np.where(one.codes[rows] < 0, self._size, one.codes[rows] + start)
            for one, start in zip(levels, starts, strict=False)
        ]
        self._codes = np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0), np.intp)
        self._weights = weights
        self._selected = selected
        self._is_weighted = bool((weights != 1).any())
        self.bounds = np.cumsum([0, *(one.conditions for one in levels)])
        # Row n has the conditions of field n; the remaining columns refer to the count of missing values.
        self._of_field = np.full((len(levels), max(sizes, default=0)), self._size)
        for n, (size, start) in enumerate(zip(sizes, starts, strict=False)):
            self._of_field[n, :size] = np.arange(start, start + size)

    def sets(self, selected: Floats, rest: Floats) -> tuple[NDArray[np.intp], Floats, Floats]:
        """Return the sets of values of each field that can explain the most, from one value to all.

        The best set of a size consists of the values with the highest rates (Breiman et al. 1984, for a
        field that divides rows into two classes).

        Args:
            selected: The weight of the selected rows with each value.
            rest: The weight of the other rows.

        Returns:
            Three matrices with a row for each field: its levels, highest rate first, and the weights of the
            selected and of the other rows of the sets that begin with the first level.
        """
        of_field = [np.append(part, 0.0)[self._of_field] for part in (selected, rest)]
        with np.errstate(invalid="ignore"):
            rate = np.nan_to_num(of_field[0] / (of_field[0] + of_field[1]), nan=-1.0)
        order = np.argsort(-rate, axis=1, kind="stable")
        sums = [np.cumsum(np.take_along_axis(part, order, axis=1), axis=1) for part in of_field]
        return order, sums[0], sums[1]

    def counts(self, mask: Mask) -> tuple[Floats, Floats]:
        """Return the weight of the selected and of the other rows that meet each condition.

        Args:
            mask: The rows to count, among those to search.
        """
        both = [self._counted(mask & side) for side in (self._selected, ~self._selected)]
        if self._is_ranges:
            sums = [np.cumsum(part.reshape(-1, _RANGES), axis=1) for part in both]
            padded = [np.pad(part, ((0, 0), (1, 0))) for part in sums]
            both = [(part[:, _HIGH + 1] - part[:, _LOW]).ravel() for part in padded]
        return both[0], both[1]

    def _counted(self, mask: Mask) -> Floats:
        codes = self._codes[mask]
        weights = np.repeat(self._weights[mask], codes.shape[1]) if self._is_weighted else None
        return np.bincount(codes.ravel(), weights, self._size + 1)[: self._size].astype(np.float64)


@dataclass(frozen=True)
class _Condition:
    """A condition on one field.

    Attributes:
        field: The field.
        find: Returns the condition, given the rows that meet the other conditions.
        mask: The rows that meet it.
    """

    field: str
    find: Callable[[Mask], Finding | None]
    mask: Mask


@dataclass(frozen=True)
class _Group:
    """Conditions on different fields.

    Attributes:
        conditions: The conditions.
        gain: The deviance that they explain together.
        cost: The deviance that the best such group is expected to explain by chance.
    """

    conditions: tuple[_Condition, ...]
    gain: float
    cost: float

    @property
    def score(self) -> float:
        """The deviance that they explain together, minus the cost of the search for them."""
        return self.gain - self.cost

    @property
    def names(self) -> frozenset[str]:
        """The fields."""
        return frozenset(one.field for one in self.conditions)

    @property
    def mask(self) -> Mask:
        """The rows that meet all conditions."""
        return np.asarray(np.logical_and.reduce([one.mask for one in self.conditions]))


def find_combinations(
    values: Sequence[FieldValues],
    tables: Mapping[str, ValueTable | None],
    cohorts: Cohorts,
    rows: Mask,
) -> list[Tested]:
    """Return the most promising combinations, selected in half of the clusters and tested in the other half.

    There are always four results, each of them a hypothesis; one without a combination has no findings.
    The p-value is the highest p-value of its parts, each tested among the rows that meet the other parts: a
    combination is significant only if all of its parts are necessary.

    Args:
        values: The fields that can be causes, in the sampled rows.
        tables: The values of each field.
        cohorts: The sampled rows.
        rows: The rows in which to search. The counts of the findings are those of all sampled rows.
    """
    first = _first_half(cohorts)
    half, other_half = rows & first, rows & ~first
    # The number of hypotheses does not depend on the data.
    untested = [Tested()] * _MAX_TESTED
    if any(0.0 in cohorts.subset(part).totals for part in (half, other_half)):
        return untested
    search = _Search(values, tables, cohorts, half)
    groups = [search.completed(search.with_time(search.fitted(group))) for group in search.promising()]
    tested = []
    for group in groups:
        parts = search.findings(group, half)
        if len(parts) != len(group.conditions):
            continue
        p = max(_part_p(parts, part, cohorts, other_half) for part in parts)
        # The reported limits fit both halves.
        parts = search.findings(group, rows)
        tested.append(Tested(1, [_combination(parts, cohorts, p)], p))
    return (tested + untested)[:_MAX_TESTED]


def _first_half(cohorts: Cohorts) -> Mask:
    # A multiplicative hash of the cluster, so that neighboring clusters fall into both halves.
    mixed = cohorts.clusters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((mixed >> np.uint64(63)) == 0)


class _Search:
    """The search for combinations in half of the clusters.

    Args:
        values: The fields.
        tables: The values of each field.
        cohorts: The sampled rows.
        half: The rows to search.
    """

    def __init__(
        self,
        values: Sequence[FieldValues],
        tables: Mapping[str, ValueTable | None],
        cohorts: Cohorts,
        half: Mask,
    ) -> None:
        self._cohorts = cohorts
        self._half = half
        self._values = {one.field.name: one for one in values}
        self._tables = tables
        self._rows = np.flatnonzero(half)
        self._weights, self._selected = cohorts.weights[half], cohorts.selected[half]
        total = float(self._weights[self._selected].sum())
        rest = float(self._weights.sum()) - total
        self._totals = Counts(*(np.array([[total], [rest]]) for _ in range(3)))
        levels = [self._levels_of(one, tables[one.field.name]) for one in values]
        self._levels = self._most_promising([one for one in levels if one is not None])
        self._blocks = self._blocks_of(self._levels.values())
        self._first = [
            _Condition(one.field.name, partial(_found, found), found.mask)
            for one in values
            if len(values) <= _MAX_FIELDS or one.field.name in self._levels
            for found in find_in(half, one, tables[one.field.name], cohorts)
        ]

    def _blocks_of(self, levels: Iterable[_Levels]) -> list[_Block]:
        """Return the fields with single values, and those with ranges."""
        both = list(levels)
        return [
            _Block(
                [one for one in both if (one.table is None) == is_ranges],
                self._rows,
                self._weights,
                self._selected,
            )
            for is_ranges in (False, True)
        ]

    def _most_promising(self, levels: Sequence[_Levels]) -> dict[str, _Levels]:
        """Return the fields whose best single condition explains the most."""
        if len(levels) <= _MAX_FIELDS:
            return {one.name: one for one in levels}
        gains: dict[str, float] = {}
        everything = np.ones(len(self._rows), bool)
        for block in self._blocks_of(levels):
            if block.levels:
                g2 = self._deviances(*block.counts(everything))
                for n, one in enumerate(block.levels):
                    best = float(g2[block.bounds[n] : block.bounds[n + 1]].max(initial=0.0))
                    gains[one.name] = best - 2 * math.log(one.conditions)
        chosen = sorted(levels, key=lambda one: -gains[one.name])[:_MAX_FIELDS]
        return {one.name: one for one in chosen}

    def _levels_of(self, values: FieldValues, table: ValueTable | None) -> _Levels | None:
        if table is not None and values.field.text_kind != "list" and values.hashes is not None:
            codes = table.codes(values.hashes)
            counts = np.bincount(codes[codes >= 0], minlength=len(table.texts))
            frequent = np.argsort(-counts, kind="stable")[:_MAX_LEVELS]
            frequent = frequent[counts[frequent] > 0]
            if values.numbers is None or len(table.texts) <= _MAX_LEVELS:
                level = np.full(len(table.texts) + 1, -1, np.intp)
                level[frequent] = np.arange(len(frequent))
                return _Levels(values, table, level[codes], frequent) if len(frequent) > 1 else None
        if values.numbers is None:
            return None
        present = ~np.isnan(values.numbers)
        if not present.any():
            return None
        with np.errstate(all="ignore"):
            limits = np.quantile(values.numbers[present], np.linspace(0, 1, _RANGES + 1)[1:-1])
        limits = np.unique(limits[np.isfinite(limits)])
        codes = np.where(present, np.searchsorted(limits, values.numbers), -1)
        return _Levels(values, None, codes, np.arange(len(limits) + 1))

    def promising(self) -> list[_Group]:
        """Return the combinations that explain more than their parts, best first, on different fields."""
        values, ranges = self._blocks
        first = self._first + [
            self._of_levels(levels, np.array([at]))
            for levels in values.levels
            for at in range(len(levels.of_level))
        ]
        if ranges.levels:
            g2 = self._deviances(*ranges.counts(np.ones(len(self._rows), bool)))
            for n, levels in enumerate(ranges.levels):
                here = g2[ranges.bounds[n] : ranges.bounds[n + 1]]
                first += [self._of_range(levels, int(at)) for at in np.argsort(-here)[:_MAX_FIRST_RANGES]]
        singles = [_Group((one,), self._deviance(one.mask), self._cost(one.field)) for one in first]
        singles = sorted((one for one in singles if one.gain > 0), key=lambda one: -one.score)[:_MAX_FIRST]
        pairs = self._extended(singles)
        triples = self._extended(sorted(pairs, key=lambda one: -one.score)[:_MAX_EXTENDED])
        chosen: list[_Group] = []
        for group in sorted((*pairs, *triples), key=lambda one: -one.score):
            # Groups on other fields that match the same rows compete in the other half.
            known = any(group.names <= other.names or group.names >= other.names for other in chosen)
            if known or not self._gains(group):
                continue
            chosen.append(group)
            if len(chosen) == _MAX_TESTED:
                break
        return chosen

    def fitted(self, group: _Group) -> _Group:
        """Return a group whose conditions on values contain all affected values, and no others.

        If two organizations have the same problem, the combination contains both, not an arbitrary one of
        them. The values are compared among the rows that meet the other conditions.
        """
        for n, one in enumerate(group.conditions):
            others = [other.mask for other in group.conditions if other is not one]
            rows = np.asarray(np.logical_and.reduce([self._half, *others]))
            current = one.find(rows)
            is_number = self._values[one.field].numbers is not None
            if current is None or current.shape not in ("value", "values") or is_number:
                continue
            found = find_set(rows, self._values[one.field], self._tables[one.field], self._cohorts)
            if found is None:
                continue
            conditions = list(group.conditions)
            conditions[n] = _Condition(one.field, partial(_found, found), found.mask)
            better = replace(group, conditions=tuple(conditions))
            gain, known = self._deviance(better.mask), self._deviance(group.mask)
            # A set replaces a value only if it contains the value, and explains clearly more.
            is_better = gain > known if current.shape == "values" else gain >= _MIN_GAIN * known
            is_wider = current.shape == "values" or bool(found.mask[one.mask].all())
            if is_better and is_wider and self._gains(better):
                group = replace(better, gain=gain)
        return group

    def with_time(self, group: _Group) -> _Group:
        """Return a group with a condition on the time instead of a value that stands for a time.

        All runs since a release have its version. If the time since which the rows are selected explains
        clearly more than the version, the release was not the start.
        """
        time = self._values.get(_TIME)
        if time is None or time.numbers is None or _TIME in group.names:
            return group
        for n, one in enumerate(group.conditions):
            if not _is_period(one.mask, time.numbers):
                continue
            others = [other.mask for other in group.conditions if other is not one]
            rows = np.asarray(np.logical_and.reduce([self._half, *others]))
            found = self._range(time, rows)
            if found is None:
                continue
            conditions = list(group.conditions)
            conditions[n] = _Condition(_TIME, partial(self._range, time), found.mask)
            better = replace(group, conditions=tuple(conditions))
            gain = self._deviance(better.mask)
            if gain > self._deviance(group.mask) + _MIN_GAIN_OF_TIME:
                return replace(better, gain=gain)
        return group

    def completed(self, group: _Group) -> _Group:
        """Return a group of two fields and a time with a third field, if it explains clearly more.

        Since when rows are selected, and which rows they are, are two questions.
        """
        if _TIME not in group.names or len(group.conditions) != _MAX_FIELDS_OF_GROUP:
            return group
        longer = [one for one in self._extended([group]) if self._gains(one)]
        return self.fitted(max(longer, key=lambda one: one.score)) if longer else group

    def _range(self, values: FieldValues, others: Mask) -> Finding | None:
        assert values.numbers is not None, "a range is one of numbers"
        found = find_orders(values.field, values.numbers, self._cohorts, others, outside=False)[0]
        return found[0] if found else None

    def findings(self, group: _Group, rows: Mask) -> list[Finding]:
        """Return the conditions of a group, with numeric limits that are fitted to some of the rows."""
        found = []
        for one in group.conditions:
            others = [other.mask for other in group.conditions if other is not one]
            finding = one.find(np.asarray(np.logical_and.reduce([rows, *others])))
            if finding is not None:
                found.append(finding)
        return found

    def _extended(self, groups: Sequence[_Group]) -> list[_Group]:
        """Return the best extension of each group by a condition on each other field."""
        found: dict[tuple[frozenset[str], float], _Group] = {}
        for group in groups:
            mask = group.mask[self._rows]
            for block in self._blocks:
                counts = block.counts(mask)
                g2 = self._deviances(*counts)
                sets = self._best_sets(block, *counts)
                for n, levels in enumerate(block.levels):
                    here = g2[block.bounds[n] : block.bounds[n + 1]]
                    chosen: NDArray[np.intp] = np.array([np.argmax(here)])
                    gain = float(here[chosen[0]])
                    if n in sets and sets[n][1] >= _MIN_GAIN * gain:
                        chosen, gain = sets[n]
                    if gain < _MIN_GAIN * group.gain or levels.name in group.names:
                        continue
                    key = group.names | {levels.name}, gain
                    if key not in found:
                        condition = (
                            self._of_levels(levels, chosen)
                            if levels.table is not None
                            else self._of_range(levels, int(chosen[0]))
                        )
                        choices = math.comb(levels.conditions, len(chosen)) / levels.conditions
                        cost = group.cost + self._cost(levels.name) + 2 * math.log(choices)
                        found[key] = _Group((*group.conditions, condition), gain, cost)
        return list(found.values())

    def _best_sets(
        self, block: _Block, selected: Floats, rest: Floats
    ) -> dict[int, tuple[NDArray[np.intp], float]]:
        """Return the levels and the gain of the set of values that explains the most, by field index."""
        if not block.levels or block.levels[0].table is None:
            return {}
        order, of_selected, of_rest = block.sets(selected, rest)
        g2 = self._deviances(of_selected.ravel(), of_rest.ravel()).reshape(order.shape)
        best = np.argmax(g2, axis=1)
        return {
            n: (order[n, : size + 1], float(g2[n, size]))
            for n, size in enumerate(best)
            # A set of numbers is not what a reader expects; numbers have an order.
            if 0 < size < block.levels[n].conditions - 1 and block.levels[n].values.numbers is None
        }

    def _cost(self, name: str) -> float:
        """Return the deviance that the best condition on any field explains by chance."""
        levels = self._levels.get(name)
        conditions = levels.conditions if levels is not None else len(_LOW)
        return 2 * math.log(max(2, conditions * len(self._levels)))

    def _gains(self, group: _Group) -> bool:
        """Return whether a group explains clearly more than each group of fewer of its conditions."""
        smaller = max(
            self._deviance(np.asarray(np.logical_and.reduce([one.mask for one in part])))
            for part in combinations(group.conditions, len(group.conditions) - 1)
        )
        return self._deviance(group.mask) >= _MIN_GAIN * smaller

    def _deviance(self, mask: Mask) -> float:
        here = mask[self._rows]
        selected = float(self._weights[here & self._selected].sum())
        rest = float(self._weights[here].sum()) - selected
        return float(self._deviances(np.array([selected]), np.array([rest]))[0])

    def _deviances(self, selected: Floats, rest: Floats) -> Floats:
        counts = np.stack([selected, rest])
        found = deviance(Counts(counts, counts, counts), self._totals, self._cohorts.design_effect)
        totals = self._totals.weight
        found[(selected / totals[0] <= rest / totals[1]) | (selected < _MIN_ROWS)] = 0
        return found

    def _of_levels(self, levels: _Levels, chosen: NDArray[np.intp]) -> _Condition:
        mask = np.isin(levels.codes, chosen)

        def find(others: Mask) -> Finding | None:
            assert levels.table is not None, "a level is a value of a table"
            if len(chosen) > 1:
                return find_set(others, levels.values, levels.table, self._cohorts)
            at = int(levels.of_level[chosen[0]])
            return single_value(Named.of(levels.values.field), levels.table, at, mask)

        return _Condition(levels.name, find, mask)

    def _of_range(self, levels: _Levels, at: int) -> _Condition:
        mask = (levels.codes >= _LOW[at]) & (levels.codes <= _HIGH[at])
        return _Condition(levels.name, partial(self._range, levels.values), np.asarray(mask))


def _found(finding: Finding, _: Mask) -> Finding:
    return finding


def _is_period(mask: Mask, starts: Floats) -> bool:
    """Return whether a condition is met by nearly all rows of a period, and by no others."""
    if not mask.any() or mask.all():
        return False
    # Rows at the edges, such as those of the last process with the old version, do not count.
    first, last = np.nanquantile(starts[mask], (0.01, 0.99))
    within = (starts >= first) & (starts <= last)
    return bool(mask[within].mean() >= _NEARLY_ALL)


def _part_p(parts: Sequence[Finding], part: Finding, cohorts: Cohorts, rows: Mask) -> float:
    """Return the p-value of one part among the rows that meet the other parts."""
    others = np.asarray(np.logical_and.reduce([rows, *(one.mask for one in parts if one is not part)]))
    here = cohorts.subset(others)
    if 0.0 in here.totals:
        return 1.0
    mask = part.mask[others]
    counts = counts_of_masks([mask], here)
    totals = counts_of_masks([np.ones(len(mask), bool)], here)
    if (counts.weight[0] / totals.weight[0] <= counts.weight[1] / totals.weight[1]).any():
        return 1.0
    return float(p_values(counts, totals, here.design_effect)[0])


def _combination(parts: Sequence[Finding], cohorts: Cohorts, p: float) -> Finding:
    mask = np.asarray(np.logical_and.reduce([part.mask for part in parts]))
    counts = counts_of_masks([mask], cohorts)
    totals = counts_of_masks([np.ones(len(mask), bool)], cohorts)
    return Finding(
        fields=tuple(field for part in parts for field in part.fields),
        shape="combination",
        text=" and ".join(part.text for part in parts),
        value=[part.value for part in parts],
        condition=Condition(" AND ".join(part.condition.sql for part in parts)),
        mask=mask,
        counts=counts,
        totals=totals,
        gain=float(deviance(counts, totals, cohorts.design_effect)[0]),
        p=p,
        parts=tuple(parts),
    )
