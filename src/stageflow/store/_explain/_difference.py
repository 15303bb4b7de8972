"""What an explanation says: the differences between some runs and the others, and what was looked at."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .._selection import Over

__all__ = ["Difference", "Explanation", "LeftOut", "Part", "Together"]


class Part(Struct, frozen=True, gc=False):
    """How many rows of one side have something.

    Attributes:
        rows: Rows that have it, of those that were looked at.
        count: What these rows stand for: the sum of their `sample_rate`.
        share: `count` by that of the whole side, 0 to 1.
    """

    rows: int
    count: float
    share: float


class Difference(Struct, frozen=True, kw_only=True):
    """One field, and what of it is more frequent in the selection than in the rest.

    Attributes:
        field: A column of the view; for a stage's field of a run "stage/column".
        kind: "category" (a value), "number" (a split) or "absence" (it has no value).
        value: The value or, for a number, where it is split; None for an absence.
        says: The same in words that follow the field: "= acme", "<> eu", "> 812.5", "is missing".
        selection: How many of the selection have it.
        rest: How many of the rest have it.
        lift: How many times as frequent it is in the selection; None where the rest has none.
        effect: The share in the selection less that in the rest, 0 to 1 (Youden's J). Ranks the rows.
        q_value: Its p-value, corrected for every comparison that was made: of all that is told up to a
            q-value, at most this share is expected to be chance.
        run_ids: Up to five runs of the selection that have it, the newest first.
        sql: A query for the rows of the selection that have it.
        synonyms: Fields that say the same of the same rows, each with its value.
        along_with: A difference before this one that accounts for it: within the rows that have that
            one, and within those that do not, this one does not show. None where it stands for itself.
    """

    field: str
    kind: Literal["category", "number", "absence"]
    value: str | float | bool | None
    says: str
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
        return f"{self.field} {self.says}"


class Together(Struct, frozen=True):
    """Two differences that each still show among the rows that have the other: it takes both.

    Attributes:
        says: The two.
        selection: Rows of the selection that have both.
        rest: Rows of the rest that have both.
        sql: A query that returns what of the selection has both.
    """

    says: tuple[str, str]
    selection: Part
    rest: Part
    sql: str


class LeftOut(Struct, frozen=True):
    """Fields that were not compared, and why."""

    why: str
    fields: tuple[str, ...]


class Explanation(Struct, frozen=True, kw_only=True):
    """What is different about a selection of runs or stages.

    Attributes:
        where: The predicate of the selection.
        against: That of the rest; None for all other rows.
        over: "runs" or "stages".
        selection: All rows selected, and what they stand for.
        rest: All rows of the rest, likewise.
        selection_looked_at: Rows of the selection that were looked at: all, or a fixed sample.
        rest_looked_at: Rows of the rest that were looked at.
        fields: How many fields were compared.
        comparisons: How many comparisons that took; all of them are corrected for.
        alpha: Up to which q-value a difference is told.
        verdict: The result in one sentence.
        differences: What was given to a run: what explains most stands first.
        consequences: What the run came to, where the selection was made by that: statuses and times.
        together: Two of the differences of which it takes both; None where there are no such two.
        left_out: What was not compared, and why.
    """

    where: str
    against: str | None
    over: Over
    selection: Part
    rest: Part
    selection_looked_at: int
    rest_looked_at: int
    fields: int
    comparisons: int
    alpha: float
    verdict: str
    differences: tuple[Difference, ...] = ()
    consequences: tuple[Difference, ...] = ()
    together: Together | None = None
    left_out: tuple[LeftOut, ...] = ()
