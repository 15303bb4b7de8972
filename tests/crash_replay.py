"""Replays the states in which a power failure can leave a journal, its cursors, its archive and alert state.

A program writes all four under strace. The power may fail after each of its system calls; changes not synced
by then may or may not be on the disk. The test recreates each state in a directory, recovers it as the next
process would, and compares it with the guarantees that the program had received by then.

To check every state, run `python -m tests.crash_replay all`; to check fewer, pass a number. It prints how
many states it has checked; `--start` continues an interrupted run from there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = (
    "openat,open,creat,write,writev,pwrite64,pwritev,lseek,rename,renameat,renameat2,unlink,unlinkat,rmdir,"
    "link,linkat,fsync,fdatasync,ftruncate,truncate,mkdir,mkdirat,fallocate,copy_file_range,sendfile,mmap"
)

# ---------------------------------------------------------------- the program whose calls are recorded


def work(folder: str) -> None:
    """Write, read and archive events, and change alerts; record each guarantee in the file `promised`."""
    from stageflow import JournalSink, Pipeline, PipelineContext
    from stageflow.alerts._state import AlertState, ReceiverState, write_state
    from stageflow.journal import JournalReader
    from stageflow.observability import WideEventEmitter
    from stageflow.store import (
        Compactor,
        _archive as archive,
        _compactor as compaction,
        _delta_log as delta_log,
    )

    # Compress months of operation into seconds: merges, checkpoints and log cleanup.
    archive._COMMITS_PER_CHECKPOINT = 4
    delta_log._CLEAN_AFTER = 0.0
    compaction._MIN_MERGED_FILES = 3

    journal = os.path.join(folder, "disk", "journal")
    promised = os.open(os.path.join(folder, "promised"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def promise(**what: Any) -> None:
        os.write(promised, json.dumps(what).encode() + b"\n")

    async def stage(ctx: Any) -> dict[str, Any]:
        ctx.annotate(hits=2)
        return {}

    for number in range(5):
        sink = JournalSink(journal, fsync="always", segment_bytes=2500)
        graph = (
            Pipeline("p")
            .with_stage("only", stage)
            .build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=WideEventEmitter(sink),
            )
        )
        for _ in range(2):
            results = asyncio.run(graph.run(PipelineContext()))
            run = str(results.context.pipeline_run_id)
            promise(events=[run, f"{run}/only/1"])
        sink.close()
        with JournalReader(journal, "warehouse") as reader:
            entries = reader.read()
            # Load before the commit: at-least-once delivery.
            promise(loaded=[entry.data()["event_id"] for entry in entries])
            reader.commit()
        write_state(
            os.path.join(journal, "alerts.json"),
            AlertState(receivers={"ops": ReceiverState(sent=number + 1)}),
        )
        promise(alerts=number + 1)
        Compactor(journal, keep_seconds=0, batch_bytes=1).compact()
        promise(compacted=number)
    compactor = Compactor(journal, keep_seconds=0)
    compactor.archive.refresh()
    compactor.archive.remove_unused(hours=0)
    compactor.archive.shorten_log()


# ---------------------------------------------------------------- the recording


@dataclass
class Op:
    """One change of the disk, or one guarantee."""

    kind: str
    path: str = ""
    other: str = ""
    offset: int = 0
    data: bytes = b""
    size: int = 0


def record(folder: Path) -> list[Op]:
    """Run the program under strace; return its operations below `disk` and the guarantees it received.

    Raises:
        RuntimeError: strace is missing, may not trace, or saw a call that is not modelled.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise RuntimeError("strace is not installed: run tools/install-packages")
    trace = folder / "trace"
    (folder / "disk").mkdir()
    command = [strace, "-f", "-y", "-xx", "-s", "100000000", "--seccomp-bpf", "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [*command, "-o", str(trace), sys.executable, __file__, "work", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")},
    )
    if done.returncode != 0:
        raise RuntimeError(f"the traced program failed: {done.stderr[-2000:]}")
    ops = list(_parse(trace, str(folder)))
    if not any(op.kind == "promise" for op in ops) or not any("_delta_log" in op.path for op in ops):
        raise RuntimeError(f"strace recorded nothing of the program: {done.stderr[-2000:]}")
    return ops


_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<([^>]*)>)?.*", re.DOTALL)
_UNFINISHED = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>$", re.DOTALL)
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)


_PATHS = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:\\x[0-9a-f]{2})*)"')
_NOT_MODELLED = ("writev", "pwritev", "fallocate", "copy_file_range", "sendfile", "truncate")


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _parse(trace: Path, root: str) -> Iterator[Op]:
    disk, promised = os.path.join(root, "disk"), os.path.join(root, "promised")
    offsets: dict[int, int] = {}
    appending: set[int] = set()
    begun: dict[str, str] = {}
    with trace.open() as lines:
        for line in lines:
            line = line.rstrip("\n")
            if found := _UNFINISHED.match(line):
                begun[found[1]] = f"{found[1]} {found[2]}({found[3]}"
                continue
            if found := _RESUMED.match(line):
                line = begun.pop(found[1]) + found[3]
            found = _LINE.match(line)
            if not found or int(found[4]) < 0:
                continue
            call, arguments, result = found[2], found[3], int(found[4])
            at = re.match(r"(\d+)<([^>]*)>", arguments)
            fd, on = (int(at[1]), _plain(at[2])) if at else (-1, "")
            paths = []
            if call not in ("write", "pwrite64", "writev", "pwritev"):
                paths = [
                    os.path.join(_plain(base) if base else "", _unhex(name).decode())
                    for base, name in _PATHS.findall(arguments)
                ]
            if call in ("openat", "open", "creat"):
                path = _plain(found[5] or "")
                offsets[result] = 0
                appending.discard(result)
                if "O_APPEND" in arguments:
                    appending.add(result)
                if path.startswith(disk):
                    if "O_CREAT" in arguments:
                        yield Op("create", path)
                    if "O_TRUNC" in arguments:
                        yield Op("truncate", path, size=0)
            elif call == "lseek":
                offsets[fd] = result
            elif call in ("write", "pwrite64") and on == promised:
                yield Op("promise", data=_unhex(re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)[0]))
            elif call in ("write", "pwrite64") and on.startswith(disk):
                text = re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)[0]
                data = _unhex(text)[:result]
                if call == "pwrite64":
                    yield Op("write", on, offset=int(arguments.rsplit(", ", 1)[1]), data=data)
                else:
                    yield Op("write", on, offset=-1 if fd in appending else offsets[fd], data=data)
                    offsets[fd] = offsets.get(fd, 0) + result
            elif call == "ftruncate" and on.startswith(disk):
                yield Op("truncate", on, size=int(arguments.rsplit(", ", 1)[1]))
            elif call in ("fsync", "fdatasync") and on.startswith(disk):
                yield Op("sync", on)
            elif call in ("rename", "renameat", "renameat2") and paths[0].startswith(disk):
                yield Op("rename", paths[0], paths[1])
            elif call in ("link", "linkat") and paths[0].startswith(disk):
                yield Op("link", paths[0], paths[1])
            elif call in ("unlink", "unlinkat", "rmdir") and paths[0].startswith(disk):
                yield Op("unlink", paths[0])
            elif call in ("mkdir", "mkdirat") and paths[0].startswith(disk):
                yield Op("mkdir", paths[0])
            elif call == "mmap" and "MAP_SHARED" in arguments and "PROT_WRITE" in arguments:
                if disk in _plain(re.search(r"<([^>]*)>", arguments + "<>")[1]):
                    raise RuntimeError(f"a shared mapping is not modelled: {line[:200]}")
            elif call in _NOT_MODELLED and any(path.startswith(disk) for path in [on, *paths]):
                raise RuntimeError(f"{call} is not modelled: {line[:200]}")


def _plain(path: str) -> str:
    """Decode a path that strace printed with -xx."""
    return _unhex(path).decode() if path.startswith("\\x") else path


# ---------------------------------------------------------------- the disk


@dataclass
class File:
    """An inode: its content in memory, and its synced content."""

    content: bytes = b""
    synced: bytes = b""
    is_directory: bool = False


@dataclass
class Disk:
    """A file system whose newest changes are only in memory."""

    names: dict[str, File] = field(default_factory=dict)
    safe: dict[str, File] = field(default_factory=dict)
    pending: list[tuple[str, str, str, File | None]] = field(default_factory=list)
    promises: list[dict[str, Any]] = field(default_factory=list)

    def apply(self, op: Op) -> None:
        if op.kind == "promise":
            self.promises += map(json.loads, op.data.splitlines())
        elif op.kind == "create" and op.path not in self.names:
            self._change("add", op.path, "", File())
        elif op.kind == "mkdir":
            self._change("add", op.path, "", File(is_directory=True))
        elif op.kind == "link":
            self._change("add", op.other, "", self.names[op.path])
        elif op.kind == "rename":
            self._change("move", op.path, op.other, self.names[op.path])
        elif op.kind == "unlink" and op.path in self.names:
            self._change("remove", op.path, "", None)
        elif op.kind == "sync" and op.path not in self.names:  # the root directory
            self._sync_directory(op.path)
        elif op.kind in ("write", "truncate", "sync") and op.path in self.names:
            file = self.names[op.path]
            if op.kind == "write":
                at = len(file.content) if op.offset < 0 else op.offset
                content = file.content.ljust(at, b"\0")
                file.content = content[:at] + op.data + content[at + len(op.data) :]
            elif op.kind == "truncate":
                file.content = file.content[: op.size].ljust(op.size, b"\0")
            elif file.is_directory:
                self._sync_directory(op.path)
            else:
                file.synced = file.content

    def _change(self, kind: str, path: str, other: str, file: File | None) -> None:
        change = (kind, path, other, file)
        self.pending.append(change)
        _apply_change(self.names, change)

    def _sync_directory(self, path: str) -> None:
        """Make name changes in a directory durable; syncing either directory of a rename suffices."""
        left = []
        for change in self.pending:
            if path in (os.path.dirname(change[1]), os.path.dirname(change[2]) if change[2] else None):
                _apply_change(self.safe, change)
            else:
                left.append(change)
        self.pending = left

    def survivors(self, dice: random.Random, how: str) -> dict[str, bytes | None]:
        """Return the state after a power failure: content by path, None for a directory.

        Args:
            dice: Chooses.
            how: "names": all name changes persist, unsynced data is lost; "zeros": unsynced data is zeroed;
                "half": half of the unsynced data persists; "nothing": only synced names and data persist;
                "prefix": name changes persist in order, up to one of them; "random": each change persists or
                not at random.
        """
        names = dict(self.safe)
        kept = self.pending
        if how == "nothing":
            kept = []
        elif how == "prefix":
            kept = self.pending[: dice.randint(0, len(self.pending))]
        elif how == "random":
            fate: dict[str, int] = {}
            kept = []
            seen: Counter[str] = Counter()
            for change in self.pending:  # a prefix for each directory
                folder = os.path.dirname(change[1])
                fate.setdefault(folder, dice.randint(0, len(self.pending)))
                seen[folder] += 1
                if seen[folder] <= fate[folder]:
                    kept.append(change)
        for change in kept:
            _apply_change(names, change)
        found: dict[str, bytes | None] = {}
        for path, file in names.items():
            found[path] = None if file.is_directory else self._content(file, dice, how)
        # Files in a lost directory are unreachable.
        return {path: content for path, content in found.items() if _has_parents(path, found)}

    def _content(self, file: File, dice: random.Random, how: str) -> bytes:
        if file.content == file.synced:
            return file.content
        if how == "random":
            how = dice.choice(("names", "zeros", "half", "all"))
        if how == "prefix":
            how = dice.choice(("names", "half", "all"))
        if not file.content.startswith(file.synced):  # overwritten
            return file.synced if how in ("names", "nothing") else file.content
        more = file.content[len(file.synced) :]
        if how == "all":
            return file.content
        if how == "zeros":
            return file.synced + bytes(len(more))
        if how == "half":
            return file.synced + more[: dice.randint(0, len(more))]
        return file.synced


def _apply_change(names: dict[str, File], change: tuple[str, str, str, File | None]) -> None:
    kind, path, other, file = change
    if kind == "remove":
        names.pop(path, None)
    else:
        if kind == "move":
            if path in names and file is not None and file.is_directory:
                for below in [name for name in names if name.startswith(path + "/")]:
                    names[other + below[len(path) :]] = names.pop(below)
            names.pop(path, None)
        assert file is not None
        names[other if kind == "move" else path] = file


def _has_parents(path: str, found: dict[str, bytes | None]) -> bool:
    parent = os.path.dirname(path)
    return os.path.basename(parent) == "disk" or (parent in found and _has_parents(parent, found))


# ---------------------------------------------------------------- checks

HOW = ("names", "zeros", "half", "nothing", "prefix", "random")


@dataclass
class State:
    """One possible state after a power failure."""

    at: int
    how: str
    files: dict[str, bytes | None]
    promises: list[dict[str, Any]]


def states(ops: list[Op], *, hows: tuple[str, ...] = HOW, seed: int = 1) -> Iterator[State]:
    """Yield every distinct state of every prefix."""
    disk = Disk()
    seen: set[bytes] = set()
    for at, op in enumerate(ops, 1):
        disk.apply(op)
        for how in hows:
            files = disk.survivors(random.Random(f"{seed}-{at}-{how}"), how)
            digest = hashlib.sha256(repr(len(disk.promises)).encode())
            for path in sorted(files):
                content = files[path]
                digest.update(path.encode() + (b"/" if content is None else b"=" + content) + b"\0")
            if digest.digest() not in seen:
                seen.add(digest.digest())
                yield State(at, how, files, list(disk.promises))


def rebuild(state: State, folder: Path) -> Path:
    """Write a state into an empty directory, and return its journal."""
    for path, content in sorted(state.files.items()):
        target = folder / path.split("/disk/", 1)[1]
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.write_bytes(content)
    return folder / "journal"


def problems_of(state: State, folder: Path) -> list[str]:
    """Recover a state as the next processes would, and yield violated guarantees."""
    try:
        return list(_problems_of(state, folder))
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def _problems_of(state: State, folder: Path) -> Iterator[str]:
    from stageflow.alerts._state import read_state
    from stageflow.journal import Journal, JournalReader
    from stageflow.store import Compactor, EventStore

    promised = [one for told in state.promises for one in told.get("events", ())]
    loaded = {one for told in state.promises for one in told.get("loaded", ())}
    journal = rebuild(state, folder)
    if not journal.exists():
        if promised:
            yield "the journal is missing"
        return
    Journal(journal).runs()
    with EventStore(journal) as store:
        yield from _compare(store, promised, "before compact")
    with JournalReader(journal, "warehouse") as reader:
        again = set()
        while entries := reader.read():
            again |= {entry.data()["event_id"] for entry in entries}
        if missed := set(promised) - loaded - again:
            yield f"the reader never sees {sorted(missed)}"
        reader.commit()
    alerts = [told["alerts"] for told in state.promises if "alerts" in told]
    sent = read_state(str(journal / "alerts.json")).receivers
    found = sent["ops"].sent if sent else 0
    if not max(alerts, default=0) <= found <= max(alerts, default=0) + 1:
        yield f"the state of alerts is number {found}, and {max(alerts, default=0)} was promised"
    for _ in range(2):
        Compactor(journal, keep_seconds=0).compact()
    with EventStore(journal) as store:
        yield from _compare(store, promised, "after compact")
        runs = store.sql("select count(*) from runs").rows[0][0]
        exact = sum(total.count for total in store.totals() if total.stage is None)
        if exact != runs:
            yield f"{exact} runs are counted, but {runs} exist"


def _compare(store: Any, promised: list[str], when: str) -> Iterator[str]:
    rows = store.sql("select event_id, count(*) from events where event_id is not null group by 1").rows
    counts = dict(rows)
    if missing := set(promised) - counts.keys():
        yield f"{when}: missing: {sorted(missing)}"
    if twice := [event_id for event_id, count in counts.items() if count > 1]:
        yield f"{when}: twice: {twice}"


def replay(
    most: int | None, *, start: int = 0, seed: int = 1, keep: Path | None = None
) -> tuple[int, int, int, list[str]]:
    """Record once, and check a number of states spread evenly over all of them.

    Args:
        most: How many states to check; None for all.
        start: How many of them to skip. Each recording differs a little, so the states before are not exactly
            those that an earlier run has checked.
        seed: Determines the states that are checked.
        keep: A directory that receives each state that violates a guarantee.

    Returns:
        How many calls were recorded, how many states are different, how many were checked, the problems.

    Raises:
        ValueError: There are no more than `start` states.
    """
    with tempfile.TemporaryDirectory(prefix="stageflow-crash-") as name:
        folder = Path(name).resolve()
        ops = record(folder)
        every = list(states(ops, seed=seed))
        chosen = every
        if most is not None and most < len(every):
            chosen = random.Random(seed).sample(every, most)
        if start >= len(chosen):
            raise ValueError(f"start={start}; there are {len(chosen)} states to check")
        problems = []
        for number, state in enumerate(chosen[start:], start):
            if (most is None or most > 200) and number % 100 == 0 and number > start:
                print(f"{number} of {len(chosen)} states, {len(problems)} problems", flush=True)
            place = folder / f"state-{number}"
            place.mkdir()
            found = problems_of(state, place)
            problems += [f"after call {state.at} ({state.how}): {problem}" for problem in found]
            if found and keep is not None:
                with contextlib.suppress(FileExistsError):
                    shutil.copytree(place, keep / f"{state.at}-{state.how}-after")
                    rebuild(state, keep / f"{state.at}-{state.how}")
            shutil.rmtree(place)
        return len(ops), len(every), len(chosen) - start, problems


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2])
    else:
        parser = argparse.ArgumentParser(
            prog="python -m tests.crash_replay",
            description=__doc__,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        parser.add_argument(
            "states",
            type=lambda text: None if text == "all" else int(text),
            nargs="?",
            help="number of states to check, or all (default: all)",
        )
        parser.add_argument(
            "--start",
            type=int,
            default=0,
            metavar="N",
            help="skip the first N states, which an interrupted run has checked (default: 0)",
        )
        arguments = parser.parse_args()
        if arguments.start < 0:
            parser.error(f"argument --start: {arguments.start} is negative")
        began = time.monotonic()
        try:
            calls, different, checked, wrong = replay(arguments.states, start=arguments.start)
        except ValueError as error:
            parser.error(str(error))
        print(f"{calls} calls, {different} different states, {checked} checked, {len(wrong)} problems")
        print(f"{time.monotonic() - began:.0f} s", *wrong[:50], sep="\n")
        sys.exit(bool(wrong))
