"""Tests that an attribute is archived and read back unchanged, whatever its name is."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from test_store_hostile import compact, run, with_attributes, write

import stageflow
from stageflow import JournalSink, Pipeline, PipelineContext, StageContext
from stageflow.observability import EventLimits
from stageflow.store import Compactor, EventStore

pytestmark = pytest.mark.slow

GROUPS = {
    "sigma": ["\u03a3", "\u03c3", "\u03c2", "a\u03a3", "a\u03c2"],
    "case of one language": ["I", "\u0131", "i", "\u0130", "i\u0307"],
    "one letter, two cases": ["\u00df", "\u1e9e", "ss", "SS", "\u017fs"],
    "signs that are letters": [
        "K",
        "\u212a",
        "k",
        "\u00c5",
        "\u212b",
        "\u00e5",
        "\u03a9",
        "\u2126",
        "\u00b5",
        "\u03bc",
        "\u039c",
    ],
    "ligatures and widths": ["\ufb01", "fi", "FI", "\uff41", "a", "A", "\u01c6", "\u01c5", "\u01c4"],
    "composed": ["\u00e9", "e\u0301", "\u00c9"],
    "Cherokee and Georgian": ["\u13a0", "\uab70", "\u10d0", "\u1c90"],
    "invisible": [
        "",
        "\0",
        "\x1b[2J",
        "\u200b",
        "\u202e",
        "\ufeff",
        "a\u00ad",
        "a",
        "\x7f",
        "\x85",
        "\u2028",
    ],
    "unassigned or private": ["\u0378", "\ue000", "\U000e0fff", "\U0010ffff", "\ufffe"],
    "punctuation": [
        ".",
        "..",
        "a.b",
        "a..b",
        ".a",
        "a.",
        "$",
        "$.a",
        "a'b",
        'a"b',
        "a`b",
        "a;b",
        "a,b",
        "a b",
        "\\",
    ],
    "columns": [
        "event_id",
        "EVENT_ID",
        "status",
        "rest",
        "attributes",
        "attributes.x",
        "type",
        "day",
        "segment",
    ],
    "words of SQL": ["select", "null", "drop table x", "--", "/*", "*", "%s", "?", "1", "-1", "1e3", "true"],
    "JSON": ["{}", "[]", '"', "\\u0000", "\n", "\t", "a\\", "$[0]", "#"],
    "long": [
        "x" * 100,
        "x" * 101,
        "X" * 100,
        "\u00e9" * 100,
        "x" * 256,
        "\U0001f600" * 30,
        "\U0001f600" * 100,
    ],
}


def read_back(journal: Path) -> list[dict[str, Any]]:
    with EventStore(journal) as store:
        assert store.sql("select count(*) from runs").rows[0][0] > 0
        return [found["attributes"] for found in store.runs(limit=1000)]


def as_set(runs: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(attributes, sort_keys=True) for attributes in runs)


@pytest.mark.parametrize("group", GROUPS)
def test_any_attribute_name_is_archived(group: str, tmp_path: Path) -> None:
    names = GROUPS[group]
    told = [{name: number for number, name in enumerate(names)}, *({name: "text"} for name in names)]
    lines = [with_attributes(run(number), attributes) for number, attributes in enumerate(told, 1)]
    folder = write(tmp_path / "journal", *lines)
    before = read_back(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.ndjson"))
    for batch in (size + 1, size // 4):  # in one commit, and in several: a column that exists keeps its name
        archive = tmp_path / f"archive{batch}"
        copy = shutil.copytree(folder, tmp_path / f"journal{batch}")
        compactor = Compactor(copy, archive, keep_seconds=1e9, batch_bytes=batch)
        assert compactor.compact().rows > 0
        with EventStore(archive=archive) as store:
            after = [found["attributes"] for found in store.runs(limit=1000)]
        assert as_set(after) == as_set(before)
    for attributes in told:
        assert attributes in before


NAME = st.one_of(
    st.text(max_size=12),
    st.text(
        st.sampled_from(
            "aAkK\u017fs"
            "S\u00df\u1e9e\u03a3\u03c3\u03c2\u0130\u0131iI\u00e9\u00c9\u0301\0\ud800\u200b.'\"\\$ ,;{}()=/"
        ),
        max_size=4,
    ),
    st.text(st.characters(categories=["Lu", "Ll", "Lt", "Cn", "Cs", "Cf"]), min_size=1, max_size=3),
    st.sampled_from(["status", "attributes.status", "REST", "x" * 300]),
)


VALUE = st.one_of(st.integers(0, 9), st.text(max_size=3), st.none(), st.booleans())


@settings(max_examples=settings.default.max_examples // 6)
@given(st.lists(st.dictionaries(NAME, VALUE, max_size=6), min_size=1, max_size=3))
def test_names_of_any_characters_are_archived_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, told: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("names") / "journal"
    stageflow.configure(
        sink=(sink := JournalSink(folder)), health_seconds=None, redact=None, limits=EventLimits(names=10**6)
    )
    pending = iter(told)

    async def annotates(ctx: StageContext) -> None:
        ctx.annotate_run(next(pending))

    graph = Pipeline("p").with_stage("s", annotates).build()
    for _ in told:  # one commit each: an existing column keeps its name
        asyncio.run(graph.run())
        sink.close()
        before = read_back(folder)
        compact(folder)
        assert as_set(read_back(folder)) == as_set(before)


def test_store_archives_automatically_with_any_attribute_names(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    stageflow.configure(sink=(sink := JournalSink(folder)), health_seconds=None)

    async def annotates(ctx: StageContext) -> None:
        ctx.annotate({ctx.run.data["key"]: 1})

    graph = Pipeline("p").with_stage("s", annotates).build()
    for key in ("\u03a3", "\u03c2", "plain"):
        graph.run_sync(PipelineContext(data={"key": key}))
    sink.close()
    with EventStore(folder, compact_beyond=1) as store:
        assert len(store.runs()) == 3
    with EventStore(archive=folder / "archive") as store:
        assert len(store.runs()) == 3


def test_unassigned_unicode_character_gets_no_column() -> None:
    from stageflow.store._columns import is_column_name

    unknown = next(chr(code) for code in range(0x378, sys.maxunicode) if not chr(code).isprintable())
    assert not is_column_name(f"a{unknown}")
    assert is_column_name("gr\u00f6\u00dfe_\u00e9.x")
