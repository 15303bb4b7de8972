"""Counts, rates and percentiles in SQL, in which a row stands for as many as its `sample_rate` says.

A row with the weight w was kept with the probability 1/w, apart from all others. So a sum over rows
has the variance that Horvitz and Thompson gave it, the sum of w (w - 1) y^2; that of a rate follows
by linearisation; and that of a percentile is carried over from the share of what lies below it
(Woodruff). Intervals are 95 %, and are given where enough rows have been sampled for them to hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from .._failures import FailureOutcomes
from .columns import text

__all__ = ["FEWEST", "FEWEST_ABOVE", "Z", "count_if", "failure_of", "percentiles", "ranked"]

Z = 1.96
"""Standard errors to each side of an estimate that make 95 %."""

FEWEST = 20
"""Sampled rows from which on an interval is given."""

FEWEST_ABOVE = 10
"""Sampled rows above a percentile from which on its interval is given."""


def failure_of(failures: FailureOutcomes, *, is_run: str = "type = 'pipeline.wide'") -> str:
    """Return SQL for the column `failure`, from which every failure rate is calculated.

    The column is true for a failure, null for a row that failure rates leave out (a run that was cancelled
    externally, a stage that was cancelled or will be retried, a custom event), and false otherwise.

    Args:
        failures: The outcomes of runs that count as failures. A stage fails with status FAIL.
        is_run: SQL: true for the row of a run.
    """
    outcome = "coalesce(outcome, if(status = 'FAIL', 'failed', 'ok'))"
    of_runs = f"when {outcome} in ({text(*failures.outcomes)}) then true" if failures.outcomes else ""
    left_out = f"when {outcome} in ({text(*failures.not_counted)}) then null" if failures.not_counted else ""
    return f"""case when {is_run} then case {of_runs} {left_out} else false end
        else case when status = 'FAIL' then true when status in ('OK', 'SKIP') then false end end"""


def count_if(condition: str = "true") -> str:
    """Return what counts, in SQL, the rows for which a condition holds, each as often as it stands for.

    Example:
        >>> count_if("status = 'FAIL'")
        "coalesce(sum(sample_rate) filter (status = 'FAIL'), 0)"
    """
    return f"coalesce(sum(sample_rate) filter ({condition}), 0)"


def ranked(rows: str, value: str, keys: Sequence[str], *, weighted: bool) -> str:
    """Return rows in SQL with what `percentiles` needs: the value, and how much lies at or below it.

    Args:
        rows: What selects them.
        value: What percentiles are of; where it is null a row does not count.
        keys: By which they are grouped.
        weighted: Whether any row stands for more than one. Without that it is a good deal cheaper.
    """
    if not weighted:
        return f"(select *, {value} as value from ({rows}))"
    group = f"partition by {', '.join(keys)}" if keys else ""
    return f"""(select *, sum(sample_rate) over ({group} order by value nulls last) as reached,
        sum(sample_rate) filter (value is not null) over ({group}) as whole
        from (select *, {value} as value from ({rows})))"""


def percentiles(ranks: Sequence[float | str], *, weighted: bool) -> str:
    """Return what gives, in SQL, percentiles of ranked rows: the smallest value that so much is at or below.

    Args:
        ranks: From 0 to 1, or SQL that gives such a number.
        weighted: As it was said to `ranked`.
    """
    if not weighted:
        return f"quantile_disc(value, [{', '.join(map(str, ranks))}])"
    # A sum of many weights is not exact to its last digit.
    found = (
        f"min(value) filter (value is not null and reached >= whole * ({rank}) * (1 - 1e-12))"
        for rank in ranks
    )
    return f"[{', '.join(found)}]"
