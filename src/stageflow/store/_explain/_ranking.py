"""The significant findings, their order, and how they depend on each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..._explained import Verdict
from ._comparing import FieldValues
from ._fields import SUBORDINATE
from ._finding import Finding, Tested
from ._sample import Cohorts
from ._significance import conditional_deviance, heterogeneity_p, mantel_haenszel

__all__ = ["Ranked", "rank", "significant"]


_MAX_RANKED = 40
"""Only this number of findings is compared with others, those that explain the most."""

_MAX_MUTUAL = 12
"""Each of this number of findings is compared with each other one."""

_MAX_LEVELS = 30
"""Maximum number of values of a field for which its rows are compared separately; the others are merged."""

_QUANTILES = 10

_OVERLAP = 0.5
"""A finding depends on another one if controlling for it removes more than this share of its deviance."""

_SHAPE_ORDER = (
    "value",
    "values",
    "prefix",
    "element",
    "threshold",
    "interval",
    "date",
    "weekday",
    "hour",
    "combination",
    "absence",
)


@dataclass(frozen=True)
class Ranked:
    """A significant finding.

    Attributes:
        finding: The finding.
        q: The q-value.
        deviance: The deviance that it explains in addition to the findings above it.
        synonyms: Findings that match the same rows.
        verdict: How it relates to the findings above it.
        relates_to: The finding to which the verdict refers.
        varies: An earlier finding with and without which the effect differs.
    """

    finding: Finding
    q: float
    deviance: float = 0.0
    synonyms: list[Finding] = field(default_factory=list)
    verdict: Verdict = "independent"
    relates_to: Finding | None = None
    varies: Finding | None = None


def significant(tested: Sequence[Tested], alpha: float, *, skipped: int = 0) -> list[Ranked]:
    """Return the significant findings, each with its q-value.

    Within a field, the p-values are multiplied by the number of comparisons (Bonferroni). Over the
    fields, the lowest p-value of each is corrected by Benjamini-Yekutieli, which is valid for any
    dependency: the fields of a run always depend on each other. `skipped` is the number of fields that
    were left out because of their data; they count as if they had been compared.
    """
    if not tested:
        return []
    # A p-value that underflows to 0 must keep its ratio to the other findings of its field.
    lowest = np.maximum([one.lowest for one in tested], 1e-300)
    corrected = stats.false_discovery_control(np.append(lowest, np.ones(skipped)), method="by")
    ranked: list[Ranked] = []
    for one, low, field_q in zip(tested, lowest, corrected, strict=False):
        for finding in one.findings:
            q = float(field_q if finding.p <= low else min(1.0, finding.p * field_q / low))
            if q <= alpha and _is_more_frequent(finding):
                ranked.append(Ranked(finding, q))
    return ranked


def _is_more_frequent(finding: Finding) -> bool:
    share = finding.counts.weight / np.maximum(finding.totals.weight, 1e-300)
    return bool(share[0, 0] > share[1, 0])


class _Relations:
    """The tests of findings after controlling for other findings."""

    def __init__(self, values: Mapping[str, FieldValues], cohorts: Cohorts) -> None:
        self._values = values
        self._cohorts = cohorts
        self._strata: dict[int, NDArray[np.intp]] = {}
        self._p: dict[tuple[int, int], float] = {}

    def p(self, one: Finding, given: Finding) -> float:
        """Return the p-value of a finding after controlling for the whole field of another one."""
        key = id(one), id(given)
        if key not in self._p:
            self._p[key] = mantel_haenszel(one.mask, self.strata(given), self._cohorts)[0]
        return self._p[key]

    def strata(self, given: Finding) -> NDArray[np.intp]:
        """Return the stratum of each row: the values of the field, or the parts of a combination."""
        if id(given) not in self._strata:
            if given.parts:
                levels = sum(part.mask.astype(np.intp) << n for n, part in enumerate(given.parts))
            else:
                levels = 2 * self._levels(given.fields[0].name) + given.mask
            self._strata[id(given)] = np.unique(levels, return_inverse=True)[1]
        return self._strata[id(given)]

    def _levels(self, name: str) -> NDArray[np.intp]:
        values = self._values[name]
        if values.numbers is not None:
            present = ~np.isnan(values.numbers)
            with np.errstate(all="ignore"):
                limits = np.quantile(values.numbers[present], np.linspace(0, 1, _QUANTILES + 1)[1:-1])
            return np.where(present, np.searchsorted(limits, values.numbers) + 1, 0)
        assert values.hashes is not None, "a field has a value or an order"
        distinct, codes, counts = np.unique(values.hashes, return_inverse=True, return_counts=True)
        frequent = np.argsort(-counts, kind="stable")[:_MAX_LEVELS]
        level = np.full(len(distinct), _MAX_LEVELS, np.intp)
        level[frequent] = np.arange(len(frequent))
        return level[codes]


def rank(
    found: Sequence[Ranked], values: Mapping[str, FieldValues], cohorts: Cohorts, alpha: float
) -> list[Ranked]:
    """Order findings by the deviance that each explains in addition to those above it.

    A finding that is not significant after controlling for another one, which is itself significant after
    controlling for the first, is explained by it. If neither is, they cannot be separated.
    """
    grouped = _merge_synonyms(found)
    base = np.zeros(len(cohorts.selected), np.intp)
    grouped = [
        replace(one, deviance=conditional_deviance(one.finding.mask, base, cohorts)) for one in grouped
    ]
    grouped.sort(key=lambda one: (_is_subordinate(one), -one.deviance, one.q))
    tested, others = grouped[:_MAX_RANKED], grouped[_MAX_RANKED:]
    relations = _Relations(values, cohorts)
    limit = alpha / (2 * max(1, len(tested)))
    dependent: list[Ranked] = []
    free: list[Ranked] = []
    for n, one in enumerate(tested):
        # A weaker finding can explain a stronger one (Simpson's paradox): compare the first ones mutually.
        candidates = [*free, *(tested[n + 1 : _MAX_MUTUAL] if n < _MAX_MUTUAL else ())]
        explaining = next((by for by in candidates if _explains(by, one, relations, limit)), None)
        if explaining is not None:
            dependent.append(replace(one, verdict="explained", relates_to=explaining.finding))
            continue
        same = next((by for by in free if relations.p(one.finding, by.finding) > limit), None)
        if same is not None and _is_subordinate(same) and not _is_subordinate(one):
            same = None
        if same is not None:
            dependent.append(replace(one, verdict="inseparable", relates_to=same.finding))
        else:
            free.append(one)
    free = _ordered(free, relations, cohorts, limit)
    roots = {id(one.finding): one.finding for one in free}
    parents = {id(one.finding): one.relates_to for one in dependent}
    settled = [replace(one, relates_to=_root(one.relates_to, roots, parents)) for one in dependent]
    # The parts of a combination that is explained are listed anyway.
    return [*free, *(one for one in settled if not one.finding.parts), *others]


def _explains(by: Ranked, one: Ranked, relations: _Relations, limit: float) -> bool:
    if _is_subordinate(by) and not _is_subordinate(one):
        return False
    return relations.p(one.finding, by.finding) > limit and relations.p(by.finding, one.finding) <= limit


def _root(
    by: Finding | None, roots: Mapping[int, Finding], parents: Mapping[int, Finding | None]
) -> Finding | None:
    """Return the listed finding that explains a finding, directly or through others."""
    seen: set[int] = set()
    while by is not None and id(by) not in roots and id(by) not in seen:
        seen.add(id(by))
        by = parents.get(id(by))
    return by


def _ordered(free: list[Ranked], relations: _Relations, cohorts: Cohorts, limit: float) -> list[Ranked]:
    """Order independent findings by the deviance that each adds to those above it."""
    ordered: list[Ranked] = []
    strata = np.zeros(len(cohorts.selected), np.intp)
    remaining = list(free)
    while remaining:
        gains = [conditional_deviance(one.finding.mask, strata, cohorts) for one in remaining]
        key = [(_is_subordinate(one), -gain) for one, gain in zip(remaining, gains, strict=True)]
        at = min(range(len(remaining)), key=key.__getitem__)
        one, gain = remaining.pop(at), gains[at]
        related = next(
            (
                by
                for by in ordered
                if gain < _OVERLAP * one.deviance and _overlap(one, by, relations, cohorts)
            ),
            None,
        )
        varies = next(
            (
                by
                for by in ordered[:1]
                if heterogeneity_p(one.finding.mask, by.finding.mask, cohorts) <= limit
            ),
            None,
        )
        ordered.append(
            replace(
                one,
                deviance=gain,
                verdict="remains" if related is not None else "independent",
                relates_to=related.finding if related is not None else None,
                varies=varies.finding if varies is not None else None,
            )
        )
        strata = np.unique(2 * strata + one.finding.mask, return_inverse=True)[1]
    return ordered


def _overlap(one: Ranked, by: Ranked, relations: _Relations, cohorts: Cohorts) -> bool:
    """Return whether controlling for another finding removes most of the deviance of a finding."""
    left = conditional_deviance(one.finding.mask, relations.strata(by.finding), cohorts)
    return left < _OVERLAP * one.deviance


def _is_subordinate(one: Ranked) -> bool:
    return all(field.column in SUBORDINATE for field in one.finding.fields)


def _merge_synonyms(found: Sequence[Ranked]) -> list[Ranked]:
    by_rows: dict[bytes, list[Ranked]] = {}
    for one in sorted(found, key=_simplicity):
        by_rows.setdefault(one.finding.mask.tobytes(), []).append(one)
    return [
        replace(first, q=min(one.q for one in (first, *others)), synonyms=[one.finding for one in others])
        for first, *others in by_rows.values()
    ]


def _simplicity(one: Ranked) -> tuple[bool, int, bool, bool, str]:
    """Return a sort key that puts the simplest of several synonyms first."""
    first = one.finding.fields[0]
    return (
        _is_subordinate(one),
        _SHAPE_ORDER.index(one.finding.shape),
        first.view is not None,
        first.is_attribute,
        one.finding.text,
    )
