"""Tests for tail sampling: the runs that are kept, the weights of rows, and exact counts."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_store import compact, ids, run_some

from stageflow import JournalSink, Pipeline
from stageflow.errors import QueryError, SettingsError
from stageflow.journal._segments import new_writer, segment_name
from stageflow.observability import WideEventEmitter
from stageflow.store import BackgroundCompactor, Compactor, EventStore, SampleRule, TailSampler, read_sampler

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


def write_runs(folder: Path, runs: Iterable[dict[str, Any]], *, segments: int = 1) -> None:
    """Write runs as closed segments of a writer that closed; see `lines_of` for the fields of a run."""
    folder.mkdir(exist_ok=True)
    lines: list[str] = []
    for number, run in enumerate(runs):
        lines += lines_of(number, run)
    writer = new_writer()
    per_segment = -(-len(lines) // segments)
    for at in range(segments):
        part = lines[at * per_segment : (at + 1) * per_segment]
        (folder / segment_name(writer, at + 1)).write_text("".join(part))
    last = folder / segment_name(writer, segments + 1)
    last.write_text('{"type":"writer.closed","journal":{"adopted_by":null,"crashed":0}}\n')


def lines_of(number: int, run: dict[str, Any]) -> Iterable[str]:
    run_id = run.get("id", f"{number:08d}-run")
    began = BEGAN + timedelta(seconds=run.get("second", number / 100))
    ended = began + timedelta(milliseconds=run.get("ms", 10.0))
    status = "FAIL" if run.get("fails") else "OK"
    common = {
        "status": status,
        "duration_ms": run.get("ms", 10.0),
        "started_at": began.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "ended_at": ended.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "error": run.get("error", "ValueError: x" if run.get("fails") else None),
        "correlation_ids": {"pipeline_run_id": run_id, "user_id": run.get("user")},
        "pipeline_metadata": {"service": "s", "topology": run.get("pipeline", "p"), "execution_mode": "d"},
        "schema_version": 1,
        "attributes": {},
        "redacted": 0,
        "truncated": [],
        "resource": {"service_version": run.get("version", "1"), "host": "h", "pid": 1},
        "sample_rate": run.get("sample_rate", 1),
    }
    if "fingerprint" in run:  # earlier versions did not have the field
        common["error_fingerprint"] = run["fingerprint"]
    stages = run.get("stages", 0)
    for stage in range(stages):
        data = common | {"event_id": f"{run_id}/s{stage}/1", "stage_name": f"s{stage}", "attempts": 1}
        yield json.dumps({"type": "stage.wide", "data": data}, separators=(",", ":")) + "\n"
    data = common | {
        "event_id": run_id,
        "pipeline_name": run.get("pipeline", "p"),
        "outcome": run.get("outcome", "failed" if run.get("fails") else "ok"),
        "stages_total": stages,
        "stages_failed": 0,
        "stage_summaries": [],
        "parent_run_id": run.get("parent"),
        "root_run_id": run.get("parent"),
    }
    yield json.dumps({"type": "pipeline.wide", "data": data}, separators=(",", ":")) + "\n"


def reasons(store: EventStore) -> dict[str, tuple[int, float]]:
    found = store.sql("select sample_reason, count(*), sum(sample_rate) from runs group by 1").rows
    return {reason: (rows, stands_for) for reason, rows, stands_for in found}


PLAIN = TailSampler(first_of_a_kind=False)


# ---------------------------------------------------------------- what is kept


def test_failed_crashed_and_slow_runs_are_kept_and_others_sampled(tmp_path: Path) -> None:
    runs = [
        {
            "fails": n % 50 == 0,
            "outcome": "crashed" if n % 100 == 0 else None,
            "ms": 3000 if n % 70 == 1 else 5,
        }
        for n in range(5000)
    ]
    runs = [{key: value for key, value in run.items() if value is not None} for run in runs]
    write_runs(tmp_path / "journal", runs)
    sampler = TailSampler(slower_than=2.0, one_in=10)
    assert Compactor(tmp_path / "journal", sampler=sampler).compact().rows == 5000
    with EventStore(tmp_path / "journal") as store:
        found = reasons(store)
        slow = sum(run.get("ms") == 3000 and not run.get("fails") for run in runs)
        assert found["failed"] == (100, 100.0)
        assert found["slow"] == (slow, float(slow))
        kept, stands_for = found["one in 10"]
        assert 380 < kept < 600
        assert stands_for == 10 * kept
        assert store.sql("select count(*) from runs where outcome = 'crashed'").rows == [(50,)]


def test_run_and_its_child_runs_are_kept_or_dropped_together(tmp_path: Path) -> None:
    runs = []
    for n in range(400):
        runs += [{"id": f"{n:04d}-child-{c}", "parent": f"{n:04d}-root", "stages": 2} for c in range(2)]
        runs.append({"id": f"{n:04d}-root", "stages": 3, "fails": n == 7})
    write_runs(tmp_path / "journal", runs)
    compact(tmp_path / "journal", sampler=TailSampler(one_in=5, first_of_a_kind=False))
    with EventStore(tmp_path / "journal") as store:
        trees = Counter(str(run)[:4] for (run,) in store.sql("select pipeline_run_id from events").rows)
        assert set(trees.values()) == {3 + 1 + 2 * (2 + 1)}
        assert 40 < len(trees) < 130
        assert trees["0007"]


def test_run_whose_child_failed_is_kept(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [{"id": "a-child", "parent": "a", "fails": True}, {"id": "a"}]
    runs += [{"id": "b-child", "parent": "b"}, {"id": "b"}]
    write_runs(tmp_path / "journal", runs)
    compact(tmp_path / "journal", sampler=TailSampler(one_in=1e12, first_of_a_kind=False))
    with EventStore(tmp_path / "journal") as store:
        assert store.sql("select event_id from runs order by 1").rows == [("a",), ("a-child",)]


def test_rules_apply_in_order(tmp_path: Path) -> None:
    users = ["u1", "u2", "u3"]
    write_runs(tmp_path / "journal", [{"user": users[n % 3], "fails": n == 0} for n in range(3000)])
    sampler = TailSampler(
        first_of_a_kind=False,
        rules=(
            SampleRule(where="user_id = 'u1'", reason="vip"),
            SampleRule(where="user_id in ('u1', 'u2')", one_in=4),
        ),
        one_in=20,
    )
    compact(tmp_path / "journal", sampler=sampler)
    with EventStore(tmp_path / "journal") as store:
        found = reasons(store)
        assert found["failed"] == (1, 1.0)
        assert found["vip"] == (999, 999.0)
        assert 200 < found["user_id in ('u1', 'u2')"][0] < 300
        assert 25 < found["one in 20"][0] < 80


def test_target_per_minute_applies_to_each_key(tmp_path: Path) -> None:
    # Two minutes: 2,000 runs of "busy" in each, and 5 of "quiet".
    runs = [{"pipeline": "busy", "second": n * 0.06 % 120} for n in range(4000)]
    runs += [{"pipeline": "quiet", "second": n * 20} for n in range(6)]
    write_runs(tmp_path / "journal", runs)
    sampler = TailSampler(first_of_a_kind=False, per_key="topology", target_per_minute=100)
    with EventStore(tmp_path / "journal") as store:
        dry = {(each.key, each.reason): each for each in store.dry_run(sampler)}
        compact(tmp_path / "journal", sampler=sampler)
        kept = dict(store.sql("select topology, count(*) from runs group by 1").rows)
        assert kept["quiet"] == 6
        assert 140 < kept["busy"] < 260
        assert dry["busy", "target"].kept == kept["busy"]
        assert dry["busy", "target"].runs == 4000
        (stat, _) = sorted(store.stats("runs"), key=lambda stat: -stat.count)
        low, high = stat.count_interval or (0, 0)
        assert low < 4000 < high


def test_first_run_of_a_kind_is_kept_once(tmp_path: Path) -> None:
    sampler = TailSampler(one_in=1e12)
    for version in ("1", "1", "2"):
        write_runs(
            tmp_path / "journal", [{"version": version, "id": f"{new_writer()}-{n}"} for n in range(50)]
        )
        compact(tmp_path / "journal", sampler=sampler)
    with EventStore(tmp_path / "journal") as store:
        rows = store.sql("select service_version, sample_reason from runs order by 1").rows
    assert rows == [("1", "first of its kind"), ("2", "first of its kind")]


def test_incoming_sample_rate_is_multiplied(tmp_path: Path) -> None:
    write_runs(tmp_path / "journal", [{"sample_rate": 4} for _ in range(2000)])
    compact(tmp_path / "journal", sampler=TailSampler(first_of_a_kind=False, one_in=5))
    with EventStore(tmp_path / "journal") as store:
        ((rate, kept),) = store.sql("select max(sample_rate), count(*) from runs").rows
        assert rate == 20
        assert 300 < kept < 500
        (total,) = store.totals()
        assert total.count == 8000


def test_batches_of_the_archive_do_not_divide_runs(tmp_path: Path) -> None:
    write_runs(tmp_path / "journal", [{"stages": 5} for _ in range(301)], segments=4)
    compact(tmp_path / "journal", sampler=TailSampler(first_of_a_kind=False, one_in=10), batch_bytes=1)
    with EventStore(tmp_path / "journal") as store:
        runs = store.sql("select pipeline_run_id, count(*), min(sample_reason) from events group by 1").rows
        assert 5 < len(runs) < 80
        assert {(count, reason) for _, count, reason in runs} == {(6, "one in 10")}


def test_duplicates_and_amendments_do_not_change_weights(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    sampler = TailSampler(first_of_a_kind=False, keep_failures=False, one_in=2)
    results = run_some(folder, times=50)  # their IDs are random: all or none are kept in 2 of 2^50 cases
    compact(folder, sampler=sampler)
    with EventStore(folder) as store:
        before = store.sql("select event_id, sample_rate, sample_reason from events order by 1").rows
        totals = store.totals()
        sink = JournalSink(folder, fsync="never")
        kept = {event_id for event_id, _, _ in before}
        assert 0 < len(kept.intersection(ids(results))) < len(results)
        for result, run_id in zip(results, ids(results), strict=True):
            if run_id in kept:
                WideEventEmitter(sink).emit_pipeline_wide(result, result.context)
        sink.close()
        compact(folder, sampler=sampler)
        assert store.sql("select event_id, sample_rate, sample_reason from events order by 1").rows == before
        assert store.totals() == totals


# ---------------------------------------------------------------- what stays exact, and what is estimated


@pytest.mark.slow
def test_totals_are_exact_and_failed_runs_are_complete(tmp_path: Path) -> None:
    dice = random.Random(1)
    runs = [
        {"pipeline": f"p{n % 7}", "stages": 3, "fails": dice.random() < 0.02, "second": n * 3.0}
        for n in range(6000)
    ]
    for folder, sampler in (("all", None), ("some", TailSampler(one_in=100))):
        write_runs(tmp_path / folder, runs, segments=3)
        compact(tmp_path / folder, sampler=sampler, batch_bytes=2_000_000)
    with EventStore(tmp_path / "all") as full, EventStore(tmp_path / "some") as some:
        assert some.sql("select count(*) from events").rows < full.sql("select count(*) from events").rows
        assert some.totals() == full.totals()
        assert sum(total.count for total in some.totals()) == 6000 * 4
        failed = "select pipeline_run_id from runs where status = 'FAIL' order by 1"
        assert some.sql(failed).rows == full.sql(failed).rows
        hours = {"since": "2026-11-01T01:30:00Z", "until": "2026-11-01T03:00:00Z", "pipeline": "p1"}
        assert some.totals(**hours) == full.totals(**hours) != []


def test_counts_remain_after_their_events_are_dropped(tmp_path: Path) -> None:
    write_runs(tmp_path / "journal", [{"stages": 2} for _ in range(100)])
    compact(tmp_path / "journal")
    with EventStore(tmp_path / "journal") as store:
        totals = store.totals()
        assert Compactor(tmp_path / "journal", max_age=86400).compact().dropped_rows == 300
        assert store.runs() == []
        assert store.totals() == totals != []
        assert Compactor(tmp_path / "journal", max_age=86400).compact().dropped_rows == 0
        Compactor(tmp_path / "journal", counts_max_age=86400).compact()
        assert store.totals() == []


def test_merging_files_of_counts_does_not_change_the_counts(tmp_path: Path) -> None:
    for n in range(9):
        write_runs(tmp_path / "journal", [{"id": f"{n}-{m}"} for m in range(10)])
        compact(tmp_path / "journal")
    with EventStore(tmp_path / "journal") as store:
        (total,) = store.totals()
        assert total.count == 90
        assert sum(not file.has_events for file in store.archive.files()) < 5


@pytest.mark.slow
@pytest.mark.timeout(240)  # 200 stores: 15 seconds on an idle machine
def test_intervals_contain_the_true_value_in_at_least_180_of_200_cases(tmp_path: Path) -> None:
    # Each pipeline is a separate, independent case.
    dice = random.Random(7)
    runs = [
        {
            "pipeline": f"case {n % 200}",
            "id": f"{dice.getrandbits(128):032x}",
            "ms": dice.lognormvariate(4, 1),
            "fails": dice.random() < 0.05,
            "second": n / 1000,
        }
        for n in range(200 * 1200)
    ]
    write_runs(tmp_path / "journal", runs)
    sampler = TailSampler(keep_failures=False, first_of_a_kind=False, one_in=4)
    with EventStore(tmp_path / "journal", compact_beyond=None) as store:
        full = {stat.pipeline: stat for stat in store.stats("runs")}
        compact(tmp_path / "journal", sampler=sampler)
        found = store.stats("runs")
    assert len(found) == len(full) == 200
    assert not any(stat.estimated for stat in full.values())
    hit = Counter[str]()
    for stat in found:
        assert stat.estimated
        truth = full[stat.pipeline]
        for name in ("count", "failure_rate", "p95_ms"):
            interval = getattr(stat, f"{name.removesuffix('_ms')}_interval")
            assert interval is not None
            hit[name] += interval[0] <= getattr(truth, name) <= interval[1]
    assert min(hit.values()) >= 180, hit


def test_interval_is_omitted_if_too_few_rows_were_sampled(tmp_path: Path) -> None:
    write_runs(tmp_path / "journal", [{} for _ in range(60)])
    compact(tmp_path / "journal", sampler=TailSampler(first_of_a_kind=False, one_in=10))
    with EventStore(tmp_path / "journal") as store:
        (stat,) = store.stats("runs")
    assert stat.estimated
    assert stat.count_interval is stat.failure_rate_interval is stat.p95_interval is None


def test_statistics_of_weighted_rows_equal_those_of_the_represented_rows(tmp_path: Path) -> None:
    dice = random.Random(3)
    weighted = [
        {"ms": dice.lognormvariate(4, 1), "fails": dice.random() < 0.2, "sample_rate": dice.randrange(1, 6)}
        for _ in range(500)
    ]
    expanded = [{**run, "sample_rate": 1} for run in weighted for _ in range(int(run["sample_rate"]))]
    write_runs(tmp_path / "weighted", weighted)
    write_runs(tmp_path / "expanded", expanded)
    with EventStore(tmp_path / "weighted") as one, EventStore(tmp_path / "expanded") as other:
        (a,), (b,) = one.stats("runs"), other.stats("runs")
        for name in ("count", "ok", "failed", "failure_rate", "p50_ms", "p90_ms", "p95_ms", "p99_ms"):
            assert getattr(a, name) == pytest.approx(getattr(b, name)), name
        (e,), (f,) = one.errors(), other.errors()
        assert e.count == f.count
        ((c,), (d,)) = (store.compare("true", "true", "runs") for store in (one, other))
        assert (c.before.count, c.before.p95_ms) == (d.before.count, d.before.p95_ms)


# ---------------------------------------------------------------- how it is said


def test_sampler_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sampling.toml"
    path.write_text("""
        slower_than = 2.0
        per_key = "pipeline_name"
        target_per_minute = 30

        [[rules]]
        where = "user_id = 'u1'"
        reason = "vip"
    """)
    assert read_sampler(path) == TailSampler(
        slower_than=2.0,
        per_key="pipeline_name",
        target_per_minute=30,
        rules=(SampleRule(where="user_id = 'u1'", reason="vip"),),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slower = 2", "unknown field 'slower' at $; did you mean 'slower_than'?"),
        ("[[rules]]\nwhen = 'x'", "unknown field 'when' at $.rules[0]; did you mean 'where'?"),
        ("one_in = 0.5", "one_in must be a number, 1 or more, got 0.5"),
        ("slower_than = 'long'", "$.slower_than"),
        ("target_per_minute = -1", "target_per_minute must be a number greater than 0, or None, got -1"),
        ("[[rules]]\none_in = 2", "where"),
        ("nonsense", "invalid TOML"),
        ("a = " + "[" * 10_000, "nested too deeply"),
    ],
)
def test_invalid_file_is_reported_with_the_location(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "sampling.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        read_sampler(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "where",
    [
        "search/duration_ms > 100",
        "search/attributes.hits = 0",
        '"my search/attributes.hits" = 0',
        "user_id in (select user_id from runs where failed)",
    ],
)
def test_rule_about_stages_or_other_runs_is_refused(tmp_path: Path, where: str) -> None:
    write_runs(tmp_path / "journal", [{} for _ in range(10)])
    sampler = TailSampler(rules=(SampleRule(where="user_id = 'u1'"), SampleRule(where=where)))
    with EventStore(tmp_path / "journal") as store:
        for refuse in (
            lambda: compact(tmp_path / "journal", sampler=sampler),
            lambda: store.dry_run(sampler),
        ):
            with pytest.raises(QueryError) as raised:
                refuse()
            expected = "reads stages or other runs; a rule can read only the sampled run"
            assert raised.value.message == f"sampling rule 2: {where!r} {expected}"
            assert "annotate_run" in str(raised.value.hint)
        assert store.sql("select count(*) from runs").rows == [(10,)]


def test_rule_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    write_runs(tmp_path / "journal", [{} for _ in range(10)])
    sampler = TailSampler(rules=(SampleRule(where="usr_id = 'u1'"),))
    expected = "sampling rule 1: unknown field 'usr_id' in .*; did you mean 'user_id'"
    with EventStore(tmp_path / "journal") as store:
        with pytest.raises(QueryError, match=expected):
            compact(tmp_path / "journal", sampler=sampler)
        with pytest.raises(QueryError, match=expected):
            store.dry_run(sampler)
        with pytest.raises(QueryError, match="per_key: unknown field 'usr_id'; did you mean 'user_id'"):
            store.dry_run(TailSampler(per_key="usr_id"))


@pytest.mark.parametrize(
    "sampler", [TailSampler(rules=(SampleRule(where="nope = 1"),)), TailSampler(per_key="nope")], ids=str
)
def test_invalid_rule_loses_no_events(tmp_path: Path, sampler: TailSampler) -> None:
    write_runs(tmp_path / "journal", [{} for _ in range(10)])
    with pytest.raises(QueryError, match="nope"):
        compact(tmp_path / "journal", sampler=sampler)
    with EventStore(tmp_path / "journal") as store:
        with pytest.raises(QueryError, match="nope"):
            store.dry_run(sampler)
        assert len(store.runs()) == 10


def test_background_compactor_compacts_during_writes(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    with EventStore(folder) as store:
        with BackgroundCompactor(Compactor(folder, keep_seconds=0), every=0.01):
            sink = JournalSink(folder, fsync="never", segment_bytes=20_000)
            graph = (
                Pipeline("busy")
                .with_stage("only", lambda ctx: None)
                .build(
                    emit_stage_wide_events=True,
                    emit_pipeline_wide_event=True,
                    wide_event_emitter=WideEventEmitter(sink),
                )
            )

            async def busy() -> None:
                while store.archive.version < 3:
                    for _ in range(20):
                        await graph.run()
                    await asyncio.to_thread(store.refresh)

            asyncio.run(busy())
            sink.close()
        ((count, different),) = store.sql("select count(*), count(distinct event_id) from events").rows
        assert count == different > 0
        (runs, stages) = store.totals()
        assert runs.count == stages.count == count / 2


def test_slowest_share_is_weighted_by_sample_rate(tmp_path: Path) -> None:
    # One tenth of the runs were slow, but five sixths of the rows: the fast ones were sampled 1 in 45.
    runs = [{"ms": 900.0 + n, "user": "u1"} for n in range(50)]
    runs += [{"ms": 10.0, "user": "u2", "sample_rate": 45} for _ in range(10)]
    write_runs(tmp_path / "journal", runs)
    with EventStore(tmp_path / "journal") as store:
        found = store.explain_slow(slowest=0.05)
        assert found.selection.count == pytest.approx(25, abs=1)
        assert store.explain_slow(slowest=0.11).selection.rows == 50


def test_rule_about_several_attributes_matches_although_one_of_them_cannot_be_compared(
    tmp_path: Path,
) -> None:
    write_attributes(tmp_path, [{"a": "x", "b": 1}, {"a": "x"}, {"a": 1}, {"a": [1], "b": 1}])
    assert matched(tmp_path, "attributes.a = 1 or attributes.b = 1") == [0, 2, 3]


def test_rule_matches_an_attribute_whose_name_differs_from_another_one_in_case(tmp_path: Path) -> None:
    write_attributes(tmp_path, [{"User": 1}, {"user": 1}, {"USER": "x"}, {"user": 2}])
    assert matched(tmp_path, "attributes.USER = 'x'") == [2]


def write_attributes(folder: Path, runs: list[dict[str, Any]]) -> None:
    """Write runs with these attributes."""
    lines = []
    for number, attributes in enumerate(runs):
        for line in lines_of(number, {}):
            event = json.loads(line)
            event["data"]["attributes"] = attributes
            lines.append(json.dumps(event, separators=(",", ":")) + "\n")
    closed = '{"type":"writer.closed","journal":{"adopted_by":null,"crashed":0}}\n'
    (folder / segment_name(new_writer(), 1)).write_text("".join([*lines, closed]))


def matched(folder: Path, where: str) -> list[int]:
    """Compact the journal, and return the numbers of the runs that match a rule."""
    rule = SampleRule(where=where, reason="rule")
    compact(folder, sampler=TailSampler(first_of_a_kind=False, one_in=1e9, rules=(rule,)))
    with EventStore(folder) as store:
        rows = store.sql("select event_id from runs where sample_reason = 'rule' order by 1").rows
    return [int(str(event_id)[:8]) for (event_id,) in rows]
