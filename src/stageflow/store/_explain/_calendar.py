"""Conditions on the calendar of a time: its date, day of the week, or hour of the day, in UTC."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..._explained import Shape
from ._categories import Named, find_categories
from ._fields import Field
from ._finding import Finding
from ._orders import iso
from ._sample import Cohorts, Floats
from ._values import Counts, ValueTable

__all__ = ["find_calendar"]


_DAY = 86_400
_RECURS_AFTER = {"date": 1, "weekday": 7, "hour": 1}
"""Number of days after which a condition can recur. In a shorter time, an interval says the same."""

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def find_calendar(field: Field, seconds: Floats, cohorts: Cohorts) -> tuple[list[Finding], int, float]:
    """Compare the date, the day of the week and the hour of the day of a time, in the sampled rows.

    Args:
        field: The field.
        seconds: The time of each sampled row, in seconds since 1970; nan if it has none.
        cohorts: The selection and the rest.

    Returns:
        The findings, not yet corrected; the number of comparisons; and the lowest p-value of all.
    """
    findings: list[Finding] = []
    comparisons, lowest = 0, 1.0
    days = np.floor(seconds / _DAY)
    time = field.order if field.time_type == "TIMESTAMP" else f"({field.order} AT TIME ZONE 'UTC')"
    parts: list[tuple[Shape, str, Floats, Callable[[int], str], Callable[[str], str]]] = [
        (
            "date",
            "date",
            days,
            lambda day: iso(day * _DAY)[:10],
            lambda text: f"CAST({time} AS DATE) = DATE '{text}'",
        ),
        (
            "weekday",
            "weekday",
            np.mod(days + 3, 7),
            lambda day: _WEEKDAYS[day],
            lambda text: f"isodow({time}) = {_WEEKDAYS.index(text) + 1}",
        ),
        (
            "hour",
            "hour",
            np.floor(np.mod(seconds, _DAY) / 3600),
            lambda hour: f"{hour:02}:00",
            lambda text: f"hour({time}) = {int(text[:2])}",
        ),
    ]
    span = float(np.nanmax(days) - np.nanmin(days)) if not np.isnan(days).all() else 0.0
    for shape, name, of_row, show, predicate in parts:
        if span < _RECURS_AFTER[shape]:
            continue
        table, codes = _counted(of_row, cohorts, show)
        if len(table.texts) < 2:
            continue
        label = f"{name} of {field.name} (UTC)"
        named = Named(field, label, shape, lambda text: text, predicate)
        found, tested, least = find_categories(named, table, codes, cohorts.design_effect)
        findings += found
        comparisons += tested
        lowest = min(lowest, least)
    return findings, comparisons, lowest


def _counted(
    of_row: Floats, cohorts: Cohorts, show: Callable[[int], str]
) -> tuple[ValueTable, NDArray[np.intp]]:
    present = ~np.isnan(of_row)
    distinct, codes_present = np.unique(of_row[present], return_inverse=True)
    codes = np.full(len(of_row), -1, np.intp)
    codes[present] = codes_present
    texts = [show(int(value)) for value in distinct]
    hashes = np.arange(1, len(distinct) + 1, dtype=np.uint64)
    empty = ValueTable(hashes, texts, Counts.zeros(len(distinct)), Counts.zeros(1), is_complete=False)
    return empty.recounted(codes, cohorts, np.ones(len(of_row), bool)), codes
