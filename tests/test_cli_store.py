"""Tests for the commands that query a store: their selections, output and exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_sampling import write_runs
from test_store import compact, ids, run_some
from typer.testing import CliRunner

from stageflow.cli._app import app
from stageflow.journal import JournalReader
from stageflow.render._statistics import draw_rows, draw_stats


def run(journal: Path, *arguments: str, exit_code: int = 0) -> str:
    found = CliRunner().invoke(app, [*arguments, "--journal", str(journal)], catch_exceptions=False)
    assert found.exit_code == exit_code, found.output
    return found.stdout


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a journal whose older half is archived."""
    folder = tmp_path_factory.mktemp("store") / "journal"
    run_some(folder)
    compact(folder)
    run_some(folder)
    return folder


def test_runs_and_show_read_the_archive(journal: Path) -> None:
    lines = [json.loads(line) for line in run(journal, "runs", "--json").splitlines()]
    assert len(lines) == 12
    oldest = lines[-1]["event_id"]
    shown = json.loads(run(journal, "show", oldest, "--json"))
    assert shown["run"] == lines[-1]
    assert len(shown["stages"]) == shown["run"]["stages_total"] + 1  # one was tried again
    assert oldest[:18] in run(journal, "runs")
    assert "no run" in CliRunner().invoke(app, ["show", "0199", "--journal", str(journal)]).stderr


def test_stats_counts_stages_and_runs(journal: Path) -> None:
    table = run(journal, "stats", "--pipeline", "ask")
    assert table.splitlines()[0].split()[:3] == ["stage", "count", "fail"]
    assert run(journal, "stats").splitlines()[0].split()[:3] == ["pipeline", "stage", "count"]
    stages = {stat["stage"]: stat for stat in map(json.loads, run(journal, "stats", "--json").splitlines())}
    assert (stages["notes"]["count"], stages["flaky"]["retried"], stages["skipped"]["skipped"]) == (6, 6, 6)
    assert stages["fails"]["failure_rate"] == 1.0
    rows = list(csv.DictReader(io.StringIO(run(journal, "stats", "--over", "runs", "--csv"))))
    assert {row["pipeline"]: float(row["count"]) for row in rows} == {"ask": 6, "child": 6}
    assert run(journal, "stats", "--where", "stage_name = 'notes'", "--json").count("\n") == 1


def test_stats_over_time_shows_a_trend(journal: Path) -> None:
    assert "█" in run(journal, "stats", "--every", "1h")
    first = json.loads(run(journal, "stats", "--every", "1h", "--json").splitlines()[0])
    assert first["since"].endswith("Z")
    run(journal, "stats", "--every", "often", exit_code=2)


def test_errors_are_grouped(journal: Path) -> None:
    groups = [json.loads(line) for line in run(journal, "errors", "--json").splitlines()]
    assert {(group["stage"], group["kind"], group["runs"]) for group in groups} == {
        ("maybe", "ValueError", 6),
        ("fails", "ValueError", 2),
    }
    assert "search is down" in run(journal, "errors")
    nothing = CliRunner().invoke(app, ["errors", "--stage", "none", "--journal", str(journal)])
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "no stage 'none'" in nothing.stderr


def test_slowest_names_the_stage_that_took_longest(journal: Path) -> None:
    slow = [json.loads(line) for line in run(journal, "slowest", "--json", "--limit", "3").splitlines()]
    assert len(slow) == 3
    assert slow[0]["duration_ms"] >= slow[1]["duration_ms"] >= slow[2]["duration_ms"]
    assert slow[0]["stage"]
    assert "queue ms" in run(journal, "slowest", "--over", "stages")


def test_compare_accepts_windows_versions_and_sql(journal: Path) -> None:
    both = json.loads(
        run(journal, "compare", "1d..now", "2d..1d", "--over", "runs", "--json").splitlines()[0]
    )
    assert both["before"]["count"] == 6
    assert both["after"]["count"] == 0
    assert "→" in run(journal, "compare", "user_id = 'u1'", "user_id <> 'u1'")
    assert run(journal, "compare", "version=1", "version=2") == ""
    run(journal, "compare", "soon..now", "true", exit_code=2)


def test_explain_prints_the_differences(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    write_runs(
        folder,
        [{"user": f"u{n % 40}", "fails": n % 40 == 7 and n % 5 != 0, "id": f"{n:05d}"} for n in range(4000)],
    )
    assert "user_id = u7" in run(folder, "explain")
    found = json.loads(run(folder, "explain", "--json"))["differences"][0]
    assert found["fields"] == ["user_id"]
    assert run(folder, "query", found["sql"], "--json").count("\n") == found["selection"]["rows"]
    half = "hash(pipeline_run_id) % 2 = 0"
    assert "No field differs." in run(folder, "explain", half, "--pipeline", "p")
    run(folder, "explain", "slow")


def test_query_prints_a_table_json_or_csv(journal: Path) -> None:
    sql = "select pipeline_name, count(*) as n, null as nothing from runs group by 1 order by 1"
    assert (
        run(journal, "query", sql) == "pipeline_name  n  nothing\nask            6  -\nchild          6  -\n"
    )
    assert json.loads(run(journal, "query", sql, "--json").splitlines()[0]) == {
        "pipeline_name": "ask",
        "n": 6,
        "nothing": None,
    }
    assert run(journal, "query", sql, "--csv") == "pipeline_name,n,nothing\nask,6,\nchild,6,\n"
    run(journal, "query", sql, "--csv", "--json", exit_code=2)
    more = CliRunner().invoke(app, ["query", "from runs", "--limit", "1", "--journal", str(journal)])
    assert "--limit 0 all" in more.stderr


def test_invalid_query_is_reported_without_a_traceback(journal: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "stageflow", "query", "select nope from runs", "--journal", str(journal)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 1
    assert told.stdout == ""
    assert "nope" in told.stderr
    assert "Traceback" not in told.stderr
    assert "leaked" not in told.stderr


def test_compact_reports_the_archived_events(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    assert run(folder, "compact", "--keep", "0s").endswith("events of 1 file archived\n")
    assert run(folder, "compact") == "0 events of 0 files archived\n"
    write_runs(folder, [{} for _ in range(500)])
    sampler = tmp_path / "sampling.toml"
    sampler.write_text("one_in = 10")
    done = json.loads(run(folder, "compact", "--sampler", str(sampler), "--json"))
    assert done["rows"] == 500
    assert 20 < done["kept_rows"] < 100
    run(folder, "compact", "--max-age", "soon", exit_code=2)


def test_volume_and_sampling_report_the_size_of_fields_and_the_effect_of_a_sampler(
    journal: Path, tmp_path: Path
) -> None:
    held = json.loads(run(journal, "volume", "--json"))
    assert held["bytes"] > 0
    assert held["journal_bytes"] > 0
    assert {share["name"] for share in held["types"]} == {"stage.wide", "pipeline.wide", "cache.miss"}
    assert "attributes.hits" in {share["name"] for share in held["fields"]}
    assert "B/event" in run(journal, "volume")
    sampler = tmp_path / "sampling.toml"
    sampler.write_text("keep_failures = false\nfirst_of_a_kind = false\none_in = 1000000")
    told = run(journal, "sampling", str(sampler))
    assert told.splitlines()[-1].split() == ["all", "12", "0", *told.splitlines()[-1].split()[3:]]
    sampler.write_text("one = 1")
    wrong = CliRunner().invoke(app, ["sampling", str(sampler), "--journal", str(journal)])
    assert wrong.exit_code == 2
    assert "unknown field 'one'" in wrong.stderr


def test_totals_are_exact(journal: Path) -> None:
    rows = [json.loads(line) for line in run(journal, "totals", "--json").splitlines()]
    assert {(row["pipeline"], row["status"]): row["count"] for row in rows} == {
        ("ask", "OK"): 4,
        ("ask", "FAIL"): 2,
        ("child", "OK"): 6,
    }
    assert "notes" in run(journal, "totals", "--stages")


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        (["compact", "--max-age", "3"], "write --max-age 3d"),
        (["compact", "--counts-max-age", "730"], "write --counts-max-age 730d"),
        (["compact", "--keep", "0"], "write --keep 0m"),
        (["compact", "--every", "2.5"], "write --every 2.5s"),
        (["stats", "--every", " 10 "], "write --every 10m"),
        (["alerts", "run", "--every", "60"], "write --every 60s"),
        (["alerts", "silence", "rule", "--for", "2", "--reason", "known"], "write --for 2h"),
    ],
)
def test_span_without_unit_is_an_error_that_states_what_to_write(
    tmp_path: Path, command: list[str], remedy: str
) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    (tmp_path / "alerts.toml").write_text('[[rules]]\nkind = "no_runs"\nname = "rule"\n')
    if command[0] == "alerts":
        command = [*command, "--rules", str(tmp_path / "alerts.toml")]
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    refused = CliRunner().invoke(app, [*command, "--journal", str(folder)])
    assert refused.exit_code == 2, refused.output
    assert f"has no unit; {remedy} (units: ms, s, m, h, d, w)" in refused.stderr
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == before


@pytest.mark.parametrize("span", ["soon", "-2h", "2 hours ago", "99999w", "", "1e3", "0s"])
def test_span_that_cannot_be_used_is_an_error(journal: Path, span: str) -> None:
    refused = CliRunner().invoke(app, ["stats", f"--every={span}", "--journal", str(journal)])
    assert refused.exit_code == 2, refused.output
    assert "Invalid value for '--every'" in refused.stderr


@pytest.mark.parametrize("filters", [[], ["--type", "pipeline.wide"], ["--json"]])
def test_tail_reports_events_that_are_only_in_the_archive(tmp_path: Path, filters: list[str]) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    events = len(JournalReader(folder).read())
    arguments = ["tail", "-n", "1000", *filters, "--journal", str(folder)]
    assert CliRunner().invoke(app, arguments).stderr == ""
    run(folder, "compact", "--keep", "0s")
    # Retention removes archived segments when the next one is archived.
    run(folder, "compact", "--keep", "0s")
    removed = JournalReader(folder).removed_events
    assert removed == events
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    query = f"`stageflow query 'from events order by ended_at desc' --journal {folder}`"
    assert shown.stderr == f"{removed} older events are in the archive only; {query} shows archived events\n"
    assert CliRunner().invoke(app, ["tail", "-n", "0", "--journal", str(folder)]).stderr == ""
    answer = CliRunner().invoke(app, ["query", "from events order by ended_at desc", "--json", "--limit", "0",
        "--journal", str(folder)])  # fmt: skip
    assert answer.stdout.count("\n") == events


def test_archive_without_a_journal_can_be_queried(journal: Path) -> None:
    asked = ["query", "select count(*) from runs", "--csv", "--archive", str(journal / "archive")]
    found = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert found.stdout == "count_star()\n6\n"


def test_missing_store_extra_is_named(journal: Path) -> None:
    script = (
        "import sys; sys.modules['duckdb'] = None\n"
        "from stageflow.cli import main; sys.argv = ['stageflow', 'stats', '--journal', sys.argv[1]]; main()"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(journal)], capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 1
    assert 'pip install "stageflow[store]"' in told.stderr


def test_tables_fit_their_terminal() -> None:
    from rich.console import Console

    stat: dict[str, Any] = dict.fromkeys(("ok", "failed", "skipped", "cancelled", "retried"), 1)
    stat |= {"pipeline": "a pipeline with a long name", "stage": "a stage with a long name", "since": None}
    stat |= {"rows": 1, "count": 12345.0, "failure_rate": 0.5, "estimated": True, "count_interval": (1, 3)}
    stat |= {f"p{rank}_ms": 123456.789 for rank in (50, 90, 95, 99)}
    stat |= {"failure_rate_interval": None, "p95_interval": None}
    for width in (40, 60, 80, 120):
        out = io.StringIO()
        console = Console(file=out, width=width)
        console.print(draw_stats([stat], width=width))
        console.print(draw_rows(["text", "n"], [("word " * 60, 1), ("\x1b[2J", 2)], width=width))
        assert max(map(len, out.getvalue().splitlines())) <= width
        assert "\x1b" not in out.getvalue()


def test_runs_of_a_journal_without_an_archive_need_no_extra(tmp_path: Path) -> None:
    runs = ids(run_some(tmp_path / "journal"))
    script = (
        "import sys; sys.modules['duckdb'] = sys.modules['deltalake'] = None\n"
        "from stageflow.cli import main; sys.argv = ['stageflow', 'runs', '--journal', sys.argv[1]]; main()"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "journal")],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"COLUMNS": "120"},
    )
    assert runs[0] in told.stdout


# ------------------------------------------------------------ fields and selections


def failed(journal: Path, *arguments: str, exit_code: int = 1) -> str:
    """Run a command that fails, and return its error on one line."""
    found = CliRunner().invoke(app, [*arguments, "--journal", str(journal)], catch_exceptions=False)
    assert (found.exit_code, found.stdout) == (exit_code, "")
    return " ".join(found.stderr.split())


@pytest.mark.parametrize(
    "command",
    [
        ("runs",),
        ("stats",),
        ("stats", "--over", "runs"),
        ("errors",),
        ("slowest",),
        ("slowest", "--over", "stages"),
    ],
)
def test_unknown_field_in_where_is_reported_with_the_closest_name(
    journal: Path, command: tuple[str, ...]
) -> None:
    error = failed(journal, *command, "--where", "stauts = 'FAIL'")
    assert "unknown field 'stauts' in \"stauts = 'FAIL'\"; did you mean 'status'?" in error
    assert "write text in single quotes: 'FAIL'" in failed(journal, *command, "--where", "status=FAIL")
    assert "use user_id" in failed(journal, *command, "--where", "status = 'OK' and user = 'u1'")


@pytest.mark.parametrize(
    "predicate", ["status in ('OK', FAIL)", "FAIL = status", "org_id is not null and status <> FAIL"]
)
def test_text_without_quotes_is_reported_wherever_it_is_compared(journal: Path, predicate: str) -> None:
    assert "write text in single quotes: 'FAIL'" in failed(journal, "stats", "--where", predicate)
    assert "write text in single quotes: 'FAIL'" in failed(journal, "query", f"from runs where {predicate}")


def test_attribute_without_prefix_is_reported_with_its_name(journal: Path) -> None:
    assert 'did you mean "attributes.hits"?' in failed(journal, "stats", "--where", "hits > 1")


@pytest.mark.parametrize(
    "query", ["select user from runs", "select count(*) from runs where USER = 'u1'", "select current_user"]
)
def test_query_that_would_return_the_user_of_the_database_is_an_error(journal: Path, query: str) -> None:
    assert "hint: use user_id" in failed(journal, "query", query)


def test_query_can_define_a_column_named_user(journal: Path) -> None:
    found = run(
        journal,
        "query",
        "select user_id as user, count(*) as n from runs group by user order by user",
        "--csv",
    )
    assert found.startswith("user,n\n")


@pytest.mark.parametrize(
    "command", [("explain", "fast"), ("compare", "fast", "true"), ("explain", "--against", "fast")]
)
def test_word_that_is_not_a_selection_is_reported_with_the_accepted_forms(
    journal: Path, command: tuple[str, ...]
) -> None:
    error = failed(journal, *command)
    assert "unknown field 'fast'" in error
    for form in ("failed", "slow", "2h..1h", "version=1.5", "user_id = 'u1'"):
        assert form in error


@pytest.mark.parametrize(
    "command",
    [
        ("compare", "slow", "failed"),
        ("explain", "--against", "slow"),
        ("explain", "slow", "--against", "failed"),
    ],
)
def test_slow_is_accepted_only_where_a_threshold_can_be_calculated(
    journal: Path, command: tuple[str, ...]
) -> None:
    assert "duration_ms > 500" in failed(journal, *command, exit_code=2)


def test_failed_is_a_selection_of_every_command(journal: Path) -> None:
    rows = [
        json.loads(line)
        for line in run(journal, "compare", "failed", "true", "--over", "runs", "--json").splitlines()
    ]
    assert sum(row["before"]["count"] for row in rows) == 2


def test_compare_reports_a_side_that_selects_nothing(journal: Path) -> None:
    for arguments, message in (
        (("true", "version=9"), "version=9 selects no stages\n"),
        (("version=9", "true", "--over", "runs"), "version=9 selects no runs\n"),
        (("version=8", "version=9"), "version=8 selects no stages\nversion=9 selects no stages\n"),
    ):
        done = CliRunner().invoke(app, ["compare", *arguments, "--journal", str(journal)])
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", message)


def test_stats_are_grouped_by_a_field(journal: Path) -> None:
    rows = [
        json.loads(line)
        for line in run(journal, "stats", "--over", "runs", "--by", "outcome", "--json").splitlines()
    ]
    counts = {(row["pipeline"], row["group"]): row["count"] for row in rows}
    assert counts == {("ask", "degraded"): 4, ("ask", "failed"): 2, ("child", "ok"): 6}
    assert run(journal, "stats", "--over", "runs", "--by", "outcome").split()[:2] == ["pipeline", "outcome"]
    assert "█" in run(journal, "stats", "--by", "status", "--every", "1h")


def test_stats_are_grouped_by_an_attribute_with_or_without_prefix(journal: Path) -> None:
    with_prefix = run(journal, "stats", "--by", "attributes.hits", "--json")
    assert (
        with_prefix
        == run(journal, "stats", "--by", "hits", "--json")
        == run(journal, "stats", "--by", "HITS", "--json")
    )
    groups = {json.loads(line)["group"] for line in with_prefix.splitlines()}
    assert None in groups
    assert len(groups) > 1


def test_stats_by_a_field_are_estimated_if_events_were_sampled(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    write_runs(folder, [{"user": f"u{n % 2}", "id": f"{n:05d}"} for n in range(2000)])
    (tmp_path / "sampling.toml").write_text("one_in = 10\nfirst_of_a_kind = false")
    run(folder, "compact", "--keep", "0s", "--sampler", str(tmp_path / "sampling.toml"))
    rows = [
        json.loads(line)
        for line in run(folder, "stats", "--over", "runs", "--by", "user_id", "--json").splitlines()
    ]
    assert {row["group"] for row in rows} == {"u0", "u1"}
    for row in rows:
        low, high = row["count_interval"]
        assert row["estimated"]
        assert low < 1000 < high


def test_stats_by_an_unknown_field_is_an_error(journal: Path) -> None:
    assert "unknown field 'usr_id'; did you mean 'user_id'?" in failed(journal, "stats", "--by", "usr_id")


# ------------------------------------------------------------ JSON


@pytest.mark.parametrize(
    "command",
    [
        ("runs",),
        ("show",),
        ("tail",),
        ("stats",),
        ("errors",),
        ("slowest",),
        ("compare", "true", "true"),
        ("explain",),
        ("totals",),
        ("query", "from runs"),
        ("volume",),
        ("doctor",),
        ("sampling", "sampling.toml"),
        ("alerts", "run"),
        ("alerts", "check"),
        ("alerts", "list"),
        ("alerts", "test"),
        ("compact",),
    ],
)
def test_json_output_is_one_object_per_line(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sampling.toml").write_text("one_in = 2")
    (tmp_path / "alerts.toml").write_text('[[rules]]\nkind = "no_runs"\nname = "rule"\n')
    where = (
        ["--state", str(tmp_path / "state.json")]
        if command in (("alerts", "run"), ("alerts", "list"))
        else []
    )
    journal_option = [] if command == ("alerts", "test") else ["--journal", str(journal)]
    done = CliRunner().invoke(app, [*command, "--json", *where, *journal_option], catch_exceptions=False)
    assert all(isinstance(json.loads(line), dict) for line in done.stdout.splitlines())
    assert done.stdout or command == ("alerts", "test")


def test_alerts_check_prints_the_number_of_rules_and_receivers(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, receiver = (
        '[[rules]]\nkind = "no_runs"\nname = "{}"\n',
        '[[receivers]]\nkind = "webhook"\nname = "{}"\nurl = "https://a.example"\nsecret_env = "S"\n',
    )
    monkeypatch.setenv("S", "x" * 32)
    for rules, receivers, line in (
        (2, 1, "OK: 2 rules, 1 receiver"),
        (1, 2, "OK: 1 rule, 2 receivers"),
        (1, 0, "OK: 1 rule, 0 receivers"),
    ):
        content = "".join(rule.format(n) for n in range(rules)) + "".join(
            receiver.format(n) for n in range(receivers)
        )
        (tmp_path / "alerts.toml").write_text(content)
        assert (
            run(journal, "alerts", "check", "--rules", str(tmp_path / "alerts.toml")).splitlines()[-1] == line
        )
