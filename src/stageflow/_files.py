"""Private, locked and durable files: open, sync, lock, and replace atomically."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Generator
from typing import Any

from .errors import DamagedFileError

__all__ = [
    "NO_ROOM",
    "OwnedFile",
    "absolute_path",
    "is_locked",
    "is_regular",
    "is_symlink",
    "make_private",
    "make_private_below",
    "network_file_system",
    "open_owned",
    "open_regular",
    "replace_file",
    "sync",
    "sync_directory",
    "try_lock",
]


# On macOS, `fsync` passes the data to the disk, which may keep it in its cache.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)

_NETWORK = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}
)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors for a disk, quota or file that is full."""


_REMEDY = "`stageflow doctor --repair` moves it to broken/"


def absolute_path(path: str | bytes | os.PathLike[Any]) -> str:
    """Return a path that stays the same when the working directory changes.

    Every object that keeps a path calls this once, when it gets the path.

    Raises:
        FileNotFoundError: The path is relative, and the working directory was deleted.
    """
    return os.path.abspath(os.fsdecode(path))


def sync(fd: int) -> None:
    """Write the data of a file to the disk.

    Raises:
        OSError: The disk reports a failure.
    """
    if _FULL_SYNC is not None:
        fcntl.fcntl(fd, _FULL_SYNC)
    else:
        os.fdatasync(fd)


def sync_directory(path: str) -> None:
    """Write the entries of a directory to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a regular file; with `O_CREAT` in `flags`, create it private to its owner.

    Symbolic links are never followed, and a FIFO never blocks: otherwise anyone who can write to the
    directory could make the process truncate, lock or read any other file.

    Raises:
        DamagedFileError: A symbolic link, a directory or a device is in its place.
        OSError: It cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO) and not is_regular(path):
            raise _not_regular(path) from None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise _not_regular(path)


def _not_regular(path: str) -> DamagedFileError:
    reason = "the path is a symbolic link" if is_symlink(path) else "the path is not a regular file"
    return DamagedFileError(path, reason, hint=_REMEDY)


def is_regular(path: str) -> bool:
    """Return whether a path is a regular file, without following symbolic links."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_symlink(path: str) -> bool:
    """Return whether a path is a symbolic link."""
    return os.path.islink(path)


def make_private_below(path: str) -> None:
    """Create a subdirectory of a journal, private to its owner; refuse a symbolic link.

    Raises:
        DamagedFileError: Something other than a directory is in its place.
        OSError: It cannot be created.
    """
    if is_symlink(path):
        raise _not_a_directory(path)
    try:
        make_private(path)
    except FileExistsError:
        raise _not_a_directory(path) from None


def _not_a_directory(path: str) -> DamagedFileError:
    found = "a symbolic link" if is_symlink(path) else "a file"
    return DamagedFileError(path, f"the path is {found}, not a directory", hint=_REMEDY)


def make_private(path: str) -> None:
    """Create a directory that only its owner can enter, and its missing parents.

    The parent of each new directory is synced: if a directory is lost, its synced files are lost too.
    """
    if os.path.isdir(path):
        return
    missing = []
    directory = os.path.abspath(path)
    while not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    os.makedirs(path, mode=0o700, exist_ok=True)
    for directory in reversed(missing):
        sync_directory(os.path.dirname(directory))


def replace_file(path: str, content: bytes) -> None:
    """Replace the content of a file atomically: after a crash, it has either the old or the new content.

    A symbolic link at this path is replaced, not followed.

    Raises:
        DamagedFileError: A directory is in its place.
        OSError: It could not be written; the old content remains.
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
        try:
            os.rename(temporary, path)
        except IsADirectoryError:
            raise _not_regular(path) from None
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(directory)


# A forked child shares the open files of its parent, and with them the locks, which it would hold as long as
# it runs. So it closes every file in this dict. The lock `_forking` prevents a fork between the opening of a
# file and its entry here.
_owned: dict[int, OwnedFile] = {}
_forking = threading.RLock()


class OwnedFile:
    """A file that this process keeps open, to lock it or to write to it, and that forked children close.

    Other code of the process may close the descriptor (a daemon calls `os.closerange`), and the kernel may
    then give the same number to another file. No method writes to, syncs, unlocks or closes such a file.

    Attributes:
        path: Path of the file.
        fd: Its descriptor; -1 once it is closed.
    """

    __slots__ = ("_identity", "fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        status = os.fstat(fd)
        self.path = path
        self.fd = fd
        self._identity = (status.st_dev, status.st_ino)

    def is_intact(self) -> bool:
        """Return whether the descriptor still refers to this file."""
        try:
            status = os.fstat(self.fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def is_at(self, offset: int) -> bool:
        """Return whether the descriptor is at an offset, which takes a quarter of the time of `is_intact`.

        Another file with this number is very unlikely to be at the same offset, unless it is 0.
        """
        try:
            return os.lseek(self.fd, 0, os.SEEK_CUR) == offset
        except OSError:
            return False

    def is_removed(self) -> bool:
        """Return whether the file was deleted."""
        try:
            return not os.fstat(self.fd).st_nlink
        except OSError:
            return False

    def lock(self) -> bool:
        """Lock the file for this process alone; the kernel releases the lock when the process dies.

        Returns:
            False if another process holds the lock.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def sync(self, sync: Callable[[int], None]) -> None:
        """Sync the file, unless it was deleted; open it again if other code closed its descriptor.

        Raises:
            OSError: It could not be synced.
        """
        if self.is_intact():
            if not self.is_removed():
                sync(self.fd)
            return
        try:
            fd = open_regular(self.path)
        except FileNotFoundError:
            return
        try:
            sync(fd)
        finally:
            os.close(fd)

    def release(self) -> None:
        """Release the lock and close the file, unless other code closed the descriptor."""
        with _forking:
            if self.is_intact():
                # A child forked just now may not have closed its copy yet, which would hold the lock.
                # A child never releases a lock of its parent, because it has closed the file.
                with contextlib.suppress(OSError):
                    fcntl.flock(self.fd, fcntl.LOCK_UN)
                with contextlib.suppress(OSError):
                    os.close(self.fd)
            _owned.pop(self.fd, None)
            self.fd = -1

    def close_in_child(self) -> None:
        """Close the copy of a forked child. Never unlock it: that would unlock it for the parent."""
        with contextlib.suppress(OSError):
            if self.is_intact():
                os.close(self.fd)
        self.fd = -1


def open_owned(path: str, flags: int) -> OwnedFile:
    """Open a regular file, private to its owner, and close it in forked children.

    Raises:
        DamagedFileError: A symbolic link, a directory or a device is in its place.
        OSError: It cannot be opened.
    """
    with _forking:
        file = OwnedFile(path, open_regular(path, flags))
        # Other code closed the descriptor of a file that had this number. It may be the same file again,
        # for instance a lock, which its inode does not reveal.
        if (closed := _owned.pop(file.fd, None)) is not None:
            closed.fd = -1
        _owned[file.fd] = file
        return file


def _forget_parent() -> None:
    global _forking
    _forking = threading.RLock()
    for file in _owned.values():
        file.close_in_child()
    _owned.clear()


os.register_at_fork(
    before=lambda: _forking.acquire(),
    after_in_parent=lambda: _forking.release(),
    after_in_child=_forget_parent,
)


def is_locked(path: str) -> bool:
    """Return whether a process holds the lock of a regular file.

    Raises:
        FileNotFoundError: The file no longer exists.
        OSError: It is not a regular file, or cannot be opened.
    """
    # A child forked in the meantime must not keep the file open: it would share the lock.
    file = open_owned(path, os.O_RDONLY)
    try:
        # A shared lock, so that two concurrent calls do not mistake each other for the writer.
        fcntl.flock(file.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        file.release()
    return False


@contextlib.contextmanager
def try_lock(path: str) -> Generator[bool]:
    """Try to lock a file, which is created if necessary; yield whether this process holds the lock."""
    file = open_owned(path, os.O_RDWR | os.O_CREAT)
    try:
        yield file.lock()
    finally:
        file.release()


def network_file_system(path: str) -> str | None:
    """Return the type of the network file system that contains `path`, or None for a local one.

    The type is known only on Linux; on other systems, the result is None.
    """
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            lines = mounts.readlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    innermost, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount_point = before.split(" ")[4].encode().decode("unicode_escape")
        inside = real == mount_point or real.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(innermost):
            innermost, kind = mount_point, after.split(" ")[0]
    return kind if kind in _NETWORK else None
