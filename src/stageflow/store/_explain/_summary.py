"""The answer of `explain` in one sentence."""

from __future__ import annotations

from ._explanation import Difference, Explanation
from ._finding import Finding

__all__ = ["onset_of", "percent", "summarize"]


def onset_of(finding: Finding) -> str | None:
    """Return when the selection becomes more frequent: the lower limit of a condition on `started_at`."""
    for part in finding.parts or (finding,):
        if part.fields[0].column == "started_at":
            if part.shape == "interval":
                low = part.value[0]
                return str(low) if low is not None else None
            if part.shape == "threshold" and " > " in part.text:
                return str(part.value)
    return None


def percent(share: float) -> str:
    """Return a share as a percentage; one that is not 0 or 1 is never rounded to 0% or 100%.

    Example:
        >>> percent(0.523), percent(0.004), percent(0.9999), percent(0)
        ('52%', '0.4%', '>99%', '0%')
    """
    if 0 < share < 0.0001:
        return "<0.01%"
    if 0.99 < share < 1:
        return ">99%"
    if share < 0.01:
        return f"{100 * share:.1g}%"
    return f"{100 * share:.1f}%" if share < 0.1 else f"{100 * share:.0f}%"


def summarize(explanation: Explanation) -> str:
    """Return the result in one sentence."""
    if not explanation.differences:
        return _nothing(explanation)
    first = explanation.differences[0]
    share, rates = percent(first.selection.share), _rates(explanation, first)
    sentence = f"{share} of the {explanation.selected_are} match {first} ({rates})"
    if explanation.onset is not None and "started_at" not in first.fields:
        sentence += f", starting at {explanation.onset}"
    return f"{sentence}."


def _rates(explanation: Explanation, first: Difference) -> str:
    kind = explanation.over
    rate, other_rate = percent(first.rate), percent(first.other_rate)
    if explanation.selected_are == "failures":
        return f"{rate} of these {kind} fail, compared with {other_rate} of all others"
    p50_ms, other_p50_ms = first.p50_ms, first.other_p50_ms
    if explanation.selected_are.startswith("slow") and p50_ms is not None and other_p50_ms is not None:
        return (
            f"{rate} of these {kind} are slow, compared with {other_rate} of all others; "
            f"p50 {milliseconds(p50_ms)}, compared with {milliseconds(other_p50_ms)}"
        )
    return f"{rate} of these {kind} are selected, compared with {other_rate} of all others"


def milliseconds(ms: float) -> str:
    """Return a duration with its unit.

    Example:
        >>> milliseconds(4123), milliseconds(12.3)
        ('4.1 s', '12.3 ms')
    """
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.3g} ms"


def _nothing(explanation: Explanation) -> str:
    skipped = [name for one in explanation.left_out if one.reason not in _HARMLESS for name in one.fields]
    conditions = []
    if explanation.effects:
        n = len(explanation.effects)
        conditions.append(f"{n} likely {'effect differs' if n == 1 else 'effects differ'}")
    if skipped:
        more = f" and {len(skipped) - 2} more" if len(skipped) > 3 else ""
        names = ", ".join(skipped[: 2 if more else 3])
        conditions.append(f"{names}{more} {'was' if len(skipped) == 1 else 'were'} not compared")
    if explanation.limitations:
        conditions.append("there are limitations (below)")
    if not conditions:
        return "No field differs."
    return (
        f"None of the {explanation.fields} compared fields differs as a cause; {', and '.join(conditions)}."
    )


_HARMLESS = frozenset(
    {
        "used to define the selection",
        "equivalent to a field that defines the selection",
        "unique ids",
        "JSON documents of results",
        "the same in every row",
        "nearly every value is unique",
        "derived from started_at",
        "the weight of each row",
        "its values are the clusters",
    }
)
"""Reasons for which a field that is left out could not be a cause."""
