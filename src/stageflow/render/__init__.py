"""Pictures, drawn from records alone: plain dicts, as the journal has them.

Those of a graph are text and need nothing. Those for a terminal need rich, which is an extra: it is
imported when one of them is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from .graph import graph_as_dot, graph_as_mermaid, graph_as_text

if TYPE_CHECKING:
    from .explanation import draw_explanation
    from .progress import track
    from .run import draw_run
    from .runs import draw_runs
    from .summary import draw_summary

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

_WITH_RICH = {
    "draw_explanation": "explanation",
    "draw_run": "run",
    "draw_runs": "runs",
    "draw_summary": "summary",
    "track": "progress",
}


def __getattr__(name: str) -> Any:
    module = _WITH_RICH.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"stageflow.render.{name}", "cli") from error
