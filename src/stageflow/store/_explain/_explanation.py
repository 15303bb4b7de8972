"""The result of `explain`: where the selection differs from the rest, and in which fields."""

from __future__ import annotations

from ..._explained import ExplanationRecord
from ...render import as_html

__all__ = ["Explanation"]


class Explanation(ExplanationRecord, frozen=True, kw_only=True):
    """The differences between a selection of runs or stages and the rest.

    Attributes:
        summary: The result in one sentence.
        where: The predicate of the selection.
        against: The predicate of the rest; None for all other rows.
        within: The predicate that restricts both sides; None for all rows.
        over: "runs" or "stages".
        pipeline: The pipeline whose rows are compared; None for those of all pipelines.
        selected_are: What the selected rows are: "failures", "slow runs", "selected runs".
        described: The selection in words, if `where` contains a limit for each value of a field: "the slowest
            5% of each pipeline"; otherwise None.
        selection: All selected rows, and the number that they represent.
        rest: All rows of the rest, and the number that they represent.
        selection_compared: Number of selected rows of which numbers and combinations were compared: all of
            them, or a fixed sample. Values are counted in all rows.
        rest_compared: The same for the rest.
        cluster: The field whose values are the independent units of the tests, such as "session_id".
        clusters: Number of these units in the selection.
        users: Number of users in the selection; None if no row names its user.
        design_effect: The factor by which dependence within clusters reduces the effective number of rows.
        fields: Number of fields that were compared.
        comparisons: Number of comparisons; the q-values are corrected for all of them.
        alpha: Maximum q-value of a difference.
        onset: When the selection starts to be more frequent among the rows of the first difference, RFC 3339;
            None if time makes no difference.
        onset_range: The earliest and the latest time that the onset can be, with a confidence of about 95%,
            RFC 3339; None if it is unknown.
        same_time: The other rows of the time of the selection; None if its predicate does not restrict the
            time, or if they are fewer than 20.
        locations: Where the selection differs; the most important location is first.
        differences: Possible causes, ordered by the deviance that each adds to those above it; those that are
            due to the time of the selection (`Difference.same_time_share`) are last.
        effects: Likely effects, such as statuses and times, if the predicate refers to results of runs.
        changes: What occurred for the first time shortly before the onset, if it was requested.
        changes_before: The time of the onset to which `changes` refers; None if it was not requested.
        changes_by: How this time was determined: "onset" for `onset`, "rate" for the time that separates the
            shares of selected rows best, "first row" for the first selected row.
        left_out: The fields that were not compared, and the reasons.
        limitations: What restricts the result, in sentences.
        sql: A query for the clusters with most of the selected rows, if nothing differs and few clusters
            contain them; otherwise None.
    """

    def _repr_html_(self) -> str | None:
        return as_html("draw_explanation", self)
