"""Tests that an archive recovers from power failures, and reports damage that it cannot recover from."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_replay
import pytest
from deltalake import DeltaTable
from test_store_hostile import compact, run, run_ids, write
from typer.testing import CliRunner

from stageflow.cli._app import app
from stageflow.errors import ArchiveDamagedError
from stageflow.store import EventStore, _archive as archive, check_archive, repair_archive

pytestmark = pytest.mark.slow

LOG = Path("archive") / "_delta_log"


def commit_path(folder: Path, version: int) -> Path:
    return folder / LOG / f"{version:020d}.json"


def data_files(folder: Path, beginning: str = "part-") -> list[Path]:
    """Return the data files of the newest version."""
    uris = DeltaTable(str(folder / "archive")).file_uris()
    return [path for path in map(Path, sorted(uris)) if path.name.startswith(beginning)]


def write_batches(folder: Path, numbers: range) -> Path:
    """Write a segment for each run."""
    folder.mkdir(mode=0o700, exist_ok=True)
    return write(folder, *(run(number) for number in numbers))


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five runs, one commit each, by a process that died before it recorded any of them as durable."""
    folder = write_batches(tmp_path_factory.mktemp("crashed") / "journal", range(1, 6))
    program = """if True:
        import os, sys
        from stageflow.store import Compactor, _archive
        _archive.Archive.sync = lambda self: os._exit(9)
        Compactor(sys.argv[1], keep_seconds=0, batch_bytes=1).compact()
    """
    died = subprocess.run([sys.executable, "-c", program, str(folder)], timeout=60)
    assert died.returncode == 9
    return folder


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut_at_a_line(path: Path) -> None:
    """Remove the last action; the rest is valid JSON."""
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:-1]))


# ---------------------------------------------------------------- commits that were not durable


@pytest.mark.parametrize("damage", [empty, cut, zero, cut_at_a_line, Path.unlink])
@pytest.mark.parametrize("version", [0, 3, 5])
def test_commit_damaged_by_a_power_failure_is_archived_again(
    crashed: Path, tmp_path: Path, version: int, damage: Callable[[Path], Any]
) -> None:
    folder = shutil.copytree(crashed, tmp_path / "journal")
    damage(commit_path(folder, version))
    ids = [f"{number:08d}-run" for number in range(1, 6)]
    assert run_ids(folder) == ids  # the first reader recovers the archive
    compact(folder)
    assert run_ids(folder) == ids
    assert not list(folder.glob("*.ndjson"))
    with EventStore(folder) as store:
        assert sum(total.count for total in store.totals() if total.stage is None) == 5
    aside = {path.name for path in (folder / "archive" / "_stageflow").glob("set-aside-*")}
    assert aside
    assert check_archive(folder).problems == []
    assert DeltaTable(str(folder / "archive")).version() >= 1


def test_commits_that_are_damaged_together_are_archived_again(crashed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(crashed, tmp_path / "journal")
    for version, damage in ((2, cut), (4, empty), (5, zero)):
        damage(commit_path(folder, version))
    compact(folder)
    assert run_ids(folder) == [f"{number:08d}-run" for number in range(1, 6)]


def test_error_without_write_access_explains_how_to_recover_the_archive(
    crashed: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(crashed, tmp_path / "journal")
    cut(commit_path(folder, 2))
    with (
        EventStore(archive=folder / "archive") as store,
        pytest.raises(ArchiveDamagedError, match=r"(?s)00002\.json is damaged.*`stageflow compact` recovers"),
    ):
        store.runs()
    assert commit_path(folder, 2).exists()


# ---------------------------------------------------------------- commits that were durable


@pytest.mark.parametrize("damage", [empty, cut_at_a_line, Path.unlink])
def test_durable_commit_is_never_discarded(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    folder = write_batches(tmp_path / "journal", range(1, 4))
    compact(folder, batch_bytes=1)
    write(folder, run(4))
    last = max((folder / LOG).glob("*.json"))
    damage(last)
    before = sorted(path.name for path in (folder / LOG).iterdir())
    for ask in (run_ids, compact, repair_archive):
        with pytest.raises(ArchiveDamagedError) as raised:
            ask(folder)
        assert last.name in str(raised.value)
        assert "restore it from a backup" in str(raised.value)
    assert sorted(path.name for path in (folder / LOG).iterdir()) == before
    (problem,) = check_archive(folder).problems
    assert last.name in problem
    shown = CliRunner().invoke(app, ["doctor", "--journal", str(folder)])
    assert shown.exit_code == 1
    assert "restore it from a backup" in re.sub(r"\s+", " ", shown.output)


def test_events_deleted_from_the_journal_count_as_durable_without_a_record(tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "journal", range(1, 4))
    compact(folder, batch_bytes=1)
    # As an older version left it.
    shutil.rmtree(folder / "archive" / "_stageflow")
    cut(commit_path(folder, 2))
    with pytest.raises(ArchiveDamagedError, match=r"00002\.json is damaged"):
        compact(folder)
    (folder / "cursors" / "archive.json").unlink()
    with pytest.raises(ArchiveDamagedError, match=r"00002\.json is damaged"):
        compact(folder)


@pytest.mark.parametrize("left", ["a directory", "nothing"])
def test_missing_log_is_not_treated_as_an_empty_archive(tmp_path: Path, left: str) -> None:
    folder = write_batches(tmp_path / "journal", range(1, 3))
    compact(folder)
    shutil.rmtree(folder / LOG)
    if left == "a directory":
        (folder / LOG).mkdir()
    for _ in range(2):
        for ask in (run_ids, compact):
            with pytest.raises(ArchiveDamagedError, match=r"(?s)_delta_log.* missing.*restore"):
                ask(folder)
        shutil.rmtree(folder / "archive" / "_stageflow", ignore_errors=True)  # as an older version left it


# ---------------------------------------------------------------- checkpoints


def with_checkpoints(folder: Path, rounds: int = 4) -> None:
    """Compact often enough to write one checkpoint per round, and make the log appear days old."""
    days = 3 * 24 * 3600
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(archive, "_COMMITS_PER_CHECKPOINT", 4)
        for number in range(rounds):
            write_batches(folder, range(3 * number + 1, 3 * number + 4))
            compact(folder, batch_bytes=1, target_bytes=1)
            for path in (folder / LOG).iterdir():
                os.utime(path, (path.stat().st_atime - days, path.stat().st_mtime - days))
    assert len(checkpoints(folder)) == min(rounds, 2)  # the two newest are kept
    assert run_ids(folder) == [f"{number:08d}-run" for number in range(1, 3 * rounds + 1)]


@pytest.fixture(scope="module")
def checkpointed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal whose archive has two checkpoints."""
    folder = tmp_path_factory.mktemp("checkpointed") / "journal"
    with_checkpoints(folder)
    return folder


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / LOG).glob("*.checkpoint.parquet"))


@pytest.mark.parametrize("damage", [empty, cut, zero, Path.unlink])
def test_archive_is_readable_after_its_newest_checkpoint_was_damaged(
    checkpointed: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    folder = shutil.copytree(checkpointed, tmp_path / "journal")
    ids = run_ids(folder)
    assert len(ids) == 12
    assert len(checkpoints(folder)) == 2
    # The commits before the first checkpoint are deleted: reading requires one of the two.
    assert not commit_path(folder, 0).exists()
    damage(checkpoints(folder)[-1])
    assert run_ids(folder) == ids
    write(folder, run(9999))
    compact(folder)
    assert len(run_ids(folder)) == len(ids) + 1
    assert check_archive(folder).problems == []
    assert len(DeltaTable(str(folder / "archive")).file_uris()) > 0


@pytest.mark.parametrize("damage", [empty, cut])
def test_damaged_hint_is_ignored(checkpointed: Path, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    folder = shutil.copytree(checkpointed, tmp_path / "journal")
    ids = run_ids(folder)
    damage(folder / LOG / "_last_checkpoint")
    assert run_ids(folder) == ids
    compact(folder)
    assert run_ids(folder) == ids


def test_recovery_ignores_a_checkpoint_that_was_not_recorded_as_durable(
    checkpointed: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpointed, tmp_path / "journal")
    ids = run_ids(folder)
    # The power fails right after delta-rs wrote a checkpoint: its footer is intact, its middle zeroed.
    DeltaTable(str(folder / "archive")).create_checkpoint()
    newest = checkpoints(folder)[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[:100] + bytes(len(content) - 1100) + content[-1000:])
    compact(folder)
    assert run_ids(folder) == ids
    assert newest not in checkpoints(folder)


def test_commits_are_kept_until_two_checkpoints_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "journal"
    seen: list[tuple[str, dict[str, Any]]] = []
    unlink = os.unlink

    def noted(path: Any, **options: Any) -> None:
        if "_delta_log" in str(path):
            durable = json.loads((folder / "archive" / "_stageflow" / "durable.json").read_text())
            seen.append((Path(path).name, durable["checkpoints"]))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", noted)
    with_checkpoints(folder)
    assert seen
    for name, durable in seen:
        assert sum(int(one[:20]) > int(name[:20]) for one in durable) >= 2


def test_delta_library_writes_no_checkpoint_and_deletes_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    write_batches(folder, range(1, 4))
    compact(folder)
    table = DeltaTable(str(folder / "archive"))
    # As in archives of older versions, whose settings made delta-rs do both after a commit.
    table.alter.set_table_properties({"delta.checkpointInterval": "1"})
    for path in (folder / LOG).iterdir():
        os.utime(path, (1e9, 1e9))
    write_batches(folder, range(4, 7))
    compact(folder, batch_bytes=1)
    assert checkpoints(folder) == []
    assert commit_path(folder, 0).exists()


# ---------------------------------------------------------------- checksums


def flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def test_each_of_sixty_flipped_bits_is_found(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", b"".join(run(number, stages=3) for number in range(50)))
    compact(folder)
    dice = random.Random(7)
    files = [*data_files(folder), *data_files(folder, "counts-")]
    for number in range(60):
        path = dice.choice(files)
        before = path.read_bytes()
        flip(path, dice)
        state = check_archive(folder)
        assert [one.path for one in state.damaged] == [f"{path.parent.name}/{path.name}"]
        assert "does not match its checksum" in state.problems[0]
        if number % 10 == 0:  # reads verify the same checksum
            with (
                EventStore(folder, verify=True) as store,
                pytest.raises(ArchiveDamagedError, match=re.escape(path.name)),
            ):
                store.volume()
        path.write_bytes(before)
    assert check_archive(folder).damaged == []


def test_each_file_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stageflow.store import _parquet as parquet

    folder = write_batches(tmp_path / "journal", range(1, 3))
    compact(folder)
    read: list[str] = []
    checksum_of = parquet.checksum_of
    monkeypatch.setattr(parquet, "checksum_of", lambda path: read.append(path) or checksum_of(path))
    with EventStore(folder, verify=True) as store:
        for _ in range(3):
            store.runs()
            write(folder, run(3))
    assert sorted(read) == sorted(map(str, [*data_files(folder), *data_files(folder, "counts-")]))


def test_checksums_survive_merges_and_checkpoints(checkpointed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpointed, tmp_path / "journal")
    assert checkpoints(folder)
    compact(folder)  # merges
    assert len(data_files(folder)) == 1
    state = check_archive(folder)
    assert (state.damaged, state.without_checksum) == ([], 0)
    flip(data_files(folder)[0], random.Random(1))
    assert len(check_archive(folder).damaged) == 1


def test_merge_does_not_hide_a_damaged_file(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    for number in range(1, 10):
        write(folder, run(number))
        compact(folder, target_bytes=1)
    damaged = data_files(folder)[3]
    flip(damaged, random.Random(3))
    compact(folder)
    assert damaged in data_files(folder)
    assert len(data_files(folder)) == 2
    assert [one.path for one in check_archive(folder).damaged] == [f"{damaged.parent.name}/{damaged.name}"]


def as_older_version(folder: Path) -> None:
    """Convert an archive to the old format, without checksums and without a durable record."""
    table = folder / "archive"
    shutil.rmtree(table / "_stageflow")
    for path in table.rglob("*.crc32-*.parquet"):
        path.rename(path.with_name(re.sub(r"\.crc32-[0-9a-f]{8}", "", path.name)))
    for path in (table / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in path.read_text().splitlines()]
        for action in actions:
            action.get("commitInfo", {}).pop("stageflow.actions", None)
        text = "\n".join(map(json.dumps, actions))
        path.write_text(re.sub(r"\.crc32-[0-9a-f]{8}", "", text))


def test_archive_of_an_older_version_has_no_checksums_and_no_problems(tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "journal", range(1, 4))
    compact(folder, batch_bytes=1)
    as_older_version(folder)
    state = check_archive(folder)
    assert (state.damaged, state.problems, state.without_checksum) == ([], [], state.files)
    shown = CliRunner().invoke(app, ["doctor", "--journal", str(folder)])
    assert shown.exit_code == 0
    assert "no checksum is recorded for 6 of them" in re.sub(r"\s+", " ", shown.output)
    with EventStore(folder, verify=True) as store:
        assert len(store.runs()) == 3
    write(folder, run(4))
    compact(folder)
    state = check_archive(folder)
    assert (state.damaged, state.without_checksum, state.files) == ([], 6, 8)
    assert len(run_ids(folder)) == 4


# ---------------------------------------------------------------- damaged files


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("damage", [empty, cut, overwrite, Path.unlink])
def test_damaged_data_file_raises_an_error_that_names_it_and_repair_removes_it(
    tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    folder = write_batches(tmp_path / "journal", range(1, 3))
    compact(folder, batch_bytes=1)
    damaged = data_files(folder)[0]
    damage(damaged)
    for command in (["stats"], ["runs"], ["query", "from runs"], ["volume"]):
        found = CliRunner().invoke(app, [*command, "--journal", str(folder)])
        # `runs` continues with the journal alone.
        assert found.exit_code == (0 if command == ["runs"] else 1), command
        assert damaged.name in found.stderr
        assert "doctor --repair" in found.stderr
        assert "Traceback" not in found.output
    shown = CliRunner().invoke(app, ["doctor", "--repair", "--json", "--journal", str(folder)])
    assert (shown.exit_code, json.loads(shown.stdout)["repaired_archive"]["lost_rows"]) == (0, 1)
    assert len(run_ids(folder)) == 1
    state = check_archive(folder)
    assert (state.problems, state.damaged) == ([], [])
    assert len(state.quarantined) == (0 if damage is Path.unlink else 1)


def test_compact_reports_a_damaged_file_that_it_needs(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", run(1))
    compact(folder)
    overwrite(data_files(folder)[0])
    write(folder, run(1))  # the same event again
    with pytest.raises(ArchiveDamagedError, match="does not match its checksum"):
        compact(folder)
    data_files(folder)[0].unlink()
    with pytest.raises(ArchiveDamagedError, match="is missing"):
        compact(folder)
    repair_archive(folder)
    compact(folder)
    assert run_ids(folder) == ["00000001-run"]


# ---------------------------------------------------------------- permissions


def modes(folder: Path) -> set[tuple[bool, str]]:
    found = [folder / "archive", *(folder / "archive").rglob("*")]
    return {(path.is_dir(), oct(path.stat().st_mode & 0o7777)) for path in found}


def test_archive_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "journal"
        with_checkpoints(folder, rounds=2)
        compact(folder)
    finally:
        os.umask(before)
    assert modes(folder) == {(True, "0o700"), (False, "0o600")}
    assert not check_archive(folder).problems


def test_archive_is_shared_with_the_group_of_a_setgid_directory(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "archive").mkdir()
    (folder / "archive").chmod(0o2750)
    with_checkpoints(folder, rounds=2)
    locks = folder / "archive" / "_stageflow" / "lock"
    assert locks.stat().st_mode & 0o777 == 0o600
    locks.chmod(0o640)
    assert modes(folder) == {(True, "0o2750"), (False, "0o640")}


def test_doctor_reports_an_archive_that_others_can_read(tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "journal", range(1, 3))
    compact(folder)
    for path in [folder / "archive", *(folder / "archive").rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (problem,) = check_archive(folder).problems
    assert "chmod -R o=" in problem


# ---------------------------------------------------------------- every prefix


@pytest.mark.timeout(180)
def test_guarantees_hold_after_a_power_failure_at_any_point() -> None:
    if sys.platform != "linux":
        pytest.skip("strace records system calls of Linux")
    calls, different, checked, problems = crash_replay.replay(10)
    assert problems == []
    assert calls > 500
    assert different > 1000
    assert checked == 10
