"""Conditions on the values of a field: one value, a set, a prefix, an element of a list, or no value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._explained import Shape
from ._fields import Field, literal
from ._finding import Finding
from ._sample import Mask
from ._significance import MIN_ROWS, deviance, p_values, whole_field_p
from ._values import Counts, ValueTable, element_condition

__all__ = ["MIN_REPEATED_SHARE", "Named", "find_absence", "find_categories", "repeated_share", "single_value"]


MIN_REPEATED_SHARE = 0.1
"""Minimum share of rows whose value occurs more than twice. Otherwise, a field contains ids."""

_MAX_SHOWN = 5
"""Maximum number of values of a set to show; the others are counted."""

_INTEGER = re.compile(r"-?[0-9]+")

_MAX_LENGTH = 200
"""Maximum number of characters of a value to show."""

_SEPARATORS = re.compile(r"[/.:\-]")

_MAX_PREFIXES = 6
"""Maximum number of prefixes of one value."""


@dataclass(frozen=True)
class Named:
    """How conditions on the values of a table are written.

    Attributes:
        field: The field.
        label: The name of the field, or of what was derived from it: "hour of started_at".
        shape: The kind of condition on a single value.
        show: Returns a value as text.
        one: Returns a predicate for a single value.
    """

    field: Field
    label: str
    shape: Shape
    show: Callable[[str], str]
    one: Callable[[str], str]

    @classmethod
    def of(cls, field: Field) -> Named:
        """Return how conditions on the values of a field are written."""
        return cls(field, field.name, "value", _shown(field), lambda text: _equals(field, text))

    def any_of(self, texts: Sequence[str], *, negated: bool) -> str:
        """Return a predicate for a set of values, or for all other values."""
        expression, literals = self.field.text, [_literal(self.field, text) for text in texts]
        if self.shape != "value":
            condition = " OR ".join(self.one(text) for text in texts)
            return f"NOT ({condition})" if negated else f"({condition})"
        operator = "<>" if negated else "="
        if len(texts) == 1:
            return f"{expression} {operator} {literals[0]}"
        return f"{expression} {'NOT IN' if negated else 'IN'} ({', '.join(literals)})"


def _shown(field: Field) -> Callable[[str], str]:
    if field.text_kind == "number":
        return lambda text: text.removesuffix(".0")
    return lambda text: text


def _literal(field: Field, text: str) -> str:
    if field.text_kind == "number" and _INTEGER.fullmatch(text):
        return text  # a float could not represent all digits
    if field.text_kind == "number":
        return literal(float(text)) if text not in {"nan", "inf", "-inf"} else f"'{text}'::DOUBLE"
    if field.text_kind == "boolean":
        return text.upper()
    return literal(text)


def _equals(field: Field, text: str) -> str:
    return f"{field.text} = {_literal(field, text)}"


def _value(field: Field, text: str) -> Any:
    if field.text_kind == "number":
        if _INTEGER.fullmatch(text):
            return int(text)
        number = float(text)
        return int(number) if number.is_integer() and abs(number) < 1e15 else number
    return text == "true" if field.text_kind == "boolean" else text


def single_value(named: Named, table: ValueTable, at: int, mask: Mask) -> Finding:
    """Return the condition that a field has one of its values."""
    text = table.texts[at]
    return Finding(
        fields=(named.field,),
        shape=named.shape,
        text=f"{named.label} {_described(named, [text], negated=False)}",
        value=_value(named.field, text),
        condition=named.field.condition(named.any_of([text], negated=False)),
        mask=mask,
        counts=table.counts.at([at]),
        totals=table.counts.total().plus(table.missing),
        gain=0.0,
        p=1.0,
    )


def repeated_share(table: ValueTable) -> float:
    """Return the share of rows whose value occurs more than twice; the higher one of both cohorts."""
    frequent = table.counts.rows.sum(axis=0) >= MIN_ROWS
    present = np.maximum(1.0, table.counts.rows.sum(axis=1))
    return float((table.counts.rows[:, frequent].sum(axis=1) / present).max(initial=0.0))


def find_categories(
    named: Named, table: ValueTable, codes: NDArray[np.intp], design_effect: float
) -> tuple[list[Finding], int, float]:
    """Compare the values of a field among the rows that have one.

    Args:
        named: How conditions are written.
        table: The values and their counts.
        codes: The index of the value of each sampled row; -1 if it has none.
        design_effect: The design effect of the clusters.

    Returns:
        The findings, not yet corrected; the number of comparisons; and the lowest p-value of all.
    """
    if named.field.text_kind == "list":
        return _find_elements(named, table, codes, design_effect)
    search = _Search(named, table, codes, design_effect)
    if repeated_share(table) >= MIN_REPEATED_SHARE and len(table.texts) > 1:
        search.add_values()
    if named.shape == "value" and named.field.text_kind == "text":
        search.add_prefixes()
    return search.findings, search.comparisons, search.lowest


class _Search:
    def __init__(
        self, named: Named, table: ValueTable, codes: NDArray[np.intp], design_effect: float
    ) -> None:
        self._named = named
        self._table = table
        self._codes = codes
        self._effect = design_effect
        self._present = table.counts.total()
        self._all = self._present.plus(table.missing)
        self.findings: list[Finding] = []
        self.comparisons = 0
        self.lowest = 1.0

    def add_values(self) -> None:
        """Compare each value, and all of them together."""
        table, named = self._table, self._named
        counts = table.counts
        frequent = counts.rows.sum(axis=0) >= MIN_ROWS
        tested = np.flatnonzero(frequent)
        p = p_values(counts.at(tested), self._present, self._effect)
        whole_p = whole_field_p(counts, self._effect) if len(table.texts) > 2 else 1.0
        # If there are two values, their tables are the same with the columns swapped.
        self.comparisons += 1 if len(table.texts) == 2 else len(tested) + 1
        self.lowest = min(self.lowest, whole_p, float(p.min(initial=1.0)))
        if not len(tested):
            return
        share = counts.weight / np.maximum(self._present.weight, 1e-300)
        surplus = (share[0] - share[1])[tested]
        values = len(table.texts)
        one_cost = 2 * math.log(max(2, len(tested)))
        g2 = deviance(counts.at(tested), self._present, self._effect)
        more = np.flatnonzero((surplus > 0) & (p < 1))
        if len(more):
            best = int(more[np.argmax(g2[more])])
            at = int(tested[best])
            self._add(np.array([at]), float(p[best]), one_cost, named.shape)
        chosen = _elevated(counts, tested, self._present)
        if 1 < len(chosen) < values:
            p_set = min(whole_p, float(p[np.isin(tested, chosen)].min(initial=1.0)))
            self._add(chosen, p_set, 2 * _log_choices(values, len(chosen)), "values")
        fewer = np.flatnonzero((surplus < 0) & (p < 1))
        if len(fewer) and values > 2:
            best = int(fewer[np.argmax(g2[fewer])])
            others = np.delete(np.arange(values), int(tested[best]))
            self._add(others, float(p[best]), one_cost, "values")

    def add_prefixes(self) -> None:
        """Compare the prefixes of versions, paths and dotted names that several values share."""
        prefixes: dict[str, list[int]] = {}
        for n, text in enumerate(self._table.texts):
            for found, match in enumerate(_SEPARATORS.finditer(text, 1)):
                if found == _MAX_PREFIXES:
                    break
                prefixes.setdefault(text[: match.end()], []).append(n)
        shared = {
            prefix: np.array(where, np.intp)
            for prefix, where in prefixes.items()
            if 1 < len(where) < len(self._table.texts)
        }
        if not shared:
            return
        groups = list(shared.values())
        counts = self._table.counts.summed(groups)
        frequent = np.flatnonzero(counts.rows.sum(axis=0) >= MIN_ROWS)
        p = p_values(counts.at(frequent), self._present, self._effect)
        self.comparisons += len(frequent)
        self.lowest = min(self.lowest, float(p.min(initial=1.0)))
        g2 = deviance(counts, self._present, self._effect)
        share = counts.weight / np.maximum(self._present.weight, 1e-300)
        more = [n for n, at in enumerate(frequent) if share[0, at] > share[1, at] and p[n] < 1]
        if not more:
            return
        n = max(more, key=lambda n: float(g2[frequent[n]]))
        at = int(frequent[n])
        prefix = list(shared)[at]
        field = self._named.field
        self.findings.append(
            Finding(
                fields=(field,),
                shape="prefix",
                text=f"{self._named.label} starts with {prefix}",
                value=prefix,
                condition=field.condition(f"starts_with({field.text}, {literal(prefix)})"),
                mask=np.isin(self._codes, groups[at]),
                counts=counts.at([at]),
                totals=self._all,
                gain=float(g2[at]),
                cost=2 * math.log(max(2, len(shared))),
                p=float(p[n]),
            )
        )

    def _add(self, chosen: NDArray[np.intp], p: float, cost: float, shape: Shape) -> None:
        named, table = self._named, self._table
        values = len(table.texts)
        negated = len(chosen) > 1 and len(chosen) > values / 2
        listed = np.setdiff1d(np.arange(values), chosen) if negated else chosen
        order = np.argsort(-table.counts.weight[0, listed], kind="stable")
        texts = [table.texts[at] for at in listed[order]]
        self.findings.append(
            Finding(
                fields=(named.field,),
                shape=shape,
                text=f"{named.label} {_described(named, texts, negated=negated)}",
                value=[_value(named.field, text) for text in texts]
                if shape == "values"
                else _value(named.field, texts[0]),
                condition=named.field.condition(named.any_of(texts, negated=negated)),
                mask=np.isin(self._codes, chosen),
                counts=(counts := table.counts.summed([chosen])),
                totals=self._all,
                gain=float(deviance(counts, self._present, self._effect)[0]),
                cost=cost,
                p=p,
            )
        )


def _described(named: Named, texts: Sequence[str], *, negated: bool) -> str:
    shown = [_shortened(named.show(text)) for text in texts[:_MAX_SHOWN]]
    if len(texts) == 1:
        return f"{'<>' if negated else '='} {shown[0]}"
    more = f" and {len(texts) - _MAX_SHOWN:,} more" if len(texts) > _MAX_SHOWN else ""
    return f"{'not in' if negated else 'in'} ({', '.join(shown)}{more})"


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def _elevated(counts: Counts, tested: NDArray[np.intp], totals: Counts) -> NDArray[np.intp]:
    """Return the values that belong to a group with a higher share of selected rows.

    A mixture of two rates, fitted by classification: a value belongs to the group if its likelihood under
    the higher rate exceeds that under the lower one by the odds of the group.
    """
    selected, rest = counts.weight[0, tested], counts.weight[1, tested]
    total = selected + rest
    base = float(totals.weight[0, 0] / totals.weight.sum())
    rates = selected / total
    likely = np.flatnonzero((rates > base) & (counts.rows[0, tested] >= MIN_ROWS))
    if not len(likely):
        return np.array([], np.intp)
    gains = total * (rates - base) ** 2
    members = np.zeros(len(tested), bool)
    members[likely[np.argmax(gains[likely])]] = True
    for _ in range(20):
        high = _rate(selected[members], rest[members])
        low = _rate(selected[~members], rest[~members])
        if high <= low:
            return np.array([], np.intp)
        ratio = selected * math.log(high / low) + rest * math.log((1 - high) / (1 - low))
        prior = math.log(max(1, len(tested) - members.sum()) / members.sum())
        updated = ratio > prior
        if not updated.any() or (updated == members).all():
            break
        members = updated
    return np.asarray(tested[members])


def _rate(selected: NDArray[np.float64], rest: NDArray[np.float64]) -> float:
    return float((selected.sum() + 0.5) / (selected.sum() + rest.sum() + 1))


def _log_choices(values: int, chosen: int) -> float:
    return math.lgamma(values + 1) - math.lgamma(chosen + 1) - math.lgamma(values - chosen + 1)


def _find_elements(
    named: Named, table: ValueTable, codes: NDArray[np.intp], design_effect: float
) -> tuple[list[Finding], int, float]:
    elements = table.elements()
    present = table.counts.total()
    groups = {element: at for element, at in elements.items() if len(at) < len(table.texts)}
    if not groups:
        return [], 0, 1.0
    names = list(groups)
    counts = table.counts.summed(list(groups.values()))
    frequent = np.flatnonzero(counts.rows.sum(axis=0) >= MIN_ROWS)
    p = p_values(counts.at(frequent), present, design_effect)
    g2 = deviance(counts, present, design_effect)
    share = counts.weight / np.maximum(present.weight, 1e-300)
    more = [n for n, at in enumerate(frequent) if share[0, at] > share[1, at] and p[n] < 1]
    if not more:
        return [], len(frequent), float(p.min(initial=1.0))
    n = max(more, key=lambda n: float(g2[frequent[n]]))
    at = int(frequent[n])
    finding = Finding(
        fields=(named.field,),
        shape="element",
        text=f"{named.label} contains {names[at]}",
        value=names[at],
        condition=named.field.condition(element_condition(named.field, names[at])),
        mask=np.isin(codes, groups[names[at]]),
        counts=counts.at([at]),
        totals=present.plus(table.missing),
        gain=float(g2[at]),
        cost=2 * math.log(max(2, len(frequent))),
        p=float(p[n]),
    )
    return [finding], len(frequent), float(p.min(initial=1.0))


def find_absence(
    field: Field, present: Counts, missing: Counts, missing_mask: Mask, design_effect: float
) -> Finding | None:
    """Compare whether a field has a value; return the side that is more frequent in the selection.

    Args:
        field: The field.
        present: The counts of the rows with a value.
        missing: The counts of the rows without one.
        missing_mask: The sampled rows without one.
        design_effect: The design effect of the clusters.
    """
    totals = present.plus(missing)
    if not present.rows.sum() or not missing.rows.sum():
        return None
    p = float(p_values(missing, totals, design_effect)[0])
    share = missing.weight / np.maximum(totals.weight, 1e-300)
    is_missing = bool(share[0, 0] > share[1, 0])
    if not is_missing:
        p = float(p_values(present, totals, design_effect)[0])
    counts = missing if is_missing else present
    return Finding(
        fields=(field,),
        shape="absence",
        text=f"{field.name} {'is missing' if is_missing else 'has a value'}",
        value=None,
        condition=field.is_missing if is_missing else field.has_value,
        mask=missing_mask if is_missing else ~missing_mask,
        counts=counts,
        totals=totals,
        gain=float(deviance(counts, totals, design_effect)[0]),
        p=p,
    )
