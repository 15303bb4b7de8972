"""The answer of `explain` in one sentence."""

from __future__ import annotations

from ..._explained import Difference
from ..._quantities import duration, onset_text, percent
from ._explanation import Explanation
from ._finding import Finding

__all__ = ["end_of", "onset_of", "summarize"]


def onset_of(finding: Finding) -> str | None:
    """Return the lower limit of a condition on `started_at`, RFC 3339; None if it has none."""
    return _limits(finding)[0]


def end_of(finding: Finding) -> str | None:
    """Return the upper limit of a condition on `started_at`, RFC 3339; None if it has none."""
    return _limits(finding)[1]


def _limits(finding: Finding) -> tuple[str | None, str | None]:
    for part in finding.parts or (finding,):
        if part.fields[0].column == "started_at":
            if part.shape == "interval":
                low, high = part.value
                return None if low is None else str(low), None if high is None else str(high)
            if part.shape == "threshold" and " > " in part.text:
                return str(part.value), None
    return None, None


def summarize(explanation: Explanation) -> str:
    """Return the result in one sentence."""
    if not explanation.differences:
        return _nothing(explanation)
    first = explanation.differences[0]
    share, rates = percent(first.selection.share), _rates(explanation, first)
    sentence = f"{share} of the {explanation.selected_are} match {first} ({rates})"
    if explanation.onset is not None and "started_at" not in first.fields:
        sentence += f", {onset_text(explanation.onset, explanation.onset_range)}"
    return f"{sentence}."


def _rates(explanation: Explanation, first: Difference) -> str:
    kind = explanation.over
    rate, other_rate = percent(first.rate), percent(first.other_rate)
    if explanation.selected_are == "failures":
        return f"{rate} of the matching {kind} fail, compared with {other_rate} of all others"
    p50_ms, other_p50_ms = first.p50_ms, first.other_p50_ms
    if explanation.selected_are.startswith("slow") and p50_ms is not None and other_p50_ms is not None:
        return (
            f"{rate} of the matching {kind} are slow, compared with {other_rate} of all others; "
            f"p50 {duration(p50_ms)}, compared with {duration(other_p50_ms)}"
        )
    return f"{rate} of the matching {kind} are selected, compared with {other_rate} of all others"


def _nothing(explanation: Explanation) -> str:
    skipped = [name for one in explanation.left_out if one.reason not in _HARMLESS for name in one.fields]
    conditions = []
    if skipped:
        more = f" and {len(skipped) - 2} more" if len(skipped) > 3 else ""
        names = ", ".join(skipped[: 2 if more else 3])
        conditions.append(f"{names}{more} {'was' if len(skipped) == 1 else 'were'} not compared")
    if explanation.limitations:
        conditions.append("the limitations are listed below")
    effects = len(explanation.effects)
    if not conditions and not effects:
        return "No field differs."
    sentence = f"None of the {explanation.fields} compared fields differs"
    if effects:
        sentence += f", except for {effects} likely effect{'' if effects == 1 else 's'}"
    if conditions:
        sentence += f"; {', and '.join(conditions)}"
    return f"{sentence}."


_HARMLESS = frozenset(
    {
        "used to define the selection",
        "equivalent to a field that defines the selection",
        "unique ids",
        "JSON documents of results",
        "empty in every row",
        "the same in every row",
        "nearly every value is unique",
        "derived from started_at",
        "the weight of each row",
        "used as the cluster",
    }
)
"""Reasons for which a field that is left out could not be a cause."""
