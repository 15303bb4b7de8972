"""Results in notebooks: HTML in which all text is escaped, and data frames."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from incident import NOON, Past, after
from notebook import outputs_of
from rich.text import Text

import stageflow
from stageflow import Journal, Pipeline, PipelineContext, StageOutput
from stageflow.render._html import html_of
from stageflow.store import EventStore, Rows

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&\x1b[2J\u202e\x00"


class Tags(HTMLParser):
    """The tags and the text of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data: str) -> None:
        self.text += data


def check(result: Any) -> str:
    """Check that the HTML of a result contains no other tags than those of the table; return its text."""
    html = result._repr_html_()
    found = Tags(html)
    assert found.tags <= {"pre", "span"}
    assert found.attributes <= {"style"}
    assert not set(html) & set("\x1b\u202e\x00")
    return found.text


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventStore]:
    past = Past(tmp_path_factory.mktemp("notebook") / "journal")
    for number in range(120):
        past.run(
            after(number),
            failed=number % 4 == 0,
            pipeline=f"shop{EVIL}",
            stage=f"pay{EVIL}",
            error=EVIL,
            attributes={"model": EVIL if number % 4 == 0 else "small", EVIL: 1},
        )
    with EventStore(past.path) as store:
        yield store


def test_results_of_the_store_are_escaped(store: EventStore) -> None:
    half = "started_at < '2026-11-24 13:00'"
    for result in (
        store.runs(limit=3),
        store.stats(),
        store.stats("runs", by="pipeline_name"),
        store.errors(),
        store.slowest(limit=3),
        store.compare(half, f"not ({half})"),
        store.totals(),
        store.run(),
        store.sql("select pipeline_name, error, started_at from runs limit 3"),
        store.explain_run("last"),
    ):
        assert "<script>" in check(result)
    explained = check(store.explain())
    assert "of the failures match pay<script>" in explained
    assert "likely effects" in explained


def test_lists_are_lists_and_empty_ones_have_no_table(store: EventStore) -> None:
    found = store.errors()
    assert found == list(found)
    assert isinstance(found, list)
    assert store.errors(where="false")._repr_html_() is None
    rows = store.sql("select 1 as n from runs", limit=2)
    assert check(rows).startswith("the first 2 rows")


async def test_results_of_a_run_are_escaped(tmp_path: Path) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise ValueError

    async def fail(ctx: Any) -> None:
        raise ValueError(EVIL)

    pipeline = (
        Pipeline("p<script>")
        .with_stage("evil", lambda ctx: {EVIL: EVIL})
        .with_stage("hostile", lambda ctx: StageOutput.ok(value=Hostile()))
        .with_stage("fails", fail, optional=True)
        .with_stage("long", lambda ctx: "x" * 10_000)
    )
    stageflow.configure(journal=tmp_path / "journal")
    try:
        results = await pipeline.build().run(PipelineContext(user_id=EVIL))
    finally:
        stageflow.settings.close_journal()
        stageflow.settings.reset()
    text = check(results)
    assert "degraded" in text
    assert "ValueError: <script>" in text
    assert len(text) < 3_000
    assert "degraded" in check(Journal(tmp_path / "journal").run("last"))


def test_drawing_that_escapes_nothing_is_escaped() -> None:
    class Drawing:
        def _repr_html_(self) -> str:
            return html_of(lambda width: Text(EVIL), title=EVIL)

    assert check(Drawing()).count("<script>alert(1)</script>") == 2


ROWS = Rows(
    ["n", "at", "n", "id", "price", "tags", "nothing"],
    [
        (1, NOON, "a", UUID(int=7), Decimal("1.50"), ["x"], None),
        (2, datetime(2026, 1, 1, tzinfo=UTC), None, UUID(int=8), Decimal("2.25"), [], None),
    ],
)


def test_rows_become_data_frames() -> None:
    frame = ROWS.to_polars()
    assert frame.columns == ["n", "at", "n_2", "id", "price", "tags", "nothing"]
    assert frame.rows()[0][:3] == (1, NOON, "a")
    table = ROWS.to_arrow()
    assert table.column_names == frame.columns
    assert table.to_pylist()[1]["id"] == str(UUID(int=8))
    pandas = ROWS.to_pandas()
    assert list(pandas.columns) == frame.columns
    assert pandas["n"].sum() == 3
    empty = Rows(["a", "b"], [])
    assert empty.to_polars().shape == empty.to_pandas().shape == empty.to_arrow().shape == (0, 2)


def test_results_of_a_query_become_data_frames(store: EventStore) -> None:
    rows = store.sql("select started_at, failed, duration_ms, critical_path from runs order by 1")
    assert rows.to_polars()["duration_ms"].sum() == pytest.approx(rows.to_pandas()["duration_ms"].sum())
    assert rows.to_arrow()["failed"].to_pylist()[0] is True


def test_page_runs_in_a_notebook(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "notebooks.md").read_text(encoding="utf-8")
    cells = [*re.findall(r"```python\n(.*?)```", page, re.DOTALL), "EventStore('journal').stats()"]
    outputs = outputs_of(cells, tmp_path)
    assert [len(each) for each in outputs] == [1, 1, 1]  # each result is displayed once
    run, frame, stats = (each[0] for each in outputs)
    assert "{&#x27;count&#x27;: 4}" in "".join(run["data"]["text/html"])
    assert "".join(frame["text"]) == "[6.0, 4.0] (2, 2) 2\n"
    assert "p95 ms" in "".join(stats["data"]["text/html"])


@pytest.mark.parametrize(
    ("module", "expression", "expected"),
    [
        ("rich", "print(rows._repr_html_())", "None"),
        ("polars", "rows.to_polars()", 'pip install "stageflow[polars]"'),
        ("pandas", "rows.to_pandas()", 'pip install "stageflow[pandas]"'),
        ("pyarrow", "rows.to_arrow()", 'pip install "stageflow[arrow]"'),
    ],
)
def test_missing_packages(module: str, expression: str, expected: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\nfrom stageflow.store import Rows\n"
    code += f"rows = Rows(['a'], [(1,)])\n{expression}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert expected in done.stdout + done.stderr
