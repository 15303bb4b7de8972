"""Which store a command asks: a journal with its archive, or an archive alone."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..errors import DamagedFileError, SettingsError
from ..journal import Journal
from .journal_option import find_journal, hint_with_journal
from .terminal import open_terminal, print_text

if TYPE_CHECKING:
    from ..store import EventStore, TailSampler

__all__ = [
    "ArchiveOption",
    "SamplerOption",
    "VerifyOption",
    "WhereOption",
    "as_sampler",
    "open_records",
    "open_store",
    "show_progress",
]

ArchiveOption = Annotated[
    str | None,
    typer.Option(
        "--archive",
        metavar="ADDRESS",
        envvar="STAGEFLOW_ARCHIVE",
        show_default=False,
        help="A directory or s3://bucket/path; default the archive that the journal has.",
    ),
]
VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Verify the checksums of archive files before reading them."),
]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="SQL", show_default=False, help="Only rows for which this holds."),
]


def as_sampler(path: str) -> TailSampler:
    """Return the sampler that a file describes.

    Raises:
        typer.BadParameter: It describes none.
    """
    from ..store import read_sampler

    try:
        return read_sampler(path)
    except (SettingsError, OSError) as error:
        raise typer.BadParameter(str(error)) from None


SamplerOption = Annotated[
    Any,
    typer.Argument(
        metavar="FILE",
        parser=as_sampler,
        show_default=False,
        help="A sampler as TOML: the fields of TailSampler.",
    ),
]


@contextmanager
def open_store(journal: Path | None, archive: str | None, *, verify: bool = False) -> Generator[EventStore]:
    """Open the store that was named; one with much to take into its archive shows how far it is.

    Raises:
        JournalNotFoundError: There is no such journal.
        MissingExtraError: The packages of `stageflow[store]` are not installed.
    """
    from ..store import EventStore

    path = None if journal is None and archive is not None else find_journal(journal).path
    with (
        show_progress("archiving") as progress,
        EventStore(path, archive, progress=progress, verify=verify) as store,
    ):
        yield store
        if store.archive_error is not None:
            _warn("a part of the archive that this answer does not need cannot be read", store.archive_error)


@contextmanager
def open_records(
    journal: Path | None, archive: str | None, *, verify: bool = False
) -> Generator[Journal | EventStore]:
    """Open a journal; where it has an archive, both of them as one; or an archive alone.

    Where the archive is damaged or cannot be reached, the runs of the journal are shown without it, and
    standard error contains a warning. Commands that count raise the error instead, unless the journal has
    everything that they count: a number calculated from a part of the records would be wrong.
    """
    from ..store.address import has_archive

    if journal is None and archive is not None:
        with open_store(None, archive, verify=verify) as store:
            yield store
        return
    found = find_journal(journal)
    try:
        archived = archive is not None or has_archive(found.path)
    except DamagedFileError as error:  # what the journal has is shown all the same
        _warn(_LEFT_OUT, error)
        archived = False
    if not archived:
        yield found
        return
    with open_store(Path(found.path), archive, verify=verify) as store:
        try:
            store.refresh()
        except OSError as error:
            _warn(_LEFT_OUT, error)
            yield found
        else:
            yield store


_LEFT_OUT = "only the runs of the journal are shown, because the archive cannot be read"


def _warn(what: str, error: OSError) -> None:
    print_text(hint_with_journal(f"warning: {what}: {error}"), err=True)


@contextmanager
def show_progress(doing: str) -> Generator[Callable[[int, int], None]]:
    """Show a bar on standard error, if that is a terminal, once it is told of bytes done and all bytes."""
    terminal = open_terminal(stderr=True)
    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        tasks: list[TaskID] = []

        def tell(done: int, whole: int) -> None:
            if not tasks:
                tasks.append(bar.add_task(doing, total=None))
            bar.update(tasks[0], completed=done, total=whole)

        yield tell
