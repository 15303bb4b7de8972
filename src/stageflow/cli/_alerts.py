"""`stageflow alerts`: evaluates rules over a journal, and tells who should know."""

from __future__ import annotations

import contextlib
import logging
from datetime import timedelta
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
    check_rules,
    present,
    read_rules,
    run_alerts,
    standing,
    state_path,
    try_receivers,
)
from ..errors import AlertRuleError, JournalNotFoundError, did_you_mean
from ..render import draw_alert_list, draw_alert_run, draw_alert_tests
from ._errors import NOT_FOUND
from ._options import ArchiveOption, JournalOption, VerifyOption, find_journal, open_store, span_option
from ._output import open_terminal, print_json, print_page, print_text

__all__ = ["alerts"]


alerts = typer.Typer(
    name="alerts",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Watch a journal by rules, and tell who should know.",
)

RulesOption = Annotated[
    Path,
    typer.Option("--rules", metavar="FILE", envvar="STAGEFLOW_ALERTS", help="The rules, as TOML."),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="FILE",
        show_default=False,
        help="Where the state is kept; default alerts.json in the directory of the journal.",
    ),
]
_RULES = Path("alerts.toml")


@alerts.command()
def run(
    rules: RulesOption = _RULES,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    state: StateOption = None,
    every: Annotated[
        Any, span_option("--every", "s", says="Go on, with so long between: 90s, 5m. Default: once.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each evaluation.")] = False,
) -> None:
    """Evaluate every rule, send what is due, and print what was found.

    It ends with exit code 1 where a rule could not be evaluated, or a receiver did not take a notice:
    it is tried again in the next evaluation. An alert that fires is no error.

    - `stageflow alerts run`

    - `stageflow alerts run --every 60s`

    - `stageflow alerts run --json | jq '.findings[] | select(.status == "firing")'`
    """
    known = _read(rules)
    # What the log would state, the page states as well.
    logging.getLogger("stageflow.alerts").addHandler(logging.NullHandler())

    def show(found: AlertRun) -> None:
        if as_json:
            print_json(msgspec.json.encode(found))
        else:
            # A blank line between one evaluation and the next.
            after = [""] if every else []
            print_page(open_terminal(), draw_alert_run(msgspec.to_builtins(found)), *after)

    with open_store(journal, archive, verify=verify) as store:
        if every is None:
            found = run_alerts(store, known, state=state)
            show(found)
            if not found.well:
                raise typer.Exit(1)
        else:
            AlertLoop(store, known, every=every, state=state, on_run=show).run()


@alerts.command()
def check(
    rules: RulesOption = _RULES,
    journal: JournalOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: problems, warnings.")] = False,
) -> None:
    """Say whether the rules are right, and where they are not.

    Where there is a journal, the queries of rules are tried on it. What receivers lack in this
    environment is a warning: it may be there where the rules run. Exit code 1 where there is a problem.

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
        warnings += [] if known.receivers else ["there is no receiver: nobody is told"]
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
            print_text(f"{len(known.rules)} rules and {len(known.receivers)} receivers are right.")
    if problems:
        raise typer.Exit(1)


@alerts.command("test")
def send_sample(
    rules: RulesOption = _RULES,
    receiver: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="Only this one; default all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each receiver.")] = False,
) -> None:
    """Send a sample to each receiver.

    Exit code 1 where one does not take it.

    - `stageflow alerts test`

    - `stageflow alerts test --receiver ops`
    """
    known = _read(rules)
    names = [one.name for one in known.receivers]
    if receiver is not None and receiver not in names:
        wrong = f"{receiver!r} is no receiver; there are: {', '.join(names) or 'none'}"
        raise typer.BadParameter(wrong, param_hint="--receiver")
    tests = try_receivers(known, present(), only=receiver)
    if as_json:
        print_json(*(msgspec.json.encode(one) for one in tests))
    elif tests:
        print_page(open_terminal(), draw_alert_tests(tests))
    else:
        print_text("There is no receiver.")
    if any(one["error"] is not None for one in tests):
        raise typer.Exit(1)


@alerts.command()
def silence(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="Name of the rule.")],
    rules: RulesOption = _RULES,
    journal: JournalOption = None,
    state: StateOption = None,
    length: Annotated[Any, span_option("--for", "h", says="For so long: 2h, 1h30m.")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", show_default=False, help=f"Until then: {TIME_FORMATS}.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; `alerts list` shows it.")] = "",
    lift: Annotated[bool, typer.Option("--lift", help="End the silence of this rule.")] = False,
) -> None:
    """Hold back the notices of a rule for a while.

    What it fires for goes out afterwards, where it still fires. The end of what was told is told meanwhile.

    - `stageflow alerts silence 'checkout fails' --for 2h --reason 'the bank works on it'`

    - `stageflow alerts silence 'checkout fails' --lift`
    """
    known = _read(rules)
    names = [one.name for one in known.rules]
    if rule not in names:
        raise typer.BadParameter(f"{rule!r} is none of {', '.join(names)}{did_you_mean(rule, names)}")
    if (length is None) + (until is None) + (not lift) != 2:
        raise typer.BadParameter("give one of --for, --until and --lift")
    if not lift and not reason.strip():
        raise typer.BadParameter("give a reason", param_hint="--reason")
    now = present()
    end = now
    if length is not None:
        end = now + timedelta(seconds=length)
    elif until is not None:
        try:
            end = msgspec.convert(parse_time(until, now), type(now))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--until") from None
        if end <= now:
            raise typer.BadParameter(f"{until!r} is past: give a date too, or --for 2h", param_hint="--until")
    path = state_path(find_journal(journal).path, state)
    add_silence(path, Silence(rule=rule, until=end, reason=reason), now, lift=lift)
    print_text(
        f"{rule}: the silence is lifted." if lift else f"{rule}: silenced until {end:%Y-%m-%dT%H:%M:%SZ}."
    )


@alerts.command("list")
def list_(
    rules: RulesOption = _RULES,
    journal: JournalOption = None,
    state: StateOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: rules, silences, receivers, waiting.")
    ] = False,
) -> None:
    """Show the rules, what the last evaluation found, silences and receivers.

    Nothing is evaluated.
    """
    found = standing(_read(rules), state_path(find_journal(journal).path, state), present())
    if as_json:
        print_json(msgspec.json.encode(found))
        return
    told: dict[str, Any] = msgspec.to_builtins(found)
    print_page(open_terminal(), draw_alert_list(told))


def _read(rules: Path) -> AlertRules:
    try:
        return read_rules(rules)
    except FileNotFoundError:
        print_text(f"There are no rules at {rules}.\n  hint: name them with --rules FILE", err=True)
        raise typer.Exit(NOT_FOUND) from None


def _journal_if_any(named: Path | None) -> Path | None:
    with contextlib.suppress(JournalNotFoundError):
        return Path(find_journal(named).path)
    if named is not None:
        raise JournalNotFoundError(str(named))
    return None
