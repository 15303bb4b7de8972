"""Options that several commands share."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from msgspec import Struct
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .._time import get_clock
from .._timeparse import TIME_FORMATS, parse_duration, parse_time
from ..errors import DamagedFileError, SettingsError, did_you_mean
from ..journal import Journal
from ._output import open_terminal, print_text

if TYPE_CHECKING:
    from ..store import EventStore, TailSampler

__all__ = [
    "ArchiveOption",
    "EventFilter",
    "IdOption",
    "JournalOption",
    "PipelineOption",
    "SamplerOption",
    "SinceOption",
    "StageOption",
    "UntilOption",
    "VerifyOption",
    "WhereOption",
    "as_sampler",
    "find_journal",
    "forget_journal",
    "hint_with_journal",
    "json_option",
    "open_records",
    "open_store",
    "show_progress",
    "span_option",
    "stage_option",
    "status_option",
]


Check = Callable[[str | None], str | None]
"""What typer calls with the value of an option."""


def _one_of(*known: str) -> Check:
    """Return what checks a status or an outcome: a mistaken one would find nothing, and say nothing."""

    def check(word: str | None) -> str | None:
        if word is not None and word.lower() not in {each.lower() for each in known}:
            near = did_you_mean(word.lower(), {each.lower() for each in known})
            raise typer.BadParameter(f"{word!r} is none of {', '.join(known)}{near}")
        return word

    return check


def _stage_and_one_of(*known: str) -> Check:
    """Return what checks the status behind the colon of "NAME:STATUS"."""
    check_status = _one_of(*known)

    def check(text: str | None) -> str | None:
        name, colon, status = (text or "").partition(":")
        if text is not None and not name:
            raise typer.BadParameter(f"{text!r} names no stage")
        if colon:
            check_status(status)
        return text

    return check


def _not_empty(text: str | None) -> str | None:
    if text == "":
        raise typer.BadParameter("it is empty; a variable that was not set?")
    return text


def _as_moment(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return parse_time(text, datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def status_option(*known: str, says: str) -> Any:
    """Return `--status`, which takes one of `known`, in any case."""
    return typer.Option("--status", metavar="STATUS", callback=_one_of(*known), show_default=False, help=says)


def stage_option(*known: str, says: str) -> Any:
    """Return `--stage`, which takes a name and, behind a colon, one of `known`."""
    check = _stage_and_one_of(*known)
    return typer.Option("--stage", metavar="NAME[:STATUS]", callback=check, show_default=False, help=says)


def span_option(name: str, unit: str, *, says: str, from_zero: bool = False) -> Any:
    """Return an option that takes a time span, such as `90d`; the command receives seconds.

    Args:
        name: Name of the option, such as "--max-age".
        unit: Unit that the error about a missing unit suggests.
        says: Description for the help.
        from_zero: Whether `0s` is allowed.
    """

    def check(text: str | None) -> float | None:
        if text is None:
            return None
        if text.strip().replace(".", "", 1).isdecimal():
            suggested = f"{name} {text.strip()}{unit}"
            raise typer.BadParameter(f"{text!r} has no unit; write {suggested} (units: s, m, h, d, w)")
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if seconds == 0 and not from_zero:
            raise typer.BadParameter(f"{text!r} is zero; expected a longer time span")
        return seconds

    return typer.Option(name, metavar="SPAN", callback=check, show_default=False, help=says)


def json_option(says: str) -> Any:
    """Return `--json`, the flag for what programs read."""
    return typer.Option("--json", help=says)


PipelineOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", callback=_not_empty, show_default=False, help="Only of this pipeline."),
]
IdOption = Annotated[
    str | None,
    typer.Option(
        "--id",
        metavar="ID",
        callback=_not_empty,
        show_default=False,
        help="Only with this request, session, user or org id, or beginning of a run's id.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHEN",
        callback=_as_moment,
        show_default=False,
        help=f"Only what began then or later: {TIME_FORMATS}. Without a zone it is the time of this machine.",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(metavar="WHEN", callback=_as_moment, show_default=False, help="Only what began before."),
]
StageOption = Annotated[
    str | None,
    typer.Option(
        "--stage", metavar="NAME", callback=_not_empty, show_default=False, help="Only of this stage."
    ),
]


class EventFilter(Struct, frozen=True, kw_only=True):
    """Which events are wanted; what is None leaves the choice open.

    Attributes:
        type: Type of the event.
        status: Its status or, of a run, its outcome; in any case.
        pipeline: Name of the pipeline.
        stage: Name of the stage; behind a colon its status.
        id: One of the five ids, or the beginning of a run's.
    """

    type: str | None = None
    status: str | None = None
    pipeline: str | None = None
    stage: str | None = None
    id: str | None = None

    def takes(self, type: str, data: dict[str, Any]) -> bool:
        """Tell whether an event is wanted."""
        return (
            (self.type is None or self.type == type)
            and (self.status is None or _same(self.status, data.get("status"), data.get("outcome")))
            and (self.pipeline is None or self.pipeline in _pipelines(data))
            and (self.stage is None or _is_of(data, self.stage))
            and (self.id is None or _has_id(data, self.id))
        )

    def may_take(self, line: bytes) -> bool:
        """Tell whether an event may be wanted from its line alone: to read each would take long."""
        words = [word for word in (self.type, self.pipeline, self.id) if word is not None]
        words += [self.stage.partition(":")[0]] if self.stage is not None else []
        return all(msgspec.json.encode(word)[1:-1] in line for word in words) and (
            self.status is None
            or any(f'"{word}"'.encode() in line for word in (self.status.upper(), self.status.lower()))
        )


def _same(wanted: str, *words: object) -> bool:
    return any(isinstance(word, str) and word.lower() == wanted.lower() for word in words)


def _pipelines(data: dict[str, Any]) -> tuple[object, object]:
    # An event of a stage has its topology: the pipeline's name, unless the context says otherwise.
    return data.get("pipeline_name"), _mapping(data.get("pipeline_metadata")).get("topology")


def _is_of(data: dict[str, Any], wanted: str) -> bool:
    name, _, status = wanted.partition(":")
    return data.get("stage_name") == name and (not status or _same(status, data.get("status")))


def _has_id(data: dict[str, Any], wanted: str) -> bool:
    ids = _mapping(data.get("correlation_ids"))
    return wanted in ids.values() or str(ids.get("pipeline_run_id") or "").startswith(wanted)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


_USUAL = ("journal", ".stageflow/demo")
"""Where a journal is looked for that was not named: the first is what examples use."""

_VARIABLE = "STAGEFLOW_JOURNAL"

_COMMAND = re.compile(
    r"`stageflow (?:doctor|compact|runs|show|tail|stats|query|totals|alerts \w+)(?![^`]*--journal)[^`]*(?=`)"
)

_named: list[Path] = []
"""The journal that the running command got as an argument; empty for another one."""

JournalOption = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        metavar="DIR",
        envvar=_VARIABLE,
        show_default=False,
        help=f"Directory of the journal; default {' or '.join(_USUAL)}, the first that is there.",
    ),
]


def find_journal(named: Path | None) -> Journal:
    """Return the journal that was named, or the first of the usual ones.

    Raises:
        JournalNotFoundError: It is not there.
    """
    forget_journal()
    if named is not None and os.environ.get(_VARIABLE) != os.fspath(named):
        _named.append(named)
    usual = next((path for path in _USUAL if Path(path).is_dir()), _USUAL[0])
    return Journal(usual if named is None else named)


def forget_journal() -> None:
    """Let hints name no journal, because a command begins."""
    _named.clear()


def hint_with_journal(text: str) -> str:
    """Return a text in which each command of a hint names the journal that this command was given.

    Example:
        >>> hint_with_journal("`stageflow doctor --repair` moves it to broken/")
        '`stageflow doctor --repair` moves it to broken/'
    """
    if not _named:
        return text
    option = f" --journal {shlex.quote(os.fspath(_named[0]))}"
    return _COMMAND.sub(lambda command: command[0] + option, text)


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
    from ..store import has_archive

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
