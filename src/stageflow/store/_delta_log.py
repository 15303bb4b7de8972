"""The log of a Delta Lake table."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from msgspec import Struct

from .._files import is_regular, make_private, open_regular, replace_file, sync, sync_directory, try_lock
from .._state_file import decode_stored, encode_state, read_state
from ..errors import ArchiveDamagedError, DamagedFileError

if TYPE_CHECKING:
    from deltalake import Field

__all__ = [
    "ACTIONS_CHECKSUM",
    "DUCKDB_TYPES",
    "DeltaLog",
    "Durable",
    "LogState",
    "Mode",
    "actions_checksum",
    "delta_field",
    "is_complete_checkpoint",
    "is_complete_commit",
    "make_directory",
    "mode_of",
    "restore_hint",
    "sync_file",
]


class Mode(Struct, frozen=True):
    """The permissions of new files and directories of an archive."""

    file: int
    directory: int


def mode_of(archive: str) -> Mode:
    """Return the permissions of new files in an archive: group-readable if its directory has setgid."""
    try:
        shared = os.stat(archive).st_mode & 0o2000
    except FileNotFoundError:
        shared = 0
    return Mode(0o640, 0o2750) if shared else Mode(0o600, 0o700)


def make_directory(archive: str, path: str) -> None:
    """Create and sync one directory of an archive if it does not exist."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, mode_of(archive).directory)
        sync_directory(os.path.dirname(path))


_DELTA_TYPES = {
    "VARCHAR": "string",
    "DOUBLE": "double",
    "BIGINT": "long",
    "BOOLEAN": "boolean",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
    "DATE": "date",
}

DUCKDB_TYPES = {delta: duckdb for duckdb, delta in _DELTA_TYPES.items()}


def delta_field(name: str, type: str) -> Field:
    """Return a column of a Delta table; `type` is a DuckDB type."""
    from deltalake import Field
    from deltalake.schema import ArrayType, PrimitiveType

    of = PrimitiveType(_DELTA_TYPES[type.removesuffix("[]")])
    return Field(name, ArrayType(of) if type.endswith("[]") else of)


ACTIONS_CHECKSUM = "stageflow.actions"
"""The key in `commitInfo` of the checksum over the other actions of a commit."""


def actions_checksum(
    added: Iterable[tuple[str, int]], removed: Iterable[str], transactions: Mapping[str, int]
) -> str:
    """Return the checksum of the actions of a commit, which shows whether its file is complete."""
    actions = [
        *(["add", path, size] for path, size in added),
        *(["remove", path] for path in removed),
        *(["txn", writer, number] for writer, number in transactions.items()),
    ]
    return f"{zlib.crc32(json.dumps(sorted(actions)).encode()):08x}"


def is_complete_checkpoint(path: str, recorded: tuple[int, int] | None) -> bool:
    """Return whether a checkpoint has the recorded size and CRC-32, or looks complete without them."""
    with open(open_regular(path), "rb") as file:
        content = file.read()
    if recorded is not None:
        return (len(content), zlib.crc32(content)) == recorded
    footer = int.from_bytes(content[-8:-4], "little")
    return content[:4] == content[-4:] == b"PAR1" and 0 < footer <= len(content) - 12


def is_complete_commit(path: str) -> bool:
    """Return whether a commit contains all of its actions."""
    with open(open_regular(path), "rb") as file:
        content = file.read()
    try:
        actions = [decode_stored(line) for line in content.split(b"\n") if line]
        if not actions or not all(isinstance(action, dict) and len(action) == 1 for action in actions):
            return False
        found: dict[str, list[Any]] = {}
        for action in actions:
            ((kind, values),) = action.items()
            found.setdefault(kind, []).append(values)
        (info,) = found.get("commitInfo") or [{}]
        if info.get("operation") == "CREATE TABLE" and not ("metaData" in found and "protocol" in found):
            return False
        if ACTIONS_CHECKSUM not in info:
            return True  # written by an older version or another program: no checksum to verify
        return bool(
            info[ACTIONS_CHECKSUM]
            == actions_checksum(
                [(unquote(add["path"]), add["size"]) for add in found.get("add", ())],
                [unquote(remove["path"]) for remove in found.get("remove", ())],
                {txn["appId"]: txn["version"] for txn in found.get("txn", ())},
            )
        )
    except (ValueError, KeyError, TypeError):
        return False


class Durable(Struct, frozen=True):
    """The synced state, on which deletions of segments and replaced files may rely.

    Attributes:
        version: The newest synced version of the table.
        checkpoints: Size and CRC-32 of each synced checkpoint file, by name.
    """

    version: int = -1
    checkpoints: dict[str, tuple[int, int]] = {}


class LogState(Struct, frozen=True):
    """The result of an inspection.

    Attributes:
        good: The newest complete version; -1 for none.
        last: The newest version in the log; -1 for none.
        damaged: Names of damaged or unusable files, newest first; empty for an intact log.
        missing: Name of a required commit that is missing, or None.
    """

    good: int
    last: int
    damaged: tuple[str, ...] = ()
    missing: str | None = None


def sync_file(path: str) -> None:
    """Sync a file; do nothing if it does not exist (another process deleted it)."""
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        return
    try:
        sync(fd)
    finally:
        os.close(fd)


def restore_hint(given_up: str = "the archived events that the journal no longer has") -> str:
    """Return the hint for a damaged file of the log that cannot be derived from anything else."""
    return (
        "restore it from a backup. Without one, move the archive away, and run `stageflow compact --forget`:"
        f" that gives up {given_up}"
    )


STATE = "_stageflow"
"""A directory that Delta readers and vacuum ignore: contains the durable version and removed files."""

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\..*parquet")
_HINT = "_last_checkpoint"
_CLEAN_AFTER = 24 * 3600.0
"""Seconds to keep a commit that a checkpoint has made redundant, for time travel and slow readers."""


class DeltaLog:
    """The log of one archive.

    Args:
        address: Directory of the archive.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.path = os.path.join(address, "_delta_log")
        self._state = os.path.join(address, STATE)
        self._durable_path = os.path.join(self._state, "durable.json")
        self._verified: dict[str, tuple[int, int]] = {}
        self._inspected: tuple[int, LogState] | None = None
        self._synced: set[str] = set()
        self._last = -1

    def exists(self) -> bool:
        """Return whether the archive has a log, even an empty one."""
        try:
            os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def invalidate(self) -> None:
        """Invalidate the cached information about files on disk."""
        self._verified = {}
        self._inspected = None
        self._synced = set()

    def make_directories(self) -> None:
        """Create the directories of the archive."""
        make_private(self.address)
        for path in (self.path, self._state):
            make_directory(self.address, path)

    # ------------------------------------------------------------ sync

    def sync(self) -> None:
        """Sync every commit and checkpoint not synced yet, whichever process wrote it.

        Raises:
            OSError: The disk reported an error; the commits may not be durable.
        """
        commits, checkpoints, has_hint = self._list()
        first = not self._synced
        if first:  # in this process
            durable = self.durable()
            self._synced = {name for version, name in commits.items() if version <= durable.version}
            self._synced.update(durable.checkpoints)
        of_checkpoints = {name for names in checkpoints.values() for name in names} - self._synced
        new = {*commits.values()} - self._synced | of_checkpoints
        if of_checkpoints and has_hint:
            new.add(_HINT)
        mode = mode_of(self.address).file
        for name in sorted(new):  # sync a checkpoint before the hint that references it
            path = os.path.join(self.path, name)
            with contextlib.suppress(FileNotFoundError):
                os.chmod(path, mode)
            sync_file(path)
        for folder in (self.path, *((self.address, os.path.dirname(self.address)) if first else ())):
            sync_directory(folder)
        self._synced |= new
        self._last = max(commits, default=-1)

    def mark_durable(self) -> None:
        """Sync the log and record its version as durable, before other operations rely on it.

        Raises:
            OSError: The log cannot be synced, or the record cannot be written.
        """
        self.sync()
        known = self.durable()
        _, checkpoints, _ = self._list()
        names = [name for group in checkpoints.values() for name in group]
        found = {name: known.checkpoints.get(name) or self._checksum(name) for name in names}
        durable = Durable(max(known.version, self._last), {k: v for k, v in found.items() if v is not None})
        if durable != known:
            make_directory(self.address, self._state)
            replace_file(self._durable_path, encode_state(durable))
            os.chmod(self._durable_path, mode_of(self.address).file)

    def durable(self) -> Durable:
        """Return the recorded durable state.

        Raises:
            ArchiveDamagedError: The record cannot be read.
        """
        try:
            return read_state(self._durable_path, Durable, "") or Durable()
        except DamagedFileError as error:
            raise ArchiveDamagedError(
                f"archive {self.address}: {self._durable_path} is damaged: {error.reason}",
                files=[self._durable_path],
                hint="`stageflow doctor --repair` checks the log and rewrites the file",
            ) from error

    def move_damaged_record(self) -> list[str]:
        """Move a damaged record of the durable version away; return its new path, if it was moved.

        `mark_durable` writes a new one. Until then a recovery relies on what the journal recorded.
        """
        try:
            self.durable()
        except ArchiveDamagedError:
            moved = [self.quarantine(self._durable_path)]
            self.invalidate()
            return moved
        return []

    def _checksum(self, name: str) -> tuple[int, int] | None:
        try:
            with open(open_regular(os.path.join(self.path, name)), "rb") as file:
                content = file.read()
        except OSError:
            return None
        return len(content), zlib.crc32(content)

    # ------------------------------------------------------------ inspection

    def check(self) -> None:
        """Raise if the log does not describe one complete version.

        Raises:
            ArchiveDamagedError: A file of the log is damaged or missing.
        """
        for attempt in range(3):  # listing a directory while it changes may miss a name
            state = self.inspect()
            if not state.damaged and state.missing is None:
                return
            if attempt == 2:
                raise self._damaged(state, self.durable())

    def inspect(self, *, strict: bool = False) -> LogState:
        """Return the newest complete version and the damaged files.

        Args:
            strict: Whether a checkpoint that is not recorded as durable counts as damaged.
        """
        try:
            changed = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            changed = 0
        # A commit changes the modification time of the directory; `doctor` finds files damaged later.
        if not strict and self._inspected is not None and self._inspected[0] == changed:
            return self._inspected[1]
        state = self._inspect(strict)
        if not state.damaged and state.missing is None and time.time_ns() - changed > 2_000_000_000:
            self._inspected = changed, state
        return state

    def _inspect(self, strict: bool) -> LogState:
        commits, checkpoints, has_hint = self._list()
        durable = self.durable()
        known = durable.version >= 0
        damaged: list[str] = []
        base = -1
        for version in sorted(checkpoints, reverse=True):
            names = checkpoints[version]
            if all(self._is_intact_checkpoint(name, durable, strict and known) for name in names):
                base = version
                break
            damaged += names
        last = max([base, *commits])
        good = base
        for version in range(base + 1, last + 1):
            name = commits.get(version)
            if name is None or not self._is_intact_commit(name):
                break
            good = version
        missing = None
        if good < last:
            damaged += [commits[version] for version in sorted(commits, reverse=True) if version > good]
            if good + 1 not in commits:
                missing = _commit_name(good + 1)
        elif last < durable.version:
            missing = _commit_name(last + 1)
        if has_hint and not is_regular(os.path.join(self.path, _HINT)):
            damaged.append(_HINT)  # delta-rs would block indefinitely on a FIFO
        elif has_hint and (named := self._hint()) is not None and (named > base or named not in checkpoints):
            damaged.append(_HINT)
        return LogState(good, last, tuple(damaged), missing)

    def _list(self) -> tuple[dict[int, str], dict[int, list[str]], bool]:
        """Return the names of commits and checkpoints by version, and whether a hint exists."""
        commits: dict[int, str] = {}
        checkpoints: dict[int, list[str]] = {}
        try:
            names = os.listdir(self.path)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        for name in names:
            if found := _COMMIT.fullmatch(name):
                commits[int(found[1])] = name
            elif found := _CHECKPOINT.fullmatch(name):
                checkpoints.setdefault(int(found[1]), []).append(name)
        return commits, checkpoints, _HINT in names

    def _hint(self) -> int | None:
        try:
            with open(open_regular(os.path.join(self.path, _HINT)), "rb") as file:
                return int(decode_stored(file.read())["version"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _is_intact_checkpoint(self, name: str, durable: Durable, strict: bool) -> bool:
        recorded = durable.checkpoints.get(name)
        if recorded is None and strict:
            return False
        return self._is_verified(name, lambda path: is_complete_checkpoint(path, recorded))

    def _is_intact_commit(self, name: str) -> bool:
        return self._is_verified(name, is_complete_commit)

    def _is_verified(self, name: str, verify: Callable[[str], bool]) -> bool:
        path = os.path.join(self.path, name)
        try:
            found = os.stat(path)
            seen = found.st_size, found.st_mtime_ns
            if self._verified.get(name) != seen:
                if not verify(path):
                    return False
                self._verified[name] = seen
        except OSError:
            return False
        return True

    def _is_intact(self, name: str, durable: Durable) -> bool:
        if name == _HINT:
            return True  # it names a checkpoint that is damaged or absent, or it is rewritten
        if _COMMIT.fullmatch(name):
            return self._is_intact_commit(name)
        return self._is_intact_checkpoint(name, durable, strict=False)

    def _damaged(
        self, state: LogState, durable: Durable, *, is_archived: bool = False
    ) -> ArchiveDamagedError:
        # Intact commits that build on a damaged one are useless, not damaged.
        names = [name for name in state.damaged if not self._is_intact(name, durable)]
        names += [state.missing] if state.missing is not None else []
        names = names or list(state.damaged)
        # The oldest file is the cause; the others build on it. If the log begins with a checkpoint, the
        # checkpoint is the cause.
        begins_later = state.missing == _commit_name(0) and state.last > 0
        damaged_checkpoints = [name for name in state.damaged if _CHECKPOINT.fullmatch(name)]
        if begins_later and damaged_checkpoints:
            first, problem = damaged_checkpoints[0], "is damaged or incomplete"
        elif state.missing is not None:
            first, problem = state.missing, "is missing"
        else:
            first, problem = min(names), "is damaged or incomplete"
        recoverable = state.good >= durable.version and not begins_later and not is_archived
        message = f"archive {self.address}: {os.path.join('_delta_log', first)} {problem}"
        if state.good >= 0:
            message += f"; version {state.good} of {state.last} is complete"
        if state.good < durable.version:
            message += f", and version {durable.version} was durable"
        elif is_archived:
            message += ", and the journal cannot replace the rest"
        return ArchiveDamagedError(
            message,
            files=[os.path.join(self.path, name) for name in names],
            hint=(
                "`stageflow compact` recovers the archive if the journal still has the later events"
                if recoverable
                else restore_hint()
            ),
        )

    # ------------------------------------------------------------ recovery

    def recover(self, can_return_to: Callable[[int, Mapping[str, int]], bool]) -> list[str]:
        """Move incomplete files to `_stageflow`, so that the newest complete version becomes the last one.

        Args:
            can_return_to: Called with a version and the transactions of intact commits that recovery would
                remove; returns whether that version loses no event that was durably archived.

        Returns:
            New paths of the moved files.

        Raises:
            ArchiveDamagedError: A commit that was durable is damaged or missing.
            OSError: The log cannot be changed.
        """
        if not self.exists():
            return []
        with self.locked() as locked:
            if not locked:  # another process is recovering it
                return []
            state = self.inspect(strict=True)
            if not state.damaged and state.missing is None:
                return []
            durable = self.durable()
            if (error := self._recovery_error(state, durable, can_return_to)) is not None:
                raise error
            # The newest first: after a crash in between, the log can be recovered in the same way.
            moved = [self.quarantine(os.path.join(self.path, name)) for name in state.damaged]
            self.invalidate()
            return moved

    def recovery_error(
        self, can_return_to: Callable[[int, Mapping[str, int]], bool]
    ) -> ArchiveDamagedError | None:
        """Return the error that `recover` would raise; None if it would succeed. Nothing is changed."""
        state = self.inspect(strict=True)
        return self._recovery_error(state, self.durable(), can_return_to)

    def _recovery_error(
        self, state: LogState, durable: Durable, can_return_to: Callable[[int, Mapping[str, int]], bool]
    ) -> ArchiveDamagedError | None:
        if state.last <= state.good and state.missing is None:
            return None
        if state.good < durable.version:
            return self._damaged(state, durable)
        if not can_return_to(state.good, self._transactions(state)):
            return self._damaged(state, durable, is_archived=True)
        return None

    def commit_names(self) -> list[str]:
        """Return the names of all commits, damaged ones as well."""
        return sorted(self._list()[0].values())

    def _transactions(self, state: LogState) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in state.damaged:
            if _COMMIT.fullmatch(name):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                    with open(open_regular(os.path.join(self.path, name)), "rb") as file:
                        actions = [decode_stored(line) for line in file]
                    for txn in [action["txn"] for action in actions if "txn" in action]:
                        found[txn["appId"]] = max(txn["version"], found.get(txn["appId"], 0))
        return found

    @contextlib.contextmanager
    def locked(self) -> Any:
        """Hold the lock of this log for recovery and cleaning; yield False if another process holds it."""
        make_directory(self.address, self._state)
        with try_lock(os.path.join(self._state, "lock")) as locked:
            yield locked

    def quarantine(self, path: str) -> str:
        """Move a file or directory of the archive to `_stageflow`, and return its new path."""
        make_directory(self.address, self._state)
        number = 1
        name = os.path.basename(path)
        while os.path.lexists(target := os.path.join(self._state, f"set-aside-{number}-{name}")):
            number += 1
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, target)
        sync_directory(os.path.dirname(path))
        sync_directory(self._state)
        return target

    def misplaced(self) -> list[str]:
        """Return the paths of links, directories and FIFOs in place of state files; see `quarantine`."""
        try:
            names = sorted(os.listdir(self._state))
        except (FileNotFoundError, NotADirectoryError):
            return []
        paths = [os.path.join(self._state, name) for name in names if not name.startswith("set-aside-")]
        return [path for path in paths if not is_regular(path)]

    def moved_files(self) -> list[str]:
        """Return the names of the files that a recovery or repair moved to `_stageflow`."""
        try:
            names = os.listdir(self._state)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in names if name.startswith("set-aside-"))

    # ------------------------------------------------------------ checkpoints

    def is_checkpoint_due(self, version: int, every: int) -> bool:
        """Return whether at least `every` commits follow the newest checkpoint."""
        _, checkpoints, _ = self._list()
        return version - max(checkpoints, default=0) >= every

    def clean(self) -> None:
        """Delete commits that neither of the two newest checkpoints needs, a day after they were written.

        Two, so that the log remains readable if the newest checkpoint is damaged. Call `mark_durable` first.

        Raises:
            OSError: The log cannot be changed.
        """
        commits, checkpoints, _ = self._list()
        recorded = self.durable().checkpoints
        whole = [version for version, names in checkpoints.items() if all(name in recorded for name in names)]
        if len(whole) < 2:
            return
        needed = sorted(whole)[-2]
        old = [(version, name) for version, name in commits.items() if version < needed]
        old += [
            (version, name) for version, names in checkpoints.items() if version < needed for name in names
        ]
        before = time.time() - _CLEAN_AFTER
        for _, name in sorted(old):
            path = os.path.join(self.path, name)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_mtime < before:
                    os.unlink(path)


def _commit_name(version: int) -> str:
    return f"{version:020d}.json"
