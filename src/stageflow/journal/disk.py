"""What the journal asks of a disk: to sync, to replace a file at once, to lock one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import threading
from collections.abc import Generator

__all__ = [
    "NO_ROOM",
    "is_locked",
    "lock_file",
    "make_private",
    "network_file_system",
    "only_one",
    "open_for_lock",
    "release",
    "replace_file",
    "sync",
    "sync_directory",
]

# macOS: fsync hands the data to the disk, which may keep it in a cache of its own.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)

_NETWORK = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}
)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors that say that a disk, or the share of it that one may have, is full."""


def sync(fd: int) -> None:
    """Return when the data of a file is on the disk.

    Raises:
        OSError: The disk says that it is not.
    """
    if _FULL_SYNC is not None:
        fcntl.fcntl(fd, _FULL_SYNC)
    else:
        os.fdatasync(fd)


def sync_directory(path: str) -> None:
    """Return when the names in a directory are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private(path: str) -> None:
    """Make a directory that only its owner can enter, and those above it, where there is none.

    New ones are synced into those above them: what is synced in a directory that is lost is lost as well.
    """
    if os.path.isdir(path):
        return
    made = []
    above = os.path.abspath(path)
    while not os.path.isdir(above):
        made.append(above)
        above = os.path.dirname(above)
    os.makedirs(path, mode=0o700, exist_ok=True)
    for folder in reversed(made):
        sync_directory(os.path.dirname(folder))


def replace_file(path: str, content: bytes) -> None:
    """Write a file so that, whatever happens, either its old or its new content is there, whole.

    Raises:
        OSError: It could not be written; the old content stands.
    """
    directory = os.path.dirname(path)
    fd, temporary = tempfile.mkstemp(prefix=".new-", dir=directory)
    try:
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(content)
            sync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(directory)


# A lock belongs to all who have the same open file: a forked child would hold its parent's as long
# as it lives. So it closes every file that was open for a lock; and no fork comes between the
# opening of such a file and its entry here.
_lockable: set[int] = set()
_forking = threading.RLock()


def open_for_lock(path: str, flags: int) -> int:
    """Open a file, private to its owner, that a forked child shall not have open."""
    with _forking:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        _lockable.add(fd)
        return fd


def lock_file(fd: int) -> bool:
    """Lock such a file for this process alone; the kernel gives it free when the process dies.

    Returns:
        False when somebody else has it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(fd: int) -> None:
    """Close such a file, and give its lock free."""
    with _forking:
        _lockable.discard(fd)
        with contextlib.suppress(OSError):
            os.close(fd)


def _forget_parent() -> None:
    global _forking
    _forking = threading.RLock()
    for fd in _lockable:
        with contextlib.suppress(OSError):
            os.close(fd)  # and never unlock: that would unlock it for the parent
    _lockable.clear()


os.register_at_fork(
    before=lambda: _forking.acquire(),
    after_in_parent=lambda: _forking.release(),
    after_in_child=_forget_parent,
)


def is_locked(path: str) -> bool:
    """Tell whether a process has locked a file.

    Raises:
        FileNotFoundError: There is no such file any more.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Shared, so that two who ask at the same time do not take each other for the writer.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def only_one(path: str) -> Generator[bool]:
    """Hold the lock on a file, made where there is none; give False where somebody else has it."""
    fd = open_for_lock(path, os.O_RDWR | os.O_CREAT)
    try:
        yield lock_file(fd)
    finally:
        release(fd)


def network_file_system(path: str) -> str | None:
    """Return the type of the network file system that `path` is on, or None for a local one.

    It is known on Linux alone; elsewhere the answer is None.
    """
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            lines = mounts.readlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    nearest, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mounted = before.split(" ")[4].encode().decode("unicode_escape")
        inside = real == mounted or real.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= len(nearest):
            nearest, kind = mounted, after.split(" ")[0]
    return kind if kind in _NETWORK else None
