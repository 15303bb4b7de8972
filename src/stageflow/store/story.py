"""The whole story of one run, out of the archive and the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import RunNotFoundError
from ..journal import Journal, RunStory
from .columns import text
from .queries import Queries
from .record import events_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["tell_story"]

_Told = tuple[str, dict[str, Any]]


def tell_story(queries: Queries, journal: str | None, run_id: str) -> RunStory:
    """Return the story of the run whose id is this, or begins so.

    Raises:
        RunNotFoundError: There is no such run, or there are several.
    """
    runs = _gather(queries, run_id)
    if run_id in runs:
        runs = {run_id: runs[run_id]}
    if len(runs) > 1:
        some = ", ".join(sorted(runs)[:5]) + (", ..." if len(runs) > 5 else "")
        raise RunNotFoundError(f"{len(runs)} runs begin with {run_id!r}: {some}", hint="give more of the id")
    for told in runs.values():
        ended = [data for type, data in told if type == "pipeline.wide"]
        if ended:
            return RunStory(ended[-1], _stages(told), _own(told), _children(queries, journal, ended[-1]))
    if journal is None:
        raise RunNotFoundError(f"there is no run {run_id!r}", hint="`stageflow runs` lists what there is")
    # It is under way, or unknown: its beginning is in the journal alone.
    story = Journal(journal).run(next(iter(runs), run_id))
    told = next(iter(runs.values()), [])
    return RunStory(story.run, _stages(told), _own(told), _children(queries, journal, story.run))


def _gather(queries: Queries, run_id: str) -> dict[str, list[_Told]]:
    # Between these two lies every id that begins so: by that, and not by `starts_with`, whole parts of
    # files are passed over.
    first, last = text(run_id), text(run_id + "\U0010ffff")
    query = f"""select * from events
        where event_id >= {first} and event_id < {last}
            and pipeline_run_id >= {first} and pipeline_run_id < {last}
        order by coalesce(ended_at, emitted_at), type = 'pipeline.wide', started_at, attempt, event_id"""

    def gather(cursor: DuckDBPyConnection) -> dict[str, list[_Told]]:
        runs: dict[str, list[_Told]] = {}
        for type, data in events_of(cursor.execute(query)):
            runs.setdefault(str(data["correlation_ids"]["pipeline_run_id"]), []).append((type, data))
        return runs

    return queries.ask(gather, query)


def _stages(told: list[_Told]) -> list[dict[str, Any]]:
    return [data for type, data in told if type == "stage.wide"]


def _own(told: list[_Told]) -> list[_Told]:
    return [(type, data) for type, data in told if type not in ("stage.wide", "pipeline.wide")]


def _children(queries: Queries, journal: str | None, run: dict[str, Any]) -> list[dict[str, Any]]:
    ended = _ended_children(queries, run)
    if journal is None:
        return ended
    known = {child["event_id"] for child in ended}
    in_progress = [
        child
        for child in Journal(journal).in_progress()
        if child.get("parent_run_id") == run["event_id"] and child["event_id"] not in known
    ]
    return ended + sorted(in_progress, key=lambda child: str(child["started_at"]))


def _ended_children(queries: Queries, run: dict[str, Any]) -> list[dict[str, Any]]:
    # They began while it was under way, or a little later, out of a stage that refused to end: with
    # that said, whole parts of files are passed over.
    until = ""
    if run["ended_at"] is not None:
        until = f"and started_at <= {text(run['ended_at'])}::timestamptz + interval 1 hour"
    query = f"""select 'pipeline.wide' as type, * from runs
        where parent_run_id = {text(run["event_id"])}
            and started_at >= {text(run["started_at"])}::timestamptz
            {until}
        order by started_at"""
    return queries.ask(lambda cursor: [data for _, data in events_of(cursor.execute(query))], query)
