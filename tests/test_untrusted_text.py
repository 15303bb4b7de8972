"""Tests that text which users of an application choose cannot control terminals, chats and spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, strategies as st
from test_cli_journal import on_a_terminal
from typer.testing import CliRunner

import stageflow
from stageflow import JournalSink, Pipeline, PipelineContext, StageContext
from stageflow.alerts import AlertRules, Apprise, Call, FailureRate, Notice, run_alerts
from stageflow.alerts._notice import sample_notice
from stageflow.alerts._run import present
from stageflow.cli._app import app
from stageflow.settings import reset
from stageflow.store import EventStore

CONTROLS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]"
)
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\u202eevil\u2066\u200b@everyone [free](https://evil.example)"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a journal in which every text that an application may choose holds control characters."""
    folder = tmp_path_factory.mktemp("shop")
    journal = folder / "jour\x1b[2Jnal"
    stageflow.configure(sink=(sink := JournalSink(journal)), health_seconds=None)

    async def pay(ctx: StageContext) -> None:
        number = ctx.run.data
        ctx.annotate({f"note{EVIL}": EVIL, "agent": EVIL if number % 3 == 0 else "ok"})
        ctx.annotate_run({f"run{EVIL}": EVIL, "agent": EVIL if number % 3 == 0 else "ok"})
        ctx.emit_event(f"custom{EVIL}", {f"key{EVIL}": EVIL})
        ctx.inputs.get_from("greet", f"missing{EVIL}")
        if number % 3 == 0:
            raise type(f"Error{EVIL}", (ValueError,), {})(EVIL)

    async def greet(ctx: StageContext) -> Any:
        return stageflow.StageOutput.skip(EVIL)

    graph = (
        Pipeline("shop-NAME")
        .with_stage("greet", greet)
        .with_stage("pay-NAME", pay, dependencies=("greet",))
        .build()
    )
    for number in range(60):
        graph.run_sync(
            PipelineContext(
                data=number,
                request_id=f"r{EVIL}{number}",
                user_id=f"u{EVIL}",
                pipeline_run_id=f"id{EVIL}{number}",
                execution_mode=EVIL,
            )
        )
    sink.close()
    reset()
    # `build()` accepts only names that can be printed; another producer may write others.
    for segment in journal.glob("*.ndjson"):
        segment.write_text(segment.read_text().replace("NAME", json.dumps(EVIL.replace("/", ""))[1:-1]))
    return journal


def say(*arguments: Any) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout + done.stderr


ANSWERS = (
    ("stats",), ("stats", "--over", "runs"), ("errors",), ("slowest",), ("slowest", "--over", "stages"),
    ("compare", "status = 'OK'", "status = 'FAIL'"), ("totals",), ("volume",),
    ("query", "select * from stages"), ("query", f"select 1 as \"a{EVIL}\""),
)  # fmt: skip
OTHERS = (("runs",), ("show", "last"), ("tail", "-n", "50"), ("explain", "failed"), ("doctor",))
COMMANDS = [
    *((*command, *way) for command in ANSWERS for way in ((), ("--json",), ("--csv",), ("--no-formulas",))),
    *((*command, *way) for command in OTHERS for way in ((), ("--json",))),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: shlex.join(command).replace(EVIL, "EVIL"))
def test_no_control_character_is_in_any_output(shop: Path, command: tuple[str, ...]) -> None:
    out = say(*command, "--journal", shop)
    assert out
    assert CONTROLS.findall(out) == []


@pytest.mark.parametrize(
    "command", [("runs", "--limit", "9"), ("show", "last"), ("errors",), ("slowest",), ("stats",)]
)
def test_terminal_receives_only_escape_sequences_for_colors(shop: Path, command: tuple[str, ...]) -> None:
    out = on_a_terminal(*command, "--journal", shop, columns=200)
    rest = re.sub(r"\x1b\[[0-9;]*m", "", out).replace("\r\n", "\n")
    assert CONTROLS.findall(rest) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (EVIL,),
        ("show", EVIL),
        ("runs", f"--{EVIL}"),
        ("runs", "--since", EVIL),
        ("runs", "--status", EVIL),
        ("runs", "--limit", EVIL),
        ("runs", "--journal", f"/nowhere/{EVIL}"),
        ("query", f"select {EVIL}"),
        ("query", f"select error('{EVIL}')"),
        ("stats", "--where", EVIL),
        ("compact", "--every", EVIL),
        ("compact", "--archive", f"/dev/null/{EVIL}"),
        ("alerts", "check", "--rules", f"/nowhere/{EVIL}"),
        ("alerts", EVIL),
        ("schema", EVIL),
        ("schema", "--to", f"/dev/null/{EVIL}"),
    ],
    ids=lambda arguments: shlex.join(arguments).replace(EVIL, "EVIL"),
)
def test_error_messages_quote_arguments_without_control_characters(
    shop: Path, arguments: tuple[str, ...]
) -> None:
    where = (
        () if "--journal" in arguments or arguments[0] in (EVIL, "schema", "alerts") else ("--journal", shop)
    )
    out = say(*arguments, *where)
    assert out
    assert CONTROLS.findall(out) == []


def test_problems_of_a_rules_file_are_printed_without_control_characters(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    quoted = json.dumps(EVIL.replace("\x9b", ""))
    rules.write_text(f"{quoted} = 1\n[[rules]]\nkind = {quoted}\nname = {quoted}\n")
    assert CONTROLS.findall(say("alerts", "check", "--rules", rules)) == []


def test_commands_print_only_through_functions_that_escape_control_characters() -> None:
    folder = Path(stageflow.__file__).parent / "cli"
    printing = re.compile(r"(?<![\w.])print\(|\becho\(|stdout\.write|\bConsole\(")
    found = {path.name for path in folder.glob("*.py") if printing.search(path.read_text(encoding="utf-8"))}
    # _app.py prints the version, and _schema.py a published schema.
    assert found == {"_app.py", "_schema.py", "_output.py"}


# ------------------------------------------------------------ spreadsheets

FORMULAS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    " =1",
    "\uff1d1+1",
    "\n=1",
    "'=1",
]
HARMLESS = ["-5", "+1.5", "-1e3", "text", "a=b", "", "1-2", "x@y.example"]


def cells(*options: str, journal: Path, values: list[str]) -> list[list[str]]:
    rows = " union all ".join(
        f"select {index} as n, {as_sql(value)} as text" for index, value in enumerate(values)
    )
    out = say("query", f'select text, n as "=n" from ({rows}) order by n', *options, "--journal", journal)
    return list(csv.reader(io.StringIO(out)))


def as_sql(value: str) -> str:
    return " || ".join(f"chr({ord(letter)})" for letter in value) or "''"


def test_csv_for_a_spreadsheet_contains_no_formula(shop: Path) -> None:
    head, *rows = cells("--no-formulas", journal=shop, values=FORMULAS + HARMLESS)
    assert head == ["text", "'=n"]
    for value, (text, _) in zip(FORMULAS, rows, strict=False):
        assert text.startswith("'"), value
    assert [text for text, _ in rows[len(FORMULAS) :]] == HARMLESS


def test_csv_is_not_changed_without_the_option(shop: Path) -> None:
    head, *rows = cells("--csv", journal=shop, values=["=1+1", "'=1", *HARMLESS])
    assert head == ["text", "=n"]
    assert [text for text, _ in rows] == ["=1+1", "'=1", *HARMLESS]


# ------------------------------------------------------------ notices

ORDERS = re.compile(r"@(everyone|here|channel|all)\b|<[!@#/a-z]|\]\(|\]\[|\]:", re.IGNORECASE)
MENTIONS = [
    "@everyone", "x@here", "@Channel", "<!channel>", "<!here|here>", "<@U024BE7LH>", "<@&123>",
    "<#C024BE7LR>",
    "<!subteam^S1>", "<at>Ann</at>", "[free](https://evil.example)", "![x](https://evil.example)", "[a][1]",
    "[1]: https://evil.example", "<https://evil.example|your bank>", "<a href='x'>", "<img src=x>", "</pre>",
    "@<b>everyone", "@@everyone", "@\u200beveryone", "\n@everyone", "@all @room @team",
]  # fmt: skip


def notice_about(text: str) -> Notice:
    return msgspec.structs.replace(
        sample_notice(present()),
        summary=text,
        threshold=text,
        events=text,
        pipeline=text,
        stage=text,
        notes=(text, text),
        explained=(text,),
        runs=(text,),
        commands=(f"stageflow show {text}",),
    )


@pytest.mark.parametrize("mention", MENTIONS)
def test_notice_contains_no_working_mention_or_link(mention: str) -> None:
    notice = notice_about(f"agent = {mention} (100 %)")
    body = notice.payload()["data"]
    for text in (notice.title, notice.text, body["summary"], *body["notes"], *body["explained"]):
        assert not ORDERS.search(text), text
        assert not CONTROLS.search(text.replace("\n", ""))


@given(st.text(st.sampled_from("@<>[]()!#|: \u200b\nabeveryonehc"), max_size=40))
@example("@everyone")
@example("@@here")
def test_no_combination_of_signs_is_a_mention(text: str) -> None:
    notice = notice_about(text)
    assert not ORDERS.search(notice.text + notice.title)


def test_notice_does_not_change_other_text() -> None:
    for text in ("ann@shop.example", "a < 3", "x[1] > 2 (100.0 % of these)", "50 % @ 3 ms", "a -> b"):
        assert text in notice_about(text).text


def test_name_of_a_rule_can_contain_a_mention() -> None:
    notice = msgspec.structs.replace(sample_notice(present()), rule="checkout fails @here")
    assert "checkout fails @here" in notice.title


def test_alert_about_values_of_users_is_neutral_for_every_receiver(shop: Path) -> None:
    told: list[Notice] = []
    rules = AlertRules(
        rules=(FailureRate(name="fails", above=0.05),), receivers=(Call(name="me", function=told.append),)
    )
    with EventStore(shop) as store:
        run_alerts(store, rules)
    (notice,) = told
    assert "@ everyone" in notice.text
    assert not ORDERS.search(notice.text)
    assert not ORDERS.search(json.dumps(notice.payload()["data"]["explained"]))


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # by a module that Apprise imports
def test_services_receive_neutral_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins import discord, mattermost

    class Answer:
        status_code, content, text, headers = 200, b"ok", "ok", {}

    sent: list[str] = []

    def post(url: str, data: Any = None, **_: Any) -> Answer:
        sent.append(data if isinstance(data, str) else data.decode())
        return Answer()

    for plugin, url in (
        (discord, "discord://1234567890/abcdefghijklmnopqrstuvwxyz"),
        (mattermost, "mmost://localhost/3ccdd113474722377935511fc85d3dd4"),
    ):
        monkeypatch.setattr(plugin.requests, "post", post)
        Apprise(name="x", url=url).send(notice_about("@everyone <!channel> [a](https://evil.example)"))
    assert len(sent) == 2
    for body in sent:
        text = json.dumps(json.loads(body), ensure_ascii=False)
        assert "@everyone" not in text
        assert "<!channel>" not in text
        assert "](" not in text
