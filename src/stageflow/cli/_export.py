"""The command group `export`."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from typing import Annotated, Any

import msgspec
import typer

from ..errors import InvalidArgumentError, SettingsError
from ..export import (
    Exporter,
    ExportRunner,
    export_status,
    exporter_for,
    exporters_of,
    postgres_tables,
    resend,
)
from ..render import draw_export_status
from ..settings import configured_targets
from ._errors import Command, CommandGroup
from ._options import JournalOption, find_journal, json_option, read_sampler_option, span_option
from ._output import open_terminal, print_json, print_page, print_text

__all__ = ["export"]


export = typer.Typer(
    name="export",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Send the events of a journal to other systems.",
)

UrlsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[URL]...",
        show_default=False,
        help="Target URLs. Defaults to STAGEFLOW_EXPORT, or the `export` setting in pyproject.toml.",
    ),
]
UrlEnvOption = Annotated[
    str | None,
    typer.Option(metavar="VARIABLE", show_default=False, help="Environment variable with the URL."),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default=False,
        help="Name of the exporter; requires a single target. Defaults to a name derived from the URL.",
    ),
]
SecretEnvOption = Annotated[
    str | None,
    typer.Option(
        metavar="VARIABLE",
        show_default=False,
        help="Environment variable with the secret that signs batches (Standard Webhooks); HTTP only.",
    ),
]
HeadersEnvOption = Annotated[
    str | None,
    typer.Option(
        metavar="VARIABLE",
        show_default=False,
        help="Environment variable with additional headers: name=value,name=value.",
    ),
]


@export.command(cls=Command)
def run(
    urls: UrlsArgument = None,
    journal: JournalOption = None,
    url_env: UrlEnvOption = None,
    name: NameOption = None,
    secret_env: SecretEnvOption = None,
    headers_env: HeadersEnvOption = None,
    at_end: Annotated[
        bool, typer.Option("--at-end", help="Skip the events that exist when the exporter first starts.")
    ] = False,
    backfill: Annotated[
        bool,
        typer.Option("--backfill", help="On the first start, send the archived events before the others."),
    ] = False,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Export only the runs that this TOML file selects. Defaults to STAGEFLOW_SAMPLER, or the"
            " setting `sampler` in pyproject.toml.",
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Send the existing events and exit, for example from cron.")
    ] = False,
    stop_timeout: Annotated[
        Any,
        span_option("--stop-timeout", "s", description="Time limit for the last batch. Defaults to 10s."),
    ] = None,
) -> None:
    """Send the events of a journal to one or more targets, until the process is stopped.

    Several processes can run the same command: one exports, and the others wait. If that process exits,
    another one takes over within 5 seconds. After SIGTERM or Ctrl-C, the command sends the current batch and
    exits with code 0. With `--once`, the exit code is 1 if a target is unavailable.

    - `stageflow export run https://collector.example/events`

    - `stageflow export run --url-env DATABASE_URL --once`

    - `stageflow export run https://collector.example/events --sampler sampling.toml`
    """
    exporters = _exporters(urls, url_env, name, secret_env, headers_env)
    path = find_journal(journal).path
    seconds = 10.0 if stop_timeout is None else stop_timeout
    sample = read_sampler_option(sampler)
    if at_end and backfill:
        raise typer.BadParameter("use --at-end or --backfill, not both")
    runners = [
        ExportRunner(path, exporter, at_end=at_end, backfill=backfill, sampler=sample)
        for exporter in exporters
    ]
    with _logged_to_stderr(), _stopped_by_signals() as stopped:
        if once:
            for runner in runners:
                runner.request_stop(threading.TIMEOUT_MAX / 2, drain=True)
        for runner in runners:
            runner.start()
        if not once:
            stopped.wait()
            for runner in runners:
                runner.request_stop(seconds)
        ended = [runner.join() for runner in runners]
    if once:
        for runner in runners:
            counters = runner.state.counters
            if runner.status == "standby":
                print_text(f"{runner.exporter.name}: another process exports.")
                continue
            print_text(f"{runner.exporter.name}: {counters.sent:,} sent, {counters.rejected:,} rejected.")
    if not all(ended) or (once and any(runner.state.consecutive_failures for runner in runners)):
        raise typer.Exit(1)


@export.command(cls=Command)
def status(
    journal: JournalOption = None,
    as_json: Annotated[bool, json_option("Print one JSON object per exporter.")] = False,
) -> None:
    """Show the lag, the counters and the last error of each exporter that has run for a journal.

    `lag` is the number of events that have not been exported yet, and `oldest` is the age of the oldest one.
    `waiting` is the number of rejected events that `stageflow export retry` sends again, and `missed` is
    the number of events that retention deleted before they were exported.

    - `stageflow export status`

    - `stageflow export status --json | jq 'select(.lag_seconds > 60)'`
    """
    found = export_status(find_journal(journal).path)
    if as_json:
        print_json(*(msgspec.json.encode(each) for each in found))
    elif found:
        print_page(open_terminal(), draw_export_status(msgspec.to_builtins(found)))
    else:
        print_text("No exporter has run for this journal.")


@export.command(cls=Command)
def retry(
    urls: UrlsArgument = None,
    journal: JournalOption = None,
    url_env: UrlEnvOption = None,
    name: NameOption = None,
    secret_env: SecretEnvOption = None,
    headers_env: HeadersEnvOption = None,
    as_json: Annotated[bool, json_option("Print one JSON object per exporter.")] = False,
) -> None:
    """Resend the events that a target rejected. Events that it rejects again are kept.

    Use the arguments of `stageflow export run`. The exit code is 1 if an event was not sent or was rejected.

    - `stageflow export retry https://collector.example/events`
    """
    exporters = _exporters(urls, url_env, name, secret_env, headers_env)
    path = find_journal(journal).path
    complete = True
    for exporter in exporters:
        found = resend(path, exporter)
        complete = complete and not (found.rejected or found.left or found.busy)
        if as_json:
            print_json(msgspec.json.encode({"name": exporter.name, **msgspec.to_builtins(found)}))
        elif found.busy:
            print_text(f"{exporter.name}: another process is sending its rejected events.")
        else:
            left = f", {found.left:,} not sent ({found.error})" if found.error is not None else ""
            print_text(f"{exporter.name}: {found.sent:,} sent, {found.rejected:,} rejected again{left}.")
    if not complete:
        raise typer.Exit(1)


@export.command(cls=Command)
def sql(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Kind of the target: postgres.")],
    schema: Annotated[str, typer.Option(metavar="NAME", help="Name of the schema.")] = "stageflow",
) -> None:
    """Print the SQL statements that create the tables and views of a target, for a database administrator.

    An exporter that has the privilege to create objects executes these statements itself. Otherwise, it needs
    the privileges to use the schema, and to select from and insert into its table `events`.

    - `stageflow export sql postgres | psql shop`
    """
    if target != "postgres":
        raise typer.BadParameter(f"expected postgres, got {target!r}", param_hint="TARGET")
    try:
        print_text(postgres_tables(schema).rstrip("\n"))
    except InvalidArgumentError as error:
        raise typer.BadParameter(error.message, param_hint="--schema") from None


def _exporters(
    urls: Sequence[str] | None,
    url_env: str | None,
    name: str | None,
    secret_env: str | None,
    headers_env: str | None,
) -> Sequence[Exporter]:
    given = {"secret_env": secret_env, "headers_env": headers_env}
    options: dict[str, Any] = {option: value for option, value in given.items() if value is not None}
    targets: list[dict[str, Any]] = [{"url": url} for url in urls or ()]
    targets += [{"url_env": url_env}] if url_env is not None else []
    try:
        if not targets:
            found = exporters_of(configured_targets())
            if not found:
                raise typer.BadParameter("a URL is required", param_hint="URL")
            if options or name is not None:
                raise typer.BadParameter("these options require a URL")
            return found
        if name is not None and len(targets) > 1:
            raise typer.BadParameter("expected a single target", param_hint="--name")
        return exporters_of([exporter_for(**target, name=name, **options) for target in targets])
    except SettingsError:
        raise
    except InvalidArgumentError as error:
        raise typer.BadParameter(error.message) from None


@contextlib.contextmanager
def _stopped_by_signals() -> Generator[threading.Event]:
    """Yield an event that SIGTERM and Ctrl-C set; a second signal ends the process."""
    stopped = threading.Event()
    known = (signal.SIGTERM, signal.SIGINT)

    def stop(number: int, frame: object) -> None:
        for each in known:
            signal.signal(each, before[each])
        stopped.set()

    before = {each: signal.signal(each, stop) for each in known}
    try:
        yield stopped
    finally:
        for each in known:
            signal.signal(each, before[each])


@contextlib.contextmanager
def _logged_to_stderr() -> Generator[None]:
    logger, handler = logging.getLogger("stageflow"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
