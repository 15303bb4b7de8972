"""The command group `alerts`."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from .._timeparse import TIME_FORMATS, parse_time
from ..alerts import (
    AlertLoop,
    AlertRules,
    AlertRun,
    Silence,
    add_silence,
    alert_history,
    alert_status,
    check_rules,
    present,
    read_rules,
    run_alerts,
    state_path,
    try_receivers,
)
from ..errors import AlertRuleError, JournalNotFoundError, did_you_mean
from ..render import draw_alert_history, draw_alert_list, draw_alert_run, draw_alert_tests
from ._errors import NOT_FOUND, Command, CommandGroup
from ._options import (
    ArchiveOption,
    JournalOption,
    VerifyOption,
    as_filter,
    as_time,
    find_journal,
    json_option,
    open_store,
    span_option,
)
from ._output import open_terminal, print_json, print_page, print_text

__all__ = ["alerts"]


alerts = typer.Typer(
    name="alerts",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Evaluate alert rules against a journal, and notify receivers.",
)

RulesOption = Annotated[
    Path,
    typer.Option("--rules", metavar="FILE", envvar="STAGEFLOW_ALERTS", help="TOML file with the rules."),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="FILE",
        show_default=False,
        help="State file. Defaults to alerts.json in the journal directory.",
    ),
]
_DEFAULT_RULES = Path("alerts.toml")


@alerts.command(cls=Command)
def run(
    rules: RulesOption = _DEFAULT_RULES,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    state: StateOption = None,
    every: Annotated[
        Any,
        span_option(
            "--every",
            "s",
            description="Repeat at this interval (90s, 5m). By default, the command runs once.",
        ),
    ] = None,
    as_json: Annotated[bool, json_option("Print one JSON object per evaluation.")] = False,
) -> None:
    """Evaluate every rule, send due notifications, and print the results.

    The exit code is 1 if a rule could not be evaluated, or a notification could not be delivered; the next
    evaluation retries both. A firing alert is not an error.

    - `stageflow alerts run`

    - `stageflow alerts run --every 60s`

    - `stageflow alerts run --json | jq '.findings[] | select(.status == "firing")'`
    """
    known = _read(rules)
    # The printed results contain everything that is logged.
    logging.getLogger("stageflow.alerts").addHandler(logging.NullHandler())

    def show(found: AlertRun) -> None:
        if as_json:
            print_json(msgspec.json.encode(found))
        else:
            separator = [""] if every else []
            print_page(open_terminal(), draw_alert_run(msgspec.to_builtins(found)), *separator)

    with open_store(journal, archive, verify=verify) as store:
        if every is None:
            found = run_alerts(store, known, state=state)
            show(found)
            if not found.well:
                raise typer.Exit(1)
        else:
            AlertLoop(store, known, every=every, state=state, on_run=show).run()


@alerts.command(cls=Command)
def check(
    rules: RulesOption = _DEFAULT_RULES,
    journal: JournalOption = None,
    as_json: Annotated[bool, json_option("Print one JSON object: problems, warnings.")] = False,
) -> None:
    """Validate the rules.

    If there is a journal, the rules are evaluated against it without side effects. Receiver settings that are
    missing from this environment are reported as warnings, because they may exist where the rules run. The
    exit code is 1 if there is a problem.

    - `stageflow alerts check`

    - `stageflow alerts check --rules ops/alerts.toml`
    """
    problems: list[str] = []
    warnings: list[str] = []
    known = None
    try:
        known = _read(rules)
    except AlertRuleError as error:
        problems += error.problems
    if known is not None:
        warnings += [f"receiver {one.name!r}: {lack}" for one in known.receivers for lack in one.missing()]
        warnings += [] if known.receivers else ["there are no receivers: nobody is notified"]
        if (path := _journal_if_any(journal)) is not None:
            with open_store(path, None) as store:
                problems += check_rules(store, known)
    if as_json:
        print_json(msgspec.json.encode({"problems": problems, "warnings": warnings}))
    else:
        for line in problems:
            print_text(f"{rules}: {line}")
        for line in warnings:
            print_text(f"{rules}: warning: {line}")
        if known is not None and not problems:
            counts = _counted(len(known.rules), "rule"), _counted(len(known.receivers), "receiver")
            print_text(f"OK: {', '.join(counts)}")
    if problems:
        raise typer.Exit(1)


@alerts.command("test", cls=Command)
def send_sample(
    rules: RulesOption = _DEFAULT_RULES,
    receiver: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="Only this receiver. Defaults to all."),
    ] = None,
    as_json: Annotated[bool, json_option("Print one JSON object per receiver.")] = False,
) -> None:
    """Send a sample notification to each receiver.

    The exit code is 1 if a notification could not be delivered.

    - `stageflow alerts test`

    - `stageflow alerts test --receiver ops`
    """
    known = _read(rules)
    names = [one.name for one in known.receivers]
    if receiver is not None and receiver not in names:
        near = did_you_mean(receiver, names)
        problem = f"unknown receiver {receiver!r}; known are {', '.join(names) or 'none'}{near}"
        raise typer.BadParameter(problem, param_hint="--receiver")
    tests = try_receivers(known, present(), only=receiver)
    if as_json:
        print_json(*(msgspec.json.encode(one) for one in tests))
    elif tests:
        print_page(open_terminal(), draw_alert_tests(tests))
    else:
        print_text("There are no receivers.")
    if any(one["error"] is not None for one in tests):
        raise typer.Exit(1)


@alerts.command(cls=Command)
def silence(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="Name of the rule.")],
    rules: RulesOption = _DEFAULT_RULES,
    journal: JournalOption = None,
    state: StateOption = None,
    length: Annotated[Any, span_option("--for", "h", description="Duration: 2h, 1h30m.")] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            show_default=False,
            help="Time at which the silence ends: 2026-11-23, 2026-11-23T10:00 or ...T10:00Z."
            " For a duration, use --for.",
        ),
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Reason; `alerts list` shows it.")] = "",
    lift: Annotated[bool, typer.Option("--lift", help="End the silence of this rule.")] = False,
) -> None:
    """Temporarily silence the notifications of a rule.

    If the alert is still firing when the silence ends, receivers are notified then. If an alert resolves
    during the silence and its firing notification was already sent, receivers are notified immediately.

    - `stageflow alerts silence 'checkout fails' --for 2h --reason 'the bank is working on it'`

    - `stageflow alerts silence 'checkout fails' --lift`
    """
    known = _read(rules)
    names = [one.name for one in known.rules]
    if rule not in names:
        raise typer.BadParameter(
            f"unknown rule {rule!r}; known are {', '.join(names)}{did_you_mean(rule, names)}"
        )
    if (length is None) + (until is None) + (not lift) != 2:
        raise typer.BadParameter("exactly one of --for, --until and --lift is required")
    if not lift and not reason.strip():
        raise typer.BadParameter("a reason is required", param_hint="--reason")
    now = present()
    end = now
    if length is not None:
        end = now + timedelta(seconds=length)
    elif until is not None:
        try:
            end = msgspec.convert(parse_time(until, now), datetime)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--until") from None
        if end <= now:
            raise typer.BadParameter(
                f"{until!r} is in the past; add a date, or use --for 2h", param_hint="--until"
            )
    path = state_path(find_journal(journal).path, state)
    add_silence(path, Silence(rule=rule, until=end, reason=reason), now, lift=lift)
    print_text(f"{rule}: silence lifted." if lift else f"{rule}: silenced until {end:%Y-%m-%dT%H:%M:%SZ}.")


@alerts.command("list", cls=Command)
def list_(
    rules: RulesOption = _DEFAULT_RULES,
    journal: JournalOption = None,
    state: StateOption = None,
    as_json: Annotated[
        bool, json_option("Print one JSON object: rules, silences, receivers, waiting.")
    ] = False,
) -> None:
    """Show the rules with the results of the last evaluation, silences and receivers.

    The command does not evaluate the rules.
    """
    found = alert_status(_read(rules), state_path(find_journal(journal).path, state), present())
    if as_json:
        print_json(msgspec.json.encode(found))
        return
    print_page(open_terminal(), draw_alert_list(msgspec.to_builtins(found)))


@alerts.command(cls=Command)
def history(
    journal: JournalOption = None,
    state: StateOption = None,
    rule: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="Only this rule. Defaults to all."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            callback=as_time,
            show_default=False,
            help=f"Only incidents that had not ended before this time: {TIME_FORMATS}.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            callback=as_time,
            show_default=False,
            help="Only incidents that fired before this time.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of incidents.")] = 20,
    as_json: Annotated[bool, json_option("Print one JSON object per incident.")] = False,
) -> None:
    """Show current and past incidents, newest first.

    The history contains at most 500 past incidents from the last 90 days, including those of removed rules.

    - `stageflow alerts history`

    - `stageflow alerts history --rule 'checkout fails' --since 7d --json`
    """
    window = as_filter(since=since, until=until)
    found = alert_history(
        state=state_path(find_journal(journal).path, state),
        rule=rule,
        since=_time_of(window.since),
        until=_time_of(window.until),
        limit=limit,
    )
    if as_json:
        print_json(*(msgspec.json.encode(one) for one in found))
    elif found:
        print_page(open_terminal(), draw_alert_history(msgspec.to_builtins(found)))
    else:
        print_text("There are no incidents.")


def _time_of(text: str | None) -> datetime | None:
    return None if text is None else msgspec.convert(text, datetime)


def _read(rules: Path) -> AlertRules:
    try:
        return read_rules(rules)
    except FileNotFoundError:
        print_text(
            f"cannot find the file of alert rules {rules}\n  hint: name it with --rules FILE", err=True
        )
        raise typer.Exit(NOT_FOUND) from None


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _journal_if_any(named: Path | None) -> Path | None:
    with contextlib.suppress(JournalNotFoundError):
        return Path(find_journal(named).path)
    if named is not None:
        raise JournalNotFoundError(str(named))
    return None
