"""Tests for the server of the web UI: access, the API, snapshots and interrupted queries."""

from __future__ import annotations

import base64
import gzip
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from conftest import Program
from test_explain_more import write
from ui_server import Served, serve

from stageflow.store import PinnedStore
from stageflow.ui import _api, explanation_as_html

ENDLESS = "select sum(a.range * b.range) from range(1000000) a, range(1000000) b"
"""A query that takes hours."""

QUESTIONS: dict[str, tuple[dict[str, str], Any]] = {
    "snapshot": ({}, _api.SnapshotInfo),
    "overview": ({}, _api.Overview),
    "causes": ({}, _api.Causes),
    "runs": ({"count": "1", "where": "failed"}, _api.Runs),
    "live": ({}, _api.Runs),
    "run": ({"id": "last", "explain": "1"}, _api.RunDetails),
    "heatmap": ({"select": "duration_ms > 500"}, _api.Heatmap),
    "series": ({"by": "model", "previous": "1"}, _api.Series),
    "facets": ({"select": "failed"}, _api.Facets),
    "differences": ({"select": "failed"}, _api.Differences),
    "errors": ({}, _api.Errors),
    "stages": ({}, _api.Stages),
    "status": ({}, _api.Status),
    "complete": ({"field": "model"}, _api.Completions),
    "sql": ({"query": "select status, count(*) from runs group by 1"}, _api.SqlResult),
}


def planted(folder: Path, runs: int = 400) -> Path:
    """Write runs in which most of those with the model m-large and the org o-1 fail and are slow."""

    def run(number: int) -> dict[str, Any]:
        model, org = f"m-{('large', 'small', 'mini')[number % 3]}", f"o-{number * 7 % 5}"
        bad = model == "m-large" and org == "o-1" and number % 10 > 0
        return {
            "second": number * 10,
            "fails": bad or number % 97 == 0,
            "ms": 100 + number % 50 + 900 * bad,
            "user": f"u-{number % 40}",
            "attributes": {"model": model, "org": org, "tokens": number % 300},
            "stage_ms": {"search": 10.0, "llm": 80.0 + number % 50 + 900 * bad},
        }

    return write(folder, map(run, range(runs)))


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("ui") / "journal")


@pytest.fixture(scope="module")
def ui(journal: Path) -> Generator[Served]:
    with serve(journal) as served:
        yield served


def wait_until(is_true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)


# ---------------------------------------------------------------- access


def test_request_without_the_token_is_rejected(ui: Served) -> None:
    for path in ("/", "/api/runs", "/api/stream", "/app.js", "/nowhere"):
        response = httpx.get(f"{ui.origin}{path}")
        assert response.status_code == 401, path
        assert "expired" in response.text
    assert httpx.get(f"{ui.origin}/api/runs").json()["reason"] == "expired"
    assert httpx.get(f"{ui.origin}/?token=wrong").status_code == 401


def test_token_moves_from_the_url_to_a_cookie_of_the_port(ui: Served) -> None:
    response = httpx.get(f"{ui.url}&view=runs&where=failed")
    assert response.status_code == 303
    assert response.headers["location"] == "/?view=runs&where=failed"
    cookie = response.headers["set-cookie"]
    assert cookie.startswith(f"stageflow_{ui.port}=")
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie


def test_cookie_of_a_restarted_server_has_expired(journal: Path, ui: Served) -> None:
    with serve(journal) as restarted:
        old = ui.client.cookies[f"stageflow_{ui.port}"]
        response = httpx.get(f"{restarted.origin}/api/runs", cookies={f"stageflow_{restarted.port}": old})
        assert (response.status_code, response.json()["reason"]) == (401, "expired")


def test_foreign_host_is_rejected(ui: Served) -> None:
    for host in ("evil.example", "evil.example:80", f"127.0.0.1.evil.example:{ui.port}", ""):
        response = httpx.get(ui.url, headers={"host": host})
        assert response.status_code in (400, 421), host


def test_tunnel_with_another_port_is_accepted(ui: Served) -> None:
    token = ui.url.partition("token=")[2]
    host = {"host": "localhost:9999"}
    opened = httpx.get(ui.url, headers=host)
    assert opened.headers["set-cookie"].startswith("stageflow_9999=")
    cookies = {"cookie": f"stageflow_9999={token}", "origin": "http://localhost:9999"}
    assert httpx.get(f"{ui.origin}/api/runs", headers=host | cookies).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_request_of_another_site_is_rejected(ui: Served, headers: dict[str, str]) -> None:
    assert ui.client.get("/api/runs", headers=headers).status_code == 403


def test_link_from_another_site_opens_the_page(ui: Served) -> None:
    response = ui.client.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})
    assert response.status_code == 200


def test_every_response_has_the_security_headers(ui: Served) -> None:
    for path in ("/", "/api/runs", "/api/runs?where=(", "/api/nothing", "/app.js"):
        headers = ui.client.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/static/../_app.py", "/%2e%2e/_app.py", "/..%2f_app.py", "//etc/passwd"]
)
def test_path_outside_of_the_page_is_not_found(ui: Served, path: str) -> None:
    response = ui.client.get(httpx.URL(ui.origin, raw_path=path.encode()))
    assert response.status_code == 404
    assert "WebUI" not in response.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_server_only_reads(ui: Served, method: str) -> None:
    assert ui.client.request(method, "/api/runs").status_code in (404, 405)


# ---------------------------------------------------------------- API


@pytest.mark.parametrize("path", QUESTIONS)
def test_answer_has_the_documented_type(ui: Served, path: str) -> None:
    parameters, kind = QUESTIONS[path]
    msgspec.convert(ui.get(path, **parameters), kind)


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("runs", {"where": "1=1) or (1=1"}),
        ("runs", {"where": "failed; drop view runs"}),
        ("runs", {"where": "(select count(*) from read_csv('/etc/passwd')) > 0"}),
        ("runs", {"where": "nothing = 1"}),
        ("runs", {"before": "' or 1=1 --~x"}),
        ("runs", {"order": "pg_sleep(1)"}),
        ("runs", {"limit": "100000"}),
        ("runs", {"limit": "-1"}),
        ("runs", {"since": "soon"}),
        ("runs", {"since": "1h", "until": "2h"}),
        ("runs", {"colour": "red"}),
        ("runs", {"snapshot": "x"}),
        ("heatmap", {"measure": 'duration_ms"; drop view runs; --'}),
        ("heatmap", {"measure": "pipeline_name"}),
        ("heatmap", {"select": "started_at >"}),
        ("heatmap", {"columns": "5000"}),
        ("series", {"by": "nothing"}),
        ("facets", {"select": "nothing = 1"}),
        ("differences", {}),
        ("differences", {"select": "(select 1"}),
        ("complete", {"field": "nothing"}),
        ("sql", {}),
        ("sql", {"query": "copy runs to '/tmp/x.csv'"}),
        ("sql", {"query": "attach '/tmp/x.db'"}),
        ("sql", {"query": "select * from read_text('/etc/passwd')"}),
        ("stages", {"where": "nothing = 1"}),
    ],
)
def test_invalid_question_is_answered_with_a_problem(
    ui: Served, path: str, parameters: dict[str, str]
) -> None:
    problem = ui.problem(path, **parameters)
    assert (problem["status"], problem["reason"]) == (400, "invalid"), problem
    assert problem["title"]
    assert ui.get("sql", query="select count(*) from runs")["rows"] == [[400]]


def test_unknown_run_is_not_found(ui: Served) -> None:
    problem = ui.problem("run", id="nothing")
    assert problem["status"] == 404


def test_differences_of_a_box_name_the_planted_cause(ui: Served) -> None:
    found = ui.get("differences", select="duration_ms >= 900")["explanation"]
    assert "m-large" in found["summary"]
    assert {"attributes.model", "attributes.org"} <= set(found["differences"][0]["fields"])


def test_cells_of_a_heatmap_count_every_row_once(ui: Served) -> None:
    found = ui.get("heatmap", columns="37", rows="23", select="failed")
    edges, cells = found["edges"], found["cells"]
    assert sum(count for _, _, count, *_ in cells) == found["count"] == 400
    assert len(edges) == 24
    for row in range(23):
        upper = "<=" if row == 22 else "<"
        lower = "true" if row == 0 else f"duration_ms >= {edges[row]!r}"
        where = f"{lower} and duration_ms {upper} {edges[row + 1]!r}"
        counted = ui.get("sql", query=f"select count(*), count(*) filter (failed) from runs where {where}")
        of_row = [cell for cell in cells if cell[1] == row]
        sums = [sum(cell[2] for cell in of_row), sum(cell[4] for cell in of_row)]
        assert sums == counted["rows"][0], where


def test_condition_of_each_bar_selects_its_rows(ui: Served) -> None:
    for facet in ui.get("facets", select="failed")["fields"]:
        for bar in facet["values"] + facet["bins"]:
            where = f"({bar['where']}) and failed"
            assert ui.get("runs", where=where, count="1")["total"] == pytest.approx(bar["selection"]), where


def test_pages_of_runs_contain_each_run_once(ui: Served) -> None:
    for order in ("-started_at", "started_at", "-duration_ms", "duration_ms"):
        for where in ({}, {"where": "duration_ms >= 0"}):
            seen: list[str] = []
            position: dict[str, str] = {}
            while True:
                page = ui.get("runs", order=order, limit="150", **where, **position)
                seen += [row["run_id"] for row in page["rows"]]
                if page["next"] is None:
                    break
                position = {"before": page["next"]}
            assert len(seen) == len(set(seen)) == 400, (order, where)


def test_series_by_a_field_counts_every_run(ui: Served) -> None:
    found = ui.get("series", by="model")
    assert {group["name"]: sum(group["count"]) for group in found["groups"]} == {
        "m-large": 134,
        "m-small": 133,
        "m-mini": 133,
    }
    for group in found["groups"]:
        assert len(group["count"]) == found["steps"]
        assert ui.get("runs", where=group["where"], count="1")["total"] == sum(group["count"])
        ((count, failed, p50_ms, p95_ms),) = ui.get(
            "sql",
            query="select count(*), count(*) filter (failed), quantile_disc(duration_ms, 0.5),"
            f" quantile_disc(duration_ms, 0.95) from runs where {group['where']}",
        )["rows"]
        total = group["total"]
        assert (total["count"], total["failed"], total["failure_rate"]) == (count, failed, failed / count)
        assert (total["p50_ms"], total["p95_ms"]) == (p50_ms, p95_ms)


def test_condition_of_each_error_selects_its_runs(ui: Served) -> None:
    rows = ui.get("errors")["rows"]
    assert rows
    for row in rows:
        assert ui.get("runs", where=row["where"], count="1")["total"] == row["group"]["runs"], row["where"]


def test_overview_names_the_cause(ui: Served) -> None:
    first = ui.get("causes")["findings"][0]
    assert first["level"] == "bad"
    assert "m-large" in first["text"]
    assert ui.get("runs", where=first["where"], count="1")["total"] > 10


# ---------------------------------------------------------------- queries


def test_newer_request_of_a_panel_replaces_the_previous_one(ui: Served) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        headers = {"x-stageflow-panel": "tab/sql"}
        answers.append(ui.client.get("/api/sql", params={"query": ENDLESS}, headers=headers))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: ui.get("status")["queries"] == 1)
    newer = ui.get("sql", {"x-stageflow-panel": "tab/sql"}, query="select 1 as one")
    assert newer["rows"] == [[1]]
    asking.join(10)
    assert (answers[0].status_code, answers[0].json()["reason"]) == (409, "replaced")
    wait_until(lambda: ui.get("status")["queries"] == 0)


def test_query_of_a_closed_tab_is_interrupted(ui: Served) -> None:
    with (
        httpx.Client(base_url=ui.origin, cookies=ui.client.cookies) as client,
        pytest.raises(httpx.ReadTimeout),
    ):
        client.get("/api/sql", params={"query": ENDLESS + " -- closed"}, timeout=1)
    wait_until(lambda: ui.get("status")["queries"] == 0)


def test_identical_requests_share_one_execution(ui: Served) -> None:
    query = {"query": ENDLESS + " -- shared"}
    threads = [
        threading.Thread(
            target=lambda tab=tab: ui.client.get(
                "/api/sql", params=query, headers={"x-stageflow-panel": f"{tab}/shared"}
            )
        )
        for tab in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: ui.get("status")["queries"] == 1)
    # The query continues for the other tab.
    ui.get("sql", {"x-stageflow-panel": "a/shared"}, query="select 1")
    threads[0].join(10)
    assert ui.get("status")["queries"] == 1
    ui.get("sql", {"x-stageflow-panel": "b/shared"}, query="select 1")
    threads[1].join(10)
    wait_until(lambda: ui.get("status")["queries"] == 0)


def test_runs_are_listed_while_heavy_queries_run(ui: Served) -> None:
    def ask(number: int) -> None:
        headers = {"x-stageflow-panel": f"heavy/{number}"}
        ui.client.get("/api/sql", params={"query": f"{ENDLESS} -- {number}"}, headers=headers)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: ui.get("status")["queries"] == 3)
    assert len(ui.get("runs")["rows"]) == 200
    assert len(ui.get("runs", where="duration_ms > 0")["rows"]) == 200
    for number in range(3):
        # A request that is cached needs no permit, and replaces the query.
        ui.get("heatmap", {"x-stageflow-panel": f"heavy/{number}"})
    for thread in threads:
        thread.join(10)


# ---------------------------------------------------------------- new data


WRITER = """
import asyncio, sys
from stageflow import Pipeline, PipelineContext, configure
from stageflow.journal import JournalSink

configure(sink=JournalSink(sys.argv[1]))

async def work(ctx):
    ctx.annotate(step="work")

async def hang(ctx):
    print("hanging", flush=True)
    await asyncio.sleep(3600)

async def main():
    await Pipeline("quick").with_stage("work", work).build().run(PipelineContext())
    print("ran", flush=True)
    sys.stdin.readline()
    await Pipeline("slow").with_stage("hang", hang).build().run(PipelineContext())

asyncio.run(main())
"""


def events_of(response: httpx.Response) -> Generator[tuple[str, Any]]:
    kind = ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def test_snapshot_follows_the_journal_and_older_ones_stay_readable(
    program: Callable[[str], Program], tmp_path: Path
) -> None:
    writer = program(WRITER)
    writer.wait_for("ran")
    with serve(writer.journal) as ui:
        first = ui.get("snapshot")
        assert (first["runs"], first["pipelines"]) == (1, ["quick"])
        with ui.client.stream("GET", "/api/stream") as response:
            events = events_of(response)
            assert next(events) == ("snapshot", first)
            assert writer.process.stdin is not None
            writer.process.stdin.write("go on\n")
            writer.process.stdin.flush()
            writer.wait_for("hanging")
            live = next(data for kind, data in events if kind == "live" and data["rows"])
            assert [(run["pipeline"], run["status"]) for run in live["rows"]] == [("slow", "OPEN")]
            run_id = live["rows"][0]["run_id"]
            assert ui.get("run", id=run_id)["run"]["status"] == "OPEN"
            # The run of a process that receives SIGKILL is shown as crashed.
            writer.process.kill()
            crashed = next(data for kind, data in events if kind == "snapshot" and data["runs"] == 2)
            assert crashed["number"] > first["number"]
        newest = ui.get("runs")["rows"][0]
        assert (newest["run_id"], newest["outcome"]) == (run_id, "crashed")
        assert ui.get("sql", query="select count(*) from runs")["rows"] == [[2]]


def test_old_snapshot_is_read_until_it_is_gone(tmp_path: Path) -> None:
    folder = planted(tmp_path / "journal", 10)
    with serve(folder) as ui:
        first = ui.get("snapshot")["number"]
        (tmp_path / "more").mkdir()
        for count in range(3):
            planted_more = planted(tmp_path / f"more-{count}", 5 + count)
            for file in planted_more.iterdir():
                file.rename(folder / file.name)
            wait_until(lambda: ui.get("snapshot")["number"] > first + count)  # noqa: B023
            if count == 0:
                query = "select count(*) from runs"
                assert ui.get("sql", query=query, snapshot=str(first))["rows"] == [[10]]
        problem = ui.problem("sql", query="select 1", snapshot=str(first))
        assert (problem["status"], problem["reason"]) == (410, "snapshot")


def test_ctrl_c_ends_the_server_while_a_browser_listens(journal: Path) -> None:
    with serve(journal) as ui, ui.client.stream("GET", "/api/stream") as response:
        next(events_of(response))
        ui.process.send_signal(signal.SIGINT)
        assert ui.process.wait(10) in (0, 130)
        assert ui.process.stdout is not None
        assert "Traceback" not in ui.process.stdout.read()


def test_port_in_use_is_reported(ui: Served, journal: Path) -> None:
    expected = rf"cannot listen on 127.0.0.1:{ui.port}: [^()\n]+\n  hint: choose another port"
    with pytest.raises(AssertionError, match=expected), serve(journal, "--port", str(ui.port)):
        pass


def test_address_that_cannot_be_used_is_reported(journal: Path) -> None:
    expected = r"cannot listen on nowhere\.invalid:0: [^()\n]+\n$"
    with pytest.raises(AssertionError, match=expected), serve(journal, "--host", "nowhere.invalid"):
        pass


def test_journal_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"does not exist|no journal"), serve(tmp_path / "nowhere"):
        pass


def test_journal_without_runs_is_shown(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    with serve(tmp_path / "journal") as ui:
        assert ui.get("runs")["rows"] == []
        assert ui.get("causes")["findings"][0]["level"] == "ok"
        assert ui.get("heatmap")["cells"] == []
        assert ui.get("facets")["fields"] == []
        assert ui.get("series")["groups"][0]["count"]
        assert ui.get("stages")["rows"] == []
        assert ui.get("errors")["rows"] == []
        assert ui.get("differences", select="failed")["explanation"]["differences"] == []
        assert ui.problem("run", id="last")["status"] == 404


# ---------------------------------------------------------------- actions


RULES = """
[[rules]]
kind = "failure_rate"
name = "runs fail"
window = 31536000
above = 0.01
"""


def evaluated(folder: Path) -> Path:
    journal = planted(folder / "journal", 50)
    (folder / "alerts.toml").write_text(RULES)
    command = ["alerts", "run", "--rules", str(folder / "alerts.toml"), "--journal", str(journal)]
    subprocess.run([sys.executable, "-m", "stageflow", *command], check=True, capture_output=True, timeout=60)
    return journal


def test_silence_records_who_added_it(tmp_path: Path) -> None:
    body = {"rule": "runs fail", "hours": 2, "reason": "deployment"}
    with serve(evaluated(tmp_path), "--allow-actions") as ui:
        assert ui.get("snapshot")["actions"] is True
        assert ui.get("status")["alerts"][0]["silence"] is None
        response = ui.client.post("/api/silence", json=body)
        assert response.status_code == 200, response.text
        silence = ui.get("status")["alerts"][0]["silence"]
        assert (silence["by"], silence["reason"]) == ("local", "deployment")
        assert ui.client.post("/api/silence", json=body | {"hours": 0}).status_code == 200
        assert ui.get("status")["alerts"][0]["silence"] is None
        for wrong in ({"rule": "nothing"}, {"reason": ""}, {"hours": -1}, {"hours": 1e9}, {"more": 1}):
            assert ui.client.post("/api/silence", json=body | wrong).status_code == 400, wrong
        foreign = ui.client.post("/api/silence", json=body, headers={"origin": "http://evil.example"})
        assert foreign.status_code == 403
        form = {"content-type": "text/plain"}
        assert ui.client.post("/api/silence", content=json.dumps(body), headers=form).status_code == 400


def test_firing_alert_is_a_finding_and_a_mark(tmp_path: Path) -> None:
    with serve(evaluated(tmp_path)) as ui:
        alert = ui.get("status")["alerts"][0]
        assert alert["status"] == "firing"
        shown = ui.get("overview", since="365d", where="failed or not failed")
        assert "'runs fail' is firing" in shown["findings"][0]["text"]
        marks = [mark for mark in shown["series"]["marks"] if mark["kind"] == "alert"]
        assert [(mark["label"], mark["at"]) for mark in marks] == [("runs fail", alert["began"])]
        assert marks[0] in shown["changes"]
        before = ui.get("overview", until="2026-11-10T00:00:00Z")["series"]["marks"]
        assert not [mark for mark in before if mark["kind"] == "alert"]


def test_resolved_incident_is_in_the_status_and_a_mark(tmp_path: Path) -> None:
    journal = evaluated(tmp_path)
    (tmp_path / "alerts.toml").write_text(RULES.replace("above = 0.01", "above = 0.99"))
    command = ["alerts", "run", "--rules", str(tmp_path / "alerts.toml"), "--journal", str(journal)]
    subprocess.run([sys.executable, "-m", "stageflow", *command], check=True, capture_output=True, timeout=60)
    with serve(journal) as ui:
        (incident,) = ui.get("status")["incidents"]
        assert (incident["rule"], incident["status"]) == ("runs fail", "resolved")
        shown = ui.get("overview", since="365d")
        (mark,) = [mark for mark in shown["series"]["marks"] if mark["kind"] == "alert"]
        assert (mark["at"], mark["until"]) == (incident["began"], incident["ended_at"])
        assert mark in shown["changes"]
        assert not [finding for finding in shown["findings"] if finding["view"] == "status"]


def test_snapshot_states_whether_a_process_writes(tmp_path: Path) -> None:
    journal = planted(tmp_path / "journal", 5)
    writer = f"""
import sys
from stageflow import JournalSink
from stageflow.events import Event
sink = JournalSink({str(journal)!r})
sink.deliver(Event(type="app.started", body={{}}))
print("open", flush=True)
sys.stdin.read()
sink.close()
"""
    with serve(journal) as ui:
        assert ui.get("snapshot")["writing"] is False
        process = subprocess.Popen(
            [sys.executable, "-c", writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert ui.get("snapshot")["writing"] is True
        process.communicate(timeout=30)
        assert ui.get("snapshot")["writing"] is False


def test_actions_are_not_allowed_by_default(tmp_path: Path) -> None:
    with serve(evaluated(tmp_path)) as ui:
        assert ui.get("snapshot")["actions"] is False
        body = {"rule": "runs fail", "hours": 2, "reason": "deployment"}
        assert ui.client.post("/api/silence", json=body).status_code == 403
        assert ui.get("status")["alerts"][0]["silence"] is None


# ---------------------------------------------------------------- saved pages


def test_explanation_is_saved_with_the_command_that_repeats_it(journal: Path) -> None:
    with PinnedStore(journal) as store:
        compared = store.explain("duration_ms > 500", against="duration_ms < 200")
        default = store.explain()
        pages = [explanation_as_html(store, one).decode() for one in (compared, default)]
    found = [re.search(r'id="responses" data-encoding="gzip">([^<]*)<', page) for page in pages]
    bodies = [json.loads(gzip.decompress(base64.b64decode(one[1]))) for one in found if one]
    first, second = (
        next(body["command"] for key, body in each.items() if key.startswith("api/differences"))
        for each in bodies
    )
    assert first == "stageflow explain 'duration_ms > 500' --against 'duration_ms < 200'"
    assert second == "stageflow explain failed"


# ---------------------------------------------------------------- mounted in an application


APPLICATION = """
import socket, sys
import uvicorn
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import Mount
import stageflow.ui

class ByHeader(AuthenticationBackend):
    async def authenticate(self, request):
        if name := request.headers.get("x-user"):
            return AuthCredentials(["authenticated"]), SimpleUser(name)

app = Starlette(
    routes=[Mount("/inside/runs", stageflow.ui.asgi(sys.argv[1], allow_actions=True))],
    middleware=[Middleware(AuthenticationMiddleware, backend=ByHeader())],
)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
try:
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
except KeyboardInterrupt:
    pass
"""


def test_mounted_ui_answers_and_records_the_user_of_the_application(tmp_path: Path) -> None:
    journal = evaluated(tmp_path)
    application = Program(APPLICATION, journal)
    try:
        assert application.process.stdout is not None
        origin = f"http://127.0.0.1:{int(application.process.stdout.readline())}"
        with httpx.Client(base_url=f"{origin}/inside/runs/", timeout=30) as client:
            assert len(client.get("api/runs").json()["rows"]) == 50
            assert client.get("api/runs", headers={"origin": "http://evil.example"}).status_code == 403
            assert client.get("").status_code == 200
            body = {"rule": "runs fail", "hours": 2, "reason": "deployment"}
            silenced = client.post("api/silence", json=body, headers={"x-user": "ada"}).json()
            assert silenced["alerts"][0]["silence"]["by"] == "ada"
        application.process.send_signal(signal.SIGINT)
        assert application.ended() == (0, "", "")
    finally:
        application.process.kill()
        application.ended()
