"""Comparison of a single field, and the ranking of what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from math import isfinite, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ._fields import STAGE_FIELDS, Field, literal
from ._sample import Cohorts, Mask
from ._significance import MISSING, Split, Values, best_split, compare_values, p_of_mask

__all__ = ["FieldComparison", "Finding", "Ranked", "compare", "find_interaction", "rank", "significant"]


_MAX_DISTINCT_NUMBERS = 12
"""Up to this number of distinct values, numbers are also compared as values, because they can be codes."""

_FIRST_ROWS = 1_000

_MAX_FINDINGS_PER_FIELD = 3
"""Further findings of the same field would repeat the first ones."""

_MIN_REPEATED_SHARE = 0.1
"""Minimum share of rows whose value occurs more than twice. Otherwise, a field contains ids."""


@dataclass(frozen=True)
class Finding:
    """A condition on a field that the selection meets more often than the rest.

    Attributes:
        field: The field.
        kind: A value, a threshold of a number, or the absence of a value.
        mask: The rows that meet the condition.
        p: The p-value, multiplied by the number of comparisons within the field.
        row: A row that has the value.
        split: The threshold of a number.
        negated: True for all values but one; for an absence, True if there is a value.
    """

    field: Field
    kind: Literal["category", "number", "absence"]
    mask: Mask
    p: float
    row: int = 0
    split: Split | None = None
    negated: bool = False

    def describe(self, value_of: Callable[[Field, int], Any]) -> tuple[Any, str, str]:
        """Return the value, the description, and a predicate for the matching rows."""
        column = self.field.column.sql
        if self.kind == "absence":
            text, condition = ("has a value", "IS NOT NULL") if self.negated else ("is missing", "IS NULL")
            return None, text, self.field.predicate(f"{column} {condition}")
        if self.split is not None:
            operator = ">" if self.split.above else "<="
            if self.field.column.kind == "time":
                zone = "" if self.field.column.type in {"TIMESTAMP", "DATE"} else "Z"
                time = f"{_time_between(self.split.low, self.split.high)}{zone}"
                type_ = "TIMESTAMPTZ" if zone else "TIMESTAMP"
                predicate = self.field.predicate(f"{column} {operator} {type_} '{time}'")
                return time, f"{operator} {time}", predicate
            number = _number_between(self.split.low, self.split.high)
            return (
                number,
                f"{operator} {_format(number)}",
                self.field.predicate(f"{column} {operator} {literal(number)}"),
            )
        value = value_of(self.field, self.row)
        operator = "<>" if self.negated else "="
        text = str(value).lower() if isinstance(value, bool) else _format(value)
        return value, f"{operator} {text}", self.field.predicate(f"{column} {operator} {literal(value)}")


@dataclass
class FieldComparison:
    """The result of comparing one field.

    Attributes:
        comparisons: Number of comparisons.
        findings: Conditions that the selection meets more often, whether significant or not.
        lowest: The lowest p-value of all comparisons, multiplied by their number.
        excluded: Why the values of the field were not compared; None if they were.
    """

    comparisons: int = 0
    findings: list[Finding] = field(default_factory=list)
    lowest: float = 1.0
    excluded: str | None = None


def compare(field: Field, values: NDArray[Any], cohorts: Cohorts, *, absence: bool) -> FieldComparison:
    """Compare the values of a field in the selection with those in the rest.

    Args:
        field: The field.
        values: The value of each row: numbers, with nan for a missing one, or codes.
        cohorts: The selection and the rest.
        absence: Whether a missing value can be a finding.
    """
    numbers = values if values.dtype == np.float64 else None
    # If the first rows already contain many distinct numbers, do not sort all of them twice.
    by_value = numbers is None or len(np.unique(numbers[:_FIRST_ROWS])) <= _MAX_DISTINCT_NUMBERS
    if numbers is None:
        codes = values
    else:
        codes = _codes(numbers) if by_value else np.where(np.isnan(numbers), np.uint64(MISSING), np.uint64(1))
    found = compare_values(codes, cohorts)
    split = None if numbers is None else best_split(numbers, cohorts)
    if len(found.codes) < 2 and not split:
        return FieldComparison(excluded="the same in every row")
    by_value = by_value and (numbers is None or found.distinct <= _MAX_DISTINCT_NUMBERS)
    excluded = None
    if numbers is None and found.repeats < _MIN_REPEATED_SHARE:
        excluded = "nearly every value is unique"
        by_value = False
    missing = absence and found.codes[0] == MISSING
    comparisons = (split.comparisons if split else 0) + (found.comparisons if by_value else int(missing))
    p = np.minimum(1.0, found.p * comparisons)
    findings = _value_findings(field, found, p, by_value=by_value, missing=bool(missing))
    # An absence that cannot be a finding must not lower the p-value of its field either.
    first = int(found.codes[0] == MISSING and not missing)
    lowest = [float(low) for low in (p[first:] if by_value else p[:1] if missing else ())]
    if split:
        findings.append(Finding(field, "number", split.mask, min(1.0, split.p * comparisons), split=split))
        lowest.append(findings[-1].p)
    excluded = None if missing else excluded
    return FieldComparison(comparisons, findings, min(lowest, default=1.0), excluded)


def _value_findings(
    field: Field, found: Values, p: NDArray[Any], *, by_value: bool, missing: bool
) -> list[Finding]:
    findings = []
    first = int(found.codes[0] == MISSING)
    if missing and p[0] < 1:
        negated = bool(found.surplus[0] < 0)
        mask = found.rows_with(0)
        findings.append(Finding(field, "absence", ~mask if negated else mask, float(p[0]), negated=negated))
    if not by_value:
        return findings
    candidates = [at for at in range(first, len(p)) if p[at] < 1]
    more = sorted((at for at in candidates if found.surplus[at] > 0), key=lambda at: float(p[at]))
    findings += [
        Finding(field, "category", found.rows_with(at), float(p[at]), int(found.first[at]))
        for at in more[:_MAX_FINDINGS_PER_FIELD]
    ]
    fewer = [at for at in candidates if found.surplus[at] < 0]
    if fewer and found.distinct > 2:
        at = min(fewer, key=lambda at: p[at])
        others = ~found.rows_with(at) & (~found.rows_with(0) if first else True)
        findings.append(Finding(field, "category", others, float(p[at]), int(found.first[at]), negated=True))
    return findings


def _codes(numbers: NDArray[Any]) -> NDArray[np.uint64]:
    # The bits of 0.0 equal MISSING, so the smallest positive number replaces it.
    codes = (np.where(numbers == 0, 5e-324, numbers)).view(np.uint64)
    return np.where(np.isnan(numbers), np.uint64(MISSING), codes)


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
            return _iso(rounded)
    return _iso(low)


def _iso(seconds: float) -> str:
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=round(seconds * 1e6))
    return time.replace(tzinfo=None).isoformat(timespec="auto")


def _format(value: Any) -> str:
    if isinstance(value, float) and isfinite(value):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


_MAX_INTERACTING = 8
"""Only pairs of this number of differences are tested, those with the largest effect."""

_MIN_GAIN = 0.03
"""Minimum difference between the phi coefficient of a pair and that of the better of the two."""


def find_interaction(
    findings: Sequence[Finding], cohorts: Cohorts, alpha: float
) -> tuple[Finding, Finding] | None:
    """Return two findings that together separate the selection better than either does alone.

    Each must be significant among the rows of the other, corrected for all pairs that are tested
    (Bonferroni). The phi coefficient measures how well a condition separates the selection from the rest.
    """
    pairs = list(combinations(findings[:_MAX_INTERACTING], 2))
    best: tuple[float, tuple[Finding, Finding]] | None = None
    for one, other in pairs:
        both = one.mask & other.mask
        gain = _phi(both, cohorts) - max(_phi(one.mask, cohorts), _phi(other.mask, cohorts))
        if gain < _MIN_GAIN or (best is not None and gain <= best[0]):
            continue
        p_values = (
            p_of_mask(one.mask[other.mask], cohorts.subset(other.mask)),
            p_of_mask(other.mask[one.mask], cohorts.subset(one.mask)),
        )
        if max(p_values) * 2 * len(pairs) <= alpha:
            best = gain, (one, other)
    return best[1] if best is not None else None


def _phi(mask: Mask, cohorts: Cohorts) -> float:
    true_positive, false_positive = (float(cohorts.weights[mask & cohort].sum()) for cohort in cohorts.masks)
    selected, rest = cohorts.totals
    false_negative, true_negative = selected - true_positive, rest - false_positive
    product = (
        (true_positive + false_positive)
        * (true_positive + false_negative)
        * (true_negative + false_positive)
        * (true_negative + false_negative)
    )
    difference = true_positive * true_negative - false_positive * false_negative
    return difference / sqrt(product) if product > 0 else 0.0


_MAX_RANKED = 60
"""Only this number of findings is tested for confounding, those with the largest effect."""

_KIND_ORDER = ("category", "number", "absence")


@dataclass(frozen=True)
class Ranked:
    """A significant finding.

    Attributes:
        finding: The finding.
        q: The q-value.
        effect: The share in the selection minus the share in the rest.
        synonyms: Findings that match the same rows.
        along_with: An earlier finding that accounts for this one.
    """

    finding: Finding
    q: float
    effect: float
    synonyms: list[Finding] = field(default_factory=list)
    along_with: Finding | None = None


def significant(
    comparisons: Sequence[FieldComparison], cohorts: Cohorts, alpha: float, *, skipped: int = 0
) -> list[Ranked]:
    """Return the significant findings, each with its q-value and its effect.

    Within a field, the p-values are multiplied by the number of comparisons (Bonferroni). Over the
    fields, the lowest p-value of each is corrected by Benjamini-Yekutieli, which is valid for any
    dependency: the fields of a run always depend on each other. `skipped` is the number of fields that
    were excluded because of their data; they count as if they had been compared.
    """
    if not comparisons:
        return []
    # A p-value that underflows to 0 must keep its ratio to the other findings of its field.
    lowest = np.maximum([comparison.lowest for comparison in comparisons], 1e-300)
    corrected = stats.false_discovery_control(np.append(lowest, np.ones(skipped)), method="by")
    ranked: list[Ranked] = []
    for comparison, low, field_q in zip(comparisons, lowest, corrected, strict=False):
        factor = field_q / low
        of_field = []
        for finding in comparison.findings:
            q = float(field_q if finding.p <= low else min(1.0, finding.p * factor))
            if q > alpha:
                continue
            selection, rest = cohorts.parts(finding.mask)
            if selection.share > rest.share:
                of_field.append(Ranked(finding, q, selection.share - rest.share))
        # "<> eu" is useful only if no single value is more frequent.
        has_value = any(one.finding.kind == "category" and not one.finding.negated for one in of_field)
        ranked += [
            one
            for one in of_field
            if not (has_value and one.finding.kind == "category" and one.finding.negated)
        ]
    return ranked


def rank(significant: Sequence[Ranked], cohorts: Cohorts, alpha: float) -> list[Ranked]:
    """Order findings by their effect; those that an earlier one accounts for are last."""
    by_rows: dict[bytes, list[Ranked]] = {}
    for one in sorted(significant, key=_simplicity):
        by_rows.setdefault(one.finding.mask.tobytes(), []).append(one)
    grouped = [
        replace(first, q=min(one.q for one in (first, *others)), synonyms=[one.finding for one in others])
        for first, *others in by_rows.values()
    ]
    grouped.sort(key=lambda one: (-one.effect, one.q))
    independent: list[Ranked] = []
    confounded: list[Ranked] = []
    tested = grouped[:_MAX_RANKED]
    for one in tested:
        limit = alpha / (2 * len(tested))
        by = next((other.finding for other in independent if _accounts_for(other, one, cohorts, limit)), None)
        if by is None:
            independent.append(one)
        else:
            confounded.append(replace(one, along_with=by))
    return [*independent, *confounded]


def _accounts_for(other: Ranked, one: Ranked, cohorts: Cohorts, limit: float) -> bool:
    """Return whether a finding is not significant after controlling for another one."""
    strata = (other.finding.mask, ~other.finding.mask)
    return all(p_of_mask(one.finding.mask[stratum], cohorts.subset(stratum)) > limit for stratum in strata)


def _simplicity(one: Ranked) -> tuple[int, bool, bool, bool, int, str]:
    """Return a sort key that puts the simplest of several synonyms first."""
    field = one.finding.field
    return (
        _KIND_ORDER.index(one.finding.kind),
        one.finding.negated,
        field.stage is not None,
        field.is_attribute,
        STAGE_FIELDS.index(field.column.name) if field.column.name in STAGE_FIELDS else 0,
        field.name,
    )
