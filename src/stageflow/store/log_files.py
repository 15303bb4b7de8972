"""Files of a Delta log: completeness checks and the durable state."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from msgspec import Struct

from ..journal.disk import open_regular, sync
from ..journal.stored import decode_stored

__all__ = [
    "ACTIONS_CHECKSUM",
    "Durable",
    "LogState",
    "actions_checksum",
    "is_complete_checkpoint",
    "is_complete_commit",
    "sync_file",
]

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
    """Return whether a checkpoint has the recorded size and CRC-32; without them, whether it may be whole."""
    with open(open_regular(path), "rb") as file:
        content = file.read()
    if recorded is not None:
        return (len(content), zlib.crc32(content)) == recorded
    footer = int.from_bytes(content[-8:-4], "little")
    return content[:4] == content[-4:] == b"PAR1" and 0 < footer <= len(content) - 12


def is_complete_commit(path: str) -> bool:
    """Return whether every action of a commit is there."""
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
