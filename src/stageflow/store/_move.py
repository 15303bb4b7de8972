"""Moves the archived events of a journal to another address, or gives them up."""

from __future__ import annotations

import os
from collections.abc import Mapping

from msgspec import Struct

from ..errors import ArchiveAddressError
from ..journal import CursorFile, list_writers, store_cursor
from ._address import CURSOR, absolute_address, check_exists, same_address, store_address
from ._archive import Archive, is_remote
from ._compactor import Compactor
from ._database import as_os_errors
from ._losses import copy_lost, count_archived_only
from ._parquet import LocalFiles

__all__ = ["ForgottenArchive", "MovedArchive", "forget_archive", "move_archive"]


class MovedArchive(Struct, frozen=True):
    """The result of `move_archive`.

    source: Address of the previous archive. Its files are still there.
    address: Address of the current archive of the journal.
    files: Number of files that were copied.
    bytes: Total size of these files.
    rows: Number of event rows in the archive.
    """

    source: str
    address: str
    files: int
    bytes: int
    rows: int


class ForgottenArchive(Struct, frozen=True):
    """The result of `forget_archive`.

    Attributes:
        address: Address of the archive that was abandoned. If it exists, its files are still there.
        events: Number of its events that the journal no longer has; None if the archive cannot be read.
        runs: Number of runs whose end is among them; None if the archive cannot be read.
    """

    address: str
    events: int | None
    runs: int | None


def move_archive(
    journal: str | os.PathLike[str],
    archive: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, str] | None = None,
) -> MovedArchive:
    """Copy the archive of a journal to another address, and use the copy from now on.

    Every file is verified and copied, and one commit adds all of them to the new archive, before the journal
    stores the new address. If it is interrupted, call it again. The previous archive is not changed: delete
    it when no reader uses it. Stores and compactors that other processes opened for the journal follow.

    Args:
        journal: Directory of the journal.
        archive: The new address: a directory, or "s3://bucket/events". If it is the current one, nothing is
            done.
        storage_options: As for `EventStore`; for both addresses.

    Raises:
        ArchiveAddressError: There is another archive at this address.
        ArchiveDamagedError: The current archive is damaged or missing.
        OSError: An archive cannot be read or written, or another process is compacting the journal.

    Example:
        move_archive("journal", "s3://bucket/events")
    """
    address = absolute_address(archive)
    compactor = Compactor(journal, storage_options=storage_options)
    old, new = compactor.archive, Archive(address, storage_options)
    if same_address(old.address, new.address):
        return MovedArchive(old.address, old.address, 0, 0, 0)
    with as_os_errors(old.address), compactor.locked():
        old.refresh()
        check_exists(old, compactor.journal)
        files = old.files()
        sources = LocalFiles(old)
        sources.verify(files)
        with as_os_errors(new.address):
            new.refresh()
            copied = {file.path for file in new.files()}
            if copied - {file.path for file in files}:
                raise ArchiveAddressError(
                    f"{new.address} contains another archive, so {old.address} cannot be moved there",
                    hint="use an address without an archive",
                )
            missing = [file for file in files if file.path not in copied]
            if old.version >= 0:
                new.prepare(old.columns())
                LocalFiles(new).add_copies(missing, sources.paths(missing))
                writers = {writer: old.watermark(writer) for writer in list_writers(compactor.journal)}
                new.commit(missing, watermarks={writer: at for writer, at in writers.items() if at})
                new.sync()
                copy_lost(old, new)
        store_address(compactor.journal, address)
    return MovedArchive(
        old.address,
        new.address,
        len(missing),
        sum(file.size for file in missing),
        sum(file.rows for file in files if file.has_events),
    )


def forget_archive(
    journal: str | os.PathLike[str],
    archive: str | os.PathLike[str] | None = None,
    *,
    storage_options: Mapping[str, str] | None = None,
) -> ForgottenArchive:
    """Give up the archived events of a journal, so that the next compaction starts a new archive.

    The journal stores the new address immediately; the new archive receives every event that the journal
    still has. No file is deleted.

    Args:
        journal: Directory of the journal.
        archive: Address of the new archive; default the current address, if no archive exists there.
        storage_options: As for `EventStore`.

    Raises:
        ArchiveAddressError: The current archive exists, and no other address was given.
        ArchiveDamagedError: There is a damaged archive at the new address.
        OSError: The journal cannot be written, the new address cannot be reached, or another process is
            compacting the journal.

    Example:
        forget_archive("journal", "s3://bucket/events")
    """
    compactor = Compactor(journal, storage_options=storage_options)
    old = compactor.archive
    with compactor.locked():
        stays = archive is None or same_address(absolute_address(archive), old.address)
        exists = is_remote(old.address) or os.path.lexists(old.address)
        if stays and exists:
            raise ArchiveAddressError(
                f"archive {old.address} exists, so a new one cannot be created there",
                hint="move it away first, or specify the address of the new archive:"
                " `stageflow compact --archive ADDRESS --forget`",
            )
        given_up = count_archived_only(old, compactor.journal) if exists else None
        if archive is not None:
            new = Archive(absolute_address(archive), storage_options)
            with as_os_errors(new.address):
                new.refresh()
            # First, so that an interruption never leaves the old address with a cursor that knows no events.
            store_address(compactor.journal, new.address)
        store_cursor(compactor.journal, CURSOR, CursorFile())
    if given_up is None:
        return ForgottenArchive(old.address, None, None)
    return ForgottenArchive(old.address, given_up.events, given_up.runs)
