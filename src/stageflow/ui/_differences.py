"""Differences between a selection and the rest, for the page, the command line and an assistant."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from .._quantities import duration, percent
from .._time import rfc3339
from ..errors import InvalidArgumentError
from ..store import FAILED, Difference, Explanation, PinnedStore, count_if, parenthesized, text
from ._api import Differences, SameTime, TimeBound
from ._question import Question

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["as_differences", "differences", "explanation_as_markdown"]

_ALMOST_ALL = 0.95
"""The share of the selection, and of the other rows of its time, that meets a condition due to the time."""

_MUST_DIFFER = 0.9
"""The largest share of the rest that meets such a condition."""


def differences(store: PinnedStore, question: Question, snapshot: int) -> Differences:
    """Return the differences between a selection and the rest; see `Differences`.

    Raises:
        InvalidArgumentError: The request has no selection.
        QueryError: A predicate is invalid.
    """
    if question.select is None:
        raise InvalidArgumentError("select is missing")
    against = question.against
    if against is None and question.select == FAILED:
        against = f"not {FAILED}"
    explanation = store.explain(
        question.select,
        against=against,
        within=question.where,
        over=question.over,
        filter=question.filter,
    )
    same_time = None
    if question.against is None and explanation.differences:
        same_time = store.query(
            lambda cursor: _same_time(cursor, question, explanation),
            "differences at the same time",
            predicates=question.predicates,
            over=[question.over],
        )
    return as_differences(explanation, question, snapshot, same_time=same_time)


def _same_time(cursor: DuckDBPyConnection, question: Question, explanation: Explanation) -> SameTime | None:
    """Return the other rows of the time of the selection, if a difference is due to this time.

    A version that was released before all selected rows started differs from the rest, although it is no
    cause: the other rows of the same time have it too.
    """
    selected = f"coalesce({parenthesized(str(question.select))}::boolean, false)"
    found = cursor.execute(
        f"select epoch_us(min(started_at)), epoch_us(max(started_at)) from {question.over}"
        f" where {question.condition} and {selected}"
    ).fetchone()
    if found is None or found[0] is None:
        return None
    since, until = map(rfc3339, found)
    against = f"started_at >= {text(since)} and started_at <= {text(until)}"
    rows = [row for row in explanation.differences if row.fields != ("started_at",)]
    shares = ", ".join(
        f"{count_if(f'coalesce({parenthesized(row.condition)}::boolean, false)')}" for row in rows
    )
    if not rows:
        return None
    counted = cursor.execute(
        f"select {count_if()}, {shares} from {question.over}"
        f" where {question.condition} and {against} and not {selected}"
    ).fetchone()
    if counted is None or not counted[0]:
        return None
    total = float(counted[0])
    bound = tuple(
        TimeBound(description=row.description, share=float(count) / total)
        for row, count in zip(rows, counted[1:], strict=True)
        if count >= _ALMOST_ALL * total
        and row.selection.share >= _ALMOST_ALL
        and row.rest.share <= _MUST_DIFFER
    )
    if not bound:
        return None
    return SameTime(since=since, until=until, against=against, count=total, differences=bound)


def as_differences(
    explanation: Explanation, question: Question, snapshot: int, *, same_time: SameTime | None = None
) -> Differences:
    """Return the response for an explanation.

    Args:
        explanation: The result of `EventStore.explain`.
        question: The request that it answers.
        snapshot: Number of the snapshot.
        same_time: The other rows of the time of the selection; default None.
    """
    markdown = explanation_as_markdown(explanation)
    if same_time is not None:
        markdown += _note(same_time)
    return Differences(
        snapshot=snapshot,
        explanation=explanation,
        same_time=same_time,
        command=_command(question, explanation.against),
        markdown=markdown,
    )


def _note(same_time: SameTime) -> str:
    lines = [
        f"- {_code(each.description)} is due to the time of the selection: {percent(each.share)} of the other"
        f" rows of that time match it too (compare with `--against {_quoted(same_time.against)}`)"
        for each in same_time.differences
    ]
    return "\n".join(lines) + "\n"


def _quoted(predicate: str) -> str:
    return f'"{predicate}"'


def _command(question: Question, against: str | None) -> str:
    words = ["stageflow", "explain", str(question.select)]
    if against is not None and (question.select, against) != (FAILED, f"not {FAILED}"):
        words += ["--against", against]
    words += ["--over", "stages"] if question.over == "stages" else []
    words += ["--within", question.where] if question.where else []
    words += ["--since", question.since] if question.since else []
    words += ["--until", question.until] if question.until else []
    return shlex.join(words)


def explanation_as_markdown(explanation: Explanation) -> str:
    """Return an explanation as compact Markdown, to paste into a chat with an assistant.

    Recorded values are in code spans, so they are not interpreted as text or markup.
    """
    selection, rest = explanation.selection, explanation.rest
    size = f"{selection.count:,.0f} of {selection.count + rest.count:,.0f} {explanation.over}"
    lines = [
        f"**{_code(explanation.summary)}**",
        "",
        f"- selection: {size}, where {_code(explanation.where)}",
    ]
    if explanation.within:
        lines.append(f"- restricted to {_code(explanation.within)}")
    if explanation.differences:
        lines += ["", "| condition | selection | rest | rate with it | rate without it | q | verdict |"]
        lines.append("| --- | --- | --- | --- | --- | --- | --- |")
        lines += map(_row, explanation.differences)
    for location in explanation.locations[:3]:
        what = f"{location.what} in stage" if location.stage else location.what
        named = f" {_code(location.stage)}" if location.stage else ""
        time = f", {duration(location.ms)} compared with {duration(location.other_ms)}" if location.ms else ""
        lines.append(f"- {what}{named} ({percent(location.share)} of it{time})")
    lines += [f"- {_code(limitation)}" for limitation in explanation.limitations]
    return "\n".join(lines) + "\n"


def _row(difference: Difference) -> str:
    verdict: str = difference.verdict
    if difference.relates_to:
        verdict += f" ({_code(difference.relates_to)})"
    cells = (
        _code(difference.description),
        percent(difference.selection.share),
        percent(difference.rest.share),
        percent(difference.rate),
        percent(difference.other_rate),
        f"{difference.q_value:.1g}",
        verdict,
    )
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    clean = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{clean}`"
