"""Damages a journal at random and reads it with every command: each error must name the damaged file.

For a longer test than in the suite, run `python -m tests.corruption 10000 [SEED]`. With `--archive`, the
command also damages files of the archive.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import io
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from typer.main import get_command

from stageflow import JournalSink, Pipeline, PipelineContext, StageflowError
from stageflow.alerts import AlertRules, FailureRate, run_alerts
from stageflow.alerts._rule import Silence, add_silence
from stageflow.cli._app import app
from stageflow.journal import Journal, JournalReader
from stageflow.journal._retention import RetentionPolicy
from stageflow.journal._segments import find_lines, list_writers
from stageflow.observability import WideEventEmitter
from stageflow.store import Compactor, EventStore
from stageflow.store._address import store_address

RULES = """
[[rules]]
kind = "failure_rate"
name = "failures"
above = 0.5
window = 3600
"""

CRASHES = """
    import asyncio, os, sys
    from stageflow import JournalSink, Pipeline, PipelineContext
    from stageflow.observability import WideEventEmitter

    async def load(ctx): return {"rows": 3}
    async def die(ctx):
        if ctx.run.user_id == "u3": os._exit(1)

    graph = Pipeline("dies").with_stage("load", load).with_stage("die", die, dependencies=("load",)).build(
        emit_stage_wide_events=True, emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(JournalSink(sys.argv[1])))

    async def main():
        for number in range(4):
            await graph.run(PipelineContext(user_id=f"u{number}", pipeline_run_id=f"dead-{number}"))

    asyncio.run(main())
"""

QUICK: dict[str, list[str]] = {
    "tail": ["tail", "-n", "1000"],
    "alerts list": ["alerts", "list", "--rules", "RULES"],
}
SLOW: dict[str, list[str]] = {
    "runs": ["runs", "--limit", "0"],
    "runs --id": ["runs", "--id", "u1"],
    "show": ["show", "last"],
    "stats": ["stats"],
    "errors": ["errors"],
    "slowest": ["slowest"],
    "explain": ["explain"],
    "query": ["query", "select count(*), sum(duration_ms) from stages"],
    "totals": ["totals"],
    "volume": ["volume"],
    "alerts check": ["alerts", "check", "--rules", "RULES"],
    "alerts run": ["alerts", "run", "--rules", "RULES"],
    "compact": ["compact", "--keep", "0s"],
}


class Outcome(NamedTuple):
    """The results of a number of corruptions.

    Attributes:
        corruptions: How many there were.
        results: How often each command gave which kind of result.
        problems: What must not be, a paragraph each.
    """

    corruptions: int
    results: Counter[str]
    problems: list[str]


# ---------------------------------------------------------------- a complete journal


def graph_on(sink: JournalSink, name: str) -> Any:
    async def load(ctx: Any) -> dict[str, int]:
        ctx.annotate(hits=2, tenant="acmé")
        ctx.emit_event("shop.searched", {"words": 2})
        return {"rows": 1}

    async def answer(ctx: Any) -> None:
        if (ctx.run.user_id or "").endswith(("3", "7")):
            raise ValueError("bad number")

    return (
        Pipeline(name)
        .with_stage("load", load)
        .with_stage("answer", answer, dependencies=("load",))
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )


def write_runs(path: Path, name: str, many: int, **options: Any) -> JournalSink:
    sink = JournalSink(path, fsync="never", **options)
    graph = graph_on(sink, name)

    async def main() -> None:
        for number in range(many):
            await graph.run(PipelineContext(user_id=f"u{number}", pipeline_run_id=f"{name}-{number}"))

    asyncio.run(main())
    return sink


def build(journal: Path) -> str:
    """Write a journal with writers, cursors and state files of all kinds; return the live writer."""
    write_runs(journal, "archived", 6).close()
    Compactor(journal, journal / "archive", keep_seconds=0).compact()
    write_runs(journal, "kept", 30, segment_bytes=12_000).close()
    size = sum(path.stat().st_size for path in journal.glob("*.ndjson"))
    RetentionPolicy(max_bytes=size // 2).apply(str(journal))
    readers = [JournalReader(journal, name, at_end=True) for name in ("warehouse", "lake")]
    write_runs(journal, "closed", 12, segment_bytes=16_000).close()
    for reader in readers:
        reader.read(random.randrange(1, 20))
        reader.commit()
        reader.close()
    subprocess.run([sys.executable, "-c", textwrap.dedent(CRASHES), str(journal)], check=False)
    before = set(list_writers(str(journal)))
    live = write_runs(journal, "live", 5)
    (writer,) = set(list_writers(str(journal))) - before
    now = datetime.now(UTC)
    with EventStore(journal) as store:
        run_alerts(store, AlertRules(rules=(FailureRate(name="failures", above=0.1, window=3600.0),)))
    until = now + timedelta(days=1)
    add_silence(str(journal / "alerts.json"), Silence(until=until, reason="a trial", rule="failures"), now)
    (journal / "broken").mkdir(mode=0o700, exist_ok=True)
    (journal / "broken" / "older-1").write_bytes(b"{")
    # A copy cannot hold the lock of the live process; a manually created lock replaces it.
    copy_of_live = {path: path.read_bytes() for path in journal.glob(f"{writer}*")}
    live.close()
    for path, content in copy_of_live.items():
        path.write_bytes(content)
    for path in journal.glob(f"{writer}*"):
        if path not in copy_of_live:
            path.unlink()
    return writer


def undo_completions(journal: Path) -> None:
    """Remove the segments that completed the runs of the crashed writer."""
    for segments in list_writers(str(journal)).values():
        if re.search(rb'"adopted_by":\d', Path(segments[-1].path).read_bytes()):
            os.unlink(segments[-1].path)


@contextlib.contextmanager
def locked(paths: list[Path]) -> Iterator[None]:
    files = [os.open(path, os.O_RDONLY | os.O_NOFOLLOW) for path in paths if path.is_file()]
    try:
        for fd in files:
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        for fd in files:
            os.close(fd)


# ---------------------------------------------------------------- damage


def flip(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.choice((1, 1, 1, 3))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def overwrite(rng: random.Random, data: bytearray) -> bytearray:
    if data:
        at = rng.randrange(len(data))
        data[at] = rng.choice(b'0123456789"{}[],:-eE+XYZaz \\\n')
    return data


def garble(rng: random.Random, data: bytearray) -> bytearray:
    at, many = rng.randrange(len(data) + 1), rng.choice((1, 7, 300))
    data[at : at + many] = rng.randbytes(many)
    return data


def truncate(rng: random.Random, data: bytearray) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def zero(rng: random.Random, data: bytearray) -> bytearray:
    at = rng.randrange(len(data) + 1)
    many = min(rng.choice((1, 16, 512, 4096)), len(data) - at)
    data[at : at + many] = bytes(many)
    return data


def drop(rng: random.Random, data: bytearray) -> bytearray:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 5, 200))]
    return data


def repeat(rng: random.Random, data: bytearray) -> bytearray:
    at = rng.randrange(len(data) + 1)
    part = data[at : at + rng.choice((1, 40, 2000))]
    data[at:at] = part
    return data


def retype(rng: random.Random, data: bytearray) -> bytearray:
    """Replace one value by another JSON type, or by an unexpected number."""
    values = [*re.finditer(rb'(?<=":)("[^"\\]*"|-?[0-9.]+|null|true|false|\[\]|\{\})', data)]
    if values:
        found = rng.choice(values)
        data[found.start() : found.end()] = rng.choice(ODD)
    return data


def emptied(rng: random.Random, data: bytearray) -> bytearray:
    return bytearray()


ODD = [
    *(b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"1e308", b"9" * 25, b"[[[[]]]]", b'"\\ud800"', b"NaN"),
    *(b"true", b'"2026-02-31T00:00:00Z"', b'"\\u0000"', b'""', b"0.5", b"[" * 3000, b'{"a":{"b":[1]}}'),
]
"""Unexpected values."""

CONTENT: list[Callable[[random.Random, bytearray], bytearray]] = [
    *(flip, flip, overwrite, overwrite, retype, retype),
    *(garble, truncate, zero, drop, repeat, emptied),
]


def corrupt(rng: random.Random, journal: Path, targets: list[Path], outside: Path) -> tuple[str, list[Path]]:
    """Damage one file; return a description, and the affected files."""
    path = rng.choice(targets)
    kind = rng.choice(("content",) * 10 + ("swapped", "directory", "link", "dangling", "fifo", "removed"))
    how = kind
    if kind == "content":
        change = rng.choice(CONTENT)
        how = change.__name__
        path.write_bytes(change(rng, bytearray(path.read_bytes())))
        return how, [path]
    if kind == "swapped":
        other = rng.choice(targets)
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)
        return how, [path, other]
    path.unlink()
    if kind == "directory":
        path.mkdir()
        (path / "inside").write_text("x")
    elif kind == "link":
        path.symlink_to(outside)
    elif kind == "dangling":
        path.symlink_to(outside.with_name("nowhere"))
    elif kind == "fifo":
        os.mkfifo(path)
    return how, [path]


# ---------------------------------------------------------------- invariants


def whole_runs(journal: Path) -> dict[str, bytes]:
    """Return the intact `pipeline.wide` lines of a segment by run id."""
    found: dict[str, bytes] = {}
    for segments in list_writers(str(journal)).values():
        for segment in segments:
            for line in find_lines(segment, b'{"type":"pipeline.wide"'):
                if (run := re.search(rb'"event_id":"([a-z]+-\d+)"', line)) is not None:
                    found[run[1].decode()] = line
    return found


class Trial:
    """One corruption, and all commands and APIs that read the journal afterwards."""

    def __init__(self, journal: Path, how: str, damaged: list[Path], results: Counter[str]) -> None:
        self.journal = journal
        self.how = how
        self.damaged = damaged
        self.results = results
        self.problems: list[str] = []

    def fail(self, what: str, text: str) -> None:
        names = ", ".join(str(path.relative_to(self.journal)) for path in self.damaged)
        self.problems.append(f"{what} after {self.how} of {names}: {text}")

    def named(self, text: str) -> bool:
        text = text.replace("\n", "")  # a terminal wraps long lines
        return any(path.name in text or path.parent.name + "/" in text for path in self.damaged)

    def call(self, what: str, function: Callable[[], Any]) -> Any:
        """Call an API, which may raise only a stageflow error that names the file."""
        try:
            value = function()
        except (StageflowError, OSError) as error:
            self.results[f"{what}: error"] += 1
            if not self.named(str(error)):
                self.fail(what, f"an error that names no damaged file: {type(error).__name__}: {error}")
            return None
        except BaseException:
            self.results[f"{what}: TRACEBACK"] += 1
            self.fail(what, traceback.format_exc(limit=-4))
            return None
        self.results[f"{what}: ok"] += 1
        return value

    def command(self, what: str, arguments: list[str], allowed: tuple[int, ...] = (0,)) -> str:
        """Run a command in this process; return what it wrote."""
        arguments = [str(RULES_FILE) if each == "RULES" else each for each in arguments]
        written = io.StringIO()
        code: Any = 0
        try:
            with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
                COMMAND.main([*arguments, "--journal", str(self.journal)], prog_name="stageflow")
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            self.results[f"{what}: TRACEBACK"] += 1
            self.fail(what, traceback.format_exc(limit=-4))
            return ""
        output = written.getvalue()
        if code not in allowed:
            self.results[f"{what}: error"] += 1
            if not self.named(output):
                self.fail(what, f"exit code {code}: {output[-400:]}")
        else:
            self.results[f"{what}: ok"] += 1
        return output


COMMAND = get_command(app)
"""Created once: creating all commands takes longer than running one."""

RULES_FILE = Path(tempfile.gettempdir()) / f"stageflow-corruption-{os.getpid()}.toml"


def try_one(
    journal: Path, how: str, damaged: list[Path], intact: dict[str, bytes], slow: bool, results: Counter[str]
) -> list[str]:
    trial = Trial(journal, how, damaged, results)
    whole = whole_runs(journal)
    archive_hit = any("archive" in path.relative_to(journal).parts[0] for path in damaged)

    def shown(what: str, runs: list[dict[str, Any]] | None) -> None:
        if runs is None:
            return
        ids = {run["event_id"] for run in runs}
        if missing := {run for run, line in intact.items() if whole.get(run) == line} - ids:
            trial.fail(what, f"undamaged runs are not shown: {sorted(missing)}")

    shown("Journal.runs", trial.call("Journal.runs", lambda: Journal(journal).runs(limit=None)))
    trial.call("JournalReader", lambda: [entry.data() for entry in JournalReader(journal)])
    trial.call("JournalReader named", lambda: _read_named(journal))
    state = trial.call("Journal.check", lambda: Journal(journal).check())
    if (
        state is not None
        and how in ("directory", "link", "dangling", "fifo")
        and not archive_hit  # which `doctor` checks
        and not trial.named(" ".join(state.problems))
    ):
        trial.fail("Journal.check", f"it does not name the damaged file: {state.problems}")
    if intact:
        run = next((run for run, line in sorted(intact.items()) if whole.get(run) == line), None)
        if run is not None:
            story = trial.call("Journal.run", lambda: Journal(journal).run(run))
            if story is not None and story.run["event_id"] != run:
                trial.fail("Journal.run", f"another run than {run}")
    # If the archive or its address is damaged, these raise an error with a remedy; the rest must work.
    for what, arguments in QUICK.items():
        trial.command(what, arguments)
    trial.command("doctor", ["doctor"], allowed=(0, 1))

    def ask() -> list[dict[str, Any]]:
        with EventStore(journal) as store:
            return store.runs(limit=None)

    if slow:
        for what, arguments in SLOW.items():
            trial.command(what, arguments)
        runs = trial.call("EventStore.runs", ask)
        shown("EventStore.runs", runs)
        if runs is not None and not archive_hit:
            archived = {f"archived-{number}" for number in range(6)}
            if missing := archived - {run["event_id"] for run in runs}:
                trial.fail("EventStore.runs", f"archived runs are not shown: {sorted(missing)}")
    trial.command("doctor --repair", ["doctor", "--repair"])
    trial.command("doctor again", ["doctor"])
    # A compaction has moved them to the archive.
    again = ask if slow else lambda: Journal(journal).runs(limit=None)
    shown("runs after repair", trial.call("runs after repair", again))
    return trial.problems


def _read_named(journal: Path) -> int:
    """Read with a named cursor, without a commit: the trial reads again after the repair."""
    with JournalReader(journal, "warehouse") as reader:
        return sum(entry.data() is not None for entry in reader.read(10_000))


def run_trials(
    many: int, seed: int = 0, *, archive: bool = False, slow_every: int = 10, verbose: bool = False
) -> Outcome:
    """Damage fresh copies of a journal, and return the results."""
    logging.getLogger("stageflow").addHandler(logging.NullHandler())
    rng = random.Random(seed)
    results: Counter[str] = Counter()
    problems: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="stageflow-corruption-"))
    try:
        RULES_FILE.write_text(RULES)
        template, journal, outside = folder / "template", folder / "journal", folder / "outside"
        live = build(template)
        undo_completions(template)
        intact = whole_runs(template)
        for number in range(many):
            shutil.rmtree(journal, ignore_errors=True)
            shutil.copytree(template, journal, symlinks=True)
            os.chmod(journal, 0o700)
            outside.write_bytes(b"private")
            point_to(journal)
            targets = [
                path
                for path in sorted(journal.rglob("*"))
                if path.is_file()
                and "broken" not in path.parts
                and (archive or path.relative_to(journal).parts[0] != "archive")
            ]
            if archive and number % 2:
                targets = [path for path in targets if path.relative_to(journal).parts[0] == "archive"]
            state = rng.getstate()
            with locked(sorted(journal.glob(f"{live}*"))[-1:]):
                how, damaged = corrupt(rng, journal, targets, outside)
                found = try_one(journal, how, damaged, intact, number % slow_every == 0, results)
            if outside.read_bytes() != b"private":
                found.append(f"a symbolic link was followed after {how} of {damaged}")
            if found and verbose:
                print(f"--- {number}", *found, sep="\n", flush=True)
            problems += [f"corruption {number} (seed {seed}): {each}" for each in found]
            rng.setstate(state)
            rng.seed(rng.random() + number)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        RULES_FILE.unlink(missing_ok=True)
    return Outcome(many, results, problems)


def point_to(journal: Path) -> None:
    """Store the address of this copy's archive, not that of the template, in `archive.json`."""
    store_address(str(journal), "elsewhere")  # the default address is not stored
    store_address(str(journal), str(journal / "archive"))


def main() -> None:
    """Run the number of corruptions given on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.corruption", description=__doc__)
    parser.add_argument("many", type=int)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--archive", action="store_true", help="damage the files of the archive as well")
    parser.add_argument("--slow-every", type=int, default=10, help="run the DuckDB commands in each Nth one")
    arguments = parser.parse_args()
    began = time.monotonic()
    outcome = run_trials(
        arguments.many,
        arguments.seed,
        archive=arguments.archive,
        slow_every=arguments.slow_every,
        verbose=True,
    )
    for what, times in sorted(outcome.results.items()):
        print(f"{times:8,}  {what}")
    print(
        f"{outcome.corruptions:,} corruptions in {time.monotonic() - began:.0f} s,"
        f" {len(outcome.problems):,} problems"
    )
    sys.exit(1 if outcome.problems else 0)


if __name__ == "__main__":
    main()
