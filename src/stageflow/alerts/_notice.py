"""The content of a notification."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ..render import on_one_line
from ._rule import Severity, second_of, span

__all__ = ["Notice", "sample_notice", "without_mentions"]


_GROUPS = "everyone|here|channel|all|group|room|team"
_MENTION = re.compile(
    # "@everyone" also notifies inside a word; other names only if the "@" is not part of an e-mail address.
    rf"@(?=(?:{_GROUPS})\b)|(?<![\w.+-])@(?=[\w&!<-])"
    # Slack has "<!channel>" and "<@U1>", Teams "<at>", HTML "<a>", Markdown "[text](address)".
    r"|<(?=[!@#:/?A-Za-z])|\](?=[(\[:])",
    re.IGNORECASE,
)


def without_mentions(text: str) -> str:
    """Return text on one line with a space inside each mention, tag and link, so that services ignore them.

    It is a space because some services remove characters without width.

    Example:
        >>> without_mentions("@everyone [free](https://evil.example) <!channel> ann@shop.example")
        '@ everyone [free] (https://evil.example) < !channel> ann@shop.example'
    """
    return _MENTION.sub(lambda found: f"{found[0]} ", on_one_line(text))


Kind = Literal["firing", "repeated", "resolved", "test"]

_INDENT = " " * 13


class Notice(Struct, frozen=True, kw_only=True):
    """A notification about an alert; the same for every receiver and every attempt.

    Users of the application may have chosen values that come from records. In `text`, `title` and `payload`,
    mentions (`@everyone`), links and control characters in them are neutralized. The name of the rule is
    not changed, because the operator has chosen it, and neither are the fields.

    Attributes:
        id: Unique id of this notification; receivers can use it to discard duplicates.
        kind: "firing", "repeated" (it still fires), "resolved" or "test".
        rule: Name of the rule.
        rule_kind: Its kind: "failure_rate".
        severity: Severity of the rule.
        incident: The id that a firing notification, its repetitions and its resolve notification share.
        at: Time of the evaluation.
        began: Time at which the rule was first found bad.
        summary: The measured value as text.
        value: The measured value; null if it is unknown.
        threshold: The threshold as text.
        window_since: Start of the evaluated window.
        window_until: End of that window.
        events: Number of events that the value is based on, as text; states whether it is an estimate.
        pipeline: The pipeline of the rule; null for all.
        stage: The stage of the rule; null for whole runs.
        notes: Additional lines, such as the first rows of a query.
        explained: Differences between the affected runs and the others, at most three lines.
        runs: Ids of affected runs, at most three, newest first.
        commands: Commands for further investigation.
        receivers: Names of the receivers; empty for all.
    """

    id: str
    kind: Kind
    rule: str
    rule_kind: str
    severity: Severity
    incident: str
    at: datetime
    began: datetime
    summary: str
    value: float | None = None
    threshold: str = ""
    window_since: datetime | None = None
    window_until: datetime | None = None
    events: str = ""
    pipeline: str | None = None
    stage: str | None = None
    notes: tuple[str, ...] = ()
    explained: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The notification in one line."""
        word = "STILL FIRING" if self.kind == "repeated" else self.kind.upper()
        return f"[{word}] {on_one_line(self.rule)}: {without_mentions(self.summary)}"

    @property
    def text(self) -> str:
        """The notification as text, without its title."""
        rows = [("threshold", self.threshold), ("severity", self.severity)]
        if self.window_since and self.window_until:
            length = span(round((self.window_until - self.window_since).total_seconds(), 3))
            rows.append(
                ("window", f"{second_of(self.window_since)} to {second_of(self.window_until)} ({length})")
            )
        rows += [("events", self.events), ("pipeline", self.pipeline or ""), ("stage", self.stage or "")]
        rows.append(("began", second_of(self.began)))
        if self.kind in ("resolved", "repeated"):
            lasted = span(round((self.at - self.began).total_seconds()))
            rows.append(("lasted" if self.kind == "resolved" else "lasts", lasted))
        for label, lines in (
            ("notes", self.notes),
            ("differences", self.explained),
            ("runs", self.runs),
            ("commands", self.commands),
        ):
            rows += [(label if number == 0 else "", line) for number, line in enumerate(lines)]
        rows.append(("id", self.id))
        return "\n".join(f"{label:<{len(_INDENT)}}{without_mentions(line)}" for label, line in rows if line)

    def payload(self) -> dict[str, Any]:
        """Return the body of a webhook: `type`, `timestamp` and `data`, whose texts contain no mentions."""
        data = msgspec.to_builtins(self)
        del data["receivers"]
        data["summary"] = without_mentions(self.summary)
        for lines in ("notes", "explained"):
            data[lines] = list(map(without_mentions, data[lines]))
        return {"type": f"stageflow.alert.{self.kind}", "timestamp": data["at"], "data": data}


def sample_notice(now: datetime) -> Notice:
    """Return a sample notification.

    Example:
        >>> from datetime import UTC
        >>> sample_notice(datetime(2026, 11, 24, 10, 30, tzinfo=UTC)).title
        '[TEST] a test of this receiver: failure rate 41.2 %'
    """
    stamp = f"{now.timestamp():.6f}".replace(".", "")
    return Notice(
        id=f"msg_test{stamp}",
        kind="test",
        rule="a test of this receiver",
        rule_kind="failure_rate",
        severity="info",
        incident=f"test{stamp}",
        at=now,
        began=now,
        summary="failure rate 41.2 %",
        value=0.412,
        threshold="above 5.0 %, resolves below 4.0 %",
        events="85 runs",
        notes=("nothing is wrong: `stageflow alerts test` sent this",),
    )
