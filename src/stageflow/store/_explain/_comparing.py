"""Compares one field in the selection with the rest, as one hypothesis with conditions of several shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ._calendar import find_calendar
from ._categories import MIN_REPEATED_SHARE, Named, find_absence, find_categories, repeated_share
from ._fields import Field
from ._finding import Finding, Tested
from ._orders import find_orders
from ._sample import Cohorts, Floats, Mask
from ._significance import counts_of_masks
from ._values import ValueTable

__all__ = ["FieldValues", "compare_field", "find_in", "find_set"]


_MAX_CATEGORIES = 2_000
"""Integers with up to this number of distinct values are also compared as identifiers."""

_MAX_DISTINCT_NUMBERS = 12
"""Other numbers with up to this number of distinct values are also compared as values."""

_FIRST_ROWS = 2_000


@dataclass(frozen=True)
class FieldValues:
    """The values of a field in the sampled rows.

    Attributes:
        field: The field.
        hashes: The hash of each value, 0 if it is missing; None if values are not compared for equality.
        numbers: Each value as a number, nan if it is missing; None if values have no order.
    """

    field: Field
    hashes: NDArray[np.uint64] | None
    numbers: Floats | None

    @property
    def missing(self) -> NDArray[np.bool_]:
        """The rows without a value."""
        if self.hashes is not None:
            return np.asarray(self.hashes == 0)
        assert self.numbers is not None, "a field has a value or an order"
        return np.isnan(self.numbers)

    @cached_property
    def is_categorical(self) -> bool:
        """Whether the values are compared for equality: texts, identifiers and codes."""
        if self.hashes is None:
            return False
        if self.numbers is None:
            return True
        # If the first rows already contain many distinct numbers, do not sort all of them.
        present = self.numbers[~np.isnan(self.numbers)]
        if len(np.unique(present[:_FIRST_ROWS])) > _MAX_CATEGORIES / 2:
            return False
        distinct = np.unique(present)
        if len(distinct) <= _MAX_DISTINCT_NUMBERS:
            return True
        return len(distinct) <= _MAX_CATEGORIES and bool((distinct == np.floor(distinct)).all())


def compare_field(
    values: FieldValues, table: ValueTable | None, cohorts: Cohorts, design_effect: float, *, absence: bool
) -> Tested:
    """Compare the values of a field in the selection with those in the rest.

    Args:
        values: The values in the sampled rows.
        table: How often each value occurs; None if the values are not compared for equality.
        cohorts: The sampled rows.
        design_effect: The design effect of the clusters over all rows, for a table that counts all rows.
        absence: Whether a missing value can be a finding.
    """
    field = values.field
    findings: list[Finding] = []
    comparisons, lowest, left_out = 0, 1.0, None
    missing = values.missing
    effect = design_effect if table is not None and table.is_complete else cohorts.design_effect

    def add(found: tuple[list[Finding], int, float]) -> None:
        nonlocal comparisons, lowest
        findings.extend(found[0])
        comparisons += found[1]
        lowest = min(lowest, found[2])

    if table is not None and values.hashes is not None:
        add(find_categories(Named.of(field), table, table.codes(values.hashes), effect))
        if values.numbers is None and not comparisons and len(table.texts) > 1:
            is_list = field.text_kind == "list"
            if not is_list and repeated_share(table) < MIN_REPEATED_SHARE:
                left_out = "nearly every value is unique"
    if values.numbers is not None:
        add(find_orders(field, values.numbers, cohorts))
        if field.is_time:
            add(find_calendar(field, values.numbers, cohorts))
    # The shapes share the lowest p-value; the one that explains the most is reported.
    best = [replace(max(findings, key=lambda one: one.score), p=lowest)] if findings else []
    if absence:
        if table is not None and table.is_complete:
            present, without = table.counts.total(), table.missing
        else:
            present, without = counts_of_masks([~missing], cohorts), counts_of_masks([missing], cohorts)
        if (found := find_absence(field, present, without, missing, effect)) is not None:
            best.append(found)
            comparisons += 1
            lowest = min(lowest, found.p)
            left_out = None
    if not comparisons and left_out is None:
        left_out = "empty in every row" if missing.all() else "the same in every row"
    return Tested(
        comparisons, [one.scaled(comparisons) for one in best], min(1.0, lowest * comparisons), left_out
    )


def find_in(rows: Mask, values: FieldValues, table: ValueTable | None, cohorts: Cohorts) -> list[Finding]:
    """Return the prefixes, elements and calendar conditions that explain the most in some sampled rows.

    Args:
        rows: The rows to search. The masks of the findings contain all rows.
        values: The values in the sampled rows.
        table: The values of the field; None if they are not compared for equality.
        cohorts: The sampled rows.
    """
    findings: list[Finding] = []
    if table is not None and values.hashes is not None and values.numbers is None:
        codes = table.codes(values.hashes)
        counted = table.recounted(codes, cohorts, rows)
        findings += find_categories(Named.of(values.field), counted, codes, cohorts.design_effect)[0]
    if values.numbers is not None and values.field.is_time:
        findings += find_calendar(values.field, np.where(rows, values.numbers, np.nan), cohorts)[0]
    return [one for one in findings if one.shape in ("prefix", "element", "date", "weekday", "hour")]


def find_set(rows: Mask, values: FieldValues, table: ValueTable | None, cohorts: Cohorts) -> Finding | None:
    """Return the set of values that explains the most in some sampled rows; None if one value is as good.

    Args:
        rows: The rows to search. The mask of the finding contains all rows.
        values: The values in the sampled rows.
        table: The values of the field; None if they are not compared for equality.
        cohorts: The sampled rows.
    """
    if table is None or values.hashes is None:
        return None
    codes = table.codes(values.hashes)
    counted = table.recounted(codes, cohorts, rows)
    found = find_categories(Named.of(values.field), counted, codes, cohorts.design_effect)[0]
    sets = [one for one in found if one.shape == "values"]
    return max(sets, key=lambda one: one.score, default=None)
