"""Where the selection differs: the stages and errors of failures, or the stages of the excess time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from ..._explained import Location, Part
from ._fields import Column
from ._sample import Sample

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["find_locations"]


_MAX_LOCATIONS = 5

_MIN_SHARE = 0.05
"""Minimum share of the failures or of the excess time of a location."""

_Side = tuple[Part, Part]


def find_locations(
    connection: DuckDBPyConnection, sample: Sample, columns: Mapping[str, Column], selected_are: str
) -> tuple[Location, ...]:
    """Return the locations that account for the failures or for the excess time, most important first.

    Args:
        connection: The connection.
        sample: The sample of the rows that are compared.
        columns: The columns of the view.
        selected_are: What the selection is: "failures", "slow runs", or anything else.

    Returns:
        The locations; none if the selection consists of neither failures nor slow runs.
    """
    if selected_are == "failures":
        return _of_errors(connection, sample, columns)
    if selected_are == "slow runs" and {"pipeline_run_id", "critical_path"} <= columns.keys():
        return _of_time(connection, sample)
    return ()


def _of_errors(
    connection: DuckDBPyConnection, sample: Sample, columns: Mapping[str, Column]
) -> tuple[Location, ...]:
    names = ["first_failed_stage" if sample.population.view == "runs" else "stage_name"]
    names += ["error_type", "error_fingerprint"]
    shown = [name if name in columns else f"NULL AS {name}" for name in names]
    if all(text.startswith("NULL") for text in shown[:2]):
        return ()
    first, type_, fingerprint = names
    found = connection.execute(
        f'SELECT {first}, {type_}, {fingerprint}, count(*) FILTER ("#selected") AS rows, '
        f'sum("#weight") FILTER ("#selected") AS weight, count(*) FILTER (NOT "#selected"), '
        f'coalesce(sum("#weight") FILTER (NOT "#selected"), 0) '
        f"FROM ({sample.population.rows(', '.join(shown))}) GROUP BY ALL "
        f'HAVING count(*) FILTER ("#selected") > 0 '
        f"ORDER BY weight DESC, rows DESC, 1, 2, 3 LIMIT {_MAX_LOCATIONS}"
    ).fetchall()
    selection, rest = sample.totals
    locations = []
    for stage, error_type, print_, rows, weight, rest_rows, rest_weight in found:
        share = weight / selection.count
        if share >= _MIN_SHARE:
            locations.append(
                Location(
                    stage=stage,
                    what="failed",
                    error_type=error_type,
                    fingerprint=print_,
                    selection=Part(rows, weight, share),
                    rest=Part(rest_rows, rest_weight, rest_weight / rest.count if rest.count else 0.0),
                    share=share,
                )
            )
    return tuple(locations)


def _of_time(connection: DuckDBPyConnection, sample: Sample) -> tuple[Location, ...]:
    """Attribute the excess time to the stages on the critical path of each sampled run."""
    known = {
        name
        for (name,) in connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'stages'"
        ).fetchall()
    }
    if "queue_ms" not in known:
        return ()
    delay = "coalesce(retry_after_ms, 0)" if "retry_after_ms" in known else "0"
    found = connection.execute(
        # `queue_ms` ends when the last attempt starts.
        f"WITH times AS (SELECT pipeline_run_id, stage_name, "
        f"sum(duration_ms) FILTER (status <> 'RETRY') AS ran, "
        f"sum(queue_ms) FILTER (status <> 'RETRY') AS queued, "
        f"coalesce(sum(duration_ms + {delay}) FILTER (status = 'RETRY'), 0) AS retried "
        f"FROM stages WHERE pipeline_run_id IN (SELECT pipeline_run_id FROM {sample.table}) GROUP BY ALL) "
        f'SELECT s.stage_name, r."#selected", count(*), sum(r."#weight"), sum(r."#weight" * ran), '
        f'sum(r."#weight" * greatest(0, queued - retried)), sum(r."#weight" * least(queued, retried)) '
        f"FROM times s JOIN {sample.table} r USING (pipeline_run_id) "
        f"WHERE list_contains(r.critical_path, s.stage_name) GROUP BY 1, 2"
    ).fetchall()
    sums: dict[tuple[str, bool], tuple[int, float, float, float, float]] = {
        (stage, bool(selected)): (rows, weight, ran or 0.0, waited or 0.0, retried or 0.0)
        for stage, selected, rows, weight, ran, waited, retried in found
    }
    totals = sample.cohorts.totals
    nothing = (0, 0.0, 0.0, 0.0, 0.0)
    excesses: list[tuple[float, str, Literal["ran", "waited", "retried"], float, float]] = []
    kinds: tuple[Literal["ran", "waited", "retried"], ...] = ("ran", "waited", "retried")
    for stage in dict.fromkeys(stage for stage, _ in sums):
        here, others = sums.get((stage, True), nothing), sums.get((stage, False), nothing)
        for n, what in enumerate(kinds):
            ms, other_ms = round(here[n + 2] / totals[0], 3), round(others[n + 2] / totals[1], 3)
            excesses.append((ms - other_ms, stage, what, ms, other_ms))
    excesses.sort(key=lambda one: (-one[0], one[1]))
    total = sum(excess for excess, *_ in excesses if excess > 0)
    locations = []
    for excess, stage, what, ms, other_ms in excesses[:_MAX_LOCATIONS]:
        if total <= 0 or excess / total < _MIN_SHARE:
            break
        here, others = sums.get((stage, True), nothing), sums.get((stage, False), nothing)
        locations.append(
            Location(
                stage=stage,
                what=what,
                selection=Part(here[0], here[1], here[1] / totals[0]),
                rest=Part(others[0], others[1], others[1] / totals[1]),
                ms=ms,
                other_ms=other_ms,
                share=excess / total,
            )
        )
    return tuple(locations)
