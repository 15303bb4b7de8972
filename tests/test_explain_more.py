"""Tests for `explain`: windows, peers, pipelines, changes and single runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_sampling import BEGAN, lines_of
from typer.testing import CliRunner

from stageflow.cli._app import app
from stageflow.journal import RunFilter
from stageflow.journal._segments import new_writer, segment_name
from stageflow.store import EventStore


def write(folder: Path, runs: Iterable[Mapping[str, Any]]) -> Path:
    """Write runs as `test_sampling.write_runs` does, with attributes of the run and of its stages.

    Args:
        folder: The journal.
        runs: The fields of each run. In addition to those of `lines_of`: `attributes`, `stage_ms` (durations
            of the stages by name) and `stage_attributes` (of every stage).
    """
    folder.mkdir(exist_ok=True)
    lines = []
    for number, run in enumerate(runs):
        run_lines = list(lines_of(number, {"id": f"{number:08d}-run", **run}))
        event = json.loads(run_lines[-1])
        event["data"]["attributes"] = run.get("attributes", {})
        event["data"] |= run.get("data", {})
        for name, ms in run.get("stage_ms", {}).items():
            run_id = event["data"]["event_id"]
            stage = {key: event["data"][key] for key in _SHARED} | {
                "event_id": f"{run_id}/{name}/1",
                "stage_name": name,
                "attempts": 1,
                "status": "OK",
                "error": None,
                "duration_ms": ms,
                "queue_ms": run.get("queue_ms", {}).get(name, 0.0),
                "total_ms": ms + run.get("queue_ms", {}).get(name, 0.0),
                "attributes": run.get("stage_attributes", {}),
            }
            lines.append(json.dumps({"type": "stage.wide", "data": stage}, separators=(",", ":")))
        lines += [*map(str.strip, run_lines[:-1]), json.dumps(event, separators=(",", ":"))]
    writer = new_writer()
    (folder / segment_name(writer, 1)).write_text("\n".join(lines) + "\n")
    closed = '{"type":"writer.closed","journal":{"adopted_by":null,"crashed":0}}\n'
    (folder / segment_name(writer, 2)).write_text(closed)
    return folder


_SHARED = (
    *("duration_ms", "started_at", "ended_at", "correlation_ids", "pipeline_metadata", "schema_version"),
    *("redacted", "truncated", "resource", "sample_rate"),
)


def command(folder: Path, *arguments: str, exit_code: int = 0, width: int | None = None) -> str:
    done = CliRunner().invoke(app, ["explain", *arguments, "--journal", str(folder)], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    return done.output


def second(ago: timedelta) -> float:
    """Return the field `second` of a run that started some time ago."""
    return (datetime.now(UTC) - ago - BEGAN).total_seconds()


# ------------------------------------------------------------ the same window some time earlier


def hours(ago: float, many: int, **fields: Any) -> list[dict[str, Any]]:
    """Return runs that started evenly within the hour that began so many hours ago."""
    return [
        {"second": second(timedelta(hours=ago)) + 30 + 3400 * n / many, **fields, "id": f"{ago}-{n}-{fields}"}
        for n in range(many)
    ]


def test_against_duration_compares_the_failures_of_two_windows(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "journal",
        [
            *hours(1, 200, version="2"),
            *hours(1, 40, fails=True, error="ValueError: new", version="2"),
            *hours(5, 60, fails=True, error="KeyError: between", version="1"),
            *hours(25, 200, version="1"),
            *hours(25, 40, fails=True, error="KeyError: old", version="1"),
        ],
    )
    found = json.loads(command(folder, "failed", "--since", "1h", "--against", "1d", "--json"))
    assert (found["selection"]["rows"], found["rest"]["rows"]) == (40, 40)
    assert found["selected_are"] == "selected runs"
    descriptions = [one["description"] for one in found["differences"]]
    descriptions += [synonym for one in found["differences"] for synonym in one["synonyms"]]
    # The time defines the selection, and not the failure, so the error is a difference.
    assert "error = ValueError: new" in descriptions
    assert "service_version = 2" in descriptions
    assert not any(name.startswith("started_at") for name in descriptions)
    window = json.loads(command(folder, "1h..now", "--against", "1d", "--json"))
    assert (window["selection"]["rows"], window["rest"]["rows"]) == (240, 240)
    by_version = json.loads(command(folder, "version=1", "--since", "26h", "--against", "1w", "--json"))
    assert (by_version["selection"]["rows"], by_version["rest"]["rows"]) == (300, 0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--against", "1d"), "use --since 2h"),
        (("failed", "--until", "1h", "--against", "1d"), "use --since 2h"),
        (("2d..now", "--against", "1d"), "the window is longer than 1d"),
        (("2h..now", "--since", "3h", "--against", "1d"), "omit --since and --until"),
        (("slow", "--since", "2h", "--against", "1d"), "duration_ms > 500"),
    ],
)
def test_against_duration_without_a_usable_window_is_an_error(
    tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    folder = write(tmp_path / "journal", [{}])
    assert problem in " ".join(command(folder, *arguments, exit_code=2).split())


def test_within_restricts_both_sides_and_is_compared(tmp_path: Path) -> None:
    runs = [
        {"attributes": {"even": n % 2 == 0}, "version": "0" if n % 2 == 0 else str(n // 2 % 3)}
        for n in range(600)
    ]
    with EventStore(write(tmp_path / "journal", runs)) as store:
        found = store.explain('"attributes.even"', within="service_version in ('0', '1')", filter=RunFilter())
    assert (found.selection.rows, found.rest.rows) == (300, 200)
    assert "service_version" in {name for one in found.differences for name in one.fields}
