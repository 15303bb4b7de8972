"""What `doctor` says of a damaged archive, what a repair does, and what the other commands answer meanwhile."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_durability import commit_path, cut, data_files, empty, flip, write_batches, zero
from test_store_hostile import compact, run, run_ids, write
from typer.testing import CliRunner

from stageflow.cli.app import app
from stageflow.errors import ArchiveDamagedError
from stageflow.store import EventStore, check_archive, repair_archive


def command(*arguments: str | Path, code: int = 0) -> str:
    """Run a command; return what it wrote to both streams, on one line."""
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return re.sub(r"\s+", " ", done.output)


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs in a commit each, all of them durable, and none of them in the journal any more."""
    folder = write_batches(tmp_path_factory.mktemp("archived") / "journal", range(1, 4))
    compact(folder, batch_bytes=1)
    assert not list(folder.glob("*.ndjson"))
    return folder


@pytest.fixture
def folder(archived: Path, tmp_path: Path) -> Path:
    return shutil.copytree(archived, tmp_path / "journal")


# ---------------------------------------------------------------- lost rows


def corrupt(path: Path) -> None:
    flip(path, random.Random(1))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (Path.unlink, "is missing"),
        (corrupt, "does not match its checksum"),
        (empty, "has 0 bytes instead of"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "is missing"),
    ],
)
def test_a_repair_reports_and_records_the_rows_that_were_lost(
    folder: Path, damage: Callable[[Path], Any], problem: str
) -> None:
    path = data_files(folder)[0]
    before = len(run_ids(folder))
    damage(path)
    written = command("doctor", "--journal", folder, "--repair")
    assert "nothing to repair" not in written
    assert re.search(rf"repaired: \S*{re.escape(path.name)} {problem}.*; the archive no longer has its 1 row", written)
    assert len(run_ids(folder)) == before - 1
    # The loss stays on record.
    for _ in range(2):
        assert "1 row of 1 damaged or missing file lost" in command("doctor", "--journal", folder)
    (lost,) = check_archive(folder).lost
    assert (lost.rows, lost.path) == (1, f"{path.parent.name}/{path.name}")
    assert lost.problem.startswith(problem)
    state = json.loads(command("doctor", "--journal", folder, "--json"))
    assert [file["rows"] for file in state["archive"]["lost"]] == [1]
    assert "There was nothing to repair." in command("doctor", "--journal", folder, "--repair")


def test_losses_of_several_repairs_are_all_on_record(folder: Path) -> None:
    for path in data_files(folder)[:2]:
        path.unlink()
        assert repair_archive(folder).lost_rows == 1
    assert sum(file.rows for file in check_archive(folder).lost) == 2


def test_a_damaged_record_of_losses_is_moved_away(folder: Path) -> None:
    data_files(folder)[0].unlink()
    repair_archive(folder)
    record = folder / "archive" / "_stageflow" / "lost.json"
    record.write_bytes(record.read_bytes().replace(b'"rows":1', b'"rows":2'))
    assert "lost.json is damaged" in command("doctor", "--journal", folder, code=1)
    assert len(run_ids(folder)) == 2
    command("doctor", "--journal", folder, "--repair")
    command("doctor", "--journal", folder)


# ---------------------------------------------------------------- the record of the durable version


def change_a_digit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(re.sub(rb'"version":\d+', b'"version":9', content))


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [empty, cut, zero, change_a_digit, make_fifo, make_directory])
def test_a_repair_writes_a_damaged_record_of_the_durable_version_again(
    folder: Path, damage: Callable[[Path], Any]
) -> None:
    durable = folder / "archive" / "_stageflow" / "durable.json"
    version = json.loads(durable.read_bytes())["version"]
    ids = run_ids(folder)
    damage(durable)
    with pytest.raises(ArchiveDamagedError, match=r"(?s)durable\.json is damaged.*doctor --repair"):
        compact(folder)
    assert "durable.json" in command("doctor", "--journal", folder, code=1)
    assert "durable.json set aside" in command("doctor", "--journal", folder, "--repair")
    assert json.loads(durable.read_bytes())["version"] >= version
    command("doctor", "--journal", folder)
    compact(folder)
    assert run_ids(folder) == ids
    # The new record protects the log as the old one did.
    empty(max((folder / "archive" / "_delta_log").glob("*.json")))
    with pytest.raises(ArchiveDamagedError, match="was durable"):
        compact(folder)
