"""What comparing one field gave: the values, the split or the absence by which the two sides may differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .contingency import MISSING, Values, compare_values
from .fields import Field, literal
from .sides import Mask, Sides
from .splits import Split, best_split

__all__ = ["Compared", "Finding", "compare"]

_FEW = 12
"""Up to so many different numbers are compared as values too: 404 is no larger kind of 200."""

_SOME = 1_000

_TOLD_OF_ONE = 3
"""Findings of one field: more of them say the same of it."""

_REPEATS = 0.1
"""The share of rows whose value occurs more than twice; below it a field tells rows apart, not kinds."""


@dataclass(frozen=True)
class Finding:
    """One thing that a field has more often in the selection.

    Attributes:
        field: The field.
        kind: Whether it is a value, a split, or whether it has a value.
        mask: The rows that have it.
        p: The p-value, times the comparisons made within the field.
        row: A row that has the value.
        split: Where a number is split.
        negated: Everything but the value; of an absence, that there is a value.
    """

    field: Field
    kind: Literal["category", "number", "absence"]
    mask: Mask
    p: float
    row: int = 0
    split: Split | None = None
    negated: bool = False

    def told(self, value_of: Callable[[Field, int], Any]) -> tuple[Any, str, str]:
        """Return the value, the words for it, and the predicate that selects it."""
        column = self.field.column.compared
        if self.kind == "absence":
            says, condition = ("has a value", "IS NOT NULL") if self.negated else ("is missing", "IS NULL")
            return None, says, self.field.predicate(f"{column} {condition}")
        if self.split is not None:
            word = ">" if self.split.above else "<="
            if self.field.column.kind == "moment":
                moment = _moment_between(self.split.low, self.split.high)
                zone = "" if self.field.column.type in {"TIMESTAMP", "DATE"} else "Z"
                text = f"{moment}{zone}"
                kind = "TIMESTAMPTZ" if zone else "TIMESTAMP"
                return text, f"{word} {text}", self.field.predicate(f"{column} {word} {kind} '{text}'")
            number = _between(self.split.low, self.split.high)
            return (
                number,
                f"{word} {_shown(number)}",
                self.field.predicate(f"{column} {word} {literal(number)}"),
            )
        value = value_of(self.field, self.row)
        word = "<>" if self.negated else "="
        shown = str(value).lower() if isinstance(value, bool) else _shown(value)
        return value, f"{word} {shown}", self.field.predicate(f"{column} {word} {literal(value)}")


@dataclass
class Compared:
    """All that comparing one field gave.

    Attributes:
        comparisons: How many comparisons it took.
        findings: What is more frequent in the selection, whatever chance may have to do with it.
        lowest: The lowest p-value of any comparison of it, times how many there were.
        left_out: Why its values were not compared.
    """

    comparisons: int = 0
    findings: list[Finding] = field(default_factory=list)
    lowest: float = 1.0
    left_out: str | None = None


def compare(of: Field, values: NDArray[Any], sides: Sides, *, absence: bool) -> Compared:
    """Compare a field of both sides.

    Args:
        of: The field.
        values: Its value in each row: numbers with nan for a missing one, or codes.
        sides: The rows.
        absence: Whether having no value may be told of it.
    """
    numbers = values if values.dtype == np.float64 else None
    # What the first rows show to be many different numbers is not sorted twice.
    by_value = numbers is None or len(np.unique(numbers[:_SOME])) <= _FEW
    if numbers is None:
        codes = values
    else:
        codes = _codes(numbers) if by_value else np.where(np.isnan(numbers), np.uint64(MISSING), np.uint64(1))
    found = compare_values(codes, sides)
    split = None if numbers is None else best_split(numbers, sides)
    if len(found.codes) < 2 and not split:
        return Compared(left_out="the same in every row")
    by_value = by_value and (numbers is None or found.distinct <= _FEW)
    left_out = None
    if numbers is None and found.repeats < _REPEATS:
        left_out = "nearly every value is another one"
        by_value = False
    missing = absence and found.codes[0] == MISSING
    comparisons = (split.comparisons if split else 0) + (found.comparisons if by_value else int(missing))
    p = np.minimum(1.0, found.p * comparisons)
    findings = _of_values(of, found, p, by_value=by_value, missing=bool(missing))
    # Where an absence may not be told, neither may it make the other values of its field look sure.
    first = int(found.codes[0] == MISSING and not missing)
    lowest = [float(low) for low in (p[first:] if by_value else p[:1] if missing else ())]
    if split:
        findings.append(Finding(of, "number", split.mask, min(1.0, split.p * comparisons), split=split))
        lowest.append(findings[-1].p)
    return Compared(comparisons, findings, min(lowest, default=1.0), left_out if not missing else None)


def _of_values(of: Field, found: Values, p: NDArray[Any], *, by_value: bool, missing: bool) -> list[Finding]:
    findings = []
    first = int(found.codes[0] == MISSING)
    if missing and p[0] < 1:
        negated = bool(found.surplus[0] < 0)
        mask = found.rows_with(0)
        findings.append(Finding(of, "absence", ~mask if negated else mask, float(p[0]), negated=negated))
    if not by_value:
        return findings
    likely = [at for at in range(first, len(p)) if p[at] < 1]
    more = sorted((at for at in likely if found.surplus[at] > 0), key=lambda at: float(p[at]))
    findings += [
        Finding(of, "category", found.rows_with(at), float(p[at]), int(found.first[at]))
        for at in more[:_TOLD_OF_ONE]
    ]
    less = [at for at in likely if found.surplus[at] < 0]
    if less and found.distinct > 2:
        at = min(less, key=lambda at: p[at])
        others = ~found.rows_with(at) & (~found.rows_with(0) if first else True)
        findings.append(Finding(of, "category", others, float(p[at]), int(found.first[at]), negated=True))
    return findings


def _codes(numbers: NDArray[Any]) -> NDArray[np.uint64]:
    # The bits of 0.0 are those of MISSING; the smallest number that there is stands for it.
    codes = (np.where(numbers == 0, 5e-324, numbers)).view(np.uint64)
    return np.where(np.isnan(numbers), np.uint64(MISSING), codes)


def _between(low: float, high: float) -> float:
    """Return the shortest number that `low` is not above and `high` is."""
    if low.is_integer() and abs(low) < 1e15 and high - low >= 1:
        return low
    middle = (low + high) / 2
    for digits in range(1, 18):
        number = float(f"{middle:.{digits}g}")
        if low <= number < high:
            return number
    return low


def _moment_between(low: float, high: float) -> str:
    """Return the roundest time between two, both in seconds since 1970, in UTC."""
    for step in (3600, 60, 1):
        rounded = high // step * step
        if low <= rounded < high:
            return _iso(rounded)
    return _iso(low)


def _iso(seconds: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=round(seconds * 1e6))
    return moment.replace(tzinfo=None).isoformat(timespec="auto")


def _shown(value: Any) -> str:
    if isinstance(value, float) and isfinite(value):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)
