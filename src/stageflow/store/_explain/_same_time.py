"""The other rows from the time of a selection, which show the differences that are due only to the time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..._explained import SameTime
from ..._time import rfc3339
from .._columns import text
from ._finding import Finding
from ._sample import Mask, Sample

__all__ = ["SameTimeRows"]


_MIN_OTHERS = 20
"""Minimum number of other rows from the same time; fewer are not conclusive."""

_NEARLY_ALL = 0.95
"""Minimum share of the selection, and of the other rows from its time, that such a difference matches."""

_MUST_DIFFER = 0.9
"""Maximum share of all other rows that such a difference matches."""


@dataclass(frozen=True)
class SameTimeRows:
    """The sampled rows that started between the first and the last selected row.

    Attributes:
        rows: These rows, selected or not.
        described: A description of the rows that are not selected.
    """

    rows: Mask
    described: SameTime
    _sample: Sample

    @classmethod
    def of(cls, sample: Sample) -> SameTimeRows | None:
        """Return the rows from the time of the selection; None if too few of them are not selected."""
        starts, cohorts = sample.starts, sample.cohorts
        selected = starts[cohorts.selected]
        if np.isnan(selected).all():
            return None
        first, last = float(np.nanmin(selected)), float(np.nanmax(selected))
        rows = np.asarray((starts >= first) & (starts <= last))
        others = rows & ~cohorts.selected
        if int(others.sum()) < _MIN_OTHERS:
            return None
        since, until = (rfc3339(round(at * 1e6)) for at in (first, last))
        described = SameTime(
            since=since,
            until=until,
            against=f"started_at >= {text(since)} and started_at <= {text(until)}",
            count=float(cohorts.weights[others].sum()) * sample.totals[1].count / cohorts.totals[1],
        )
        return cls(rows, described, sample)

    def share(self, finding: Finding) -> float | None:
        """Return the share of the other rows from the time that match a finding, if it is due to the time.

        It is due to the time if nearly all rows from that time match it, selected or not, but not those from
        other times. An example is a version that was released before the first selected row started.
        """
        cohorts = self._sample.cohorts
        selected, rest = cohorts.masks
        others = self._share(finding, self.rows & rest)
        is_due_to_time = (
            others >= _NEARLY_ALL
            and self._share(finding, selected) >= _NEARLY_ALL
            and self._share(finding, rest) <= _MUST_DIFFER
        )
        return others if is_due_to_time else None

    def _share(self, finding: Finding, rows: Mask) -> float:
        weights = self._sample.cohorts.weights
        return float(weights[finding.mask & rows].sum() / weights[rows].sum())
