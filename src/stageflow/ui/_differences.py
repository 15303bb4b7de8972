"""Differences between a selection and the rest, for the page, the command line and an assistant."""

from __future__ import annotations

import shlex

from .._quantities import duration, percent
from ..errors import InvalidArgumentError
from ..store import FAILED, Difference, Explanation, PinnedStore
from ._api import Differences
from ._question import Question

__all__ = ["as_differences", "differences", "explanation_as_markdown"]


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
    return as_differences(explanation, question, snapshot)


def as_differences(explanation: Explanation, question: Question, snapshot: int) -> Differences:
    """Return the response for an explanation.

    Args:
        explanation: The result of `EventStore.explain`.
        question: The request that it answers.
        snapshot: Number of the snapshot.
    """
    return Differences(
        snapshot=snapshot,
        explanation=explanation,
        command=_command(question, explanation.against),
        markdown=explanation_as_markdown(explanation),
    )


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
    lines += _due_to_time(explanation)
    for location in explanation.locations[:3]:
        what = f"{location.what} in stage" if location.stage else location.what
        named = f" {_code(location.stage)}" if location.stage else ""
        whole = "the selection" if location.what == "failed" else "the excess time"
        time = f", {duration(location.ms)} compared with {duration(location.other_ms)}" if location.ms else ""
        lines.append(f"- {what}{named} ({percent(location.share)} of {whole}{time})")
    lines += [f"- {_code(limitation)}" for limitation in explanation.limitations]
    return "\n".join(lines) + "\n"


def _due_to_time(explanation: Explanation) -> list[str]:
    same_time = explanation.same_time
    if same_time is None:
        return []
    return [
        f"- {_code(each.description)} is due to the time of the selection: {percent(each.same_time_share)} of"
        f" the other {explanation.over} from that time also match"
        f' (compare with `--against "{same_time.against}"`)'
        for each in explanation.differences
        if each.same_time_share is not None
    ]


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
