"""The picture of a finished run, from its results: the one that its record gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..context import PipelineResults
from .run_context import run_context_of
from .wide_events import pipeline_wide, stage_wide

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["draw_results"]


def draw_results(results: PipelineResults) -> RenderableType:
    """Return a picture for a rich console: status, queue, milliseconds and time of every stage.

    Attempts that were retried are not in the results; `stageflow.render.draw_run` draws them from
    the events of a journal.

    Raises:
        MissingExtraError: rich is not installed.

    Example:
        >>> from rich.console import Console
        >>> async def load(ctx): ...
        >>> results = Pipeline("p").with_stage("load", load).build().run_sync()
        >>> Console(width=80).print(draw_results(results))
        p  ok  ...
    """
    from ..render import draw_run  # rich is an extra: needed by who looks, not by who runs

    context, run_context = results.context, run_context_of(results.context)
    run = pipeline_wide(results, context, run_context)
    stages = [stage_wide(name, result, context, run_context) for name, result in results.items()]
    return draw_run(msgspec.to_builtins(run), [msgspec.to_builtins(stage) for stage in stages])
