"""The result of `explain`: the differences between a selection and the rest."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .._selection import Over

__all__ = ["Difference", "ExcludedFields", "Explanation", "Part", "Together"]


class Part(Struct, frozen=True, gc=False):
    """The rows of the selection, or of the rest, that match a condition.

    Attributes:
        rows: Number of matching rows among the compared rows.
        count: The number of rows that these represent: the sum of their `sample_rate`.
        share: `count` divided by the count of the whole selection or rest, 0 to 1.
    """

    rows: int
    count: float
    share: float


class Difference(Struct, frozen=True, kw_only=True):
    """A condition on one field that the selection meets more often than the rest.

    Attributes:
        field: A column of the view, or "stage/column" for a field of a stage of a run.
        kind: "category" (a value), "number" (a threshold) or "absence" (no value).
        value: The value, or the threshold of a number; None for an absence.
        description: The condition as text, without the field: "= acme", "<> eu", "> 812.5", "is missing".
        selection: The rows of the selection that meet the condition.
        rest: The rows of the rest that meet the condition.
        lift: The share in the selection divided by the share in the rest; None if no row of the rest matches.
        effect: The share in the selection minus the share in the rest, 0 to 1 (Youden's J). Differences
            are ranked by it.
        q_value: The p-value, corrected for all comparisons: among all differences up to a q-value, at most
            this share is expected to be due to chance.
        run_ids: Ids of up to five selected runs that meet the condition, newest first.
        sql: A query for the selected rows that meet the condition.
        synonyms: Conditions on other fields that match the same rows.
        along_with: An earlier difference that accounts for this one: this one is not significant after
            controlling for it. None if there is none.
    """

    field: str
    kind: Literal["category", "number", "absence"]
    value: str | float | bool | None
    description: str
    selection: Part
    rest: Part
    lift: float | None
    effect: float
    q_value: float
    run_ids: tuple[str, ...]
    sql: str
    synonyms: tuple[str, ...] = ()
    along_with: str | None = None

    def __str__(self) -> str:
        return f"{self.field} {self.description}"


class Together(Struct, frozen=True):
    """Two differences that explain the selection only together.

    Each is significant among the rows that meet the other.

    Attributes:
        descriptions: The two conditions, each with its field.
        selection: The rows of the selection that meet both conditions.
        rest: The rows of the rest that meet both conditions.
        sql: A query for the selected rows that meet both conditions.
    """

    descriptions: tuple[str, str]
    selection: Part
    rest: Part
    sql: str


class ExcludedFields(Struct, frozen=True):
    """Fields that were not compared, and the reason."""

    reason: str
    fields: tuple[str, ...]


class Explanation(Struct, frozen=True, kw_only=True):
    """The differences between a selection of runs or stages and the rest.

    Attributes:
        where: The predicate of the selection.
        against: The predicate of the rest; None for all other rows.
        over: "runs" or "stages".
        selection: All selected rows, and the number that they represent.
        rest: All rows of the rest, and the number that they represent.
        selection_compared: Number of selected rows that were compared: all of them, or a fixed sample.
        rest_compared: Number of rows of the rest that were compared.
        fields: Number of fields that were compared.
        comparisons: Number of comparisons; the q-values are corrected for all of them.
        alpha: Maximum q-value of a difference.
        verdict: The result in one sentence.
        differences: Possible causes, ordered by their effect; the largest is first.
        consequences: Likely effects, such as statuses and times, if the predicate refers to results of runs.
        together: Two of the differences that explain the selection only together; None if there are none.
        excluded: The fields that were not compared, and the reasons.
    """

    where: str
    against: str | None
    over: Over
    selection: Part
    rest: Part
    selection_compared: int
    rest_compared: int
    fields: int
    comparisons: int
    alpha: float
    verdict: str
    differences: tuple[Difference, ...] = ()
    consequences: tuple[Difference, ...] = ()
    together: Together | None = None
    excluded: tuple[ExcludedFields, ...] = ()
