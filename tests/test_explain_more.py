"""Tests for `explain`: windows, peers, pipelines, changes and single runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from msgspec import structs
from rich.cells import cell_len
from rich.console import Console
from test_sampling import BEGAN, lines_of
from typer.testing import CliRunner

from stageflow.cli._app import app
from stageflow.journal import RunFilter
from stageflow.journal._segments import new_writer, segment_name
from stageflow.render import draw_explanation, draw_run_explanation
from stageflow.store import EventStore, Part


def write(folder: Path, runs: Iterable[Mapping[str, Any]]) -> Path:
    """Write runs as `test_sampling.write_runs` does, with attributes of the run and of its stages.

    Args:
        folder: The journal.
        runs: The fields of each run. In addition to those of `lines_of`: `attributes`, `stage_ms` (durations
            of the stages by name), `stage_attributes` (of every stage) and `stage_data` (the other fields of
            a stage by its name).
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
                **run.get("stage_data", {}).get(name, {}),
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
    assert "failed" in found["within"]
    assert "; both restricted to (failed)" in command(folder, "--since", "1h", "--against", "1d")
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


# ------------------------------------------------------------ slow among runs of the same kind


def by_model() -> list[dict[str, Any]]:
    """Return runs of a fast and a slow model; the runs of one region are slow for their model."""
    runs = []
    for n in range(2000):
        model = "large" if n % 4 == 0 else "small"
        slow = n % 80 in (3, 8, 23, 43)
        ms = (4000.0 if model == "large" else 100.0) * (2 if slow else 1) + n / 1e4
        attributes = {"model": model, "region": "eu" if slow else ("us", "asia")[n % 2]}
        runs.append({"ms": ms, "attributes": attributes})
    runs += [{"ms": 9999.0, "attributes": {"model": f"rare-{n}"}} for n in range(3)]
    return [*runs, {"ms": 9999.0}]


def left_out(explanation: Mapping[str, Any]) -> dict[str, str]:
    return {name: one["reason"] for one in explanation["left_out"] for name in one["fields"]}


def test_slow_per_field_compares_each_run_with_those_of_the_same_value(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", by_model())
    together = json.loads(command(folder, "slow", "--json"))
    assert "model = large" in together["differences"][0]["description"]
    found = json.loads(command(folder, "slow", "--per", "model", "--json"))
    assert (found["selection"]["rows"], found["rest"]["rows"]) == (100, 1900)
    assert found["differences"][0]["description"] == "attributes.region = eu"
    assert found["selected_are"] == "slow runs"
    assert left_out(found)["attributes.model"] == "each row is compared with those with the same value"
    (note,) = found["limitations"]
    assert note == (
        "Each run is compared with those that have the same attributes.model. Left out: 3 values with fewer "
        "than 20 runs (3 runs), 1 run without a value."
    )
    assert note in command(folder, "slow", "--per", "model")
    with EventStore(folder) as store:
        rows = store.sql(f"select count(*) from runs where {found['where']}").rows
    assert rows == [(100,)]


def test_slow_per_field_is_weighted(tmp_path: Path) -> None:
    rows = [{"ms": float(n), "attributes": {"model": "a"}, "sample_rate": 1} for n in range(100)]
    rows += [{"ms": 200.0 + n, "attributes": {"model": "a"}, "sample_rate": 50} for n in range(100)]
    rows += [{"ms": 1.0, "attributes": {"model": "b"}} for n in range(100)]
    with EventStore(write(tmp_path / "journal", rows)) as store:
        found = store.explain_slow(per="model", slowest=0.5)
    assert (found.selection.rows, found.selection.count) == (51, 2550)


def test_slow_per_field_without_large_groups_selects_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", [{"user": f"u{n // 9}"} for n in range(90)])
    found = json.loads(command(folder, "slow", "--per", "user_id", "--json"))
    assert (found["selection"]["rows"], found["summary"]) == (0, "No rows are selected.")
    assert "10 values with fewer than 20 runs (90 runs)" in command(folder, "slow", "--per", "user_id")


def test_slow_runs_and_stages_of_several_kinds_are_compared_within_their_kind(tmp_path: Path) -> None:
    runs = [
        {"pipeline": f"p{n % 2}", "ms": 1000.0 * (n % 2) + n, "stage_ms": {"a": 1.0 + n, "b": 5000.0 + n}}
        for n in range(200)
    ]
    with EventStore(write(tmp_path / "journal", runs)) as store:
        of_runs, of_stages = store.explain_slow(), store.explain_slow("stages")
    assert (of_runs.selection.rows, of_stages.selection.rows) == (10, 20)
    assert "same pipeline_name" in of_runs.limitations[0]
    assert "same stage_name" in of_stages.limitations[0]


@pytest.mark.parametrize(
    ("arguments", "problem", "exit_code"),
    [
        (("slow", "--per", "modle"), "unknown field 'modle'", 1),
        (("failed", "--per", "user_id"), "--per applies to `explain slow`", 2),
    ],
)
def test_per_without_a_field_or_without_slow_is_an_error(
    tmp_path: Path, arguments: tuple[str, ...], problem: str, exit_code: int
) -> None:
    folder = write(tmp_path / "journal", [{"attributes": {"model": "a"}}])
    assert problem in command(folder, *arguments, exit_code=exit_code)


# ------------------------------------------------------------ pipelines


HOSTILE = "a'b\"c; drop\n\x1b[31mtable `x` 表"


def of_pipelines(*failures: int) -> list[dict[str, Any]]:
    """Return 200 runs of each pipeline with so many failures, all of version 2 or 3."""
    runs = []
    for number, failed in enumerate(failures):
        name = HOSTILE if number == 0 else f"p{number}"
        for place in range(200):
            n = place * 7 % 200  # spread over time
            fails = n < failed
            version = str(2 + number % 2) if fails or n % 50 == 49 else "1"
            runs.append(
                {"pipeline": name, "fails": fails, "version": version, "second": place, "id": f"{number}-{n}"}
            )
    return runs


def test_each_pipeline_is_explained_separately(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", of_pipelines(40, 30, 20, 10, 5, 0))
    found = [json.loads(line) for line in command(folder, "--json").splitlines()]
    assert [one["pipeline"] for one in found] == [HOSTILE, "p1", "p2", "p3", "p4"]
    assert [one["selection"]["rows"] for one in found] == [40, 30, 20, 10, 5]
    assert [one["rest"]["rows"] for one in found] == [160, 170, 180, 190, 195]
    assert [one["differences"][0]["description"] for one in found[:3]] == [
        "service_version = 2",
        "service_version = 3",
        "service_version = 2",
    ]
    assert all("p" in one["differences"][0]["sql"] for one in found[:3])
    assert [one["fields"] for one in found[3:]] == [0, 0]
    assert "not compared" in found[3]["summary"]
    for one in found[:3]:
        with EventStore(folder) as store:
            rows = store.sql(one["differences"][0]["sql"]).rows
        assert len(rows) == one["differences"][0]["selection"]["rows"]


def test_pipelines_beyond_the_third_are_listed_with_their_commands(tmp_path: Path) -> None:
    folder = write(tmp_path / "my journal", of_pipelines(10, 40, 30, 20, 5))
    shown = command(folder, "--since", "2020-01-01")
    assert "pipeline p1\n" in shown
    assert "a'b\"c; drop \\x1b[31mtable `x` 表: 10 failures, 190 other runs" in shown
    (line,) = (line.strip() for line in shown.splitlines() if "--pipeline" in line)
    assert line.startswith("stageflow explain failed --since 20")
    assert "--pipeline p4 " in line
    assert line.endswith(f"--journal '{folder}'")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--together",),
        ("--over", "stages"),
        ("--pipeline", "p1"),
        ("failed and pipeline_name in ('p1', 'p2')",),
        ("failed", "--against", "topology = 'p2'"),
    ],
)
def test_pipelines_are_compared_together_on_request(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    folder = write(tmp_path / "journal", of_pipelines(10, 20, 30))
    (line,) = command(folder, *arguments, "--json").splitlines()
    assert json.loads(line)["pipeline"] == ("p1" if "--pipeline" in arguments else None)


def test_slow_runs_of_each_pipeline_are_explained_separately(tmp_path: Path) -> None:
    runs = [{"pipeline": f"p{n % 2}", "ms": 1000.0 * (n % 2) + n, "user": f"u{n % 5}"} for n in range(400)]
    runs += [{"pipeline": "few", "ms": 1.0 + n} for n in range(3)]
    folder = write(tmp_path / "journal", runs)
    found = [json.loads(line) for line in command(folder, "slow", "--json").splitlines()]
    assert [(one["pipeline"], one["selection"]["rows"]) for one in found] == [("p0", 10), ("p1", 10)]
    per_user = [
        json.loads(line) for line in command(folder, "slow", "--per", "user_id", "--json").splitlines()
    ]
    assert [one["selection"]["rows"] for one in per_user] == [10, 10]
    assert all("user_id" in left_out(one) for one in per_user)
    # Without a terminal, the lines have no limit, and the names of the pipelines have no rule beside them.
    assert {"pipeline p0", "pipeline p1"} <= set(command(folder, "slow").splitlines())


@pytest.mark.parametrize("runs", [[], [{"fails": True}], [{"fails": False}]], ids=["none", "failed", "ok"])
@pytest.mark.parametrize(
    "arguments", [(), ("slow",), ("slow", "--per", "user_id"), ("2h..now", "--against", "1d")]
)
def test_empty_or_single_run_is_explained(
    tmp_path: Path, runs: list[dict[str, Any]], arguments: tuple[str, ...]
) -> None:
    folder = write(tmp_path / "journal", runs)
    assert command(folder, *arguments).strip()
    (line,) = command(folder, *arguments, "--json").splitlines()
    assert json.loads(line)["differences"] == []
    with EventStore(folder) as store:
        assert len(store.explain_by_pipeline()) == 1


# ------------------------------------------------------------ changes


def incident(*, rate: int = 3) -> list[dict[str, Any]]:
    """Return 2,000 runs: version 2 is deployed with run 1,500, and its runs fail from run 1,510 on."""
    runs = []
    for n in range(2000):
        fails = n >= 1510 and n % rate == 0
        attributes = {
            "path": f"/{n}",  # unique
            "customer": f"c{n // 4}",  # new all the time
            "once": "x" if n == 1505 else None,  # a single row
            "region": ("eu", "us")[n % 2],  # always the same
            "flag": "old" if n % 400 < 3 or n > 1500 else "none",  # not new: it occurred before
            "spared": "new" if n >= 1504 and (not fails or n % 60 == 0) else "old",  # rarer in failures
            "kind.表": HOSTILE if n >= 1501 else "none",
        }
        run = {
            "second": n,
            "fails": fails,
            "version": "2" if n >= 1500 else "1",
            "attributes": {name: value for name, value in attributes.items() if value is not None},
            "stage_ms": {"llm": 5.0, "judge": 5.0},
            "stage_attributes": {
                "model": "new" if n >= 1498 else "old",
                "route": "new" if n > 200 else "old",
            },
        }
        if fails:
            run["data"] = {"error_type": "BankError", "error_fingerprint": "f1"}
        runs.append(run)
    return runs


def changes(explanation: Mapping[str, Any]) -> dict[str, float]:
    return {f"{one['field']} = {one['value']}": one["before_onset_s"] for one in explanation["changes"]}


@pytest.mark.parametrize("window", [(), ("--since", "2026-11-01T00:21:00Z")], ids=["all", "since"])
def test_changed_lists_what_is_new_before_the_onset(tmp_path: Path, window: tuple[str, ...]) -> None:
    folder = write(tmp_path / "journal", incident())
    found = json.loads(command(folder, "--changed", "--json", *window))
    assert found["changes_by"] in ("onset", "rate")
    onset = datetime.fromisoformat(found["changes_before"])
    assert abs((onset - BEGAN).total_seconds() - 1510) < 12
    new = changes(found)
    assert set(new) == {
        "service_version = 2",
        "judge/attributes.model = new",  # once, although both stages have it
        "error_type = BankError",
        "error_fingerprint = f1",
        f"attributes.kind.表 = {HOSTILE}",
    }
    for one in found["changes"]:
        first = datetime.fromisoformat(one["first_at"])
        assert one["before_onset_s"] == (onset - first).total_seconds()
    (version,) = (one for one in found["changes"] if one["field"] == "service_version")
    assert version["first_at"] == "2026-11-01T00:25:00.000000Z"
    assert version["selection"]["share"] == 1.0
    assert version["rest"]["rows"] == 500 - found["selection"]["rows"]


def test_changed_is_drawn_within_the_width_and_escaped(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", incident())
    with EventStore(folder) as store:
        found = store.explain(changed=True)
    console = Console(width=80, file=StringIO(), color_system=None)
    console.print(draw_explanation(found, width=80))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "new around 2026-11-01T00:25:" in shown
    assert "service_version = 2: first at 2026-11-01T00:25:00Z, " in shown
    assert "\x1b" not in shown
    assert all(cell_len(line) <= 80 for line in shown.splitlines())


def test_nothing_is_new_without_an_earlier_record(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", incident()[1495:])
    found = json.loads(command(folder, "--changed", "--json"))
    assert found["changes"] == []
    assert "changes cannot be determined" in " ".join(found["limitations"])


def test_nothing_is_new_if_failures_are_spread_over_time(tmp_path: Path) -> None:
    runs = [{"second": n, "fails": n % 50 == 7, "version": "1" if n < 1500 else "2"} for n in range(2000)]
    folder = write(tmp_path / "journal", runs)
    found = json.loads(command(folder, "--changed", "--json"))
    assert (found["changes"], found["changes_by"]) == ([], "first row")
    assert "changes cannot be determined" in command(folder, "--changed")


def test_change_of_a_single_pipeline_is_new_although_another_pipeline_had_the_value(tmp_path: Path) -> None:
    runs = []
    for n in range(2000):
        moved = n >= 1500
        runs.append({"second": n, "pipeline": "a", "version": "2"})
        runs.append({"second": n, "pipeline": "b", "fails": moved and n % 3 == 0, "version": "12"[moved]})
    folder = write(tmp_path / "journal", [{**run, "id": str(n)} for n, run in enumerate(runs)])
    separate = json.loads(command(folder, "--changed", "--json"))
    assert "service_version = 2" in changes(separate)
    assert "service_version = 2" not in changes(
        json.loads(command(folder, "--changed", "--together", "--json"))
    )


@pytest.mark.parametrize(
    "arguments",
    [("slow", "--changed"), ("2h..now", "--against", "1d", "--changed"), ("--changed", "--over", "stages")],
)
@pytest.mark.parametrize("runs", [[], [{"fails": True}], [{"fails": True}, {}]], ids=["none", "one", "two"])
def test_changed_of_few_runs_is_empty(
    tmp_path: Path, runs: list[dict[str, Any]], arguments: tuple[str, ...]
) -> None:
    folder = write(tmp_path / "journal", runs)
    assert json.loads(command(folder, *arguments, "--json").splitlines()[0])["changes"] == []
    assert command(folder, *arguments)


# ------------------------------------------------------------ an incident of two organizations


@pytest.fixture(scope="module")
def two_organizations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which one in 20 is slow in `llm`; from run 2,400 on, two organizations are slow in `search`."""
    runs: list[dict[str, Any]] = []
    for n in range(3_600):
        org, shard = f"o-{n % 7}", f"eu-{n // 7 % 5}"
        is_bad = n >= 2_400 and org in ("o-2", "o-5") and shard == "eu-4"
        search_ms, llm_ms = (3000.0 if is_bad else 50.0), (900.0 + n % 97 if n % 20 == 3 else 300.0 + n % 11)
        runs.append(
            {
                "id": f"run-{n}",
                "second": float(n),
                "ms": search_ms + llm_ms,
                "user": f"u{n}",
                "stage_ms": {"search": search_ms, "llm": llm_ms},
                "attributes": {"shard": shard, "org": org},
                "data": {"critical_path": ["search", "llm"]},
            }
        )
    return write(tmp_path_factory.mktemp("incident") / "journal", runs)


def test_combination_includes_all_values_that_are_as_bad_and_separates_the_incident(
    two_organizations: Path,
) -> None:
    with EventStore(two_organizations) as store:
        found = store.explain_slow("runs")
        text = store.findings(explain=True)[0].text
    first = found.differences[0]
    assert "attributes.shard = eu-4" in first.description
    assert re.search(r"attributes.org in \(o-[25], o-[25]\)", first.description)
    assert first.rate == 1
    assert found.onset is not None
    assert found.onset_range is not None
    # The first slow run of the incident is the first with the shard after run 2,400.
    earliest, latest = found.onset_range
    assert earliest <= found.onset <= latest
    began = next(n for n in range(2_400, 3_600) if n % 7 in (2, 5) and n // 7 % 5 == 4)
    assert _second(earliest) <= began <= _second(latest) + 1
    shares = {place.stage: (place.share, place.cause_share) for place in found.locations}
    assert shares["search"][1] == pytest.approx(1, abs=0.05)
    assert f"since {found.onset[:19]}Z" in text
    assert "mostly" not in text


def test_text_begins_with_the_stage_of_the_incident(
    two_organizations: Path,
) -> None:
    with EventStore(two_organizations) as store:
        found = store.explain_slow("runs")
    first, other = found.differences[:2]
    varying = structs.replace(
        found, differences=(first, structs.replace(other, varies=str(first), verdict="remains"))
    )
    console = Console(file=StringIO(), width=160)
    console.print(draw_explanation(varying, width=160))
    text = console.file.getvalue()
    where = [line for line in text.splitlines() if line.startswith("where")]
    assert where[0].startswith("where  search ran")
    assert "of the excess time of the runs that match difference 1; " in where[0]
    assert "its effect depends on whether 1 matches too" in text


def test_slow_runs_of_each_pipeline_are_described_by_a_round_share(tmp_path: Path) -> None:
    runs = [{"id": f"r-{n}", "ms": 10.0 + n, "pipeline": "pq"[n % 2]} for n in range(204)]
    with EventStore(write(tmp_path / "journal", runs)) as store:
        found = store.explain_slow("runs")
    assert found.selection.count / 204 == pytest.approx(0.049, abs=5e-4)
    assert found.described == "the slowest 5% of each pipeline"


def _second(time: str) -> float:
    return (datetime.fromisoformat(time) - datetime(2026, 11, 1, tzinfo=UTC)).total_seconds()


# ------------------------------------------------------------ one run


def answers() -> list[dict[str, Any]]:
    """Return 300 runs of a pipeline, of which the last one is slow, and failures of another pipeline."""
    runs: list[dict[str, Any]] = [
        {
            "ms": 600.0 + n % 30,
            "user": f"u{n}",
            "attributes": {"tier": "free" if n % 25 else "paid", "tokens": 100 + n % 50, "route": "chat"},
            "stage_ms": {"llm": 500.0 + n % 30, "search": 100.0},
            "queue_ms": {"search": 1.0},
            "stage_attributes": {"cached": True, "hits": n % 10},
        }
        for n in range(299)
    ]
    runs.append(
        {
            "id": "slow-run",
            "ms": 3400.0,
            "user": "u-new",
            "attributes": {"tier": "paid", "tokens": 9000, "route": HOSTILE},
            "stage_ms": {"llm": 3100.0, "search": 100.0},
            "queue_ms": {"search": 201.0},
            "stage_attributes": {"cached": False, "hits": 3},
            "data": {"critical_path": ["search", "llm"]},
        }
    )
    for n in range(8):
        same = {"error_fingerprint": "f1" if n < 6 else "f2"}
        runs.append(
            {"id": f"failed-{n}", "fails": True, "error": HOSTILE, "data": same, "sample_rate": 1 + n % 2}
        )
    runs.append({"id": "alone", "pipeline": "other", "ms": 10.0})
    return runs


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("run") / "journal", answers())


def test_run_is_compared_with_its_peers(answered: Path) -> None:
    with EventStore(answered) as store:
        found = store.explain_run("slow-run")
    assert found.summary == (
        "This run took 3.4 s, typically 614 ms (p50; p95 628 ms): "
        "+2.59 s in llm, +200 ms waiting before search."
    )
    assert (found.pipeline, found.outcome, found.peers.rows) == ("p", "ok", 299)
    assert found.duration_ms.percentile == 1.0
    llm, search = found.stages
    assert (llm.stage, llm.critical, llm.peers) == ("llm", True, 299)
    assert (llm.ran_ms.value, llm.ran_ms.p50, llm.ran_ms.percentile) == (3100.0, 514.0, 1.0)
    assert (search.ran_ms.percentile, search.waited_ms.value, search.waited_ms.p95) == (0.0, 201.0, 1.0)
    assert search.retried_ms.value == 0.0
    unusual = {one.field: one for one in found.unusual}
    # Each user is rare, and 4% of the runs are paid. Both are not unusual in the same way.
    assert set(unusual) == {
        "attributes.tier",
        "attributes.tokens",
        "attributes.route",
        "llm/attributes.cached",
        "search/attributes.cached",
    }
    tier, tokens = unusual["attributes.tier"], unusual["attributes.tokens"]
    assert (tier.value, tier.typical, tier.share) == ("paid", "free", 12 / 299)
    assert (tokens.value, tokens.typical, tokens.low, tokens.high) == (9000.0, 124.0, 100.0, 149.0)
    assert found.same_error is None
    assert found.limitations == ()


def test_value_that_the_runs_with_the_same_problem_share_is_unusual(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = []
    for n in range(300):
        shard, is_late = f"eu-{n % 6}", n >= 200
        is_slow = is_late and shard == "eu-4"
        runs.append(
            {
                "id": f"run-{n}",
                "ms": 3100.0 if is_slow else 100.0 + n % 7,
                "stage_ms": {"search": 3000.0 if is_slow else 50.0 + n % 7, "llm": 40.0},
                "stage_attributes": {"shard": shard},
                "user": f"u{n}",
            }
        )
    with EventStore(write(tmp_path / "journal", runs)) as store:
        slow, usual = store.explain_run("run-298"), store.explain_run("run-295")
    (first, *_) = slow.unusual
    assert (first.field, first.value, first.similar_share) == ("llm/attributes.shard", "eu-4", 1.0)
    assert "search/attributes.shard" in {one.field for one in slow.unusual}
    assert slow.similar_are == "runs in which search took longer than 1.53 s"
    assert usual.unusual == ()


def test_values_that_distinguish_the_same_error_come_first_and_those_due_to_the_time_last(
    tmp_path: Path,
) -> None:
    runs: list[dict[str, Any]] = []
    for n in range(2400):  # 12 hours
        hour, region, codec = n / 200, ("us", "us", "eu", "ap")[n % 4], ("opus", "pcm")[n // 4 % 2]
        run = {
            "id": f"run-{n}",
            "second": hour * 3600,
            "version": "2" if hour >= 8 else "1",
            "attributes": {"region": region, "transport": "sip" if n % 16 > 2 else "webrtc"},
            "stage_ms": {"transcribe": 50.0 + n % 7},
            "stage_attributes": {"codec": codec},
        }
        if hour >= 10 and (region, codec) == ("ap", "opus"):
            run |= {"fails": True, "error": "CodecError: x", "data": {"error_fingerprint": "f1"}}
        runs.append(run)
    folder = write(tmp_path / "journal", runs)
    with EventStore(folder) as store:
        failed = store.explain_run("run-2395")
        usual = store.explain_run("run-2394")
    # Most peers have `transport = sip` as well, so that it is not unusual.
    region, codec, version = failed.unusual
    assert (region.field, region.value, region.similar_share) == ("attributes.region", "ap", 1.0)
    assert (codec.field, codec.value, codec.similar_share) == ("transcribe/attributes.codec", "opus", 1.0)
    assert 0.45 < codec.share < 0.5
    assert region.same_time_share is codec.same_time_share is None
    # The version was released two hours before the first failure.
    assert (version.field, version.value, version.similar_share) == ("service_version", "2", 1.0)
    assert version.same_time_share == 1.0
    assert usual.unusual == ()
    shown = command(folder, "run-2395")
    assert (
        "service_version = 2: 100% of the runs with the same error, 32% of the peers; 68% have 1; "
        "due to the time of the run: 100% of the peers from that time have it" in " ".join(shown.split())
    )


def test_value_that_is_rare_only_at_other_times_is_not_unusual(tmp_path: Path) -> None:
    day = 24 * 3600.0
    earlier = [{"id": f"earlier-{n}", "second": n - day, "version": "1"} for n in range(210)]
    later = [{"id": f"later-{n}", "second": float(n), "version": "2"} for n in range(4500)]
    earlier[100] |= {"attributes": {"tier": "paid"}}
    runs = [{"attributes": {"tier": "free"}, **run} for run in earlier + later]
    with EventStore(write(tmp_path / "journal", runs)) as store:
        found = store.explain_run("earlier-100")
    (tier,) = found.unusual
    assert (tier.field, tier.same_time_share) == ("attributes.tier", None)


def test_failures_with_the_same_error_are_counted_with_their_weight(answered: Path) -> None:
    with EventStore(answered) as store:
        found = store.explain_run("failed-1")
        filtered = store.explain_run("failed-1", RunFilter(until="2026-11-01T00:00:03.010000Z"))
    assert found.same_error is not None
    assert found.same_error.fingerprint == "f1"
    assert found.same_error.failures == Part(6, 9.0, 0.75)
    assert found.same_error.first_at == "2026-11-01T00:00:03.000000Z"
    assert found.same_error.last_at == "2026-11-01T00:00:03.050000Z"
    assert filtered.same_error is not None
    assert filtered.same_error.failures.rows == 1  # before the run itself


def test_explanation_of_a_run_is_printed(answered: Path) -> None:
    shown = command(answered, "slow-run")
    assert "This run took 3.4 s" in shown
    assert "attributes.tier = paid: 4% of the peers; 96% have free" in shown
    assert "attributes.tokens = 9,000: typically 124 (100 to 149)" in shown
    assert "\\x1b[31m" in shown
    assert shown.rstrip().endswith("stageflow show slow-run")
    assert json.loads(command(answered, "slow-run", "--json"))["stages"][0]["stage"] == "llm"
    assert "5 other failures have this error (f1): 75% of all failures" in command(answered, "failed-0")
    assert json.loads(command(answered, "failed-0", "--json"))["same_error"]["failures"]["rows"] == 6
    assert json.loads(command(answered, "last", "--json"))["run_id"] == "alone"
    assert json.loads(command(answered, "slow-r", "--json"))["run_id"] == "slow-run"
    assert json.loads(command(answered, "u-new", "--json"))["run_id"] == "slow-run"


@pytest.mark.parametrize("run_id", ["slow-run", "failed-0", "alone"])
@pytest.mark.parametrize("width", [40, 80])
def test_drawing_of_a_run_fits_the_width(answered: Path, run_id: str, width: int) -> None:
    with EventStore(answered) as store:
        found = store.explain_run(run_id)
    console = Console(width=width, file=StringIO(), color_system=None)
    console.print(draw_run_explanation(found, width=width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in shown
    assert all(cell_len(line) <= width for line in shown.splitlines())


def test_run_without_peers_is_explained(answered: Path) -> None:
    with EventStore(answered) as store:
        found = store.explain_run("alone")
    assert found.summary == ("This run took 10 ms. No other run of this pipeline has the outcome ok.")
    assert (found.peers.rows, found.duration_ms.p50, found.unusual) == (0, None, ())
    assert "fewer than 20 peers" in found.limitations[0]


@pytest.mark.parametrize(
    ("arguments", "problem", "exit_code"),
    [
        (("0000-0000",), "no run '0000-0000'", 1),
        (("failed-",), "runs that match 'failed-'", 1),
        (("last", "--changed"), "--changed does not apply to one run", 2),
        (("slow-run", "--against", "failed"), "--against does not apply to one run", 2),
        (("nobody",), "unknown field 'nobody'", 1),
    ],
)
def test_run_that_cannot_be_explained_is_an_error(
    answered: Path, arguments: tuple[str, ...], problem: str, exit_code: int
) -> None:
    assert problem in command(answered, *arguments, exit_code=exit_code)


def test_last_run_of_an_empty_journal_is_an_error(tmp_path: Path) -> None:
    assert "there are no runs yet" in command(write(tmp_path / "journal", []), "last", exit_code=1)


ENDLESS = """
    import asyncio, sys, time
    from stageflow import *

    slow = False

    async def load(ctx): return {}

    async def answer(ctx):
        ctx.annotate(route="rare" if slow else "usual")
        if slow:
            print("ready", flush=True)
            await asyncio.sleep(3600)
        return {}

    configure(sink=JournalSink(sys.argv[1]))
    pipeline = Pipeline("endless").with_stage("load", load)
    graph = pipeline.with_stage("answer", answer, dependencies=["load"]).build()
    for _ in range(30):
        asyncio.run(graph.run())
    slow = True
    asyncio.run(graph.run())
"""


def test_run_without_an_end_is_explained(program: Callable[[str], Program]) -> None:
    one = program(ENDLESS)
    one.wait_for("ready")
    with EventStore(one.journal) as store:
        found = store.explain_run("last")
        while found.stages[-1].stage != "answer":  # until the first heartbeat that contains the stage
            found = store.explain_run("last")
        assert (found.outcome, found.peers.rows) == ("open", 30)
        assert found.summary.startswith("This run has been running for ")
        load, answer = found.stages
        assert (load.status, answer.status, answer.attempts) == ("OK", "OPEN", None)
        assert answer.ran_ms.value is not None
        assert answer.ran_ms.value > (answer.ran_ms.p95 or 0)
        assert "answer/attributes.route" in {value.field for value in found.unusual}
        one.process.kill()
        one.ended()
        crashed = store.explain_run(found.run_id)
    assert (crashed.outcome, crashed.peers.rows) == ("crashed", 30)
    assert crashed.summary.startswith("This run crashed after ")
    assert "process died" in (crashed.error or "")
    assert [stage.status for stage in crashed.stages] == ["OK", "CANCEL"]
    assert "crashed" in command(one.journal, found.run_id)
