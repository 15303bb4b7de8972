"""Tests for `Interruption` and `PinnedStore`."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_explain_more import write

from stageflow.errors import ClosedError, QueryError
from stageflow.store import EventStore, Interruption, PinnedStore

ENDLESS = "select sum(a.range * b.range) from range(1000000) a, range(1000000) b"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return write(tmp_path / "journal", [{"fails": number % 5 == 0} for number in range(50)])


@pytest.mark.parametrize("kind", [EventStore, PinnedStore])
def test_interruption_ends_a_running_query(journal: Path, kind: type[EventStore]) -> None:
    interruption = Interruption()
    timer = threading.Timer(0.3, interruption.interrupt)
    with kind(journal) as store, interruption:
        timer.start()
        with pytest.raises(QueryError, match="interrupted"):
            store.sql(ENDLESS)
        timer.join()
    with kind(journal) as store:
        assert store.sql("select count(*) from runs").rows == [(50,)]


def test_interruption_before_a_query_ends_it(journal: Path) -> None:
    interruption = Interruption()
    interruption.interrupt()
    with EventStore(journal) as store, interruption, pytest.raises(QueryError, match="interrupted"):
        store.sql(ENDLESS)


def test_interruption_between_two_statements_of_a_query_ends_it(journal: Path) -> None:
    interruption = Interruption()

    def execute(cursor: Any) -> None:
        interruption.interrupt()
        time.sleep(0.2)  # nothing is executed while the first interrupt arrives
        cursor.execute(ENDLESS)

    with PinnedStore(journal) as store, interruption, pytest.raises(QueryError, match="interrupted"):
        store.query(execute, "two statements")


def test_timeout_between_two_statements_of_a_query_ends_it(journal: Path) -> None:
    def execute(cursor: Any) -> None:
        time.sleep(0.3)
        cursor.execute(ENDLESS)

    with PinnedStore(journal, timeout=0.1) as store, pytest.raises(QueryError, match=r"within 0\.1 s"):
        store.query(execute, "two statements")


def test_pinned_store_answers_queries_concurrently(journal: Path) -> None:
    with PinnedStore(journal) as store:
        interruption = Interruption()
        failed: list[QueryError] = []
        started = threading.Event()

        def run() -> None:
            with interruption:
                try:
                    store.query(lambda cursor: (started.set(), cursor.execute(ENDLESS)), "endless")
                except QueryError as error:
                    failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(10)
        assert store.sql("select count(*) from runs").rows == [(50,)]
        assert len(store.stats("runs")) == 1
        assert not failed
        interruption.interrupt()
        thread.join(10)
        assert len(failed) == 1


def test_pinned_store_keeps_its_state(journal: Path, tmp_path: Path) -> None:
    with PinnedStore(journal) as store:
        assert store.is_current()
        for file in write(tmp_path / "more", [{"id": f"more-{number}"} for number in range(7)]).iterdir():
            file.rename(journal / file.name)
        assert not store.is_current()
        assert store.sql("select count(*) from runs").rows == [(50,)]
        with PinnedStore(journal) as newer:
            assert newer.sql("select count(*) from runs").rows == [(57,)]
    with pytest.raises(ClosedError):
        store.sql("select 1")
