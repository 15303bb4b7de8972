"""Renders an explanation: the answer in one sentence, where it happens, and what differs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.text import Text

from .._quantities import duration, percent
from ._escape import on_one_line
from ._style import BAD, QUIET, Paragraph, wrap

if TYPE_CHECKING:
    from .._explained import Difference, ExplanationRecord, LeftOut, Location

__all__ = ["draw_explanation", "draw_explanations"]


_INDENT = 4
_DEFAULT_WIDTH = 120
_WORDS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^ '"])+|['"]""")
_MAX_NAMES = 6
"""Maximum number of names to list; the others are counted."""

_MAX_PREDICATE = 200
"""Maximum length of a predicate on a terminal."""

_DIFFERENT = 0.05
"""The share among the runs with the first difference is shown if it differs by at least this much."""

_MAX_DETAILED = 3
"""Number of differences for which the counts are shown; the others take one line each."""


def draw_explanation(explanation: ExplanationRecord, *, width: int | None) -> RenderableType:
    """Return the answer in one sentence, the locations, the differences, and likely effects.

    Args:
        explanation: The result of `explain`.
        width: Width of the terminal in columns. None for no limit: 120 columns, and nothing is truncated.

    Example:
        Console().print(draw_explanation(explain(connection), width=80))
    """
    lines: list[RenderableType] = [
        Paragraph(Text(on_one_line(explanation.summary), style="bold")),
        "",
        Paragraph(_sizes(explanation, width)),
        *(Paragraph(_location(one)) for one in explanation.locations[:_MAX_DETAILED]),
    ]
    labels = {str(one): str(n) for n, one in enumerate(explanation.differences, 1)}
    if explanation.differences:
        lines += ["", *_table(explanation, explanation.differences, labels, width)]
        lines += ["", Paragraph(Text(_explained(explanation)))]
    if explanation.effects:
        lines += ["", Text("likely effects, not causes", style="bold")]
        letters = {
            str(one): letter for letter, one in zip(ascii_lowercase, explanation.effects, strict=False)
        }
        lines += _table(explanation, explanation.effects, letters, width)
    if explanation.changes_before is not None:
        lines += ["", *_changes(explanation)]
    if explanation.fields or explanation.limitations:
        lines.append("")
    if explanation.fields:
        lines.append(Paragraph(_compared(explanation)))
    lines += [Paragraph(Text(on_one_line(text), style=QUIET)) for text in explanation.limitations]
    if explanation.fields:
        lines += map(Paragraph, map(_left_out, explanation.left_out))
    first = explanation.differences or (explanation.effects if explanation.sql is None else ())
    if first:
        # In a pipe, the query stays on one line, so that programs can find all of it.
        lines += ["", *_next("the rows of the first difference", first[0].sql, width)]
        if first[0].run_ids:
            lines.append(Text(f"stageflow show {on_one_line(first[0].run_ids[0])}", style=QUIET))
    elif explanation.sql is not None:
        lines += [
            "",
            *_next(f"the clusters with the most {explanation.selected_are}", explanation.sql, width),
        ]
    return Group(*lines)


def draw_explanations(
    explanations: Sequence[ExplanationRecord],
    *,
    width: int | None,
    others: Callable[[ExplanationRecord], str],
) -> RenderableType:
    """Return the explanations of several pipelines, and the numbers of those that were not compared.

    Args:
        explanations: The result of `explain_by_pipeline`.
        width: See `draw_explanation`.
        others: Returns the command that explains a pipeline that was not compared.

    Example:
        Console().print(draw_explanations(store.explain_by_pipeline(), width=80, others=lambda one: ""))
    """
    lines: list[RenderableType] = []
    counted = [one for one in explanations if not one.selection_compared and one.selection.rows]
    for one in explanations:
        if one not in counted:
            if one.pipeline is not None and len(explanations) > 1:
                title = Text(f"pipeline {on_one_line(one.pipeline)}")
                lines.append(title if width is None else Rule(title, align="left", style=QUIET))
            lines += [draw_explanation(one, width=width), ""]
    if counted:
        lines.append(Text("other pipelines", style="bold"))
    for one in counted:
        name = "failures" if one.selected_are == "failures" else "selected runs"
        lines.append(
            Text(f"{on_one_line(one.pipeline)}: {one.selection.rows:,} {name}, {one.rest.rows:,} other runs")
        )
        if command := others(one):
            lines.append(Text(" " * _INDENT + on_one_line(command), style=QUIET, overflow="ignore"))
    return Group(*(lines if counted else lines[:-1]))


def _sizes(explanation: ExplanationRecord, width: int | None) -> Text:
    selection, rest = explanation.selection, explanation.rest
    name = explanation.selected_are if selection.rows != 1 else explanation.selected_are[:-1]
    text = Text(f"{selection.rows:,} {name}")
    if round(selection.count) != selection.rows:
        text.append(f" that represent {selection.count:,.0f}")
    text.append(_of_clusters(explanation, explanation.clusters, explanation.users))
    text.append(f", compared with {rest.rows:,} other {explanation.over}")
    if round(rest.count) != rest.rows:
        text.append(f" that represent {rest.count:,.0f}")
    if explanation.against is not None:
        text.append(f" ({on_one_line(explanation.against)})")
    # On a terminal, the words are shorter than the limits of all pipelines.
    selected = explanation.described if width is not None else None
    text.append(f"; selected: {selected or _shortened(explanation.where, width)}")
    if explanation.within is not None:
        text.append(f"; both restricted to {_shortened(explanation.within, width)}")
    return Text(text.plain, style=QUIET)


def _shortened(predicate: str, width: int | None) -> str:
    """Return a predicate on one line, without the values beyond the limit on a terminal."""
    text = on_one_line(predicate)
    return text if width is None or len(text) <= _MAX_PREDICATE else f"{text[:_MAX_PREDICATE]}…"


def _of_clusters(explanation: ExplanationRecord, clusters: int, users: int | None) -> str:
    """Return " in 37 sessions of 12 users", without what the record does not contain."""
    text = ""
    if explanation.cluster not in (None, "user_id", "pipeline_run_id"):
        assert explanation.cluster is not None, "a cluster is a field"
        name = explanation.cluster.removesuffix("_id").removeprefix("attributes.").replace("_", " ")
        text += f" in {clusters:,} {on_one_line(name)}{'' if clusters == 1 else 's'}"
    if users is not None:
        text += f" of {users:,} user{'' if users == 1 else 's'}"
    return text


def _location(location: Location) -> Text:
    text = Text("where  ", style=QUIET)
    share = percent(location.share)
    if location.what == "failed":
        where = on_one_line(location.stage) if location.stage is not None else "the run"
        error = f" with {on_one_line(location.error_type)}" if location.error_type else ""
        text.append(f"{where} failed{error}: {share} of the failures", style="")
        if location.cause_share is not None and abs(location.cause_share - location.share) >= _DIFFERENT:
            text.append(f"; {percent(location.cause_share)} of those that match difference 1", style="")
        return text
    verb = {"ran": "ran", "waited": "waited", "retried": "was retried"}[location.what]
    times = f"{duration(location.ms)} on average, compared with {duration(location.other_ms)}"
    if location.cause_share is not None and abs(location.cause_share - location.share) >= _DIFFERENT:
        times += f": {percent(location.cause_share)} of the excess time of the runs that match difference 1"
        times += f"; {share} of all excess time"
    else:
        times += f": {share} of the excess time"
    text.append(f"{on_one_line(location.stage)} {verb} {times}", style="")
    return text


def _explained(explanation: ExplanationRecord) -> str:
    """Return how many selected rows the differences explain."""
    free = [one for one in explanation.differences if one.verdict in ("independent", "remains")]
    total = explanation.selection.count
    excess = min(total, sum(one.excess for one in free if one.verdict == "independent"))
    return f"This accounts for about {excess:,.0f} of the {total:,.0f} {explanation.selected_are}."


_WIDTHS = (6, 7, 7, 7)
"""Widths of the columns of numbers, without the gaps of two spaces before them."""


def _table(
    explanation: ExplanationRecord,
    differences: Sequence[Difference],
    labels: dict[str, str],
    width: int | None,
) -> list[RenderableType]:
    slow = _is_slow(explanation, differences)
    rate = (
        "failure rate" if explanation.selected_are == "failures" else f"share of {explanation.selected_are}"
    )
    columns = ("with", "without", "p50", "without") if slow else ("with", "without", "excess", "q")
    lines: list[RenderableType] = [
        *_row(width, "", Text(rate, style=QUIET), [Text(one, style=QUIET) for one in columns])
    ]
    shown = 0
    for one in differences:
        is_free = one.verdict in ("independent", "remains")
        numbers = (
            (duration(one.p50_ms), duration(one.other_p50_ms))
            if slow
            else (f"{one.excess:,.0f}" if is_free else "", _q(one.q_value))
        )
        cells = [
            Text(percent(one.rate), style=BAD if is_free else QUIET),
            Text(percent(one.other_rate), style="" if is_free else QUIET),
            *(Text(number, style=QUIET) for number in numbers),
        ]
        condition = Text(on_one_line(one), style="bold" if is_free else QUIET)
        lines += _row(width, labels[str(one)], condition, cells)
        if note := _note(explanation, one, labels, detailed=is_free and shown < _MAX_DETAILED):
            lines.append(Paragraph(Text(note, style=QUIET), " " * _INDENT))
        shown += is_free
    return lines


def _row(width: int | None, label: str, condition: Text, cells: Sequence[Text]) -> list[RenderableType]:
    """Return the lines of a condition, the first of them with its numbers."""
    available = max(10, (width or _DEFAULT_WIDTH) - _INDENT - sum(_WIDTHS) - 2 * len(_WIDTHS))
    first, *others = wrap(condition, available) or [Text()]
    line = Text(f"{label:>2}  ").append_text(first)
    line.append(" " * max(0, available - first.cell_len))
    for cell, cell_width in zip(cells, _WIDTHS, strict=True):
        line.append(" " * (2 + max(0, cell_width - cell.cell_len))).append_text(cell)
    return [line, *(Text(" " * _INDENT).append_text(one) for one in others)]


def _is_slow(explanation: ExplanationRecord, differences: Sequence[Difference]) -> bool:
    known = all(one.p50_ms is not None and one.other_p50_ms is not None for one in differences)
    return explanation.selected_are.startswith("slow") and known


def _note(explanation: ExplanationRecord, one: Difference, labels: dict[str, str], *, detailed: bool) -> str:
    parts = []
    if one.same_time_share is not None:
        others = f"{percent(one.same_time_share)} of the other {explanation.over} from that time also match"
        parts.append(f"due to the time of the selection: {others}")
    if one.verdict != "independent":
        other = labels.get(one.relates_to or "") or on_one_line(one.relates_to)
        parts.append(
            {
                "remains": f"remains after controlling for {other}",
                "explained": f"explained by {other}",
                "inseparable": f"cannot be separated from {other} (they occur together)",
            }[one.verdict]
        )
    if detailed:
        name = "failure" if explanation.selected_are == "failures" else explanation.over[:-1]
        parts.append(
            f"{one.selection.rows:,} {name}{'' if one.selection.rows == 1 else 's'}"
            f"{_of_clusters(explanation, one.clusters, one.users)}, "
            f"excess {one.excess_low:,.0f} to {one.excess_high:,.0f}"
        )
        if _is_slow(explanation, [one]):
            parts.append(f"q {_q(one.q_value)}")
        if one.varies is not None:
            other = labels.get(one.varies) or on_one_line(one.varies)
            parts.append(f"its effect depends on whether {other} matches too")
    if one.synonyms:
        named = [on_one_line(synonym) for synonym in one.synonyms]
        more = len(named) - _MAX_NAMES
        parts.append(
            "same rows: " + " | ".join(named[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
        )
    return "; ".join(parts)


def _changes(explanation: ExplanationRecord) -> list[RenderableType]:
    before = str(explanation.changes_before)[:19]
    selected = explanation.selected_are
    how = {
        "onset": f"when the {selected} became more frequent",
        "rate": f"when the share of the {selected} rose the most",
        "first row": f"the first of the {selected}",
    }
    reference = f"{before}Z, {how[explanation.changes_by or 'onset']}"
    if not explanation.changes:
        return [Text(f"nothing new around {reference}")]
    lines: list[RenderableType] = [Text(f"new around {reference}", style="bold")]
    for one in explanation.changes:
        when = "before" if one.before_onset_s >= 0 else "after"
        text = Text(f"{on_one_line(one.field)} = {on_one_line(one.value)}")
        text.append(
            f": first at {one.first_at[:19]}Z, {_span(abs(one.before_onset_s))} {when}; "
            f"{percent(one.selection.share)} of the {selected}, {percent(one.rest.share)} of the others",
            style=QUIET,
        )
        lines.append(Paragraph(text, " " * _INDENT))
    return lines


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} d"


def _q(value: float) -> str:
    return "<1e-99" if value < 1e-99 else f"{value:.0e}" if value < 0.001 else f"{value:.3f}"


def _compared(explanation: ExplanationRecord) -> Text:
    text = (
        f"compared {explanation.fields:,} fields; q-values up to {explanation.alpha:g}, corrected for "
        f"{explanation.comparisons:,} comparisons"
    )
    if explanation.cluster is not None:
        cluster = on_one_line(explanation.cluster)
        text += f"; runs with the same {cluster} depend on each other"
        text += f" (design effect {explanation.design_effect:.1f})"
    return Text(text, style=QUIET)


def _left_out(left_out: LeftOut) -> Text:
    more = len(left_out.fields) - _MAX_NAMES
    named = ", ".join(on_one_line(name) for name in left_out.fields[:_MAX_NAMES]) + (
        f" and {more} more" if more > 0 else ""
    )
    return Text(f"not compared: {named} ({left_out.reason})", style=QUIET)


def _next(heading: str, sql: str, width: int | None) -> list[RenderableType]:
    query = on_one_line(sql)
    parts = [query] if width is None else _wrapped(query, width - _INDENT)
    lines: list[RenderableType] = [Text(heading, style=QUIET)]
    return lines + [Text(" " * _INDENT + part, no_wrap=True, overflow="ignore") for part in parts]


def _wrapped(sql: str, width: int) -> list[str]:
    """Wrap a query at spaces outside quotes, so that it can be copied."""
    lines = [""]
    for word in _WORDS.findall(sql):
        line = f"{lines[-1]} {word}".strip()
        if cell_len(line) <= width or not lines[-1]:
            lines[-1] = line
        else:
            lines.append(word)
    return lines
