"""Where the selection differs: the stages and errors of failures, or the stages of the excess time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..._explained import Location, Part
from ._fields import Column
from ._sample import Sample

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["find_locations"]


_MAX_LOCATIONS = 5

_MIN_SHARE = 0.05
"""Minimum share of the failures or of the excess time of a location."""


def find_locations(
    connection: DuckDBPyConnection,
    sample: Sample,
    columns: Mapping[str, Column],
    selected_are: str,
    cause: str | None,
) -> tuple[Location, ...]:
    """Return the locations that account for the failures or for the excess time, most important first.

    Args:
        connection: The connection.
        sample: The sample of the rows that are compared.
        columns: The columns of the view.
        selected_are: What the selection is: "failures", "slow runs", or anything else.
        cause: The condition of the first difference, as a predicate over the view; None if nothing differs.

    Returns:
        The locations; none if the selection consists of neither failures nor slow runs.
    """
    if selected_are == "failures":
        return _of_errors(connection, sample, columns, cause)
    if selected_are == "slow runs" and {"pipeline_run_id", "critical_path"} <= columns.keys():
        return _of_time(connection, sample, cause)
    return ()


_MAX_ERRORS = 100
"""Maximum number of the most frequent errors of which the locations are chosen."""

_MORE = 0.05
"""An error is due to the cause if its share of the failures with the cause is this much greater."""


def _of_errors(
    connection: DuckDBPyConnection, sample: Sample, columns: Mapping[str, Column], cause: str | None
) -> tuple[Location, ...]:
    names = ["first_failed_stage" if sample.population.view == "runs" else "stage_name"]
    names += ["error_type", "error_fingerprint"]
    shown = [name if name in columns else f"NULL AS {name}" for name in names]
    if all(text.startswith("NULL") for text in shown[:2]):
        return ()
    first, type_, fingerprint = names
    shown.append(f'coalesce(CAST({cause or "FALSE"} AS BOOLEAN), FALSE) AS "#caused"')
    found = connection.execute(
        f'SELECT {first}, {type_}, {fingerprint}, count(*) FILTER ("#selected") AS rows, '
        f'sum("#weight") FILTER ("#selected") AS weight, count(*) FILTER (NOT "#selected"), '
        f'coalesce(sum("#weight") FILTER (NOT "#selected"), 0), '
        f'coalesce(sum("#weight") FILTER ("#selected" AND "#caused"), 0), '
        f'sum(sum("#weight") FILTER ("#selected" AND "#caused")) OVER () '
        f"FROM ({sample.population.rows(', '.join(shown))}) GROUP BY ALL "
        f'HAVING count(*) FILTER ("#selected") > 0 '
        f"ORDER BY weight DESC, rows DESC, 1, 2, 3 LIMIT {_MAX_ERRORS}"
    ).fetchall()
    selection, rest = sample.totals
    locations = []
    for stage, error_type, print_, rows, weight, rest_rows, rest_weight, caused, total_caused in found:
        share = weight / selection.count
        cause_share = caused / total_caused if total_caused else None
        if max(share, cause_share or 0.0) >= _MIN_SHARE:
            locations.append(
                Location(
                    stage=stage,
                    what="failed",
                    error_type=error_type,
                    fingerprint=print_,
                    selection=Part(rows, weight, share),
                    rest=Part(rest_rows, rest_weight, rest_weight / rest.count if rest.count else 0.0),
                    share=share,
                    cause_share=cause_share,
                )
            )

    def rank(location: Location) -> float:
        more = (location.cause_share or 0.0) - location.share
        return -more if more >= _MORE else 0.0

    return tuple(sorted(locations, key=rank)[:_MAX_LOCATIONS])


_Times = tuple[int, float, float, float, float]
"""Number of rows, their weight, and the time that their stage ran, waited and was retried."""

_NO_TIMES: _Times = (0, 0.0, 0.0, 0.0, 0.0)

_WHATS: tuple[Literal["ran", "waited", "retried"], ...] = ("ran", "waited", "retried")


def _of_time(connection: DuckDBPyConnection, sample: Sample, cause: str | None) -> tuple[Location, ...]:
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
    # The slowest runs include the usual tail of the durations, so those with the cause are summed separately.
    is_caused = "FALSE"
    if cause is not None:
        is_caused = f"pipeline_run_id IN (SELECT pipeline_run_id FROM runs WHERE {cause})"
    found = connection.execute(
        # `queue_ms` ends when the last attempt starts.
        f"WITH sampled AS MATERIALIZED (SELECT pipeline_run_id, critical_path, "
        f'"#weight" AS weight, CASE WHEN NOT "#selected" THEN 0 WHEN {is_caused} THEN 2 ELSE 1 END AS side '
        f"FROM {sample.table}), "
        f"times AS (SELECT pipeline_run_id, stage_name, "
        f"sum(duration_ms) FILTER (status <> 'RETRY') AS ran, "
        f"sum(queue_ms) FILTER (status <> 'RETRY') AS queued, "
        f"coalesce(sum(duration_ms + {delay}) FILTER (status = 'RETRY'), 0) AS retried "
        f"FROM stages WHERE pipeline_run_id IN (SELECT pipeline_run_id FROM sampled) GROUP BY ALL) "
        f"SELECT s.stage_name, r.side, count(*), sum(r.weight), sum(r.weight * ran), "
        f"sum(r.weight * greatest(0, queued - retried)), sum(r.weight * least(queued, retried)), "
        f"(SELECT coalesce(sum(weight), 0) FROM sampled WHERE side = 2) "
        f"FROM times s JOIN sampled r USING (pipeline_run_id) "
        f"WHERE list_contains(r.critical_path, s.stage_name) GROUP BY 1, 2"
    ).fetchall()
    sums: dict[tuple[str, int], _Times] = {
        (stage, side): (rows, weight, ran or 0.0, waited or 0.0, retried or 0.0)
        for stage, side, rows, weight, ran, waited, retried, _ in found
    }
    stages = list(dict.fromkeys(stage for stage, _ in sums))
    selection, rest = sample.cohorts.totals
    caused = float(found[0][-1]) if found else 0.0

    def excesses(sides: tuple[int, ...], total: float) -> dict[_Place, _Excess]:
        """Return the mean times of the stages on some sides, and their excess over the rest."""
        means: dict[_Place, _Excess] = {}
        for stage in stages:
            others = sums.get((stage, 0), _NO_TIMES)
            for n, what in enumerate(_WHATS, 2):
                here = sum(float(sums.get((stage, side), _NO_TIMES)[n]) for side in sides)
                ms, other_ms = round(here / total, 3), round(others[n] / rest, 3)
                means[stage, what] = _Excess(ms - other_ms, ms, other_ms)
        return means

    found_excesses = excesses((1, 2), selection)
    of_caused = excesses((2,), caused) if caused else {}

    def rank(place: _Place) -> tuple[float, float, str]:
        # The slowest runs include the usual tail, so the stages that take longer with the cause come first.
        of_cause = max(0.0, of_caused[place].excess) if of_caused else 0.0
        return -of_cause, -found_excesses[place].excess, place[0]

    total, total_caused = (
        sum(one.excess for one in each.values() if one.excess > 0) for each in (found_excesses, of_caused)
    )
    locations = []
    for stage, what in sorted(found_excesses, key=rank):
        excess, ms, other_ms = found_excesses[stage, what]
        share = max(0.0, excess) / total if total else 0.0
        cause_share = max(0.0, of_caused[stage, what].excess) / total_caused if total_caused else None
        if max(share, cause_share or 0.0) < _MIN_SHARE:
            continue
        sides = [sums.get((stage, side), _NO_TIMES) for side in (0, 1, 2)]
        rows, weight = sides[1][0] + sides[2][0], sides[1][1] + sides[2][1]
        locations.append(
            Location(
                stage=stage,
                what=what,
                selection=Part(rows, weight, weight / selection),
                rest=Part(sides[0][0], sides[0][1], sides[0][1] / rest),
                ms=ms,
                other_ms=other_ms,
                share=share,
                cause_share=cause_share,
            )
        )
    return tuple(locations[:_MAX_LOCATIONS])


_Place = tuple[str, Literal["ran", "waited", "retried"]]


class _Excess(NamedTuple):
    excess: float
    ms: float
    other_ms: float
