"""The settings of a process: from arguments, the environment and `pyproject.toml`, in that order."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ._failures import FailureOutcomes
from ._files import absolute_path
from ._fork import reset_in_child
from ._toml import parse_toml
from .errors import SettingsError, did_you_mean
from .events import EventSink, FanoutEventSink, clear_event_sink, set_event_sink
from .journal import JournalSink, write_failures
from .observability import Defaults, EventLimits, Redact, SanitizeRules, use_defaults, use_sanitize_rules

__all__ = ["Given", "Settings", "close_journal", "configure", "reset", "settings"]


class Settings(Struct, frozen=True, kw_only=True):
    """What is in force, and where each came from.

    Attributes:
        journal: Absolute path of the directory of the journal, or None for no journal.
        sink: The sink that was given beside it or instead, or None.
        service: Name of the service; None for what the platform says.
        version: Its version; None likewise.
        environment: Where it is deployed; None likewise.
        commit: The commit it was built from; None likewise.
        redact: What is taken out of events; None for nothing.
        limits: How large an event may grow.
        health_seconds: Seconds between two `stageflow.health` events; None for none.
        journal_options: Further arguments of `JournalSink`: `fsync`, `max_bytes`, ...
        max_threads: How many synchronous stages may run in threads at once, over all runs of the process.
        failure_outcomes: The outcomes that count as failures in statistics, alerts, sampling and retention.
            They are stored in the journal, for readers in every process. None leaves what the journal
            states: by default `failed`, `timeout` and `crashed`.
        origins: Where each came from: "argument", the name of an environment variable, or a file.
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
}
"""The environment variable of each setting: text as it is, the others as JSON."""

_TEXTS = ("journal", "service", "version", "environment", "commit")

_settings: Settings | None = None
_journal: JournalSink | None = None
_journal_as_given: tuple[str | None, str | None] = (None, None)
"""The path of the journal in `_settings` before it was made absolute, and its origin."""

# Reentrant: a signal handler may configure, too.
_changing = threading.RLock()


def _forget_parents_threads() -> None:
    # One of them may have been in the middle of it, and will never let go.
    global _changing
    _changing = threading.RLock()


reset_in_child(_forget_parents_threads)


class Given(TypedDict, total=False):
    """What `configure` takes; see `Settings`."""

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


def configure(**given: Unpack[Given]) -> Settings:
    """Set up this process: where events go, what they say of it, what is taken out of them.

    From then on every graph emits its wide events, also one that was built before, unless it was
    built with a flag that says otherwise. Each setting is taken from the first that has it: the
    arguments, the environment (`STAGEFLOW_JOURNAL`, ...), `[tool.stageflow]` in the nearest
    `pyproject.toml` from the working directory upwards. Calling it again with the same changes nothing,
    also from several threads at once.

    A relative path in `pyproject.toml` is relative to that file; any other is relative to the working
    directory at the time of the call. A later `os.chdir` has no effect on it, nor has calling `configure`
    with the same path again.

    Args:
        given: `journal`, `sink`, `service`, `version`, `environment`, `commit`, `redact`, `limits`,
            `health_seconds`, `journal_options`, `max_threads`, `failure_outcomes`; see `Settings`. Without
            `journal` and `sink` anywhere, events go to the global sink as before.

    Returns:
        What is in force now, and where each came from.

    Raises:
        SettingsError: A setting is unknown or has a wrong value; it says where it stands.

    Example:
        stageflow.configure(journal="journal", service="shop")
    """
    global _settings, _journal_as_given
    with _changing:
        found = _read(given)
        as_given = (found.journal, found.origins.get("journal"))
        if _settings is not None and as_given == _journal_as_given:
            found = replace(found, journal=_settings.journal)
        elif found.journal:
            found = replace(found, journal=absolute_path(found.journal))
        if found != _settings:
            _put_in_force(found, _settings)
            _settings, _journal_as_given = found, as_given
    return found


def settings() -> Settings | None:
    """Return what `configure` put in force, or None where it was not called."""
    return _settings


def close_journal() -> None:
    """Sync and close the journal that `configure` opened, if it did."""
    if _journal is not None:
        _journal.close()


def reset() -> None:
    """Go back to how it was before `configure`; for tests."""
    global _settings, _journal
    with _changing:
        if _settings is not None:
            clear_event_sink()
            _journal = None
            use_defaults(Defaults())
            use_sanitize_rules(SanitizeRules())
            _settings = None


def _put_in_force(new: Settings, old: Settings | None) -> None:
    global _journal
    if new.sink is not None:
        try:
            FanoutEventSink(new.sink)  # before the journal is opened: a wrong one leaves all as it was
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
            emits=True,
            service=new.service,
            version=new.version,
            environment=new.environment,
            commit=new.commit,
            health_seconds=new.health_seconds,
            max_threads=new.max_threads,
        )
    )


def _check_options(new: Settings) -> None:
    """Raise an error for an unknown journal option; Python's own message differs between versions."""
    known = list(inspect.signature(JournalSink).parameters)[1:]
    for name in new.journal_options:
        if name not in known:
            raise TypeError(f"JournalSink has no option {name!r}{did_you_mean(str(name), known)}")


def _origin(found: Settings, name: str) -> str:
    return found.origins.get(name, "argument")


# ------------------------------------------------------------ reading


def _read(given: Mapping[str, Any]) -> Settings:
    known = [name for name in Settings.__struct_fields__ if name != "origins"]
    for name in given:
        if name not in known:
            raise SettingsError(f"there is no setting {name!r}{did_you_mean(name, known)}", "argument")
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
            if name == "journal" and isinstance(table[name], str) and table[name]:
                values[name] = os.path.join(os.path.dirname(path), table[name])
    for name in table.keys() - set(known):
        raise SettingsError(
            f"there is no setting {name!r}{did_you_mean(name, known)}", f"{path} [tool.stageflow]"
        )
    if isinstance(values.get("journal"), os.PathLike):
        values["journal"] = os.fspath(values["journal"])
    for name, kind in (("redact", Redact), ("limits", EventLimits)):
        if isinstance(values.get(name), Mapping):
            values[name] = _converted(name, values[name], kind, origins[name])
        elif values.get(name) is False and name == "redact":
            values[name] = None
    return _checked(values, origins)


def _from_text(name: str, text: str, variable: str) -> Any:
    if name in _TEXTS:
        return text or None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise SettingsError(f"{name}: {text!r} is invalid JSON ({error})", variable) from None


def _converted(name: str, value: Any, kind: type[Struct], origin: str) -> Struct:
    unknown = [key for key in value if key not in kind.__struct_fields__]
    if unknown:
        hint = did_you_mean(unknown[0], kind.__struct_fields__)
        raise SettingsError(f"{name}: there is no {unknown[0]!r}{hint}", origin)
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(f"{name}: {error}", origin) from None


def _checked(values: dict[str, Any], origins: dict[str, str]) -> Settings:
    for name in _TEXTS:
        if not isinstance(values.get(name), str | None):
            raise SettingsError(f"{name}={values[name]!r}; give text", origins[name])
    for name, kinds in (("redact", Redact | None), ("limits", EventLimits), ("journal_options", Mapping)):
        if name in values and not isinstance(values[name], kinds):
            raise SettingsError(f"{name}={values[name]!r}; give {_wanted(name)}", origins[name])
    if (outcomes := values.get("failure_outcomes")) is not None:
        try:
            values["failure_outcomes"] = FailureOutcomes.of(outcomes).outcomes
        except TypeError:
            raise SettingsError(
                f'failure_outcomes={outcomes!r}; expected a list of outcomes such as ["failed", "timeout"]',
                origins["failure_outcomes"],
            ) from None
        except ValueError as error:
            raise SettingsError(str(error), origins["failure_outcomes"]) from None
    seconds = values.get("health_seconds")
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and seconds > 0):
        raise SettingsError(
            f"health_seconds={seconds!r}; give seconds, more than 0, or none", origins["health_seconds"]
        )
    threads = values.get("max_threads", 1)
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise SettingsError(
            f"max_threads={threads!r}; expected a whole number, 1 or more", origins["max_threads"]
        )
    return Settings(**values, origins=origins)


def _wanted(name: str) -> str:
    return {"redact": "Redact(...), or False", "limits": "EventLimits(...)"}.get(name, "a mapping")


def _pyproject() -> tuple[str, dict[str, Any]]:
    here = Path.cwd()
    for folder in (here, *here.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            try:
                table = parse_toml(path.read_bytes())
            except (OSError, ValueError) as error:
                raise SettingsError(f"it cannot be read: {error}", str(path)) from None
            ours: Any = table
            for name in ("tool", "stageflow"):
                ours = ours.get(name, {})
                if not isinstance(ours, dict):
                    raise SettingsError(f"{name} is no table; write [tool.stageflow]", str(path))
            return str(path), ours
    return "", {}
