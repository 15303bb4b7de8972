"""Tests of redaction in the formats of common libraries, where the name is not directly before the value."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import attrs
import jsonschema
import pydantic
import pytest
from hypothesis import example, given, strategies as st
from oracle import stage_wide

from stageflow import Pipeline, StageContext
from stageflow.events import MemoryEventSink
from stageflow.observability import WideEventEmitter
from stageflow.observability.sanitize._sanitizer import SanitizeRules, use_sanitize_rules


@pytest.fixture(autouse=True)
def _default_rules() -> Iterator[None]:
    before = use_sanitize_rules(SanitizeRules())
    yield
    use_sanitize_rules(before)


def recorded(stage: Callable[[StageContext], Any]) -> dict[str, Any]:
    sink = MemoryEventSink()
    graph = (
        Pipeline("p")
        .with_stage("s", stage, optional=True)
        .build(emit_stage_wide_events=True, wide_event_emitter=WideEventEmitter(sink))
    )
    graph.run_sync()
    return stage_wide(sink.events, "s")


def clean(text: str) -> tuple[str, int]:
    """Return a text as it is recorded, and how many secrets were taken out."""
    event = recorded(lambda ctx: ctx.annotate(text=text))
    return event["attributes"]["text"], event["redacted"]


class Settings(pydantic.BaseModel):
    password: int


class Nested(pydantic.BaseModel):
    db: Settings | list[int]


def _pydantic(model: type[pydantic.BaseModel], data: dict[str, Any]) -> str:
    with pytest.raises(pydantic.ValidationError) as caught:
        model.model_validate(data)
    return str(caught.value)


def _jsonschema(instance: Any, schema: dict[str, Any]) -> str:
    with pytest.raises(jsonschema.ValidationError) as caught:
        jsonschema.validate(instance, schema)
    return str(caught.value)


def _argparse(*options: str, **rules: Any) -> Callable[[str], str]:
    def message(secret: str) -> str:
        parser = argparse.ArgumentParser(exit_on_error=False)
        parser.add_argument(*options, **rules)
        with pytest.raises(argparse.ArgumentError) as caught:
            parser.parse_args([f"{options[-1]}={secret}"])
        return str(caught.value)

    return message


def _attrs(validator: Any) -> Callable[[str], str]:
    kind: Any = attrs.make_class("Config", {"api_key": attrs.field(validator=validator)})

    def message(secret: str) -> str:
        with pytest.raises((TypeError, ValueError)) as caught:
            kind(secret)
        return str(caught.value)

    return message


def _multipart(secret: str) -> str:
    return (
        '--b\r\nContent-Disposition: form-data; name="user"\r\n\r\nann\r\n'
        '--b\r\nContent-Disposition: form-data; name="password"; filename="x"\r\n'
        "Content-Type: text/plain\r\n\r\n"
        f"{secret}\r\n--b--\r\n"
    )


def _encoded(secret: str) -> str:
    return quote(json.dumps({"user": "ann", "password": secret}))


ANY: dict[str, Callable[[str], str]] = {
    "list": lambda s: str(["mysql", "--password", s, "-h", "db"]),
    "tuple": lambda s: str(("mysql", "--password", s)),
    "JSON": lambda s: json.dumps(["mysql", "--password", s]),
    "indented JSON": lambda s: json.dumps({"argv": ["--password", s]}, indent=4),
    "JSON in JSON": lambda s: json.dumps({"body": json.dumps(["--password", s])}),
    "bytes": lambda s: str([b"mysql", b"--password", s.encode()]),
    "one dash": lambda s: str(["java", "-Dkey", "-password", s]),
    "shell": lambda s: shlex.join(["mysql", "--password", s + " x", "-h", "db"]),
    "CalledProcessError": lambda s: str(subprocess.CalledProcessError(1, ["mysql", "--password", s])),
    "TimeoutExpired": lambda s: str(subprocess.TimeoutExpired(("mysql", "--password", s), 1.0)),
    "pydantic": lambda s: _pydantic(Settings, {"password": s}),
    "pydantic, nested": lambda s: _pydantic(Nested, {"db": {"password": s}}),
    "pydantic, repr": lambda s: repr(_pydantic(Settings, {"password": s})),
    "jsonschema": lambda s: _jsonschema(
        {"password": s}, {"type": "object", "properties": {"password": {"type": "integer"}}}
    ),
    "jsonschema, nested": lambda s: _jsonschema(
        {"tokens": {"api": [s]}},
        {"properties": {"tokens": {"properties": {"api": {"items": {"maxLength": 1}}}}}},
    ).replace("'tokens'", "'secrets'"),
    "attrs, type": _attrs(attrs.validators.instance_of(int)),
    "attrs, choice": _attrs(attrs.validators.in_([1, 2])),
    "attrs, pattern": _attrs(attrs.validators.matches_re("[a-z]")),
    "argparse": _argparse("--password", type=int),
    "argparse, two names": _argparse("-p", "--password", type=int),
    "argparse, choices": _argparse("--api-key", choices=["a", "b"]),
    "click": lambda s: f"Error: Invalid value for '-p' / '--password': {s!r} is not a valid integer.",
    "dacite": lambda s: f'wrong value type for field "db.password" - should be "int" instead of value "{s}"',
    "SQLAlchemy": lambda s: (
        "(sqlite3.IntegrityError) UNIQUE constraint failed\n"
        f"[SQL: INSERT INTO users (name, password) VALUES (?, ?)]\n[parameters: {('ann', s)}]\n"
        "(Background on this error at: https://sqlalche.me/e/20/gkpj)"
    ),
    "SQLAlchemy, many": lambda s: (
        f"[SQL: UPDATE users SET password=? WHERE id=?]\n[parameters: {[('first-1', 1), (s, 2)]}]"
    ),
    "Django": lambda s: f"(0.001) UPDATE users SET password = %s WHERE id = %s; args={(s, 1)}",
    "peewee": lambda s: str(('INSERT INTO "users" ("password") VALUES (?)', [s])),
    "SQL literals": lambda s: f"INSERT INTO users (name, password) VALUES ('ann', 'x1'), ('bob', {s!r})",
    "SQL password": lambda s: f"ALTER USER app WITH PASSWORD {s!r}",
    "SQL identified": lambda s: f"CREATE USER 'app'@'%' IDENTIFIED WITH caching_sha2_password BY {s!r}",
    "SQL secret": lambda s: f"CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET {s!r})",
    "XML attribute": lambda s: f"<user name='ann' password={quoteattr(s)}/>",
    "XML setting": lambda s: f"<add key='DbPassword' value={quoteattr(s)}/>",
    "XML setting, reversed": lambda s: f'<property value={quoteattr(s)} type="x" name="db.password"/>',
    "XML CDATA": lambda s: f"<a><password>\n  <![CDATA[{s}]]></password></a>",
    "HTML": lambda s: f'<input type="hidden" name="csrf_token" class="x" value={quoteattr(s)}>',
    "multipart": _multipart,
    "multipart, repr": lambda s: repr(_multipart(s)),
    "encoded JSON": lambda s: "https://h/cb?state=" + _encoded(s),
    "twice encoded JSON": lambda s: "https://h/cb?state=" + quote(_encoded(s)),
}
"""Formats whose value may be any text."""

WORDS: dict[str, Callable[[str], str]] = {
    "command line": lambda s: f"mysql --password {s} -h db",
    "one dash first": lambda s: f"-password {s}",
    "NUL": lambda s: f"mysql\0--password\0{s}\0-h\0db\0",
    "YAML": lambda s: f"args:\n  - --password\n  - {s}\n  - -h\n",
    "docker": lambda s: f"Cmd:[mysql --password {s} -h]",
    "XML element": lambda s: f'<entry key="password">{s}</entry>',
}
"""Formats whose value is one word."""

WORD = st.from_regex(r"[A-Za-z]{4,12}[0-9][A-Za-z0-9]{4,12}", fullmatch=True)
PUNCTUATED = st.builds(
    lambda word, mark, rest: word + mark + rest,
    WORD,
    st.text("!@#$*(),;:[]{}?/|^~+ .=-_", min_size=1, max_size=5).filter(lambda text: "--" not in text),
    WORD,
)


@pytest.mark.parametrize("name", ANY)
@given(secret=st.one_of(WORD, PUNCTUATED))
@example(secret="Zq7Xk2Lm9Pw4")
def test_no_secret_survives_in_any_format(name: str, secret: str) -> None:
    text = ANY[name](secret)
    found, count = clean(text)
    assert secret not in found
    assert quote(secret) not in found
    assert count >= 1


@pytest.mark.parametrize("name", WORDS)
@given(secret=WORD)
def test_every_value_after_a_secret_option_is_redacted(name: str, secret: str) -> None:
    found, count = clean(WORDS[name](secret))
    assert secret not in found
    assert count >= 1


@given(secret=st.one_of(WORD, PUNCTUATED, st.binary(min_size=9, max_size=20).map(lambda b: "1" + repr(b))))
def test_secrets_in_an_argv_attribute_are_redacted(secret: str) -> None:
    argv = ["mysql", "--password", secret, "-h", "db"]
    for value in (argv, tuple(argv), {"argv": argv}, [argv], [item.encode() for item in argv]):
        event = recorded(lambda ctx, value=value: ctx.annotate(argv=value))  # type: ignore[misc]
        assert secret not in json.dumps(event)
        assert "db" in json.dumps(event["attributes"])
        assert event["redacted"] == 1


def test_password_of_a_failed_command_is_redacted_and_counted() -> None:
    def dump(ctx: StageContext) -> None:
        subprocess.run(["false", "--password", "Zq7Xk2Lm9Pw4"], check=True)

    event = recorded(dump)
    assert "'--password', '[redacted]'" in event["error"]
    assert "Zq7Xk2Lm9Pw4" not in json.dumps(event)
    assert event["redacted"] >= 1


@pytest.mark.parametrize(
    "text",
    [
        "pin: 3",
        "GPIO pin: 12, pin: 3.3",
        "auth: 200ms",
        "auth=200ms token: 12.5ms, pass: 100%",
        "second pass: 2.5s",
        "pass: 3/10, first pass: 0.25",
        "nextPageToken: CiAKGjBpNDd2Nmp2Zml2cXRwYjBpOXA",
        "nextPageToken=abc123&page_token=abc",
        '{"nextPageToken": "abc123", "continuation_token": "x9"}',
        "SyntaxError: unexpected token 'if', \"x\" is not valid",
        "SELECT id, password FROM users WHERE id = 7",
        "INSERT INTO users (name, password) VALUES (?, ?)",
        "[SQL: INSERT INTO orders (id, note) VALUES (?, ?)]\n[parameters: (7, 'abc')]",
        "argument --count: invalid int value: 'x1'",
        "1 validation error for S\nname\n  Input should be x [type=x, input_value='abc', input_type=str]",
        "'name' must be <class 'int'> (got 'x1' that is a <class 'str'>).",
        "['--password', '--verbose'] and choose from '--token', '--user'",
        "see --password-file /etc/x1 and --auth-type basic1",
        "<input name='q' value='x1'> <entry key='size'>17</entry>",
        "%7B%22count%22%3A%2217%22%7D",
        'form-data; name="file"\r\n\r\nabc\r\n--b',
    ],
)
def test_text_without_a_secret_is_not_changed(text: str) -> None:
    assert clean(text) == (text, 0)


@pytest.mark.parametrize(
    ("text", "redacted"), [("pin: 1234", 1), ("password=200ms", 1), ("token: a200ms", 1)]
)
def test_measurements_are_not_redacted(text: str, redacted: int) -> None:
    assert clean(text)[1] == redacted
