"""Renders graphs, runs, tables and explanations from plain records.

Graphs are rendered as text without dependencies. Functions for a terminal require rich, which is an extra and
is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from ._escape import on_one_line as on_one_line, visible as visible
from ._graph import graph_as_dot, graph_as_mermaid, graph_as_text

if TYPE_CHECKING:
    from ._alerts import (
        draw_alert_history as draw_alert_history,
        draw_alert_list as draw_alert_list,
        draw_alert_run as draw_alert_run,
        draw_alert_tests as draw_alert_tests,
    )
    from ._events import EventLines as EventLines
    from ._explanation import (
        draw_explanation as draw_explanation,
        draw_explanations as draw_explanations,
    )
    from ._exports import draw_export_status as draw_export_status
    from ._run import draw_run as draw_run, shown_child_runs as shown_child_runs
    from ._run_explanation import draw_run_explanation as draw_run_explanation
    from ._runs import draw_runs as draw_runs, draw_summary as draw_summary
    from ._state import (
        draw_archive_state as draw_archive_state,
        draw_journal_state as draw_journal_state,
        draw_repaired as draw_repaired,
        draw_repaired_archive as draw_repaired_archive,
    )
    from ._statistics import (
        draw_comparisons as draw_comparisons,
        draw_errors as draw_errors,
        draw_rows as draw_rows,
        draw_sampled as draw_sampled,
        draw_slowest as draw_slowest,
        draw_stats as draw_stats,
        draw_totals as draw_totals,
        draw_volume as draw_volume,
    )
    from ._style import (
        OUTCOMES as OUTCOMES,
        STATUSES as STATUSES,
        UncroppedConsole as UncroppedConsole,
        track as track,
        wrap as wrap,
    )
    from ._tables import count as count

__all__ = [
    "draw_explanation",
    "draw_run",
    "draw_runs",
    "draw_summary",
    "graph_as_dot",
    "graph_as_mermaid",
    "graph_as_text",
    "track",
]

_REQUIRING_RICH = {
    "html_of": "_html",
    "EventLines": "_events",
    "OUTCOMES": "_style",
    "STATUSES": "_style",
    "UncroppedConsole": "_style",
    "count": "_tables",
    "draw_alert_history": "_alerts",
    "draw_alert_list": "_alerts",
    "draw_alert_run": "_alerts",
    "draw_alert_tests": "_alerts",
    "draw_archive_state": "_state",
    "draw_comparisons": "_statistics",
    "draw_errors": "_statistics",
    "draw_explanation": "_explanation",
    "draw_explanations": "_explanation",
    "draw_export_status": "_exports",
    "draw_journal_state": "_state",
    "draw_repaired": "_state",
    "draw_repaired_archive": "_state",
    "draw_rows": "_statistics",
    "draw_run": "_run",
    "draw_run_explanation": "_run_explanation",
    "draw_runs": "_runs",
    "draw_sampled": "_statistics",
    "draw_slowest": "_statistics",
    "draw_stats": "_statistics",
    "draw_summary": "_runs",
    "draw_totals": "_statistics",
    "draw_volume": "_statistics",
    "shown_child_runs": "_run",
    "track": "_style",
    "wrap": "_style",
}


def as_html(drawing: str, *arguments: Any, title: str = "", **options: Any) -> str | None:
    """Return a drawing as HTML, for a notebook; None if rich is not installed: the notebook then shows text.

    Args:
        drawing: Name of a function of this package that returns a drawing.
        arguments: Its positional arguments.
        title: First line; default none.
        options: Its keyword arguments, except `width`.
    """
    try:
        draw, html_of = __getattr__(drawing), __getattr__("html_of")
    except MissingExtraError:
        return None
    html: str = html_of(lambda width: draw(*arguments, width=width, **options), title=title)
    return html


def __getattr__(name: str) -> Any:
    module = _REQUIRING_RICH.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"stageflow.render.{name}", "cli") from error
