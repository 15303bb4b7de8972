"""Tests which value is recorded for objects of types that JSON does not have."""

from __future__ import annotations

import collections
import dataclasses
import enum
import ipaddress
import json
import sys
import types
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import attrs
import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given, strategies as st
from oracle import pipeline_wide, stage_wide

from stageflow import Pipeline, StageContext
from stageflow.events import MemoryEventSink, stats
from stageflow.observability import EventLimits, WideEventEmitter
from stageflow.observability.sanitize._sanitizer import SanitizeRules, use_sanitize_rules


@pytest.fixture(autouse=True)
def _default_rules() -> Iterator[None]:
    before = use_sanitize_rules(SanitizeRules())
    yield
    use_sanitize_rules(before)


def build(sink: MemoryEventSink, stage: Any) -> Any:
    return (
        Pipeline("p")
        .with_stage("s", stage)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )


def recorded(value: Any, name: str = "value") -> Any:
    """Return what is recorded of an attribute."""
    sink = MemoryEventSink()

    async def annotates(ctx: StageContext) -> None:
        ctx.annotate({name: value})

    results = build(sink, annotates).run_sync()
    assert results.ok
    event = stage_wide(sink.events, "s")
    json.dumps(event, allow_nan=False)
    return event["attributes"][name]


class Color(enum.Enum):
    RED = "red"
    MIXED = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Part(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Card:
    owner: str
    limit: Decimal
    password: str = "hunter2hunter2"
    number: str = dataclasses.field(default="4111", repr=False)
    count: ClassVar[int] = 7


@dataclasses.dataclass
class Reticent:
    note: str

    def __repr__(self) -> str:
        return "<Reticent>"


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    child: Any = None


class Model(pydantic.BaseModel):
    name: str
    api_key: str
    secret: pydantic.SecretStr
    hidden: str = pydantic.Field(default="h1dd3n", repr=False)
    excluded: str = pydantic.Field(default="3xclud3d", exclude=True)
    nested: Card | None = None


class ReticentModel(pydantic.BaseModel):
    note: str

    def __repr__(self) -> str:
        return "<ReticentModel>"


@attrs.define
class Attrs:
    name: str
    token: str
    hidden: str = attrs.field(default="h1dd3n", repr=False)


class Message(msgspec.Struct):
    name: str
    password: str


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(7), 7),
        (np.uint8(200), 200),
        (np.float64(1.5), 1.5),
        (np.float32(0.5), 0.5),
        (np.float16(0.25), 0.25),
        (np.longdouble(2), 2.0),
        (np.bool_(True), True),
        (np.array(3), 3),
        (np.array(2.5), 2.5),
        (np.array(False), False),
        (np.array("text"), "text"),
        (np.str_("text"), "text"),
        (np.datetime64("2026-11-23T16:00:28.5"), "2026-11-23T16:00:28.500000"),
        (np.datetime64("2026-11-23T16:00:28.5", "ns"), "2026-11-23T16:00:28.500000"),
        (np.datetime64("2026-11-23"), "2026-11-23T00:00:00"),
        (np.datetime64("NaT", "ms"), None),
        (np.timedelta64(1500, "ms"), 1.5),
        (np.timedelta64(1500, "ns"), 1e-06),
        (Decimal("9.99"), 9.99),
        (Decimal(9007199254740993), 9007199254740993),
        (Fraction(1, 4), 0.25),
        (Level.HIGH, 3),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (datetime(2026, 11, 23, 16, 0, 28, tzinfo=UTC), "2026-11-23T16:00:28Z"),
        (datetime(2026, 11, 23, 16, tzinfo=UTC).replace(tzinfo=None), "2026-11-23T16:00:00"),
        (datetime(2026, 11, 23, 16, tzinfo=timezone(timedelta(hours=2))), "2026-11-23T16:00:00+02:00"),
        (date(2026, 11, 23), "2026-11-23"),
        (time(16, 0, 28), "16:00:28"),
        (timedelta(minutes=1, milliseconds=500), 60.5),
        (Color.RED, "red"),
        (Color.MIXED, "MIXED"),
        (Part.A | Part.B, 3),
        (PurePosixPath("/tmp/a"), "/tmp/a"),
        (Path("a/b"), "a/b"),
        (ipaddress.ip_address("10.0.0.1"), "10.0.0.1"),
        (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (collections.deque([1, np.int64(2)]), [1, 2]),
        ([np.float32(0.5), {"n": np.int64(1)}], [0.5, {"n": 1}]),
        ({Color.RED: 1, np.int64(5): 2, uuid.UUID(int=1): 3, date(2026, 1, 1): 4},
         {"red": 1, "5": 2, "00000000-0000-0000-0000-000000000001": 3, "2026-01-01": 4}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_of_other_types_are_recorded_as_the_nearest_json_value(value: Any, expected: Any) -> None:
    found = recorded(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (np.float64("nan"), "nan"),
        (Decimal("NaN"), "Decimal('NaN')"),
        (Decimal("sNaN"), "Decimal('sNaN')"),
        (Decimal("1e400"), "Decimal('1E+400')"),
        (Decimal("1E+999999"), "Decimal('1E+999999')"),
        (2 + 1j, "(2+1j)"),
        (1 << 64, "18446744073709551616"),
        (np.array([1, 2]), "array([1, 2])"),
        (np.complex64(1j), "np.complex64(1j)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_cannot_carry_are_recorded_by_their_repr_and_counted(
    value: Any, expected: str
) -> None:
    before = stats().coerced_values
    assert recorded(value) in (expected, expected.replace("np.complex64(1j)", "1j"))
    assert stats().coerced_values > before


def test_fields_of_dataclasses_and_models_are_recorded_and_redacted() -> None:
    card = {"owner": "ann", "limit": 9.5, "password": "[redacted]"}
    assert recorded(Card("ann", Decimal("9.5"))) == card
    assert recorded(Model(name="m", api_key="k3y-9x", secret=pydantic.SecretStr("s3cr3t-9x"))) == {
        "name": "m",
        "api_key": "[redacted]",
        "secret": "[redacted]",
        "nested": None,
    }
    nested = Model(name="m", api_key="k", secret=pydantic.SecretStr("s"), nested=Card("ann", Decimal("9.5")))
    assert recorded([nested])[0]["nested"] == card
    assert recorded(Attrs("a", "t0k3n-9x")) == {"name": "a", "token": "[redacted]"}
    assert recorded(Message("a", "hunter2")) == {"name": "a", "password": "[redacted]"}


def test_fields_hidden_from_the_repr_are_not_recorded() -> None:
    assert recorded(Reticent("private")) == "<Reticent>"
    assert recorded(ReticentModel(note="private")) == "<ReticentModel>"
    assert recorded(pydantic.SecretStr("s3cr3t")) == "SecretStr('**********')"
    for hidden in (
        Card("ann", Decimal(1)),
        Model(name="m", api_key="k", secret=pydantic.SecretStr("s")),
        Attrs("a", "t"),
    ):
        text = json.dumps(recorded(hidden))
        assert not any(secret in text for secret in ("4111", "h1dd3n", "3xclud3d"))


def test_dataclass_under_a_secret_name_is_redacted() -> None:
    assert recorded(Card("ann", Decimal(1)), "credentials") == "[redacted]"
    assert recorded(uuid.UUID(int=1), "session_token") == "[redacted]"


def test_nested_dataclasses_are_bounded() -> None:
    deep: Any = "end"
    for _ in range(50):
        deep = Slotted(deep)
    assert "deeper than 8 levels" in json.dumps(recorded(deep))
    many = [Slotted(Slotted(number)) for number in range(100_000)]
    assert len(json.dumps(recorded(many))) < 300_000
    itself = Model.model_construct(name="m")
    itself.nested = itself  # type: ignore[assignment]
    assert "Recursion on Model" in json.dumps(recorded(itself))


class Endless:
    """An object whose item is another such object."""

    ndim = 0

    def item(self) -> Endless:
        return Endless()

    def __repr__(self) -> str:
        return "<Endless>"


class Lazy:
    ndim = 0
    computed = False

    def item(self) -> int:
        Lazy.computed = True
        return 1

    def compute(self) -> int:
        return self.item()

    def __repr__(self) -> str:
        return "<Lazy>"


def test_lazy_array_is_not_computed() -> None:
    assert recorded(Lazy()) == "<Lazy>"
    assert not Lazy.computed


def _raising(*bases: type, **methods: str) -> Any:
    def raises(*_: Any) -> Any:
        raise SystemExit(3)

    namespace: dict[str, Any] = dict.fromkeys(methods.values(), raises)
    return types.new_class("Raising", bases, exec_body=lambda body: body.update(namespace))


@pytest.mark.parametrize(
    "value",
    [
        Endless(),
        _raising(Decimal, a="__float__", b="__int__")("1.5"),
        _raising(Fraction, a="__float__", b="__int__", c="numerator")(1, 2),
        _raising(datetime, a="isoformat")(2026, 1, 1),
        _raising(uuid.UUID, a="__str__")(int=1),
        _raising(PurePosixPath, a="__fspath__")("a"),
        _raising(a="__fspath__", b="__class__")(),
        _raising(a="item", b="ndim")(),
        _raising(a="__repr_args__", b="__getattr__")(),
        _raising(collections.deque, a="__iter__")([1]),
        _raising(set, a="__iter__")([1]),
        type("Fields", (), {"__dataclass_fields__": 7})(),
        type("Fields", (), {"__attrs_attrs__": 7, "__struct_fields__": 7})(),
    ],
    ids=lambda value: type(value).__mro__[1].__name__,
)
def test_raising_value_is_recorded(value: Any) -> None:
    assert isinstance(recorded([value]), list)


async def test_amounts_of_any_number_type_are_added_up(sink: MemoryEventSink) -> None:
    async def counts(ctx: StageContext) -> None:
        ctx.annotate(rows=np.int64(2), total=Decimal("1.5"))
        for amount in (np.int64(5), Decimal("0.5"), Fraction(1, 2), np.float32(1), np.array(3), True, 1):
            ctx.count("rows", amount)
        ctx.count("total", Decimal("0.25"))
        ctx.count("nothing", 2j)  # type: ignore[arg-type]
        ctx.record_llm("m", input_tokens=np.int64(100), output_tokens=np.array(7), cost_usd=Decimal("0.0031"))
        ctx.record_embedding("e", input_tokens=np.int32(1), vectors=np.uint16(3), dimensions=np.int64(768))
        ctx.record_retrieval("index", documents=np.int64(4), best_score=np.float32(0.5))

    await build(sink, counts).run()
    stage = stage_wide(sink.events, "s")["attributes"]
    assert stage["rows"] == 14
    assert stage["total"] == 1.75
    assert "nothing" not in stage
    assert stage["gen_ai.usage.input_tokens"] == 101
    assert stage["gen_ai.usage.output_tokens"] == 7
    assert stage["llm.cost_usd"] == 0.0031
    assert stage["gen_ai.embeddings.dimension.count"] == 768
    assert stage["retrieval.best_score"] == 0.5
    assert pipeline_wide(sink.events)["attributes"]["rows"] == 12
    assert all(type(value) in (int, float, str) for value in stage.values())


async def test_payloads_of_custom_events_follow_the_same_rules(sink: MemoryEventSink) -> None:
    async def emits(ctx: StageContext) -> None:
        ctx.emit_event("x", {"n": np.int64(1), "at": date(2026, 1, 1), "card": Card("ann", Decimal(1))})
        ctx.emit_event("y", Card("ann", Decimal(1)))

    await build(sink, emits).run()
    first, second = (data for type, data in sink.events if type in ("x", "y"))
    assert (first["n"], first["at"], first["card"]["password"]) == (1, "2026-01-01", "[redacted]")
    assert second["payload"]["owner"] == "ann"


def test_recording_imports_no_library_of_the_value() -> None:
    import subprocess

    script = (
        "import asyncio, sys, decimal, stageflow\n"
        "from stageflow import Pipeline\nfrom stageflow.events import MemoryEventSink\n"
        "stageflow.configure(sink=MemoryEventSink())\n"
        "async def work(ctx): ctx.annotate(**ctx.run.data)\n"
        "graph = Pipeline('p').with_stage('s', work).build()\n"
        "graph.run_sync()\n"
        "before = set(sys.modules)\n"
        "values = {'a': decimal.Decimal(1), 'b': object(), 'c': {1}}\n"
        "graph.run_sync(stageflow.PipelineContext(data=values))\n"
        "print(sorted({'numpy', 'pydantic', 'attr', 'dataclasses'} & (set(sys.modules) - before)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.decimals(), st.fractions(), st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1).map(np.int64),
    st.floats(width=32).map(np.float32), st.floats().map(np.array),
)  # fmt: skip


@given(NUMBERS)
def test_every_finite_number_is_recorded_as_a_number_of_nearly_the_same_value(number: Any) -> None:
    found = recorded(number)
    try:
        finite = float(number) - float(number) == 0
        fits = -(1 << 63) <= int(number) < 1 << 64
    except (OverflowError, ValueError):
        finite = fits = False
    if finite and (fits or not isinstance(number, int)) and abs(float(number)) < 1e18:
        assert type(found) in (int, float, bool)
        assert float(found) == float(number)
    else:
        assert type(found) in (int, float, str)


def test_limits_apply_to_converted_values() -> None:
    use_sanitize_rules(SanitizeRules(limits=EventLimits(text_chars=10)))
    assert len(recorded(Path("x" * 50))) == 10
