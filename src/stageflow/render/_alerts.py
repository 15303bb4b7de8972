"""Renders the results of an evaluation of alerts, and the status of rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ._escape import on_one_line, visible
from ._style import BAD, QUIET, Paragraph
from ._tables import count

__all__ = ["draw_alert_history", "draw_alert_list", "draw_alert_run", "draw_alert_tests"]


Record = dict[str, Any]

_STATES = {
    "firing": f"bold {BAD}",
    "pending": "yellow",
    "inactive": "green",
    "resolved": "green",
    "removed": QUIET,
}


def draw_alert_run(run: Record) -> RenderableType:
    """Return the status of each rule, the sent notifications, and the counters of receivers.

    Args:
        run: An `AlertRun` as plain values.

    Example:
        Console().print(draw_alert_run(msgspec.to_builtins(run_alerts(store, rules))))
    """
    if run["busy"]:
        return Text("Another process is evaluating the rules; this evaluation was skipped.")
    sections: list[Sequence[RenderableType]] = [
        [Text(f"evaluated {_seconds(run['at'])}", style=QUIET)],
        [_rules(run["findings"])],
        _errors(run["findings"]),
        [_sent(sent) for sent in run["sent"]],
        [_receivers(run["receivers"], run["waiting"])] if run["receivers"] else [],
    ]
    return _spaced(sections)


def draw_alert_list(status: Record) -> RenderableType:
    """Return the rules with their status, silences and receivers.

    Args:
        status: An `AlertStatus` as plain values.
    """
    rules, silences = status["rules"], status["silences"]
    table = _table("rule", ("kind", "severity", "state", "since", "value"))
    for rule in rules:
        table.add_row(
            on_one_line(rule["rule"]),
            rule["kind"],
            rule["severity"],
            _status(rule["status"]),
            _seconds(rule["began"]),
            _value(rule),
        )
    silenced = _table("silenced", ("until", "reason"))
    for silence in silences:
        silenced.add_row(
            on_one_line(silence["rule"]), _seconds(silence["until"]), on_one_line(silence["reason"])
        )
    return _spaced(
        [
            [table],
            _errors(rules),
            [silenced] if silences else [],
            [_receivers(status["receivers"], status["waiting"])] if status["receivers"] else [],
        ]
    )


def draw_alert_history(incidents: Sequence[Record]) -> RenderableType:
    """Return when each alert fired, its worst value, and whether receivers were notified.

    Args:
        incidents: Incidents as `alert_history` returns them, as plain values.
    """
    table = _table("rule", ("severity", "state", "fired", "ended", "worst value", "delivered"))
    for incident in incidents:
        table.add_row(
            on_one_line(incident["rule"]),
            incident["severity"],
            _status(incident["status"]),
            _seconds(incident["fired_at"]),
            _seconds(incident["ended_at"]),
            on_one_line(incident["summary"]),
            _delivered(incident),
        )
    return table


def _delivered(incident: Record) -> Text:
    """Return how many notifications each receiver accepted, and whether a silence suppressed others."""
    text = Text()
    for name, counters in incident["receivers"].items():
        separator = ", " if text else ""
        style = BAD if counters["given_up"] or not counters["sent"] else ""
        text.append(f"{separator}{on_one_line(name)}: {counters['sent']}", style=style)
    if not text:
        text.append("no receivers" if incident["notices"] else "no notification", style=QUIET)
    if incident["silences"]:
        text.append(f" (silenced: {on_one_line(incident['silences'][-1]['reason'])})", style=QUIET)
    return text


def draw_alert_tests(tests: Sequence[Record]) -> RenderableType:
    """Return whether each receiver accepted the sample.

    Args:
        tests: `receiver`, `kind` and `error` of each test.
    """
    table = _table("receiver", ("kind", "sample"))
    for test in tests:
        error = test["error"]
        result = Text("sent", style="green") if error is None else Text("failed", style=BAD)
        table.add_row(on_one_line(test["receiver"]), test["kind"], result)
    failed = [(test["receiver"], test["error"]) for test in tests if test["error"] is not None]
    return _spaced([[table], _grouped_errors(failed)])


def _rules(findings: Iterable[Record]) -> Table:
    table = _table("rule", ("state", "since", "value", "of"))
    for finding in findings:
        table.add_row(
            on_one_line(finding["rule"]),
            _status(finding["status"]),
            _seconds(finding["began"]),
            _value(finding),
            on_one_line(finding["events"]),
        )
    return table


def _value(rule: Record) -> Text:
    if rule["error"] is not None:
        return Text("error, see below", style=BAD)
    value = Text(on_one_line(rule["summary"]))
    if silence := rule.get("silenced"):
        value.append(f" (silenced until {_seconds(silence['until'])})", style=QUIET)
    return value


def _receivers(receivers: Record, waiting: Sequence[Record]) -> RenderableType:
    counters = {
        "sent": "sent",
        "attempts": "attempts",
        "failures": "failures",
        "in_doubt": "unconfirmed",
        "given_up": "abandoned",
    }
    table = _table("receiver", (*counters.values(), "pending"))
    for column in table.columns[1:7]:
        column.justify = "right"
    for name, state in receivers.items():
        pending = [delivery for delivery in waiting if delivery["receiver"] == name]
        numbers = [state[key] for key in counters]
        table.add_row(
            on_one_line(name),
            *(count(number) or "0" for number in (*numbers, len(pending))),
        )
    errors = [
        Paragraph(Text(f"last error of {on_one_line(name)}: {visible(state['last_error'])}", style=BAD))
        for name, state in receivers.items()
        if state["last_error"]
    ]
    return Group(table, *errors)


def _sent(sent: Record) -> RenderableType:
    text = f"{_title(sent['notice'])} -> {on_one_line(sent['receiver'])}"
    if sent["error"] is None:
        return Paragraph(Text(f"sent    {text}"))
    details = f" (attempt {sent['attempt']}: {on_one_line(sent['error'])})"
    return Paragraph(Text(f"failed  {text}{details}", style=BAD))


def _errors(rules: Iterable[Record]) -> list[RenderableType]:
    """Return the errors of rules, which are too long for the tables."""
    return _grouped_errors((rule["rule"], rule["error"]) for rule in rules if rule["error"] is not None)


def _grouped_errors(errors: Iterable[tuple[str, str]]) -> list[RenderableType]:
    """Return each distinct error once, with the names of all rules or receivers with that error."""
    names: dict[str, list[str]] = {}
    for name, error in errors:
        names.setdefault(error, []).append(on_one_line(name))
    return [
        Paragraph(Text(f"error of {', '.join(affected)}: {visible(error)}", style=BAD))
        for error, affected in names.items()
    ]


def _spaced(sections: Iterable[Sequence[RenderableType]]) -> RenderableType:
    """Return the sections that are not empty, with a blank line between them."""
    parts: list[RenderableType] = []
    for section in sections:
        if section:
            parts += ["", *section] if parts else section
    return Group(*parts)


def _title(notice: Record) -> str:
    word = "STILL FIRING" if notice["kind"] == "repeated" else notice["kind"].upper()
    return on_one_line(f"[{word}] {notice['rule']}: {notice['summary']}")


def _status(status: str) -> Text:
    return Text(status, style=_STATES.get(status, ""))


def _seconds(time: str | None) -> str:
    return "" if time is None else f"{time[:19].replace('T', ' ')}Z"


def _table(first: str, headings: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET)
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
