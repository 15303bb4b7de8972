"""Which findings are more than chance, which say the same, and which of them explains most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from .contingency import p_of_mask
from .families import OF_STAGES
from .findings import Compared, Finding
from .sides import Sides

__all__ = ["Ranked", "rank", "significant"]

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
