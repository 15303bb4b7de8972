"""Finds and ranks differences."""

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

from ._fields import OF_STAGES, Field, literal
from ._sample import Mask, Sides
from ._significance import MISSING, Split, Values, best_split, compare_values, p_of_mask

__all__ = ["Compared", "Finding", "Ranked", "both_needed", "compare", "rank", "significant"]


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


_OF = 8
"""Of so many differences each two are tried: those that explain most."""

_BETTER = 0.03
"""By how much the two have to say more of the selection than the better of them does."""


def both_needed(findings: Sequence[Finding], sides: Sides, alpha: float) -> tuple[Finding, Finding] | None:
    """Return two findings that tell the selection better together than either does alone.

    Each must still show among the rows that have the other, corrected for all pairs that are tried
    (Bonferroni). How well something tells two sides apart is the phi coefficient of its table.
    """
    tried = list(combinations(findings[:_OF], 2))
    best: tuple[float, tuple[Finding, Finding]] | None = None
    for one, other in tried:
        both = one.mask & other.mask
        gain = _phi(both, sides) - max(_phi(one.mask, sides), _phi(other.mask, sides))
        if gain < _BETTER or (best is not None and gain <= best[0]):
            continue
        within = (
            p_of_mask(one.mask[other.mask], sides.among(other.mask)),
            p_of_mask(other.mask[one.mask], sides.among(one.mask)),
        )
        if max(within) * 2 * len(tried) <= alpha:
            best = gain, (one, other)
    return best[1] if best is not None else None


def _phi(mask: Mask, sides: Sides) -> float:
    hit, wrong = (float(sides.weights[mask & side].sum()) for side in sides.of_both)
    selected, rest = sides.weights_of
    missed, right = selected - hit, rest - wrong
    whole = (hit + wrong) * (hit + missed) * (right + wrong) * (right + missed)
    return (hit * right - wrong * missed) / sqrt(whole) if whole > 0 else 0.0


_CLOSELY = 60
"""Of how many findings it is asked whether another one accounts for them: those that explain most."""

_PREFERRED = ("category", "number", "absence")


@dataclass(frozen=True)
class Ranked:
    """A finding with its place.

    Attributes:
        finding: The finding.
        q: Its q-value.
        effect: The share in the selection less that in the rest.
        synonyms: Findings that hold of the same rows.
        along_with: An earlier finding that accounts for it.
    """

    finding: Finding
    q: float
    effect: float
    synonyms: list[Finding] = field(default_factory=list)
    along_with: Finding | None = None


def significant(
    compared: Sequence[Compared], sides: Sides, alpha: float, *, passed_over: int = 0
) -> list[Ranked]:
    """Return what is more than chance, each with its q-value and its effect.

    Within a field the p-values are multiplied by the comparisons made (Bonferroni). Over the fields
    the lowest of each is corrected by Benjamini and Yekutieli, which holds for any dependence: the
    fields of one run always depend on each other. Fields that were passed over for what they showed
    count as if they had been compared.
    """
    if not compared:
        return []
    # What is too small for a float has to keep its distance to the other findings of its field.
    lowest = np.maximum([one.lowest for one in compared], 1e-300)
    corrected = stats.false_discovery_control(np.append(lowest, np.ones(passed_over)), method="by")
    told: list[Ranked] = []
    for one, low, q_of_field in zip(compared, lowest, corrected, strict=False):
        factor = q_of_field / low
        of_field = []
        for finding in one.findings:
            q = float(q_of_field if finding.p <= low else min(1.0, finding.p * factor))
            if q > alpha:
                continue
            selection, rest = sides.parts(finding.mask)
            if selection.share > rest.share:
                of_field.append(Ranked(finding, q, selection.share - rest.share))
        # "Everything but eu" is worth telling only where no single value is more frequent.
        plain = any(one.finding.kind == "category" and not one.finding.negated for one in of_field)
        told += [
            one for one in of_field if not (plain and one.finding.kind == "category" and one.finding.negated)
        ]
    return told


def rank(told: Sequence[Ranked], sides: Sides, alpha: float) -> list[Ranked]:
    """Return findings in their order: those that stand for themselves, then those that go along with one."""
    same: dict[bytes, list[Ranked]] = {}
    for one in sorted(told, key=_plainest):
        same.setdefault(one.finding.mask.tobytes(), []).append(one)
    grouped = [
        replace(first, q=min(one.q for one in (first, *others)), synonyms=[one.finding for one in others])
        for first, *others in same.values()
    ]
    grouped.sort(key=lambda one: (-one.effect, one.q))
    alone: list[Ranked] = []
    along: list[Ranked] = []
    closely = grouped[:_CLOSELY]
    for one in closely:
        limit = alpha / (2 * len(closely))
        by = next((other.finding for other in alone if _accounts_for(other, one, sides, limit)), None)
        if by is None:
            alone.append(one)
        else:
            along.append(replace(one, along_with=by))
    return [*alone, *along]


def _accounts_for(other: Ranked, one: Ranked, sides: Sides, limit: float) -> bool:
    """Tell whether a finding no longer shows once the rows are parted by another one."""
    parts = (other.finding.mask, ~other.finding.mask)
    return all(p_of_mask(one.finding.mask[part], sides.among(part)) > limit for part in parts)


def _plainest(one: Ranked) -> tuple[int, bool, bool, bool, int, str]:
    of = one.finding.field
    return (
        _PREFERRED.index(one.finding.kind),
        one.finding.negated,
        of.stage is not None,
        of.is_attribute,
        OF_STAGES.index(of.column.name) if of.column.name in OF_STAGES else 0,
        of.name,
    )
