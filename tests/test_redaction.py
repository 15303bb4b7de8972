"""Tests that secrets reach no sink, and that harmless values are not redacted."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from oracle import pipeline_wide, recorded, stage_wide

from stageflow import (
    JournalSink,
    Pipeline,
    PipelineContext,
    Redact,
    StageContext,
    StageOutput,
    StageResult,
    StageStatus,
)
from stageflow.events import FanoutEventSink, MemoryEventSink
from stageflow.observability import EventLimits, WideEventEmitter, emit_stage_wide
from stageflow.observability.sanitize import _secrets as secret_names
from stageflow.observability.sanitize._detectors import DETECTORS
from stageflow.observability.sanitize._sanitizer import SanitizeRules, use_sanitize_rules
from stageflow.observability.sanitize._secrets import is_secret_name

EVERYTHING = Redact(
    detect=("credentials", "email", "card", "iban", "ip", "jwt", "bearer"), patterns={"order": r"ORD-\d{6}"}
)


@pytest.fixture(autouse=True)
def _rules_are_put_back() -> Any:
    before = use_sanitize_rules(SanitizeRules())
    yield
    use_sanitize_rules(before)


def build(sink: Any, *stages: Any) -> Any:
    pipeline = Pipeline("p")
    for stage in stages:
        pipeline = pipeline.with_stage(stage.__name__, stage, optional=True)
    return recorded(pipeline, sink)


async def annotated(sink: MemoryEventSink, **fields: Any) -> dict[str, Any]:
    async def work(ctx: StageContext) -> None:
        ctx.annotate(fields)

    await build(sink, work).run()
    event = stage_wide(sink.events, "work")
    sink.clear()
    return event


# ------------------------------------------------------------ the two lists


async def test_secrets_in_twenty_places_reach_no_sink_and_no_journal(
    sink: MemoryEventSink, tmp_path: Path
) -> None:
    use_sanitize_rules(SanitizeRules(EVERYTHING))
    secrets = [f"s3cr3t{number:02}x" for number in range(24)]
    left: list[StageContext] = []

    async def says(ctx: StageContext) -> StageOutput:
        ctx.annotate(
            {
                "password": secrets[0],
                "db.password": secrets[1],
                "apiKey": secrets[2],
                "headers": {"Authorization": f"Bearer {secrets[3]}", "x": [{"session_token": secrets[4]}]},
                "url": f"postgres://u:{secrets[5]}@db/x",
                "note": f"called with api_key={secrets[6]} and more",
                f"key password={secrets[7]}": 1,
                "long": "x" * 20_000 + f" token={secrets[8]}",
                "repr": Unprintable(f"password='{secrets[9]}'"),
                "json": json.dumps({"client_secret": secrets[10]}),
                "token": 12345678901,
            }
        )
        ctx.annotate_run(cookie=secrets[11])
        ctx.emit_event("note", {"secret": secrets[12], "text": [f"pwd={secrets[13]}"]})
        left.append(ctx)
        return StageOutput.skip(f"no access with token={secrets[14]}")

    async def raises(ctx: StageContext) -> None:
        try:
            raise KeyError(f"password={secrets[15]}")
        except KeyError as error:
            raise ConnectionError(f"https://u:{secrets[16]}@host/") from error

    async def groups(ctx: StageContext) -> None:
        raise ExceptionGroup(f"secret={secrets[17]}", [ValueError(f"token={secrets[18]}")])

    async def fails(ctx: StageContext) -> StageOutput:
        ctx.inputs.get_from("says", f"password={secrets[19]}")
        return StageOutput.fail(f"Authorization: Bearer {secrets[20]}")

    async def keys(ctx: StageContext) -> dict[str, Any]:
        return {f"password={secrets[21]}": 1}

    pipeline = Pipeline("p").with_stage("says", says).with_stage("keys", keys)
    for stage in (raises, groups, fails):
        pipeline = pipeline.with_stage(stage.__name__, stage, optional=True, dependencies=("says",))
    journal = JournalSink(tmp_path)
    graph = pipeline.build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(FanoutEventSink(sink, journal)),
    )
    await graph.run(PipelineContext(execution_mode=f"token={secrets[22]}", user_id="mail@example.com"))
    left[0].annotate(passphrase=secrets[23])
    journal.close()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode()
    for text in (repr(sink.events), written):
        assert [secret for secret in secrets if secret in text] == []
        assert "12345678901" not in text
        assert "mail@example.com" not in text
    assert stage_wide(sink.events, "says")["redacted"] >= 12
    assert pipeline_wide(sink.events)["redacted"] >= 1


class Unprintable:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"<Settings {self.text}>"


async def test_twenty_harmless_texts_are_not_redacted(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(EVERYTHING))
    harmless: dict[str, Any] = {
        "gen_ai.usage.input_tokens": 812,
        "max_tokens": 100,
        "token_count": 7,
        "token_type": "bearer",
        "password_length": 12,
        "has_password": True,
        "password": None,
        "secret_name": "db-prod",
        "cookie_consent": "yes",
        "keyboard": "qwerty",
        "primary_key": "id",
        "key": "customer",
        "author": "Ada",
        "authority": "eu-west",
        "pinned": "yes",
        "text": "the password must have eight letters; see https://example.com:8080/tokens?page=2",
        "said": "Basic authentication failed, bearer of bad news",
        "version": "v1.2.3.4.5",
        "number": "4111 1111 1111 1112",
        "phone": "no card: 0123456789012345",
        "code": "GB00 NOT AN IBAN 1234",
        "at": "user@localhost",
        "big": 4111111111111112,
        "clock": "12:30:45",
        "time_to_first_token": 0.43,
        "ms_per_token": 12,
        "eos_token": 151645,
        "basic_auth": 3,
        "nested": {"start_token": 1, "times": {"token": 2.5}},
        "index": "pk_users_primary_key, sk-learn-something-long, pk_orders_2024_by_customer",
        "header": "Basic version-2.0.1, Basic authentication, bearer authentication-required",
        "connect": "auth:8080 refused; std::token::Parser12; token: invalid; auth=None",
        "stop_token": "</s>",
        "p_in": 101.3,
        "cells": [["text", "value"], ["how to reset a password", "see the docs"]],
        "required": ["password", "email"],
        "call": "token=get_token(); password=*** ('id', 'x1')",
        "sentence": "cookie: required; authorization: failed for Ada",
        "pip": "git+ssh://git@host:org/repo@main http://h:8080/@x file:///c:/a/b@2x",
        "json": '{"required": ["password", "email"], "token": "", "auth": {}}',
        "options": ["--count", "17", "--password-file", "x1"],
        "setting": {"name": "cache", "value": "x1"},
    }
    event = await annotated(sink, **harmless)
    assert event["attributes"] == harmless
    assert event["redacted"] == 0


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to a.b+c@mail.example.org now", "write to [redacted:email] now"),
        ("card 4111 1111 1111 1111.", "card [redacted:card]."),
        ("pay DE89 3704 0044 0532 0130 00", "pay [redacted:iban]"),
        ("from 192.168.1.17 and fe80::1", "from [redacted:ip] and [redacted:ip]"),
        ("order ORD-123456", "order [redacted:order]"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4fw", "jwt [redacted]"),
        ("sk-abcdefghijklmnop1234 AKIAIOSFODNN7EXAMPLE", "[redacted] [redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "[redacted]"),
        ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQ\n-----END PGP PRIVATE KEY BLOCK-----", "[redacted]"),
        ("passcode=abc123 otp=123456 ssn=123-45-6789", "passcode=[redacted] otp=[redacted] ssn=[redacted]"),
        ("secrets=abc master_key=abc", "secrets=[redacted] master_key=[redacted]"),
        ("password_hash=abc; clientSecret: abc123", "password_hash=[redacted]; clientSecret: [redacted]"),
        ("password=\"two words\" {'pin': '12 34'}", "password=\"[redacted]\" {'pin': '[redacted]'}"),
        (r'{"a": "{\"token\": \"x \\\"y\"}"}', r'{"a": "{\"token\": \"[redacted]\"}"}'),
        ("user[password]=hunter2&x=1", "user[password]=[redacted]&x=1"),
        ("KeyError: secret=abc123", "KeyError: secret=[redacted]"),
        ("bEARER abc123def", "bEARER [redacted]"),
        ("Bearer abcdefghijklmnopqrstuvwxyz", "Bearer [redacted]"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer [redacted]"),
        ("Authorization: Token 9944b091", "Authorization: Token [redacted]"),
        ("Basic dXNlcjpwYXNzdzByZA==", "Basic [redacted]"),
        ("pg://user:p@ss@host/db", "pg://user:[redacted]@host/db"),
        ("pk_live_a1b2c3d4e5f6g7h8", "[redacted]"),
        ("Cookie: theme=dark; sid=abc123\r\nHost: h", "Cookie: [redacted]\r\nHost: h"),
        ('set-cookie: sid="abc"; Path=/', "set-cookie: [redacted]"),
        ("curl -H 'Cookie: a=b; sid=abc' -H 'X: y'", "curl -H 'Cookie: [redacted]' -H 'X: y'"),
        (
            "<RequestsCookieJar[<Cookie sid=abc for h/>]>",
            "<RequestsCookieJar[<Cookie sid=[redacted] for h/>]>",
        ),
        ('Authorization: Hawk id="x", mac="abc"', "Authorization: Hawk [redacted]"),
        ("Authorization: Negotiate YIIabc123", "Authorization: Negotiate [redacted]"),
        ('Authorization: Token token="abc"', "Authorization: Token [redacted]"),
        ("{'password': b'abc', b'token': b'abc'}", "{'password': b'[redacted]', b'token': b'[redacted]'}"),
        ("C(password=SecretStr('abc'), x=1)", "C(password=SecretStr[redacted], x=1)"),
        ("auth=('user', 'abc') auth=()", "auth=[redacted] auth=()"),
        ('{"passwords": ["a]b", {"c": 1}], "x": 1}', '{"passwords": [redacted], "x": 1}'),
        ('{"password": {"value": "abc"}, "token": []}', '{"password": [redacted], "token": []}'),
        (
            "[('token', 'abc'), (b'x-api-key', b'abc')]",
            "[('token', '[redacted]'), (b'x-api-key', b'[redacted]')]",
        ),
        ('[["token","abc"],["a","b"]]', '[["token","[redacted]"],["a","b"]]'),
        ('{"name": "DB_PASSWORD", "value": "abc"}', '{"name": "DB_PASSWORD", "value": "[redacted]"}'),
        (
            "environ['DB_PASSWORD'] = 'abc' a[token][0]=abc",
            "environ['DB_PASSWORD'] = '[redacted]' a[token][0]=[redacted]",
        ),
        ('password = """a "b" c""" x', 'password = """[redacted]""" x'),
        ("password='it''s me'", "password='[redacted]'"),
        ("password=a1,b;c)d'e\"f; x=1, pwd=abc)", "password=[redacted]; x=1, pwd=[redacted])"),
        ("password := abc, token => abc", "password := [redacted], token => [redacted]"),
        ("?to=https%3A%2F%2Fh%3Ftoken%3Dabc", "?to=https%3A%2F%2Fh%3Ftoken%3D[redacted]"),
        ('<s:Password Type="x">abc</s:Password>', '<s:Password Type="x">[redacted]</s:Password>'),
        ("run --token abc123 --api-key=abc", "run --token [redacted] --api-key=[redacted]"),
        ("postgres://u:a/b+c@h/p", "postgres://u:[redacted]@h/p"),
        ("smtp://me@local:abc@h", "smtp://me@local:[redacted]@h"),
        ("https://0123456789abcdef01234@h/p", "https://[redacted]@h/p"),
        ("https://h/b?X-Amz-Signature=abc&sig=abc", "https://h/b?X-Amz-Signature=[redacted]&sig=[redacted]"),
        ("hooks.slack.com/services/T0/B0/abc", "hooks.slack.com/services/T0/B0/[redacted]"),
        (f"gsk_{'a1' * 16} hvs.{'a1' * 16} SG.{'a1' * 10}.{'a1' * 10}", "[redacted] [redacted] [redacted]"),
        ("x%20eyJhbGciOiJIUzI1NiJ9..abc.def.ghi", "x%20[redacted]"),
    ],
)
async def test_each_detector_redacts_its_kind_of_secret(sink: MemoryEventSink, text: str, clean: str) -> None:
    use_sanitize_rules(SanitizeRules(EVERYTHING))
    assert (await annotated(sink, text=text))["attributes"] == {"text": clean}


@pytest.mark.parametrize("word", ["pin", "otp", "password", "cvv", "ssn", "passcode"])
async def test_secret_number_is_redacted(sink: MemoryEventSink, word: str) -> None:
    event = await annotated(sink, **{word: 42, "nested": {word: 42}})
    assert event["attributes"] == {word: "[redacted]", "nested": {word: "[redacted]"}}
    assert (await annotated(sink, token=12345678901))["attributes"] == {"token": "[redacted]"}


def test_docs_list_every_secret_word() -> None:
    page = (Path(__file__).parent.parent / "docs/redaction.md").read_text(encoding="utf-8")
    listed = {word for word in re.findall(r"`(\w+)`", page) if is_secret_name(word)}
    assert listed >= secret_names._SECRET_NUMBER_WORDS | secret_names._SECRET_WORDS
    assert all(f"`{word}`" in page for word in secret_names._KEY_PREFIXES)


async def test_card_number_of_type_int_is_redacted(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(EVERYTHING))
    assert (await annotated(sink, n=4111111111111111))["attributes"] == {"n": "[redacted:card]"}


def test_secret_names_are_recognized_by_their_words() -> None:
    for name in (
        "password",
        "userPassword",
        "DB_PASSWORD",
        "x-api-key",
        "accessToken",
        "password_hash",
        "pin2",
        "PassWord",
        "DBPASSWORD",
        "clientsecret",
        "SMTP_PASS",
        "api_keys",
        "access_tokens",
        "otp_code",
        "passwordConfirmation",
        "\uff50assword",
        "p\u0430ssword",
        "pa\u0301ssword",
        "pass\u200bword",
    ):
        assert is_secret_name(name), name
    for name in (
        "spin",
        "passport",
        "tokens",
        "secretary",
        "compass",
        "apikeyboard",
        "",
        "bypass",
        "zip_code",
        "keys",
        "eos_token",
    ):
        assert not is_secret_name(name), name


class Row(NamedTuple):
    user: str
    password: str


async def test_value_that_follows_its_name_is_redacted(sink: MemoryEventSink) -> None:
    event = await annotated(
        sink,
        headers=[("Authorization", "s3cr3t"), ("accept", "text")],
        raw=[[b"cookie", b"s3cr3t"], [b"host", b"h"]],
        env=[{"name": "DB_PASSWORD", "value": "s3cr3t"}, {"name": "PORT", "value": "80"}],
        config={"Key": "apiKey", "Value": {"is": "s3cr3t"}},
        argv=["mysql", "--password", "s3cr3t", "-h", "db"],
        row=Row("u1", "s3cr3t"),
        counts=[("token", 17), ("secret", None)],
    )
    assert event["attributes"] == {
        "headers": [["Authorization", "[redacted]"], ["accept", "text"]],
        "raw": [["b'cookie'", "[redacted]"], ["b'host'", "b'h'"]],
        "env": [{"name": "DB_PASSWORD", "value": "[redacted]"}, {"name": "PORT", "value": "80"}],
        "config": {"Key": "apiKey", "Value": "[redacted]"},
        "argv": ["mysql", "--password", "[redacted]", "-h", "db"],
        "row": {"user": "u1", "password": "[redacted]"},
        "counts": [["token", 17], ["secret", None]],
    }
    assert event["redacted"] == 6


async def test_type_of_a_custom_event_is_truncated_and_redacted(sink: MemoryEventSink) -> None:
    async def work(ctx: StageContext) -> None:
        ctx.emit_event("said password=s3cr3t", {})
        ctx.emit_event("x" * 5_000, {})

    use_sanitize_rules(SanitizeRules(limits=EventLimits(name_chars=1)))
    await build(sink, work).run()
    assert [type for type, _ in sink.events[:2]] == ["said password=[redacted]", "x" * 255 + "…"]
    assert sink.events[1][1]["truncated"] == ["type"]


async def test_allow_list_redacts_all_other_fields(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(Redact(allow=("hits", "gen_ai.*"))))
    event = await annotated(sink, hits=1, other=2, **{"gen_ai.request.model": "m"})
    assert event["attributes"] == {"hits": 1, "other": "[redacted]", "gen_ai.request.model": "m"}
    assert event["redacted"] == 1


async def test_custom_names_are_redacted_and_redaction_can_be_disabled(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(Redact(names=("customer_*",))))
    assert (await annotated(sink, customer_name="Ada", password="x"))["redacted"] == 2
    use_sanitize_rules(SanitizeRules(None))
    event = await annotated(sink, customer_name="Ada", password="x")
    assert event["attributes"] == {"customer_name": "Ada", "password": "x"}


async def test_failing_detector_redacts_the_complete_text(
    sink: MemoryEventSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(text: str) -> tuple[str, int]:
        raise RecursionError("too deep")

    monkeypatch.setitem(
        __import__("stageflow.observability.sanitize._redact", fromlist=["DETECTORS"]).DETECTORS,
        "email",
        broken,
    )
    use_sanitize_rules(SanitizeRules(Redact(detect=("email",))))
    event = await annotated(sink, text="secret?", n=1)
    failed = "[redaction failed]"
    assert event["attributes"] == {failed: "[redacted]", f"{failed} (2)": "[redacted]"}
    assert event["redacted"] >= 2

    async def fail(ctx: StageContext) -> None:
        raise ValueError("secret?")

    await build(sink, fail).run()
    assert stage_wide(sink.events, "fail")["error"] == "[redaction failed]"
    assert "could not redact a string" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detect": ("mail",)}, "detect must be one of .*, got 'mail'; did you mean 'email'"),
        ({"patterns": {"x": "("}}, "not a valid regular expression"),
        ({"names": "customer_*"}, r"names must be a tuple, got 'customer_\*'"),
        ({"detect": "email"}, "detect must be a tuple, got"),
        ({"allow": "hits"}, "allow must be a tuple, got"),
    ],
)
def test_invalid_rules_are_rejected(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Redact(**options)


# ------------------------------------------------------------ limits


async def test_too_long_text_is_truncated_and_listed(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(limits=EventLimits(text_chars=10)))
    event = await annotated(sink, text="x" * 100, short="y")
    assert event["attributes"] == {"text": "x" * 9 + "…", "short": "y"}
    assert event["truncated"] == ["attributes.text"]


@pytest.mark.parametrize(
    "before", ["", "password=" + "x" * 1_400 + " ", "eyJ" + "a" * 9 + "." + "b" * 1_100 + " "]
)
@pytest.mark.parametrize(
    "secret", ["password=s3cr3tAb", "-----BEGIN PRIVATE KEY-----\ns3cr3tAb", "sk-s3cr3tAb"]
)
async def test_truncation_leaves_no_part_of_a_secret(sink: MemoryEventSink, before: str, secret: str) -> None:
    """What stands before may shrink: then the edge of what was looked at moves into what is shown."""
    use_sanitize_rules(SanitizeRules(limits=EventLimits(text_chars=1_000)))
    filler = "word " * 1_000
    # The edges: of a repr, of what is shown of a text, of what is looked at.
    events = []
    for edge in (190, 1_000, 1_190, 2_000):
        start = max(edge - len(before) - len(secret) - 3, 1)
        text = before + filler[: start - 1] + " " + secret + "y1" * 30 + filler
        events.append(await annotated(sink, text=text, shown=Unprintable(text), **{text: 1}))
    assert "s3cr3tA" not in repr(events)
    for event in events:
        assert len(event["attributes"]["text"]) <= 1_000
        assert "attributes.text" in event["truncated"]


async def test_truncation_is_listed_if_redaction_shortened_the_text(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(limits=EventLimits(text_chars=1_000)))
    event = await annotated(
        sink, text="password=" + "x" * 1_500 + " end" * 1_000, whole="token=" + "x" * 1_500
    )
    assert event["attributes"]["text"].endswith("…")
    assert event["attributes"]["whole"] == "token=[redacted]"
    assert event["truncated"] == ["attributes.text"]


async def test_largest_field_is_truncated_first(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(limits=EventLimits(event_bytes=2_000)))
    event = await annotated(sink, small="x" * 500, large=["y" * 100] * 50, middle="z" * 1_000)
    assert event["attributes"]["small"] == "x" * 500
    assert event["attributes"]["middle"] == "z" * 1_000
    assert event["attributes"]["large"].startswith("[cut: 5,")
    assert event["truncated"] == ["attributes.large"]
    assert len(json.dumps(event["attributes"])) <= 2_000


async def test_text_that_grows_as_json_is_truncated(sink: MemoryEventSink, tmp_path: Path) -> None:
    async def work(ctx: StageContext) -> None:
        quotes = {f"t{number}": '"' * 16_000 for number in range(14)}  # each of them is two as JSON
        ctx.annotate(quotes)
        ctx.annotate_run(quotes)
        ctx.emit_event("own", quotes)

    journal = JournalSink(tmp_path)
    await build(FanoutEventSink(sink, journal), work).run()
    journal.close()
    assert [type for type, _ in sink.events] == ["own", "stage.wide", "pipeline.wide"]
    for _, event in sink.events:
        assert 1 <= len(event["truncated"]) <= 8
        assert "[cut: 32,008 bytes]" in json.dumps(event)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert written.count(b"[cut: 32,008 bytes]") >= 3


async def test_names_that_cannot_be_encoded_lose_no_event(sink: MemoryEventSink, tmp_path: Path) -> None:
    async def work(ctx: StageContext) -> None:
        ctx.annotate({"a\ud800": 1})
        ctx.annotate_run({"a\ud800": {"b\ud800": "c\ud800"}})
        ctx.emit_event("own \ud800", {"a\ud800": 1})

    journal = JournalSink(tmp_path)
    graph = build(FanoutEventSink(sink, journal), work)
    for _ in range(2):  # the second time, names are remembered
        await graph.run()
    journal.close()
    assert [type for type, _ in sink.events] == ["own ?", "stage.wide", "pipeline.wide"] * 2
    assert [event["attributes"] for event in sink.of_type("stage.wide")] == [{"a?": 1}] * 2
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [written.count(name) for name in (b'"own ?"', b'"stage.wide"', b'"pipeline.wide"')] == [2, 2, 2]


async def test_name_beyond_the_limits_still_redacts_its_value(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(limits=EventLimits(name_chars=5, text_chars=7)))
    event = await annotated(sink, argv=["--password", "s3cr3t"], pairs=[("authorization", "s3cr3t")])
    assert "s3cr3t" not in repr(event)


async def test_too_deep_values_are_truncated(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(limits=EventLimits(depth=2)))
    event = await annotated(sink, a={"b": {"c": {"d": 1}}, "e": [[1], 2]}, f=[1])
    deep = "[cut: deeper than 2 levels]"
    assert event["attributes"] == {"a": {"b": {"c": deep}, "e": [deep, 2]}, "f": [1]}
    assert event["truncated"] == ["attributes.a.b.c", "attributes.a.e"]


async def test_fields_beyond_the_limit_are_omitted(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(limits=EventLimits(fields=3)))
    event = await annotated(sink, a=1, b=2, c=3, d=4)
    assert event["attributes"] == {"a": 1, "b": 2, "c": 3}
    assert event["truncated"] == ["attributes"]


async def test_long_names_are_truncated_and_recognized_by_both_ends(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(limits=EventLimits(name_chars=20)))
    long = "n" * 50
    event = await annotated(sink, **{long: 1, f"{long}_password": "s3cr3tAb", "nested": {long: 1}})
    cut = "n" * 19 + "…"
    assert event["attributes"] == {cut: 1, f"{cut} (2)": "[redacted]", "nested": {cut: 1}}
    assert event["truncated"] == [cut]


async def test_fields_whose_truncated_names_collide_are_all_recorded(sink: MemoryEventSink) -> None:
    fields: dict[Any, Any] = {"token=abc": 1, "token=def": 2, 1: "a", "1": "b"}
    event = await annotated(sink, nested=dict(fields))
    both = {"token=[redacted]": 1, "token=[redacted] (2)": 2, "1": "a", "1 (4)": "b"}
    assert event["attributes"] == {"nested": both}

    async def work(ctx: StageContext) -> None:
        ctx.annotate(fields)
        ctx.emit_event("note", fields)

    await build(sink, work).run()
    assert stage_wide(sink.events, "work")["attributes"] == both
    assert sink.of_type("note")[0]["token=[redacted] (2)"] == 2


async def test_names_of_outputs_are_limited(sink: MemoryEventSink) -> None:
    async def work(ctx: StageContext) -> dict[str, Any]:
        return {f"{number}" + "x" * 1_000: 1 for number in range(1_000)}

    await build(sink, work).run()
    event = stage_wide(sink.events, "work")
    assert len(event["data_keys"]) == 256
    assert max(map(len, event["data_keys"])) == 256
    assert event["truncated"] == ["data_keys"]


@pytest.mark.parametrize(
    "value",
    [
        ["password=x y=1 " * 70_000] * 200,
        list(range(2_000_000)),
        set(range(2_000_000)),
        {f"{number}": number for number in range(500_000)},
        [b"x" * 10_000_000] * 200,
        [["x" * 1_000_000] * 1_000] * 1_000,
        {"x" * 1_000_000: 1},
        "a=b " * 5_000_000,
    ],
    ids=["texts", "numbers", "set", "names", "bytes", "nested", "name", "text"],
)
@pytest.mark.timeout(20)
async def test_truncated_parts_are_not_searched(sink: MemoryEventSink, value: Any) -> None:
    use_sanitize_rules(SanitizeRules(EVERYTHING))
    for _ in range(20):
        event = await annotated(sink, value=value, beside=1)
        assert event["attributes"]["beside"] == 1
        assert len(json.dumps(event)) < 270_000


async def test_attribute_names_beyond_the_limit_share_one_attribute(sink: MemoryEventSink) -> None:
    use_sanitize_rules(SanitizeRules(limits=EventLimits(names=3)))
    assert (await annotated(sink, a=1, b=2))["attributes"] == {"a": 1, "b": 2}
    event = await annotated(sink, a=1, user_1=2, user_2=3, user_3=4)
    assert event["attributes"] == {"a": 1, "user_1": 2, "other": {"user_2": 3, "user_3": 4}}


@pytest.mark.parametrize("wrong", [0, -1, 1.5, math.inf, "many"])
def test_limits_must_be_positive_integers(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be a positive integer, got"):
        EventLimits(fields=wrong)


@pytest.mark.parametrize(
    "hostile",
    [
        "1." * 10_000,
        "a." * 8_000 + "@",
        "password" * 2_000,
        "x://" * 4_000,
        ":" * 16_000,
        "eyJ" * 5_000,
        "-" * 16_000,
        "eyJ-" * 4_000,
        "a://b:c" * 2_000,
        "cookie:a " * 2_000,
        "cookie:[redacted] " * 1_000,
        'cookie:="' * 2_000,
        "authorization: [redacted] " * 600,
        "token=[]" * 2_000,
        "token=['" * 2_000,
        "('token','" * 1_600,
        "<token>" * 2_000,
        "token=" + ",a" * 8_000,
        "token=" + "\\" * 16_000,
        "token%3D" * 2_000,
        'name="token" ' * 1_300,
        'value="a" ' * 1_600,
        "'--token'," * 1_600,
        "--token\n- " * 1_600,
        "a\n input_value=" * 1_100,
        "token\n input_value=[" * 900,
        "On instance['token']: a" * 700,
        "On instance" + "['a']" * 3_000,
        "'token' must (got '" * 900,
        "'token' must " + " (" * 8_000,
        "argument a: b: " * 1_000,
        "insert into token values (1)," * 600,
        "insert into token, args=(1" + ", (1)" * 3_000,
        "PASSWORD " * 1_800 + "password '",
        "identified with a by '" * 700,
        "<token><![CDATA[" * 1_000,
        "<token> <![CDATA[]" * 900,
        'form-data; name="token"' * 700,
        "form-data; name=token\r\n\r\n" * 600,
        "%22token%22%3A%22" * 900,
        "%2522" * 3_200,
    ],
)
def test_detectors_take_linear_time(hostile: str) -> None:
    """Steps grow with the length of a text, not with its square: that would be minutes, and the time-out."""
    for detector in DETECTORS.values():
        for text in (hostile, f"Error: {hostile} ", f"{hostile}="):
            detector(text * 5)


async def test_secret_in_a_name_is_recorded_nowhere(sink: MemoryEventSink) -> None:
    name = "k password=s3cr3tAa"
    for value in (True, None, 1, "x" * 20_000, {"deep": "y" * 20_000}):
        assert "s3cr3tAa" not in repr(await annotated(sink, **{name: value}))
    assert "s3cr3tAa" not in repr(await annotated(sink, outer={name: "x" * 20_000}))
    use_sanitize_rules(SanitizeRules())
    await annotated(sink, **{f"n{number}": 1 for number in range(10_500)})
    assert "s3cr3tAa" not in repr(await annotated(sink, **{name: 1}))


async def test_manually_created_result_can_contain_values_of_any_type(sink: MemoryEventSink) -> None:
    wrong: Any = 5
    emit_stage_wide(
        "s", StageResult("s", StageStatus.FAIL, error=wrong, reason=wrong), PipelineContext(), sink
    )
    event = stage_wide(sink.events, "s")
    assert (event["error"], event["reason"]) == ("5", "5")
