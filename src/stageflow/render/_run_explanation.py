"""Renders the comparison of one run with its peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from .._quantities import duration, percent
from ._escape import on_one_line
from ._style import BAD, QUIET, colored
from ._tables import Column, draw_columns

if TYPE_CHECKING:
    from .._explained import Measured, RunExplanationRecord, SameError, StageMeasured, UnusualValue

__all__ = ["draw_run_explanation"]


_INDENT = 4

_UNUSUAL = 0.95
"""The percentile from which on a time is highlighted, if it exceeds the median by 1 ms."""


def draw_run_explanation(explanation: RunExplanationRecord, *, width: int | None) -> RenderableType:
    """Return the answer in one sentence, the times of the stages, and the unusual values of a run.

    Args:
        explanation: The result of `EventStore.explain_run`.
        width: Width of the terminal in columns. None for no limit: nothing is truncated.

    Example:
        Console().print(draw_run_explanation(store.explain_run("last"), width=80))
    """
    lines: list[RenderableType] = [Text(on_one_line(explanation.summary), style="bold"), ""]
    lines.append(_heading(explanation))
    if explanation.error is not None:
        lines.append(Text.assemble(("error  ", QUIET), (on_one_line(explanation.error), BAD)))
    if explanation.same_error is not None:
        lines.append(_same_error(explanation.same_error))
    if explanation.stages:
        lines += ["", _stages(explanation.stages, width)]
        if any(stage.critical for stage in explanation.stages):
            lines.append(Text("* on the critical path; pct: percentile among the peers", style=QUIET))
    if explanation.unusual:
        lines += ["", Text("unusual values", style="bold")]
        similar = explanation.similar_are or ""
        lines += [Padding(_unusual(one, similar), (0, 0, 0, _INDENT)) for one in explanation.unusual]
    if explanation.limitations:
        lines += ["", *(Text(text, style=QUIET) for text in explanation.limitations)]
    lines += ["", Text(f"stageflow show {on_one_line(explanation.run_id)}", style=QUIET)]
    return Group(*lines)


def _heading(explanation: RunExplanationRecord) -> Text:
    peers = explanation.peers
    text = Text.assemble(
        on_one_line(explanation.pipeline),
        "  ",
        colored(on_one_line(explanation.outcome)),
        (f"  started at {explanation.started_at[:19]}Z", QUIET),
    )
    if peers.rows:
        represented = f" that represent {peers.count:,.0f}" if round(peers.count) != peers.rows else ""
        runs = "run" if peers.rows == 1 else "runs"
        text.append(
            f"; compared with {peers.rows:,} other {runs} of this pipeline{represented} with outcome ok",
            style=QUIET,
        )
    return text


def _same_error(same: SameError) -> Text:
    failures = same.failures
    others = f"{failures.rows - 1:,} other {'failure has' if failures.rows == 2 else 'failures have'}"
    if failures.rows <= 1:
        return Text(f"no other failure has this error ({on_one_line(same.fingerprint)})", style=QUIET)
    return Text(
        f"{others} this error ({on_one_line(same.fingerprint)}): {percent(failures.share)} of all failures, "
        f"from {same.first_at[:19]}Z to {same.last_at[:19]}Z",
        style=QUIET,
    )


def _stages(stages: Sequence[StageMeasured], width: int | None) -> RenderableType:
    names = [
        Text(on_one_line(stage.stage)).append(" *" if stage.critical else "", style=QUIET) for stage in stages
    ]
    columns = {
        "stage": Column("stage", names),
        "status": Column("ended", [colored(on_one_line(stage.status)) for stage in stages]),
        **_columns("ran", [stage.ran_ms for stage in stages]),
        **_columns("waited", [stage.waited_ms for stage in stages]),
    }
    retried = [stage.retried_ms for stage in stages]
    if any(one.value or one.p95 for one in retried):
        attempts = [Text(str(stage.attempts) if stage.attempts is not None else "") for stage in stages]
        columns |= {"attempts": Column("attempts", attempts, right=True), **_columns("retried", retried)}
    spare = ("retried p50", "retried p95", "retried pct", "attempts", "waited p95", "status", "waited p50")
    return draw_columns(columns, width=width, spare=spare, flexible=("stage",))


def _columns(name: str, measured: Sequence[Measured]) -> dict[str, Column]:
    def column(heading: str, text: Callable[[Measured], str], *, plain: bool = True) -> Column:
        cells = [Text(text(one), style=QUIET if plain else _style(one)) for one in measured]
        return Column(heading, cells, right=True)

    return {
        name: column(name, lambda one: duration(one.value), plain=False),
        f"{name} p50": column("p50", lambda one: duration(one.p50)),
        f"{name} p95": column("p95", lambda one: duration(one.p95)),
        f"{name} pct": column("pct", lambda one: "" if one.percentile is None else _rank(one.percentile)),
    }


def _style(measured: Measured) -> str:
    return BAD if (measured.percentile or 0.0) >= _UNUSUAL and measured.excess >= 1 else ""


def _rank(percentile: float) -> str:
    """Return a percentile without decimals; only a value above all peers has 100."""
    return f"{min(99, int(100 * percentile)) if percentile < 1 else 100}"


def _unusual(one: UnusualValue, similar: str) -> Text:
    text = Text(f"{on_one_line(one.field)} = {_value(one.value)}")
    if one.low is not None and one.high is not None:
        text.append(
            f": typically {_value(one.typical)} ({_value(one.low)} to {_value(one.high)})", style=QUIET
        )
    else:
        shares = [f"{percent(one.share)} of the peers"]
        if one.similar_share is not None:
            shares.insert(0, f"{percent(one.similar_share)} of the {on_one_line(similar)}")
        parts = [", ".join(shares)]
        if _value(one.typical) != _value(one.value):
            parts.append(f"{percent(one.typical_share or 0.0)} have {_value(one.typical)}")
        if one.same_time_share is not None:
            others = f"{percent(one.same_time_share)} of the peers from that time have it"
            parts.append(f"due to the time of the run: {others}")
        text.append(f": {'; '.join(parts)}", style=QUIET)
    return text


def _value(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return on_one_line(value) if isinstance(value, str) else f"{value:,.6g}"
