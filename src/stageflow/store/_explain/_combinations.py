"""Combinations of conditions on two or three fields that explain the selection only together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ._categories import Named, single_value
from ._comparing import FieldValues, find_in
from ._finding import Finding, Tested
from ._orders import find_orders
from ._sample import Cohorts, Floats, Mask
from ._significance import counts_of_masks, deviance, p_values
from ._values import Counts, ValueTable

__all__ = ["find_combinations"]


_MAX_LEVELS = 20
"""Only this number of values of a field is combined, the most frequent ones."""

_RANGES = 16
"""Number of quantiles between which ranges of a number begin and end."""

_RANGE_ALTERNATIVES = _RANGES * (_RANGES + 1) // 2

_MAX_FIRST = 150
"""Only this number of conditions is combined with others, those that explain most on their own."""

_MAX_EXTENDED = 30
"""Only this number of pairs is extended by a third condition."""

_MAX_TESTED = 3
"""Maximum number of combinations to test; each is a comparison."""

_MIN_GAIN = 1.1
"""A combination must explain this many times the deviance that any part of it explains."""

_MIN_ROWS = 5
"""Minimum number of selected rows in the half in which combinations are searched."""

_NOT_COMBINED = ("<>", "not in", "has a value", " or > ")


@dataclass(frozen=True)
class _Levels:
    """The values of a field, as a few levels.

    Attributes:
        values: The values.
        table: The table of the values; None for the ranges of a number.
        codes: The level of each sampled row; -1 if its value is missing or too rare.
        of_level: The index in the table of each level.
    """

    values: FieldValues
    table: ValueTable | None
    codes: NDArray[np.intp]
    of_level: NDArray[np.intp]

    @property
    def alternatives(self) -> int:
        """Number of conditions to choose from."""
        return len(self.of_level) if self.table is not None else _RANGE_ALTERNATIVES


@dataclass(frozen=True)
class _Condition:
    """A condition on one field.

    Attributes:
        levels: The field.
        find: Returns the condition, given the rows that meet the other conditions.
        mask: The rows that meet it.
    """

    levels: str
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
        return frozenset(one.levels for one in self.conditions)

    @property
    def mask(self) -> Mask:
        """The rows that meet all conditions."""
        return np.asarray(np.logical_and.reduce([one.mask for one in self.conditions]))


def find_combinations(
    values: Sequence[FieldValues], tables: Mapping[str, ValueTable | None], cohorts: Cohorts
) -> list[Tested]:
    """Return the most promising combinations, selected in half of the clusters and tested in the other half.

    There are always three results, each of them a hypothesis; one without a combination has no findings.
    The p-value is the highest one of the parts, each tested among the rows that meet the other parts: a
    combination is significant only if all of its parts are necessary.

    Args:
        values: The fields that can be causes, in the sampled rows.
        tables: The values of each field.
        cohorts: The sampled rows.
    """
    half = _first_half(cohorts)
    # The number of hypotheses does not depend on the data.
    untested = [Tested()] * _MAX_TESTED
    if any(0.0 in cohorts.subset(rows).totals for rows in (half, ~half)):
        return untested
    search = _Search(values, tables, cohorts, half)
    groups = search.promising()
    tested = []
    for group in groups:
        parts = search.findings(group)
        if len(parts) != len(group.conditions):
            continue
        p = max(_part_p(parts, part, cohorts, ~half) for part in parts)
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
        self._weights = np.where(half, cohorts.weights, 0.0)
        self._selected = np.where(cohorts.selected, self._weights, 0.0)
        total = float(self._selected.sum())
        rest = float(self._weights.sum()) - total
        self._totals = Counts(*(np.array([[total], [rest]]) for _ in range(3)))
        self._levels: dict[str, _Levels] = {}
        self._first: list[_Condition] = []
        for one in values:
            table = tables[one.field.name]
            levels = self._levels_of(one, table)
            if levels is not None:
                self._levels[one.field.name] = levels
            self._first += [
                _Condition(one.field.name, lambda _, found=found: found, found.mask)  # type: ignore[misc]
                for found in find_in(half, one, table, cohorts)
                if found.shape != "value" and not any(word in found.text for word in _NOT_COMBINED)
            ]

    def _levels_of(self, values: FieldValues, table: ValueTable | None) -> _Levels | None:
        if table is not None and values.field.text_kind != "list" and values.hashes is not None:
            codes = table.codes(values.hashes)
            present = codes[codes >= 0]
            counts = np.bincount(present, minlength=len(table.texts))
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
        limits = np.unique(np.quantile(values.numbers[present], np.linspace(0, 1, _RANGES + 1)[1:-1]))
        codes = np.where(present, np.searchsorted(limits, values.numbers), -1)
        return _Levels(values, None, codes, np.arange(len(limits) + 1))

    def promising(self) -> list[_Group]:
        """Return the combinations that explain more than their parts, best first, on different fields."""
        first = self._first + [
            self._of_level(name, levels, at)
            for name, levels in self._levels.items()
            if levels.table is not None
            for at in range(len(levels.of_level))
        ]
        singles = [_Group((one,), self._deviance(one.mask), self._cost(one.levels)) for one in first]
        singles = sorted((one for one in singles if one.gain > 0), key=lambda one: -one.score)[:_MAX_FIRST]
        pairs = self._extended(singles)
        triples = self._extended(sorted(pairs, key=lambda one: -one.score)[:_MAX_EXTENDED])
        chosen: list[_Group] = []
        for group in sorted((*pairs, *triples), key=lambda one: -one.score):
            if any(group.names & other.names for other in chosen) or not self._gains(group):
                continue
            chosen.append(group)
            if len(chosen) == _MAX_TESTED:
                break
        return chosen

    def findings(self, group: _Group) -> list[Finding]:
        """Return the conditions of a group; the limits of a number fit the other conditions."""
        found = []
        for one in group.conditions:
            others = [other.mask for other in group.conditions if other is not one]
            finding = one.find(np.asarray(np.logical_and.reduce([self._half, *others])))
            if finding is not None:
                found.append(finding)
        return found

    def _extended(self, groups: Sequence[_Group]) -> list[_Group]:
        """Return for each group its best extension by a condition on each other field."""
        found: dict[tuple[frozenset[str], int], _Group] = {}
        for group in groups:
            rows = np.flatnonzero(group.mask & self._half)
            weights, selected = self._weights[rows], self._selected[rows]
            for name, levels in self._levels.items():
                if name in group.names:
                    continue
                codes = levels.codes[rows]
                size = len(levels.of_level)
                s = np.bincount(codes + 1, selected, size + 1)[1:].astype(float)
                r = np.bincount(codes + 1, weights, size + 1)[1:].astype(float) - s
                low = high = np.arange(size)
                if levels.table is None:
                    low, high = np.triu_indices(size)
                    s, r = (
                        np.append(np.cumsum(part), 0.0)[high] - np.append(np.cumsum(part), 0.0)[low - 1]
                        for part in (s, r)
                    )
                g2 = self._deviances(s, r)
                at = int(np.argmax(g2))
                if g2[at] <= 0:
                    continue
                condition = (
                    self._of_level(name, levels, at)
                    if levels.table is not None
                    else self._of_range(name, levels, int(low[at]), int(high[at]))
                )
                cost = group.cost + self._cost(name)
                extended = _Group((*group.conditions, condition), float(g2[at]), cost)
                key = extended.names, int(s[at])
                if key not in found or found[key].score < extended.score:
                    found[key] = extended
        return list(found.values())

    def _cost(self, name: str) -> float:
        """Return the deviance that the best condition on any field explains by chance."""
        levels = self._levels.get(name)
        alternatives = levels.alternatives if levels is not None else _RANGE_ALTERNATIVES
        return 2 * math.log(max(2, alternatives * len(self._levels)))

    def _gains(self, group: _Group) -> bool:
        """Return whether a group explains clearly more than each group of fewer of its conditions."""
        smaller = max(
            self._deviance(np.asarray(np.logical_and.reduce([one.mask for one in part])))
            for part in combinations(group.conditions, len(group.conditions) - 1)
        )
        return self._deviance(group.mask) >= _MIN_GAIN * smaller

    def _deviance(self, mask: Mask) -> float:
        s = float(self._selected[mask].sum())
        r = float(self._weights[mask].sum()) - s
        return float(self._deviances(np.array([s]), np.array([r]))[0])

    def _deviances(self, selected: Floats, rest: Floats) -> Floats:
        counts = np.stack([selected, rest])
        found = deviance(Counts(counts, counts, counts), self._totals, self._cohorts.design_effect)
        totals = self._totals.weight
        found[(selected / totals[0] <= rest / totals[1]) | (selected < _MIN_ROWS)] = 0
        return found

    def _of_level(self, name: str, levels: _Levels, at: int) -> _Condition:
        def find(_: Mask) -> Finding | None:
            assert levels.table is not None, "a level is a value of a table"
            index = int(levels.of_level[at])
            return single_value(Named.of(levels.values.field), levels.table, index, levels.codes == at)

        return _Condition(name, find, np.asarray(levels.codes == at))

    def _of_range(self, name: str, levels: _Levels, low: int, high: int) -> _Condition:
        def find(others: Mask) -> Finding | None:
            numbers = levels.values.numbers
            assert numbers is not None, "a range is one of numbers"
            found = find_orders(levels.values.field, numbers, self._cohorts, others)[0]
            inside = [one for one in found if " or " not in one.text]
            return max(inside, key=lambda one: self._deviance(one.mask & others) - one.cost, default=None)

        return _Condition(name, find, np.asarray((levels.codes >= low) & (levels.codes <= high)))


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
        condition=" AND ".join(part.condition for part in parts),
        mask=mask,
        counts=counts,
        totals=totals,
        gain=float(deviance(counts, totals, cohorts.design_effect)[0]),
        p=p,
        parts=tuple(parts),
    )
