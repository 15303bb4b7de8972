"""Tests for the server of the web UI with unusual records, clients, files and event loops."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_explain_more import write
from test_ui_server import ENDLESS, RULES, evaluated, wait_until
from ui_server import Served, serve

import stageflow.ui
from stageflow.errors import QueryError
from stageflow.store import Interruption, PinnedStore

pytestmark = pytest.mark.slow


def unusual(number: int) -> dict[str, Any]:
    return {
        # The clock of one run was wrong by ten years.
        "second": -3650 * 86400 if number == 0 else number // 3,
        "fails": number % 7 == 0,
        "ms": 100 + number % 50,
        "error": "ValueError: x..y" if number % 7 == 0 else None,
        "sample_rate": (1, 2.5)[number % 2],
        "attributes": {
            "span": (1.7e308, -1.7e308)[number % 2],
            "ratio": (5e-324, 1e308)[number % 2],
            "close": (1.0, 1.0000000000000002)[number % 2],
            "largest": 1.7e308,
            "many": number * 1.5,
            "dots": ("a..b", "../x")[number % 2],
        },
        "stage_ms": {"llm": 80.0},
    }


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("hostile") / "journal", map(unusual, range(100)))
    for file in folder.iterdir():  # another program wrote a number that a double cannot represent
        file.write_text(re.sub(r'"many":1[0-9][0-9]\.[05]', '"many":1e999', file.read_text()))
    return folder


@pytest.fixture(scope="module")
def ui(journal: Path) -> Generator[Served]:
    with serve(journal) as served:
        yield served


def raw(ui: Served, path: str, *, method: str = "GET", headers: str = "") -> socket.socket:
    """Send a request, and return the connection without reading the response."""
    connection = socket.create_connection(("127.0.0.1", ui.port), timeout=20)
    cookies = "; ".join(f"{name}={value}" for name, value in ui.client.cookies.items())
    headers = headers or f"Cookie: {cookies}\r\n"
    connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost:{ui.port}\r\n{headers}\r\n".encode())
    return connection


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("field", ["span", "ratio", "close", "largest", "many", "dots"])
def test_groups_and_bars_of_unusual_values_select_their_rows(ui: Served, field: str) -> None:
    total = ui.get("runs", count="1")["total"]
    for group in ui.get("series", by=field)["groups"]:
        assert ui.get("runs", where=group["where"], count="1")["total"] == sum(group["count"]), group["where"]
    facet = next(each for each in ui.get("facets")["fields"] if each["field"] == f"attributes.{field}")
    bars = facet["values"] + facet["bins"]
    for bar in bars:
        assert ui.get("runs", where=bar["where"], count="1")["total"] == bar["selection"], bar["where"]
    assert sum(bar["selection"] for bar in bars) + facet["missing"][0] + facet["other"][0] == total


@pytest.mark.parametrize("field", ["span", "ratio", "close", "largest", "many"])
def test_heatmap_of_unusual_numbers_counts_every_row(ui: Served, field: str) -> None:
    total = ui.get("runs", count="1")["total"]
    found = ui.get("heatmap", measure=field)
    edges = found["edges"]
    assert None not in edges
    assert edges == sorted(set(edges))
    assert sum(count for _, _, count, *_ in found["cells"]) == found["count"]
    assert found["count"] + found["missing"] == total
    for row in range(len(edges) - 1):
        upper = "<=" if row == len(edges) - 2 else "<"
        lower = "true" if row == 0 else f"{found['measure_sql']} >= {edges[row]!r}"
        where = f"{lower} and {found['measure_sql']} {upper} {edges[row + 1]!r}"
        counted = sum(cell[2] for cell in found["cells"] if cell[1] == row)
        assert ui.get("runs", where=where, count="1")["total"] == counted, where


@pytest.mark.parametrize("columns", ["1", "2", "10", "120"])
def test_series_of_a_long_record_counts_every_run(ui: Served, columns: str) -> None:
    found = ui.get("series", columns=columns)
    assert found["steps"] <= int(columns) + 1
    if columns != "1":
        assert sum(found["groups"][0]["count"]) == ui.get("runs", count="1")["total"]
    assert sum(sum(row["count"]) for row in ui.get("stages")["rows"]) == ui.get("runs", count="1")["total"]


@pytest.mark.parametrize("times", [{"since": "0001-01-01"}, {"until": "9999-12-31T23:59:59Z"}])
@pytest.mark.parametrize("path", ["series", "overview", "heatmap", "runs", "stages"])
def test_time_outside_of_the_calendar_is_invalid(ui: Served, path: str, times: dict[str, str]) -> None:
    assert ui.problem(path, **times)["reason"] == "invalid"
    old = {name: {"since": "1900-01-01", "until": "2899-12-31"}[name] for name in times}
    ui.get(path, **old)


def test_zeros_do_not_raise_a_limit(ui: Served) -> None:
    for name in ("limit", "columns", "rows"):
        assert ui.problem("runs", **{name: "00000000199999999"})["reason"] == "invalid"
        assert ui.problem("runs", **{name: "9" * 5000})["reason"] == "invalid"


def test_sql_returns_values_that_json_and_python_cannot_represent(ui: Served) -> None:
    assert ui.get("sql", query="select map {true: 1} as m")["rows"] == [["{True: 1}"]]
    assert "varchar" in ui.problem("sql", query="select interval '9999999 years'")["hint"]


NO_FIELDS = {
    "statements": "; drop table runs",
    "two statements": "duration_ms; select 1",
    "a subquery": "(select 1)",
    "an unclosed quote": '"',
    "a closing parenthesis": "outcome)--",
    "a function": "count(*)",
    "a path": "../../etc/passwd",
    "dots": "..",
    "markup": "<script>alert(1)</script>",
    "a null character": "\x00",
    "a character that reverses text": "\u202e",
    "a list": "[]",
    "an object": "{}",
    "a number": "1",
    "an unknown field": "nope",
    "an unknown field of a stage": "llm/nope",
    "a field of an unknown stage": "nope/status",
    "spaces": "  ",
    "long text": "x" * 50_000,
}


@pytest.mark.parametrize("over", ["runs", "stages"])
@pytest.mark.parametrize("value", NO_FIELDS.values(), ids=NO_FIELDS)
@pytest.mark.parametrize(
    ("path", "parameter"), [("series", "by"), ("heatmap", "measure"), ("differences", "against")]
)
def test_invalid_field_is_a_problem_that_names_it(
    ui: Served, path: str, parameter: str, value: str, over: str
) -> None:
    problem = ui.problem(path, **{parameter: value, "select": "failed", "over": over})
    assert (problem["status"], problem["reason"]) == (400, "invalid")
    assert "failed" not in problem["title"]
    assert not set(problem["title"]) & {"\x00", "\u202e"}
    ui.get(path, select="failed", over=over)


@pytest.mark.parametrize("value", ["error", "failed", "started_at", "critical_path"])
def test_measure_that_is_not_a_number_is_a_problem(ui: Served, value: str) -> None:
    assert ui.problem("heatmap", measure=value)["title"] == f"the field {value!r} is not numeric"


@pytest.mark.parametrize("parameter", ["select", "against", "where"])
@pytest.mark.parametrize("value", ["started_at", "critical_path", "ended_at - started_at"])
def test_predicate_that_is_not_a_condition_is_a_problem(ui: Served, parameter: str, value: str) -> None:
    problem = ui.problem("differences", **{"select": "failed", parameter: value})
    assert problem["status"] == 400
    assert f"{value!r} is a value of type" in problem["title"]


def test_request_of_a_megabyte_is_refused(ui: Served) -> None:
    for parameter in ("by", "measure", "against"):
        with closing(raw(ui, f"/api/series?{parameter}={'x' * (1 << 20)}")) as connection:
            assert re.match(rb"HTTP/1.1 4\d\d ", connection.recv(100))
    ui.get("series")


def test_text_that_is_no_utf_8_is_a_problem(ui: Served) -> None:
    for path, parameter in (("series", "by"), ("heatmap", "measure"), ("differences", "against")):
        for value in ("%ff%fe", "%ed%a0%80"):
            response = ui.client.get(f"/api/{path}?select=failed&{parameter}={value}")
            assert (response.status_code, response.json()["reason"]) == (400, "invalid")


def test_attribute_with_a_slash_is_not_a_field_of_a_stage(ui: Served) -> None:
    # Such an attribute is not a column, but its name must not select the stage "attributes.a".
    for name in ("attributes.a/status", "llm/attributes.a/status"):
        title = ui.problem("runs", where=f"\"{name}\" = 'OK'")["title"]
        assert "unknown field" in title, title


# ---------------------------------------------------------------- access


def test_cookies_of_other_servers_do_not_hide_the_token(ui: Served) -> None:
    token = ui.url.partition("token=")[2]
    for other in ('settings={"a":[1,2]}', "bad name=1", "x=\xff"):
        headers = {"cookie": f"{other}; stageflow_{ui.port}={token}".encode("latin-1")}
        assert httpx.get(f"{ui.origin}/api/runs", headers=headers).status_code == 200, other


@pytest.mark.parametrize("host", ["localhost:a;b", "localhost:999999", "localhost:80:80", "[::1", "[x]:80"])
def test_invalid_host_is_rejected(ui: Served, host: str) -> None:
    assert httpx.get(ui.url, headers={"host": host}).status_code == 421


def test_redirect_after_the_token_stays_on_this_host(ui: Served) -> None:
    token = ui.url.partition("token=")[2]
    url = httpx.URL(ui.origin, raw_path=f"//evil.example/?token={token}".encode())
    assert httpx.get(url).headers["location"] == "/evil.example/"


def test_rejected_request_has_the_security_headers_too(ui: Served) -> None:
    for response in (
        httpx.get(f"{ui.origin}/"),
        httpx.get(ui.url),
        httpx.get(ui.url, headers={"host": "evil.example"}),
    ):
        assert response.status_code in (303, 401, 421)
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize("address", ["::", "0.0.0.0"])
def test_server_on_all_addresses_accepts_addresses_and_no_foreign_name(journal: Path, address: str) -> None:
    with serve(journal, "--host", address) as ui:
        assert ui.get("snapshot")["runs"] == 100
        assert httpx.get(ui.url, headers={"host": "192.0.2.7:80"}).status_code == 303
        assert httpx.get(ui.url, headers={"host": "[2001:db8::1]:80"}).status_code == 303
        assert httpx.get(ui.url, headers={"host": "evil.example:80"}).status_code == 421


def test_large_body_is_rejected(tmp_path: Path) -> None:
    with serve(evaluated(tmp_path), "--allow-actions") as ui:
        body = json.dumps({"rule": "runs fail", "hours": 1, "reason": "x" * 1_000_000})
        headers = {"content-type": "application/json"}
        response = ui.client.post("/api/silence", content=body, headers=headers)
        assert response.status_code == 400
        assert "bytes" in response.json()["title"]


# ---------------------------------------------------------------- clients


def test_head_request_opens_no_stream(ui: Served) -> None:
    with raw(ui, "/api/stream", method="HEAD") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert ui.get("status")["viewers"] == 0


def test_clients_that_disconnect_leave_nothing_behind(journal: Path) -> None:
    with serve(journal) as ui:
        for path in ("runs", "facets", "status"):
            ui.get(path)
        files = len(os.listdir(f"/proc/{ui.process.pid}/fd")) if sys.platform == "linux" else 0
        for number in range(50):
            raw(ui, "/api/stream").close()
            raw(ui, f"/api/facets?select=duration_ms>{number}.5").close()
        wait_until(lambda: ui.get("status")["queries"] == 0)
        wait_until(lambda: ui.get("status")["viewers"] == 0)
        if sys.platform == "linux":
            wait_until(lambda: len(os.listdir(f"/proc/{ui.process.pid}/fd")) <= files + 5)


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_server_during_queries_and_streams(journal: Path, ends: signal.Signals) -> None:
    with serve(journal) as ui:
        query = httpx.QueryParams({"query": ENDLESS})
        streams = [raw(ui, "/api/stream") for _ in range(5)]
        queries = [raw(ui, f"/api/sql?{query}%20--{number}") for number in range(3)]
        wait_until(lambda: ui.get("status")["queries"] == 3)
        ui.process.send_signal(ends)
        assert ui.process.wait(10) in (0, 130, -ends)
        for connection in streams + queries:
            connection.close()


@pytest.mark.parametrize("ends", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_server_while_it_reads_the_records(
    tmp_path: Path, journal: Path, ends: signal.Signals
) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    segment = max(journal.glob("*.ndjson"), key=lambda file: file.stat().st_size)
    content = segment.read_bytes()
    # Reading 160 MB takes several seconds.
    (folder / segment.name).write_bytes(content * ((160 << 20) // len(content)))
    began = time.monotonic()
    PinnedStore(folder).close()
    reading_s = time.monotonic() - began
    with serve(folder) as ui:
        waiting = raw(ui, "/api/snapshot")
        assert ui.client.get("/api/nothing").status_code == 404  # the server has received the first request
        began = time.monotonic()
        ui.process.send_signal(ends)
        assert ui.process.wait(10) in (0, 130, -ends)
        assert time.monotonic() - began < reading_s / 2
        waiting.close()


# ---------------------------------------------------------------- files


def test_last_snapshot_stays_available_without_the_journal(tmp_path: Path, journal: Path) -> None:
    folder = shutil.copytree(journal, tmp_path / "journal")
    with serve(folder) as ui:
        assert len(ui.get("runs")["rows"]) == 100
        folder.rename(tmp_path / "elsewhere")
        wait_until(lambda: ui.get("status")["damage"])
        assert ui.get("status")["writers"] == []
        assert ui.get("snapshot")["runs"] == 100
        assert len(ui.get("runs", where="duration_ms >= 0")["rows"]) == 100
        (tmp_path / "elsewhere").rename(folder)
        wait_until(lambda: not ui.get("status")["damage"])


def test_archive_that_is_damaged_while_the_server_runs_is_reported(tmp_path: Path, journal: Path) -> None:
    folder = shutil.copytree(journal, tmp_path / "journal")
    command = [sys.executable, "-m", "stageflow", "compact", "--journal", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with serve(folder) as ui:
        assert ui.get("snapshot")["runs"] == 100
        intact = {file: file.read_bytes() for file in folder.rglob("*.parquet")}
        for file, content in intact.items():
            middle = len(content) // 2
            file.write_bytes(content[:middle] + bytes(200) + content[middle + 200 :])
        problem = ui.problem("runs", where="duration_ms > 1")
        assert (problem["status"], problem["reason"]) == (503, "store")
        assert "checksum" in problem["title"]
        wait_until(lambda: "checksum" in " ".join(ui.get("status")["damage"]))
        for file, content in intact.items():
            file.write_bytes(content)
        wait_until(lambda: not ui.get("status")["damage"])
        wait_until(lambda: ui.client.get("/api/runs?where=duration_ms>2").status_code == 200)


def test_damaged_silences_are_reported_and_hide_nothing(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    (folder / "alerts.silences.json").write_text("{")
    with serve(folder) as ui:
        status = ui.get("status")
        assert [alert["name"] for alert in status["alerts"]] == ["runs fail"]
        assert "alerts.silences.json is damaged" in " ".join(status["damage"])
        assert ui.get("overview")["findings"]


def test_overview_shows_alerts_that_change_without_new_runs(tmp_path: Path, journal: Path) -> None:
    folder = shutil.copytree(journal, tmp_path / "journal")
    with serve(folder) as ui:
        assert not any("firing" in finding["text"] for finding in ui.get("overview")["findings"])
        (tmp_path / "alerts.toml").write_text(RULES.replace("31536000", "3153600000"))
        rules = ["--rules", str(tmp_path / "alerts.toml"), "--journal", str(folder)]
        command = [sys.executable, "-m", "stageflow", "alerts", "run", *rules]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        assert any("firing" in finding["text"] for finding in ui.get("overview")["findings"])


# ---------------------------------------------------------------- event loops and threads


LOOPS = """
import asyncio, sys, threading
import httpx
from starlette.applications import Starlette
from starlette.routing import Mount
import stageflow.ui

one, two = stageflow.ui.asgi(sys.argv[1]), stageflow.ui.asgi(sys.argv[1])
app = Starlette(routes=[Mount("/api/one", one), Mount("/two", two)])

async def main():
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
        paths = ["/api/one/api/runs", "/two/api/facets", "/two/api/status", "/two/api/runs?where=failed"]
        for response in await asyncio.gather(*map(client.get, paths * 5)):
            assert response.status_code == 200, response.text
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert (await client.get("/api/one/", headers=link)).status_code == 200
        assert (await client.get("/api/one/api/runs", headers=link)).status_code == 403
        assert (await client.get("/two")).headers["location"] == "http://test/two/"
        query = asyncio.create_task(client.get("/two/api/sql", params={"query": sys.argv[2]}))
        while (await client.get("/two/api/status")).json()["queries"] == 0:
            await asyncio.sleep(0.05)

for _ in range(3):
    asyncio.run(main())
print("ended")
"""


def test_event_loop_ends_during_a_query_and_another_one_starts(journal: Path) -> None:
    command = [sys.executable, "-c", LOOPS, str(journal), ENDLESS]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=40)
    assert (ended.stdout, ended.stderr) == ("ended\n", "")


def test_interruption_is_nested_and_used_by_several_threads(journal: Path) -> None:
    outer, inner = Interruption(), Interruption()
    problems: list[str] = []

    with PinnedStore(journal) as store:

        def ask() -> None:
            with outer, inner, inner:
                try:
                    store.sql(ENDLESS)
                except QueryError as error:
                    problems.append(str(error).partition(":")[0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        timer = threading.Timer(0.5, outer.interrupt)
        timer.start()
        for thread in threads:
            thread.join(20)
        assert problems == ["interrupted"] * 3
        assert not inner.requested
        # After the blocks, nothing is interrupted.
        assert store.sql("select 1").rows == [(1,)]


def test_client_that_reads_slowly_receives_the_newest_snapshot(tmp_path: Path, journal: Path) -> None:
    folder = shutil.copytree(journal, tmp_path / "journal")
    app = stageflow.ui.asgi(folder)
    more = [write(tmp_path / f"more-{count}", map(unusual, range(count))) for count in (1, 2)]
    numbers: list[int] = []

    async def ask(client: httpx.AsyncClient) -> int:
        return int((await client.get("/api/snapshot")).json()["number"])

    async def main() -> None:
        reads, ended = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            found = re.search(rb'event: snapshot\r\ndata: {"number":(\d+)', message.get("body", b""))
            if found is not None:
                numbers.append(int(found[1]))
                await reads.wait()

        scope = {"type": "http", "method": "GET", "path": "/api/stream", "query_string": b"", "headers": []}
        stream = asyncio.create_task(app(scope, receive, send))
        transport = httpx.ASGITransport(app)
        async with asyncio.timeout(30), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            while not numbers:
                await asyncio.sleep(0.05)
            for expected, files in enumerate(more, 2):
                await asyncio.to_thread(shutil.copytree, files, folder, dirs_exist_ok=True)
                while await ask(client) < expected:
                    await asyncio.sleep(0.05)
            newest = await ask(client)
            reads.set()
            while not numbers or numbers[-1] != newest:
                await asyncio.sleep(0.05)
            ended.set()
            await stream
        # A snapshot can be announced twice, if writers start or end in the meantime.
        assert set(numbers) == {numbers[0], newest}
        assert newest - numbers[0] > 1

    asyncio.run(main())
