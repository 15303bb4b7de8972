"""`Window`: the stretch of time that a rule looks at, and which rows end in it."""

from __future__ import annotations

from datetime import datetime, timedelta

from msgspec import Struct

from ..journal import RunFilter
from ..store.columns import text
from ..store.selection import Over, condition
from ..store.snapshot import LONGEST_RUN
from .wording import exactly, in_shell, second_of

__all__ = ["Window"]


class Window(Struct, frozen=True):
    """From one moment up to another, which belongs to it.

    Attributes:
        since: When it begins.
        until: When it ends.
    """

    since: datetime
    until: datetime

    @classmethod
    def ending(cls, now: datetime, seconds: float) -> Window:
        """Return the last so many seconds."""
        return cls(now - timedelta(seconds=seconds), now)

    def holds(self, column: str = "ended_at") -> str:
        """Return in SQL whether a moment is in it."""
        since, until = (text(exactly(moment)) for moment in (self.since, self.until))
        return f"{column} > {since} and {column} <= {until}"

    def rows(self, over: Over, pipeline: str | None = None, stage: str | None = None, where: str = "") -> str:
        """Return in SQL which rows of a view ended in it.

        Args:
            over: "runs" or "stages".
            pipeline: Only of this pipeline.
            stage: Only of this stage, or runs that have it.
            where: SQL predicate in addition to it.
        """
        # Files are passed over by the day on which something began. What took longer than that is missed.
        day = text((self.since - LONGEST_RUN).date().isoformat())
        own = f"{self.holds()} and day >= {day}" + (f" and ({where})" if where else "")
        return condition(over, RunFilter(pipeline=pipeline, stage=stage), own)

    def options(self, pipeline: str | None, stage: str | None) -> str:
        """Return the options of the command line that choose what it looks at."""
        named = (("--pipeline", pipeline), ("--stage", stage))
        return f"--since {second_of(self.since)}" + "".join(
            f" {option} {in_shell(name)}" for option, name in named if name
        )

    def runs(self, pipeline: str | None, stage: str | None, where: str = "") -> str:
        """Return in SQL which rows of `runs` are of it, or have a stage that is.

        Args:
            pipeline: Only of this pipeline.
            stage: Runs whose stage of this name ended in the window; None for runs that ended in it.
            where: SQL predicate in addition to it, over the stage where one is named, else over the run.
        """
        if stage is None:
            return self.rows("runs", pipeline, where=where)
        of_stage = self.rows("stages", pipeline, stage, where)
        return f"pipeline_run_id in (select pipeline_run_id from stages where {of_stage})"
