"""The settings of a process, from arguments, environment variables and `pyproject.toml`, in that order."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ._decodable import decodable
from ._failures import FailureOutcomes
from ._files import absolute_path
from ._fork import reset_in_child
from ._log_tail import MAX_LOG_LINES
from ._toml import parse_toml
from .errors import InvalidArgumentError, SettingsError, did_you_mean
from .events import DELIVERY, EventSink, FanoutEventSink, clear_event_sink, set_event_sink
from .journal import JournalSink, write_failures
from .observability import Defaults, EventLimits, Redact, SanitizeRules, use_defaults, use_sanitize_rules

if TYPE_CHECKING:
    from .export import BackgroundExport

__all__ = [
    "Given",
    "Settings",
    "close_journal",
    "configure",
    "configured_targets",
    "is_exporting",
    "reset",
    "settings",
    "stop_exporting",
]


class Settings(Struct, frozen=True, kw_only=True):
    """The settings in effect, and the source of each.

    Attributes:
        journal: Absolute path of the journal directory, or None for no journal.
        sink: A sink to use instead of the journal, or in addition to it; None for no such sink.
        service: Name of the service; None to detect it from the platform.
        version: Version of the service; None to detect it from the platform.
        environment: Deployment environment; None to detect it from the platform.
        commit: Commit that the service was built from; None to detect it from the platform.
        redact: What to redact from events; None for nothing.
        limits: Maximum size of an event.
        health_seconds: Seconds between two `stageflow.health` events; None for no such events.
        journal_options: Additional arguments of `JournalSink`: `fsync`, `max_bytes`, ...
        max_threads: Maximum number of synchronous stages that run in threads at the same time, across all
            runs of the process.
        failure_outcomes: The outcomes that count as failures in statistics, alerts, sampling and retention.
            They are stored in the journal, for readers in every process. None keeps the definition that the
            journal contains, which is `failed`, `timeout` and `crashed` by default.
        log_tail: Number of log lines that the event of a failed attempt contains at most, up to 200; 0 if log
            lines are neither recorded nor counted.
        export: Targets to which the events of the journal are exported in the background: URLs, tables with a
            `url` and options, or `Exporter` objects.
        sampler: Selects the runs to export: a `TailSampler`, or the path of a TOML file; None for all runs.
            `stageflow compact` uses the file for the archive too.
        origins: Source of each setting: "argument", the name of an environment variable, or a file.
    """

    journal: str | None = None
    sink: Any = None
    service: str | None = None
    version: str | None = None
    environment: str | None = None
    commit: str | None = None
    redact: Redact | None = Redact()
    limits: EventLimits = EventLimits()
    health_seconds: float | None = 60.0
    journal_options: Mapping[str, Any] = {}
    max_threads: int = 256
    failure_outcomes: tuple[str, ...] | None = None
    log_tail: int = MAX_LOG_LINES
    export: Sequence[Any] = ()
    sampler: Any = None
    origins: Mapping[str, str] = {}


_VARIABLES = {
    "journal": "STAGEFLOW_JOURNAL",
    "service": "STAGEFLOW_SERVICE",
    "version": "STAGEFLOW_VERSION",
    "environment": "STAGEFLOW_ENVIRONMENT",
    "commit": "STAGEFLOW_COMMIT",
    "redact": "STAGEFLOW_REDACT",
    "limits": "STAGEFLOW_LIMITS",
    "health_seconds": "STAGEFLOW_HEALTH_SECONDS",
    "journal_options": "STAGEFLOW_JOURNAL_OPTIONS",
    "max_threads": "STAGEFLOW_MAX_THREADS",
    "failure_outcomes": "STAGEFLOW_FAILURE_OUTCOMES",
    "log_tail": "STAGEFLOW_LOG_TAIL",
    "export": "STAGEFLOW_EXPORT",
    "sampler": "STAGEFLOW_SAMPLER",
}
"""The environment variable of each setting: plain text for those in `_STRINGS`, JSON for the others."""

_MOST_LOG_LINES = 200

_STRINGS = ("journal", "service", "version", "environment", "commit")
_PATHS = ("journal", "sampler")

_settings: Settings | None = None
_journal: JournalSink | None = None
_exporting: BackgroundExport | None = None
_journal_argument: tuple[str | None, str | None] = (None, None)
"""The path of the journal in `_settings` before it was made absolute, and its origin."""

# Reentrant: a signal handler may call `configure`, too.
_changing = threading.RLock()


def _forget_parent() -> None:
    # A thread of the parent may hold the lock. It does not exist in the child and will never release it.
    global _changing, _exporting
    _changing = threading.RLock()
    _exporting = None  # its threads do not exist either; `configure` starts exporters of the child


reset_in_child(_forget_parent)


class Given(TypedDict, total=False):
    """The arguments of `configure`; see `Settings`."""

    journal: str | os.PathLike[str] | None
    sink: EventSink | Any
    service: str | None
    version: str | None
    environment: str | None
    commit: str | None
    redact: Redact | Literal[False] | None
    limits: EventLimits
    health_seconds: float | None
    journal_options: Mapping[str, Any]
    max_threads: int
    failure_outcomes: Sequence[str] | None
    log_tail: int | Literal[False]
    export: Sequence[Any]
    sampler: Any


def configure(**given: Unpack[Given]) -> Settings:
    """Configure this process: where events are stored, how they describe the process, what is redacted.

    Afterwards, every graph emits its wide events, including graphs that were built earlier, unless it was
    built with a flag that disables them. Each setting takes its value from the first source that defines it:
    the arguments, the environment variables (`STAGEFLOW_JOURNAL`, ...), and `[tool.stageflow]` in the nearest
    `pyproject.toml` from the working directory upwards. Another call with the same settings has no effect,
    even if several threads make it at the same time.

    A relative path in `pyproject.toml` is relative to that file; any other is relative to the working
    directory at the time of the call. A later `os.chdir` has no effect on it, nor does calling `configure`
    with the same path again.

    Args:
        given: `journal`, `sink`, `service`, `version`, `environment`, `commit`, `redact`, `limits`,
            `health_seconds`, `journal_options`, `max_threads`, `failure_outcomes`, `log_tail`, `export`,
            `sampler`; see `Settings`. If no source defines `journal` or `sink`, the global sink remains as
            it is.

    Returns:
        The settings in effect, and the source of each.

    Raises:
        SettingsError: A setting is unknown or has an invalid value; the message names its source.

    Example:
        stageflow.configure(journal="journal", service="shop")
    """
    global _settings, _journal_argument
    with _changing:
        found = _read(given)
        argument = (found.journal, found.origins.get("journal"))
        if _settings is not None and argument == _journal_argument:
            found = replace(found, journal=_settings.journal)
        elif found.journal:
            found = replace(found, journal=absolute_path(found.journal))
        if found != _settings:
            _apply(found, _settings)
            _settings, _journal_argument = found, argument
        if found.export and _exporting is None:  # a session that ended has stopped it
            _start_exporting(_new_export(found, None))
    return found


def settings() -> Settings | None:
    """Return the settings in effect, or None if `configure` was not called."""
    return _settings


def close_journal() -> None:
    """Sync and close the journal that `configure` opened; no effect if it opened none."""
    if _journal is not None:
        _journal.close()


def configured_targets() -> Sequence[Any]:
    """Return the `export` setting of the environment or `pyproject.toml`, without configuring the process.

    Raises:
        SettingsError: A setting is unknown or has an invalid value.
    """
    return _read({}).export


def configured_sampler() -> Any:
    """Return the `sampler` setting of the environment or `pyproject.toml`: a path, or None.

    Raises:
        SettingsError: A setting is unknown or has an invalid value.
    """
    return _read({}).sampler


def is_exporting() -> bool:
    """Return whether this process exports events in the background."""
    return _exporting is not None


def stop_exporting(seconds: float) -> None:
    """Send what the journal contains to the targets of `configure`, and stop; no effect without targets.

    Args:
        seconds: Maximum time. The call blocks.
    """
    global _exporting
    background, _exporting = _exporting, None
    if background is not None:
        background.stop(seconds)


def reset() -> None:
    """Restore the state before `configure`; for tests."""
    global _settings, _journal, _exporting
    with _changing:
        background, _exporting = _exporting, None
        if background is not None:
            background.stop(0.0, drain=False)
        if _settings is not None:
            clear_event_sink()
            _journal = None
            use_defaults(Defaults())
            use_sanitize_rules(SanitizeRules())
            _settings = None


def _apply(new: Settings, old: Settings | None) -> None:
    global _journal
    background = _new_export(new, old)  # before anything changes
    if new.sink is not None:
        try:
            FanoutEventSink(new.sink)  # before the journal is opened: an invalid sink changes nothing
        except TypeError as error:
            raise SettingsError(f"sink: {error}", _origin(new, "sink")) from None
    where = (new.journal, dict(new.journal_options), new.sink)
    if old is None or where != (old.journal, dict(old.journal_options), old.sink):
        sinks: list[EventSink | Any] = []
        if new.journal is not None:
            try:
                _check_options(new)
                _journal = JournalSink(new.journal, **new.journal_options)
                sinks.append(_journal)
            except (TypeError, ValueError) as error:
                raise SettingsError(f"journal_options: {error}", _origin(new, "journal_options")) from None
            except OSError as error:
                raise SettingsError(f"journal: {error}", _origin(new, "journal")) from None
        if new.sink is not None:
            sinks.append(new.sink)
        if sinks:
            set_event_sink(sinks[0] if len(sinks) == 1 else FanoutEventSink(*sinks))
    if new.journal is not None and new.failure_outcomes is not None:
        try:
            write_failures(new.journal, FailureOutcomes(new.failure_outcomes))
        except OSError as error:
            raise SettingsError(f"failure_outcomes: {error}", _origin(new, "failure_outcomes")) from None
    use_sanitize_rules(SanitizeRules(new.redact, new.limits))
    use_defaults(
        Defaults(
            emit_wide_events=True,
            service=new.service,
            version=new.version,
            environment=new.environment,
            commit=new.commit,
            health_seconds=new.health_seconds,
            max_threads=new.max_threads,
            log_tail=new.log_tail,
        )
    )
    if background is not None or not new.export:
        _start_exporting(background)


def _new_export(new: Settings, old: Settings | None) -> BackgroundExport | None:
    """Return the exporters of the settings, not started yet; None if there are none, or they are the same."""
    same = old is not None and (new.journal, new.export, new.sampler) == (
        old.journal,
        old.export,
        old.sampler,
    )
    if same:
        return None
    if not new.export:
        return None
    if new.journal is None:
        raise SettingsError("export requires a journal", _origin(new, "export"))
    # Most processes do not export.
    from .export import BackgroundExport, exporters_of, sampler_of

    try:
        exporters = exporters_of(new.export)
    except InvalidArgumentError as error:
        raise SettingsError(f"export: {error}", _origin(new, "export")) from None
    try:
        sampler = sampler_of(new.sampler)
    except (InvalidArgumentError, OSError) as error:
        raise SettingsError(f"sampler: {error}", _origin(new, "sampler")) from None
    return BackgroundExport(new.journal, exporters, DELIVERY.drain_timeout, sampler)


def _start_exporting(background: BackgroundExport | None) -> None:
    global _exporting
    if _exporting is not None:
        _exporting.stop(0.0, drain=False)
    _exporting = background
    if background is not None:
        background.start()


def _check_options(new: Settings) -> None:
    """Raise an error for an unknown journal option; Python's own message differs between versions."""
    known = list(inspect.signature(JournalSink).parameters)[1:]
    for name in new.journal_options:
        if name not in known:
            raise InvalidArgumentError(
                f"unknown option {name!r} of JournalSink{did_you_mean(str(name), known)}"
            )


def _origin(found: Settings, name: str) -> str:
    return found.origins.get(name, "argument")


def _read(given: Mapping[str, Any]) -> Settings:
    """Return the settings from all sources, validated."""
    known = [name for name in Settings.__struct_fields__ if name != "origins"]
    for name in given:
        if name not in known:
            raise SettingsError(f"unknown setting {name!r}{did_you_mean(name, known)}", "argument")
    path, table = _pyproject()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name in known:
        if name in given:
            values[name], origins[name] = given[name], "argument"
        elif (variable := _VARIABLES.get(name)) and variable in os.environ:
            values[name], origins[name] = _from_text(name, os.environ[variable], variable), variable
        elif name in table:
            values[name], origins[name] = table[name], f"{path} [tool.stageflow]"
            if name in _PATHS and isinstance(table[name], str) and table[name]:
                values[name] = os.path.join(os.path.dirname(path), table[name])
    for name in table.keys() - set(known):
        raise SettingsError(
            f"unknown setting {name!r}{did_you_mean(name, known)}", f"{path} [tool.stageflow]"
        )
    if isinstance(values.get("journal"), os.PathLike):
        values["journal"] = os.fspath(values["journal"])
    for name, kind in (("redact", Redact), ("limits", EventLimits)):
        if isinstance(values.get(name), Mapping):
            values[name] = _convert(name, values[name], kind, origins[name])
        elif values.get(name) is False and name == "redact":
            values[name] = None
    return _validate(values, origins)


def _from_text(name: str, text: str, variable: str) -> Any:
    if name in _STRINGS or name in _PATHS:
        return text or None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise SettingsError(f"{name}: {text!r} is invalid JSON ({error})", variable) from None


def _convert(name: str, value: Any, kind: type[Struct], origin: str) -> Struct:
    unknown = [key for key in value if key not in kind.__struct_fields__]
    if unknown:
        hint = did_you_mean(unknown[0], kind.__struct_fields__)
        raise SettingsError(f"{name}: unknown field {unknown[0]!r}{hint}", origin)
    try:
        return msgspec.convert(value, decodable(kind))
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(f"{name}: {error}", origin) from None


def _validate(values: dict[str, Any], origins: dict[str, str]) -> Settings:
    for name in _STRINGS:
        if not isinstance(values.get(name), str | None):
            raise SettingsError(f"{name} must be a string, got {values[name]!r}", origins[name])
    for name, kinds in (("redact", Redact | None), ("limits", EventLimits), ("journal_options", Mapping)):
        if name in values and not isinstance(values[name], kinds):
            raise SettingsError(f"{name} must be {_expected(name)}, got {values[name]!r}", origins[name])
    if (outcomes := values.get("failure_outcomes")) is not None:
        try:
            values["failure_outcomes"] = FailureOutcomes.of(outcomes).outcomes
        except TypeError:
            raise SettingsError(
                f'failure_outcomes must be a list such as ["failed", "timeout"], got {outcomes!r}',
                origins["failure_outcomes"],
            ) from None
        except ValueError as error:
            raise SettingsError(str(error), origins["failure_outcomes"]) from None
    seconds = values.get("health_seconds")
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and seconds > 0):
        raise SettingsError(
            f"health_seconds must be more than 0 seconds, or None, got {seconds!r}", origins["health_seconds"]
        )
    threads = values.get("max_threads", 1)
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise SettingsError(
            f"max_threads must be a positive integer, got {threads!r}", origins["max_threads"]
        )
    lines = values.get("log_tail", MAX_LOG_LINES)
    if not isinstance(lines, int) or lines is True or not 0 <= lines <= _MOST_LOG_LINES:
        raise SettingsError(
            f"log_tail must be a number of lines up to {_MOST_LOG_LINES}, or False, got {lines!r}",
            origins["log_tail"],
        )
    targets = values.get("export", ())
    if isinstance(targets, str) or not isinstance(targets, Sequence):
        raise SettingsError(f"export must be a list of URLs, got {targets!r}", origins["export"])
    values["export"] = tuple(targets)
    return Settings(**values, origins=origins)


def _expected(name: str) -> str:
    return {"redact": "Redact(...) or False", "limits": "EventLimits(...)"}.get(name, "a mapping")


def _pyproject() -> tuple[str, dict[str, Any]]:
    """Return the path of the nearest `pyproject.toml` and its table `[tool.stageflow]`, or empty values."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            try:
                table = parse_toml(path.read_bytes())
            except (OSError, ValueError) as error:
                raise SettingsError(f"cannot read the file: {error}", str(path)) from None
            section: Any = table
            for name in ("tool", "stageflow"):
                section = section.get(name, {})
                if not isinstance(section, dict):
                    raise SettingsError(f"{name} must be a table: write [tool.stageflow]", str(path))
            return str(path), section
    return "", {}
