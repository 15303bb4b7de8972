"""Options that several commands share."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Generator, Iterable
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
from ..errors import DamagedFileError, QueryError, SettingsError, did_you_mean
from ..journal import Journal, RunFilter
from ..settings import configured_sampler
from ..store import as_predicate
from ._output import open_terminal, print_text

if TYPE_CHECKING:
    from ..store import EventStore, PinnedStore, TailSampler

__all__ = [
    "ArchiveOption",
    "EventFilter",
    "HtmlOption",
    "IdOption",
    "JournalOption",
    "PipelineOption",
    "SamplerOption",
    "SinceOption",
    "StageOption",
    "UntilOption",
    "VerifyOption",
    "WhereOption",
    "as_filter",
    "as_selection",
    "as_time",
    "describe_empty",
    "find_journal",
    "forget_journal",
    "hint_with_journal",
    "id_option",
    "invalid_selection",
    "journal_path",
    "json_option",
    "open_records",
    "open_store",
    "over_option",
    "pinned_store",
    "read_sampler_option",
    "show_progress",
    "span_option",
    "stage_option",
    "status_option",
]


_DEFAULTS = ("journal", ".stageflow/demo")
"""Directories to try if no journal is given; the examples use the first one."""

_VARIABLE = "STAGEFLOW_JOURNAL"

_COMMAND = re.compile(
    r"`stageflow (?:doctor|compact|runs|show|tail|stats|explain|query|totals|alerts \w+)"
    r"(?![^`]*--journal)[^`]*(?=`)"
)

Check = Callable[[str | None], str | None]
"""A callback of Typer for the value of an option."""


def _one_of(*known: str) -> Check:
    """Return a check of a status or an outcome, because an unknown one would silently match nothing."""

    def check(word: str | None) -> str | None:
        if word is not None and word.lower() not in {each.lower() for each in known}:
            near = did_you_mean(word.lower(), {each.lower() for each in known})
            raise typer.BadParameter(f"{word!r} is not one of {', '.join(known)}{near}")
        return word

    return check


def _stage_and_one_of(*known: str) -> Check:
    """Return a check of "NAME" or "NAME:STATUS"."""
    check_status = _one_of(*known)

    def check(text: str | None) -> str | None:
        name, colon, status = (text or "").partition(":")
        if text is not None and not name:
            raise typer.BadParameter(f"{text!r} is not a valid stage: expected NAME or NAME:STATUS")
        if colon:
            check_status(status)
        return text

    return check


def _not_empty(text: str | None) -> str | None:
    if text == "":
        raise typer.BadParameter("the value is empty; was a variable not set?")
    return text


def as_time(text: str | None) -> str | None:
    """Return a time of the command line as RFC 3339: the callback of options for times."""
    if text is None:
        return None
    try:
        return parse_time(text, datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def status_option(*known: str, description: str) -> Any:
    """Return `--status`, which accepts one of `known`, in upper or lower case."""
    return typer.Option(
        "--status", metavar="STATUS", callback=_one_of(*known), show_default=False, help=description
    )


def stage_option(*known: str, description: str) -> Any:
    """Return `--stage`, which accepts a name, optionally followed by a colon and one of `known`."""
    check = _stage_and_one_of(*known)
    return typer.Option(
        "--stage", metavar="NAME[:STATUS]", callback=check, show_default=False, help=description
    )


def span_option(
    name: str, unit: str, *, description: str, from_zero: bool = False, show_default: bool = False
) -> Any:
    """Return an option that accepts a time span, such as `90d`; the command receives seconds.

    Args:
        name: Name of the option, such as "--max-age".
        unit: Unit that the error about a missing unit suggests.
        description: Text for the help.
        from_zero: Whether `0s` is allowed.
        show_default: Whether the help shows the default.
    """

    def check(text: str | None) -> float | None:
        if text is None:
            return None
        if text.strip().replace(".", "", 1).isdecimal():
            suggested = f"{name} {text.strip()}{unit}"
            raise typer.BadParameter(f"{text!r} has no unit; write {suggested} (units: ms, s, m, h, d, w)")
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if seconds == 0 and not from_zero:
            raise typer.BadParameter(f"{text!r} is zero; expected a longer time span")
        return seconds

    return typer.Option(name, metavar="DURATION", callback=check, show_default=show_default, help=description)


def json_option(description: str) -> Any:
    """Return `--json`."""
    return typer.Option("--json", help=description)


def over_option(default: str) -> Any:
    """Return `--over`.

    Args:
        default: The default, for the help.
    """
    return typer.Option(
        "--over",
        metavar="runs|stages",
        show_default=False,
        help=f"Whether to query runs or stages. Defaults to {default}.",
    )


def id_option(kind: str) -> Any:
    """Return an option such as `--user`, which accepts an id of one kind."""
    return typer.Option(
        f"--{kind}", metavar="ID", callback=_not_empty, show_default=False, help=f"Only this {kind} id."
    )


PipelineOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", callback=_not_empty, show_default=False, help="Only this pipeline."),
]
IdOption = Annotated[
    str | None,
    typer.Option(
        "--id",
        metavar="ID",
        callback=_not_empty,
        show_default=False,
        help="Only runs with this request, session, user or org id, or whose run id starts with this prefix.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHEN",
        callback=as_time,
        show_default=False,
        help=f"Only runs or stages that started at or after this time: {TIME_FORMATS}. Times without a time"
        " zone are local.",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHEN",
        callback=as_time,
        show_default=False,
        help="Only runs or stages that started before this time.",
    ),
]
StageOption = Annotated[
    str | None,
    typer.Option("--stage", metavar="NAME", callback=_not_empty, show_default=False, help="Only this stage."),
]


def as_filter(**fields: Any) -> RunFilter:
    """Return the `RunFilter` for the options of a command.

    Raises:
        typer.BadParameter: `--until` is not later than `--since`.
    """
    since, until = fields.get("since"), fields.get("until")
    if since is not None and until is not None and until <= since:
        raise typer.BadParameter(
            f"--until ({until}) must be later than --since ({since}); '2h' means two hours ago"
        )
    return RunFilter(**fields)


def as_selection(text: str, argument: str) -> str:
    """Return the SQL predicate for a selection, such as `2h..1h`; see `as_predicate`.

    Raises:
        typer.BadParameter: The selection is invalid.
    """
    with invalid_selection(argument):
        return as_predicate(text)


@contextmanager
def invalid_selection(argument: str) -> Generator[None]:
    """Convert a `QueryError` about a selection to a `typer.BadParameter`."""
    try:
        yield
    except QueryError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise typer.BadParameter(f"{error.message}{hint}", param_hint=argument) from None


def describe_empty(records: Journal | EventStore, filter: RunFilter, default: str) -> str:
    """Return why nothing matches a filter: a pipeline or stage that does not occur, or the default text."""
    if filter.pipeline is None and filter.stage is None:
        return default
    unknown = records.names().unknown(filter)
    return default if unknown is None else f"There is {unknown}"


class EventFilter(Struct, frozen=True, kw_only=True):
    """The events to show; None matches all.

    Attributes:
        type: Type of the event.
        status: Its status or, of a run, its outcome; in upper or lower case.
        pipeline: Name of the pipeline.
        stage: Name of the stage, optionally followed by a colon and its status.
        id: One of the five ids, or a prefix of a run id.
    """

    type: str | None = None
    status: str | None = None
    pipeline: str | None = None
    stage: str | None = None
    id: str | None = None

    def matches(self, type: str, data: dict[str, Any]) -> bool:
        """Return whether an event matches."""
        return (
            (self.type is None or self.type == type)
            and (self.status is None or _equals_any(self.status, (data.get("status"), data.get("outcome"))))
            and (self.pipeline is None or self.pipeline in _pipelines(data))
            and (self.stage is None or _has_stage(data, self.stage))
            and (self.id is None or _has_id(data, self.id))
        )

    def may_match(self, line: bytes) -> bool:
        """Return whether the event of a line can match, without decoding it, which would take long."""
        words = [word for word in (self.type, self.pipeline, self.id) if word is not None]
        words += [self.stage.partition(":")[0]] if self.stage is not None else []
        return all(msgspec.json.encode(word)[1:-1] in line for word in words) and (
            self.status is None
            or any(f'"{word}"'.encode() in line for word in (self.status.upper(), self.status.lower()))
        )


def _equals_any(wanted: str, words: Iterable[object]) -> bool:
    return any(isinstance(word, str) and word.lower() == wanted.lower() for word in words)


def _pipelines(data: dict[str, Any]) -> tuple[object, object]:
    # The topology of a stage event is the name of the pipeline, unless the context specifies another one.
    return data.get("pipeline_name"), _mapping(data.get("pipeline_metadata")).get("topology")


def _has_stage(data: dict[str, Any], wanted: str) -> bool:
    name, _, status = wanted.partition(":")
    return data.get("stage_name") == name and (not status or _equals_any(status, [data.get("status")]))


def _has_id(data: dict[str, Any], wanted: str) -> bool:
    ids = _mapping(data.get("correlation_ids"))
    return wanted in ids.values() or str(ids.get("pipeline_run_id") or "").startswith(wanted)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


_given: list[Path] = []
"""The journal that the running command received as an argument; empty for any other journal."""

JournalOption = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        metavar="DIR",
        envvar=_VARIABLE,
        show_default=False,
        help=f"Journal directory. Defaults to {_DEFAULTS[0]}, or to {_DEFAULTS[1]} if only that exists.",
    ),
]


def find_journal(given: Path | None) -> Journal:
    """Return the journal in a directory, or the first of the default directories that exists.

    Raises:
        JournalNotFoundError: The directory does not exist.
    """
    forget_journal()
    if given is not None and os.environ.get(_VARIABLE) != os.fspath(given):
        _given.append(given)
    return Journal(journal_path(given))


def journal_path(given: Path | None) -> Path:
    """Return the given directory, or the first of the default directories that exists, or the first one."""
    if given is not None:
        return given
    return Path(next((path for path in _DEFAULTS if Path(path).is_dir()), _DEFAULTS[0]))


def forget_journal() -> None:
    """Forget the journal of the previous command: hints no longer name it."""
    _given.clear()


def hint_with_journal(text: str) -> str:
    """Return a text in which each command names the journal that the running command received.

    Example:
        >>> hint_with_journal("`stageflow doctor --repair` moves it to broken/")
        '`stageflow doctor --repair` moves it to broken/'
    """
    if not _given:
        return text
    option = f" --journal {shlex.quote(os.fspath(_given[0]))}"
    return _COMMAND.sub(lambda command: command[0] + option, text)


ArchiveOption = Annotated[
    str | None,
    typer.Option(
        "--archive",
        metavar="ADDRESS",
        envvar="STAGEFLOW_ARCHIVE",
        show_default=False,
        help="A directory or s3://bucket/path. Defaults to the archive of the journal.",
    ),
]
VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Verify the checksums of archive files before reading them."),
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        "--where", metavar="SQL", show_default=False, help="Only rows that match this SQL predicate."
    ),
]


def as_sampler(path: str) -> TailSampler:
    """Return the sampler that a TOML file describes.

    Raises:
        typer.BadParameter: The file cannot be read, or does not describe a sampler.
    """
    from ..store import read_sampler

    try:
        return read_sampler(path)
    except (SettingsError, OSError) as error:
        raise typer.BadParameter(str(error)) from None


def read_sampler_option(path: str | os.PathLike[str] | None) -> TailSampler | None:
    """Return the sampler of an option, or of the settings if the option was not given.

    Raises:
        typer.BadParameter: The file cannot be read, or does not describe a sampler.
    """
    found = path if path is not None else configured_sampler()
    return None if found is None else as_sampler(os.fspath(found))


SamplerOption = Annotated[
    Any,
    typer.Argument(
        metavar="FILE",
        parser=as_sampler,
        show_default=False,
        help="TOML file with the fields of a TailSampler.",
    ),
]


HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        dir_okay=False,
        show_default=False,
        help="Write a self-contained HTML page to this file. Requires the `ui` extra.",
    ),
]


@contextmanager
def open_store(journal: Path | None, archive: str | None, *, verify: bool = False) -> Generator[EventStore]:
    """Open the store over a journal and its archive; show a progress bar while it archives a backlog.

    Raises:
        JournalNotFoundError: The journal directory does not exist.
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
            _warn(
                "part of the archive cannot be read, but this result does not depend on it",
                store.archive_error,
            )


@contextmanager
def pinned_store(journal: Path | None, archive: str | None) -> Generator[PinnedStore]:
    """Open one state of a journal and its archive.

    Raises:
        JournalNotFoundError: The journal directory does not exist.
        MissingExtraError: The packages of `stageflow[store]` are not installed.
    """
    from ..store import PinnedStore

    path = None if journal is None and archive is not None else find_journal(journal).path
    with PinnedStore(path, archive) as store:
        yield store


@contextmanager
def open_records(
    journal: Path | None, archive: str | None, *, verify: bool = False
) -> Generator[Journal | EventStore]:
    """Open a journal; together with its archive if it has one; or an archive without its journal.

    If the archive is damaged or cannot be reached, the runs of the journal are shown without it, and
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
    except DamagedFileError as error:  # show the runs of the journal nevertheless
        _warn(_JOURNAL_ONLY, error)
        archived = False
    if not archived:
        yield found
        return
    with open_store(Path(found.path), archive, verify=verify) as store:
        try:
            store.refresh()
        except OSError as error:
            _warn(_JOURNAL_ONLY, error)
            yield found
        else:
            yield store


_JOURNAL_ONLY = "only the runs of the journal are shown, because the archive cannot be read"


def _warn(what: str, error: OSError) -> None:
    print_text(hint_with_journal(f"warning: {what}: {error}"), err=True)


@contextmanager
def show_progress(activity: str) -> Generator[Callable[[int, int], None]]:
    """Return a callback for the bytes done and in total, which shows a progress bar on standard error.

    The bar is shown on a terminal only, from the first call on.
    """
    terminal = open_terminal(stderr=True)
    columns = (TextColumn(activity), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        tasks: list[TaskID] = []

        def update(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task(activity, total=None))
            bar.update(tasks[0], completed=done, total=total)

        yield update
