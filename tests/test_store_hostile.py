"""Tests for the store with hostile directories, queries, lines and process exits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_sampling import lines_of

from stageflow.errors import ArchiveDamagedError, DamagedFileError, QueryError, RunNotFoundError
from stageflow.journal import Journal, RunFilter
from stageflow.journal._segments import list_writers, new_writer, segment_name
from stageflow.store import Compactor, EventStore, SampleRule, TailSampler, forget_archive

pytestmark = pytest.mark.slow

CLOSED = b'{"type":"writer.closed","journal":{"adopted_by":null,"crashed":0}}\n'


def run(number: int, **fields: Any) -> bytes:
    """Return the lines of one run."""
    return "".join(lines_of(number, fields)).encode()


def write(folder: Path, *segments: bytes, closed: bool = True) -> Path:
    """Write segments of a writer that closed, or died."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = new_writer()
    contents = [*segments, CLOSED] if closed else list(segments)
    for number, content in enumerate(contents, 1):
        (folder / segment_name(writer, number)).write_bytes(content)
    return folder


def with_attributes(lines: bytes, attributes: dict[str, Any]) -> bytes:
    return lines.replace(b'"attributes":{}', b'"attributes":' + json.dumps(attributes).encode())


def amendment(number: int, at: int, attributes: dict[str, Any]) -> bytes:
    """Return a line that amends a run that has ended."""
    run_id = f"{number:08d}-run"
    data = {
        "event_id": run_id,
        "correlation_ids": {"pipeline_run_id": run_id},
        "amended_at": f"2026-11-02T00:00:0{at}.000000Z",
        "attributes": attributes,
        "redacted": 1,
        "truncated": [],
        "schema_version": 1,
    }
    return json.dumps({"type": "pipeline.wide.amend", "data": data}).encode() + b"\n"


def compact(folder: Path, **options: Any) -> None:
    Compactor(folder, keep_seconds=0, **options).compact()


def run_ids(folder: Path) -> list[str]:
    with EventStore(folder) as store:
        return [row[0] for row in store.sql("select event_id from runs order by 1").rows]


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- nothing is lost


def test_segment_that_is_not_archived_is_not_deleted_for_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "journal", run(1) + run(2), closed=False)
    for segment in folder.glob("*.ndjson"):
        os.utime(segment, (1e9, 1e9))

    def full(self: Journal) -> list[str]:
        raise OSError(28, "No space left on device")

    # The writer died. Its record cannot be completed at first, but can be later.
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "recover", full)
        Compactor(folder).compact()
    compact(folder)
    assert run_ids(folder) == ["00000001-run", "00000002-run"]


def test_damaged_cursor_of_the_archive_is_rewritten(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", run(1))
    compact(folder)
    (folder / "cursors" / "archive.json").write_text("no position")
    write(folder, run(2))
    compact(folder)
    assert run_ids(folder) == ["00000001-run", "00000002-run"]
    assert not list(folder.glob("*.ndjson"))


def test_listing_contains_every_segment_older_than_a_listed_one(tmp_path: Path) -> None:
    writer = new_writer()
    making = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""if True:
            import os
            from stageflow.journal._segments import segment_name
            for number in range(1, 20_000):
                path = os.path.join({str(tmp_path)!r}, segment_name({writer!r}, number))
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            """,
        ]
    )
    try:
        while making.poll() is None:
            found = [segment.sequence for segment in list_writers(str(tmp_path)).get(writer, [])]
            assert found == list(range(1, len(found) + 1))
    finally:
        making.kill()
        making.wait()


# ---------------------------------------------------------------- nothing is changed


def attributes_by_run(folder: Path) -> dict[str, Any]:
    with EventStore(folder) as store:
        return {event["event_id"]: event["attributes"] for event in store.runs(limit=None)}


@pytest.mark.parametrize("compacted", ["never", "at the end", "in between"])
def test_last_value_of_an_attribute_wins_whatever_its_type(tmp_path: Path, compacted: str) -> None:
    folder = tmp_path / "journal"
    first = {"k": "text", "n": {"a": 1}, "o": 5, "p": 1, "same": "s", "z": {"q": None, "r": 1}, "b": True}
    second = {"k": 1, "n": {"b": 2}, "o": None, "p": "one", "z": {"q": None, "s": None}, "new": None}
    third = {"p": 3, "b": {"c": None}, "late": [None, {"d": None}]}
    write(folder, *(with_attributes(run(number), {"k": 2, "o": 6, "p": 2, "b": False}) for number in (2, 3)))
    write(folder, with_attributes(run(1), first))
    for at, attributes in enumerate((second, third)):
        if compacted == "in between":
            compact(folder)
        write(folder, amendment(1, at, attributes))
    if compacted == "at the end":
        compact(folder)
    assert attributes_by_run(folder)["00000001-run"] == first | second | third


def test_simultaneous_amendments_both_count_and_a_repeated_one_counts_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", run(1), amendment(1, 0, {"a": 1}), amendment(1, 0, {"b": 2}))
    write(folder, amendment(1, 0, {"a": 1}))
    assert attributes_by_run(folder) == {"00000001-run": {"a": 1, "b": 2}}
    with EventStore(folder) as store:
        assert store.sql("select redacted from runs").rows == [(2,)]


def test_null_is_kept_next_to_an_unknown_key(tmp_path: Path) -> None:
    attributes = {"a": None, "b": {"x": None}, "c": 2**53 + 1, "d": -(2**53) - 1, "e": 2**53 - 1}
    line = with_attributes(run(1), attributes).replace(b'"attributes":', b'"newer":{"y":null},"attributes":')
    folder = write(tmp_path / "journal", line)
    for _ in range(2):
        with EventStore(folder) as store:
            (found,) = store.runs()
        assert found["attributes"] == attributes
        assert found["newer"] == {"y": None}
        compact(folder)


# ---------------------------------------------------------------- names of parent directories


@pytest.mark.parametrize("above", ["service=api", "status=live", "env=prod", "day=monday", "a*[b]?", "it's"])
def test_names_of_parent_directories_do_not_become_columns(tmp_path: Path, above: str) -> None:
    folder = tmp_path / above / "journal"
    for number in (1, 2):
        write(folder, run(1) + run(number))
        compact(folder)
    with EventStore(folder) as store:
        found = store.sql("select event_id, service, status, day::varchar from runs order by 1").rows
        assert found == [(f"0000000{number}-run", "s", "OK", "2026-11-01") for number in (1, 2)]
        assert "env" not in store.sql("from events").columns
        assert len(store.runs(RunFilter(since="2026-11-01T00:00:00Z", until="2026-11-02T00:00:00Z"))) == 2
        assert store.volume().events == 2


# ---------------------------------------------------------------- queries that do more than read


@pytest.mark.parametrize(
    "query",
    [
        "explain copy (select 1) to '{}/x.csv'",
        "explain analyze copy (select 1) to '{}/x.csv'",
        "EXPLAIN\nANALYZE (format json) copy (select 1) to '{}/x.csv'",
        "/**/ explain analyze copy (select 1) to '{}/x.csv'",
        "explain analyze drop view runs",
        "with x as (copy (select 1) to '{}/x.csv') select 1",
        "explain analyze with x as (select 'ä' as \"copy\"), y as (CoPy (from x) to '{}/x.csv') from x",
        "from query('with x as (copy (select 1) to ''{}/x.csv'') from x')",
    ],
)
def test_query_cannot_write_a_file(tmp_path: Path, query: str) -> None:
    folder = write(tmp_path / "journal", run(1))
    compact(folder)
    with EventStore(folder) as store:
        assert store.sql("explain analyze select * from runs").rows
        assert store.sql("explain (format json) select * from runs").rows
        assert store.sql("select 'ä', 'copy' as \"copy\" -- copy").rows == [("ä", "copy")]
        before = files_below(tmp_path)
        with pytest.raises(QueryError):
            store.sql(query.format(folder))
        assert files_below(tmp_path) == before
        assert store.sql("select count(*) from runs").rows == [(1,)]


PREDICATES = [
    "true) or (true",
    "true) -- ",
    "true); commit; copy (select 1) to '{}/x.csv'; select (true",
    "true); commit; create table mine as select 1; select (true",
    "true /*",
    "true limit 1",
    "(true",
    "true; select 1",
]


@pytest.mark.parametrize("predicate", PREDICATES)
def test_predicate_cannot_escape_its_parentheses(tmp_path: Path, predicate: str) -> None:
    folder = write(tmp_path / "journal", run(1, stages=1))
    compact(folder)
    predicate = predicate.format(folder)
    other = RunFilter(pipeline="another")
    with EventStore(folder) as store:
        before = files_below(tmp_path)
        queries: list[Callable[[], Any]] = [
            lambda: store.stats(filter=other, where=predicate),
            lambda: store.runs(other, where=predicate),
            lambda: store.errors(other, where=predicate),
            lambda: store.slowest(filter=other, where=predicate),
            lambda: store.compare(predicate, "true", filter=other),
            lambda: store.compare("true", predicate, filter=other),
            lambda: store.explain(predicate, filter=other),
            lambda: store.explain("true", against=predicate, filter=other),
            lambda: store.dry_run(TailSampler(rules=(SampleRule(where=predicate),))),
        ]
        for execute in queries:
            with pytest.raises(QueryError, match="invalid predicate"):
                execute()
        assert files_below(tmp_path) == before
        with pytest.raises(QueryError, match="mine"):
            store.sql("from mine")


def test_predicate_can_contain_a_comment(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", run(1, stages=1))
    with EventStore(folder) as store:
        assert len(store.runs(RunFilter(pipeline="p"), where="status = 'OK' -- the good ones")) == 1
        assert store.stats(where="true -- all", filter=RunFilter(pipeline="p"))[0].count == 1


HALF = "\udcff"  # as in a command-line argument that is not valid UTF-8


def test_lone_surrogate_matches_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", run(1, stages=1))
    compact(folder)
    with EventStore(folder) as store:
        assert store.runs(RunFilter(id=HALF)) == store.stats(filter=RunFilter(pipeline=HALF)) == []
        with pytest.raises(RunNotFoundError):
            store.run(HALF)
        with pytest.raises(QueryError, match="invalid text"):
            store.sql(f"select '{HALF}'")
        with pytest.raises(QueryError, match="invalid text"):
            store.runs(where=f"user_id = '{HALF}'")


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "1"])
def test_timeout_must_be_a_valid_number(tmp_path: Path, timeout: Any) -> None:
    folder = write(tmp_path / "journal", run(1))
    with EventStore(folder) as store, pytest.raises(ValueError, match="more than 0"):
        store.sql("select 1", timeout=timeout)
    with pytest.raises(ValueError, match="more than 0"):
        EventStore(folder, timeout=timeout)


@pytest.mark.timeout(60)
def test_query_stops_when_its_remaining_rows_are_not_fetched(tmp_path: Path) -> None:
    endless = "with recursive n as (select 1 as i union all select i + 1 from n) from n"
    with EventStore(write(tmp_path / "journal", run(1))) as store:
        for _ in range(5):  # each would take ten seconds
            assert store.sql(endless, limit=3).more


# ---------------------------------------------------------------- exit of a process


@pytest.mark.parametrize("seconds", [0, 0.1, 0.3, 0.6])
def test_interpreter_exits_cleanly_while_a_compactor_is_running(tmp_path: Path, seconds: float) -> None:
    folder = write(tmp_path / "journal", *(run(number, stages=3) for number in range(200)))
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""if True:
            import time
            from stageflow.store import BackgroundCompactor, Compactor
            background = BackgroundCompactor(Compactor({str(folder)!r}, keep_seconds=0), every=0.001)
            time.sleep({seconds})
            """,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    compact(folder)
    assert len(run_ids(folder)) == 200


# ---------------------------------------------------------------- damaged files and full disks


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(b'{"type":"mine","data":{"x":"' + b"y" * 40_000_000 + b'"}}\n', id="a long event"),
        pytest.param(b"\0" * 20_000_000 + b"\n", id="zeros"),
        pytest.param(b'{"torn\n\xff\xfe\n[1]\n5\nnull\n{}\n{"data":1}\n', id="no events"),
    ],
)
def test_no_line_prevents_others_from_being_archived(tmp_path: Path, between: bytes) -> None:
    folder = write(tmp_path / "journal", run(1) + between + run(2), run(3) + run(4)[:-20])
    for _ in range(2):
        assert run_ids(folder) == ["00000001-run", "00000002-run", "00000003-run"]
        compact(folder)
    assert not list(folder.glob("*.ndjson"))


def test_unreadable_address_does_not_start_another_archive(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", run(1))
    compact(folder, archive=tmp_path / "archive")
    (folder / "archive.json").write_text('{"addr')
    damaged = r"archive\.json is damaged.*(?s:.*)address of the archive"
    with pytest.raises(DamagedFileError, match=damaged):
        Compactor(folder)
    with EventStore(folder) as store, pytest.raises(DamagedFileError, match=damaged):
        store.runs()
    compact(folder, archive=tmp_path / "archive")
    assert run_ids(folder) == ["00000001-run"]


def test_missing_archive_is_an_error_until_it_is_restored_or_forgotten(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", run(1))
    compactor = Compactor(folder, keep_seconds=0)
    with EventStore(folder) as store:
        compactor.compact()
        assert len(store.runs()) == 1
        (folder / "archive").rename(tmp_path / "not mounted")
        write(folder, run(2))
        for attempt in (
            store.runs,
            compactor.compact,
            compactor.compact,
        ):  # the second attempt has no segments
            with pytest.raises(ArchiveDamagedError, match=r"does not exist, but 1 events.*(?s:.*)--forget"):
                attempt()
        assert not (folder / "archive").exists()
        (tmp_path / "not mounted").rename(folder / "archive")
        assert len(store.runs()) == 2
        compactor.compact()
        shutil.rmtree(folder / "archive")
        with pytest.raises(ArchiveDamagedError, match="does not exist, but 2 events"):
            store.runs()
        assert forget_archive(folder).events is None
        assert store.runs() == []
        write(folder, run(3))
        compactor.compact()
        assert [row["event_id"] for row in store.runs()] == ["00000003-run"]


def test_full_disk_is_an_error_that_names_the_archive_and_leaves_no_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", b"".join(run(number, stages=20) for number in range(2000)))
    before = files_below(folder)
    full = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""if True:
            import resource, signal
            from stageflow.store import Compactor
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            # Enough for the log of the archive, but not for its data.
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
            for _ in range(3):
                try:
                    Compactor({str(folder)!r}, keep_seconds=0).compact()
                except OSError as error:
                    print(error)
            """,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert full.stdout.count(f"archive {folder / 'archive'}: ") == 3, full.stderr
    left = files_below(folder) - before
    assert not [path for path in left if path.suffix == ".parquet"]
    compact(folder)
    assert len(run_ids(folder)) == 2000


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="requires /proc")
def test_data_is_synced_before_the_commit_and_both_before_a_segment_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "journal", run(1))
    seen: list[tuple[str, int, int]] = []
    sync = os.fdatasync

    def fdatasync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        commits = len(list(folder.glob("archive/_delta_log/*.json")))
        seen.append((path, commits, len(list(folder.glob("*.ndjson")))))
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    compact(folder)
    of_data = [(commits, segments) for path, commits, segments in seen if path.endswith(".parquet")]
    of_log = [segments for path, _, segments in seen if "_delta_log" in path]
    assert of_data == [(1, 2)] * 2  # the table exists and is empty
    assert of_log == [2, 2]
    assert not list(folder.glob("*.ndjson"))


def test_closed_or_forked_store_raises_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", run(1))
    compact(folder)
    store = EventStore(folder)
    assert len(store.runs()) == 1
    child = os.fork()
    if child == 0:
        queries: list[Callable[[], Any]] = [
            store.runs,
            lambda: store.sql("select 1"),
            Compactor(folder).compact,
        ]
        for execute in queries:
            try:
                execute()
            except (ValueError, OSError) as error:
                if "fork" not in str(error):
                    os._exit(1)
            else:
                os._exit(2)
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.close()
    store.close()
    more: list[Callable[[], Any]] = [store.runs, lambda: store.sql("select 1"), store.stats]
    for execute in more:
        with pytest.raises(ValueError, match="closed"):
            execute()
