"""What an evaluation of alerts did, and what rules there are, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .figures import count
from .foreign import on_one_line
from .palette import BAD, QUIET

__all__ = ["draw_alert_list", "draw_alert_run", "draw_alert_tests"]

Record = dict[str, Any]

_STATES = {"firing": f"bold {BAD}", "pending": "yellow", "inactive": "green"}


def draw_alert_run(run: Record) -> RenderableType:
    """Return the state of each rule, what was sent, and how receivers fare.

    Args:
        run: An `AlertRun`, as plain values.

    Example:
        Console().print(draw_alert_run(msgspec.to_builtins(run_alerts(store, rules))))
    """
    if run["busy"]:
        return Text("Another evaluator is at work; nothing was done.")
    parts: list[RenderableType] = [Text(f"evaluated {_second(run['at'])}", style=QUIET)]
    parts.append(_rules(run["findings"]))
    for sent in run["sent"]:
        told = f"{_title(sent['notice'])} -> {on_one_line(sent['receiver'])}"
        if sent["error"] is None:
            parts.append(Text(f"sent    {told}"))
        else:
            why = f" (attempt {sent['attempt']}: {on_one_line(sent['error'])})"
            parts.append(Text(f"failed  {told}{why}", style=BAD))
    if run["receivers"]:
        parts.append(_receivers(run["receivers"], run["waiting"]))
    # A blank line before each table and before what was sent.
    spaced: list[RenderableType] = []
    for number, part in enumerate(parts):
        if number and not (isinstance(part, Text) and isinstance(parts[number - 1], Text)):
            spaced.append("")
        spaced.append(part)
    return Group(*spaced)


def draw_alert_list(standing: Record) -> RenderableType:
    """Return rules with what is known of them, silences and receivers.

    Args:
        standing: A `Standing`, as plain values.
    """
    rules, silences = standing["rules"], standing["silences"]
    table = _table("rule", ("kind", "severity", "state", "since", "figure"))
    for rule in rules:
        table.add_row(
            on_one_line(rule["rule"]),
            rule["kind"],
            rule["severity"],
            _status(rule["status"]),
            _second(rule["began"]),
            _figure(rule),
        )
    parts: list[RenderableType] = [table]
    if silences:
        quiet = _table("silenced", ("until", "reason"))
        for silence in silences:
            quiet.add_row(
                on_one_line(silence["rule"]), _second(silence["until"]), on_one_line(silence["reason"])
            )
        parts += ["", quiet]
    if standing["receivers"]:
        parts += ["", _receivers(standing["receivers"], standing["waiting"])]
    return Group(*parts)


def draw_alert_tests(tests: Sequence[Record]) -> RenderableType:
    """Return whether each receiver took a sample.

    Args:
        tests: `receiver`, `kind` and `error` of each.
    """
    table = _table("receiver", ("kind", "sample"))
    for test in tests:
        error = test["error"]
        told = Text("sent", style="green") if error is None else Text(on_one_line(error), style=BAD)
        table.add_row(on_one_line(test["receiver"]), test["kind"], told)
    return table


def _rules(findings: Iterable[Record]) -> Table:
    table = _table("rule", ("state", "since", "figure", "of"))
    for finding in findings:
        table.add_row(
            on_one_line(finding["rule"]),
            _status(finding["status"]),
            _second(finding["began"]),
            _figure(finding),
            on_one_line(finding["events"]),
        )
    return table


def _figure(rule: Record) -> Text:
    if rule["error"] is not None:
        return Text(on_one_line(rule["error"].partition("\n")[0]), style=BAD)
    figure = Text(on_one_line(rule["says"]))
    if silence := rule.get("silenced"):
        figure.append(f" (silenced until {_second(silence['until'])})", style=QUIET)
    return figure


def _receivers(receivers: Record, waiting: Sequence[Record]) -> RenderableType:
    figures_of = ("sent", "attempts", "failures", "in_doubt", "given_up")
    headings = (*(key.replace("_", " ") for key in figures_of), "waiting")
    table = _table("receiver", headings)
    for column in table.columns[1:7]:
        column.justify = "right"
    for name, state in receivers.items():
        mine = [delivery for delivery in waiting if delivery["receiver"] == name]
        figures = [state[key] for key in figures_of]
        table.add_row(
            on_one_line(name),
            *(count(figure) or "0" for figure in (*figures, len(mine))),
        )
    # Below it, where there is room for what a network has to say.
    errors = [
        Text(f"last error of {on_one_line(name)}: {on_one_line(state['last_error'])}", style=BAD)
        for name, state in receivers.items()
        if state["last_error"]
    ]
    return Group(table, *errors)


def _title(notice: Record) -> str:
    word = "STILL FIRING" if notice["kind"] == "repeated" else notice["kind"].upper()
    return on_one_line(f"[{word}] {notice['rule']}: {notice['says']}")


def _status(status: str) -> Text:
    return Text(status, style=_STATES.get(status, ""))


def _second(moment: str | None) -> str:
    return "" if moment is None else f"{moment[:19].replace('T', ' ')}Z"


def _table(first: str, headings: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET)
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
