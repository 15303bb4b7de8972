"""The picture of a finished run, from its results: the one that its record gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..context import PipelineResults
from .pipeline_event import pipeline_wide
from .run_record import record_of
from .stage_event import stage_event_id, stage_wide

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

    record = record_of(results.context)
    run = pipeline_wide(results, results.context, record)
    stages = [
        stage_wide(name, result, results.context, record, stage_event_id(name, result, record))
        for name, result in results.items()
    ]
    return draw_run(msgspec.to_builtins(run), [msgspec.to_builtins(stage) for stage in stages])
