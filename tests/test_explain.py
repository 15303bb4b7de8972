"""Tests for `explain`: the differences, the fields that it leaves out, and random data."""

import io
import math
import re
import sys
from collections.abc import Iterable
from typing import Any

import duckdb
import numpy as np
import pytest
from rich.console import Console

from stageflow.errors import MissingExtraError, QueryError
from stageflow.render import draw_explanation
from stageflow.store import Difference, Explanation, explain

RUNS = 4_000

Columns = dict[str, Any]


def store(runs: Columns, stages: Columns | None = None) -> duckdb.DuckDBPyConnection:
    """Return a connection with the views of a store as tables."""
    connection = duckdb.connect()
    for name, columns in (("runs", runs), ("stages", stages)):
        if columns is not None:
            connection.register("given", columns)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")
            connection.unregister("given")
    return connection


def named(kind: str, numbers: Iterable[Any]) -> np.ndarray:
    return np.array([f"{kind}{number}" for number in numbers], dtype=object)


def some_runs(seed: int = 1, many: int = RUNS, failures: float = 0.05) -> tuple[Columns, Any, Any]:
    """Return runs with failures, a mask that explains most failures, and the random generator."""
    dice = np.random.default_rng(seed)
    failed = dice.random(many) < failures
    caused = dice.random(many) < np.where(failed, 0.7, 0.03)
    began = np.datetime64("2026-11-24T00:00:00", "us") + dice.permutation(many).astype("timedelta64[s]")
    runs = {
        "pipeline_run_id": named("run", range(many)),
        "status": np.where(failed, "FAIL", "OK").astype(object),
        "started_at": began,
        "duration_ms": dice.lognormal(5, 1, many),
        "sample_rate": np.ones(many),
        "request_id": named("request", range(many)),
        "org_id": named("org", dice.integers(0, 30, many)),
        "attributes.size": dice.lognormal(3, 1, many),
        "attributes.hit": dice.random(many) < 0.5,
    }
    return runs, caused, dice


def excluded(found: Explanation) -> dict[str, str]:
    return {name: one.reason for one in found.left_out for name in one.fields}


def by_field(differences: Iterable[Difference]) -> dict[str, Difference]:
    return {one.fields[0]: one for one in differences}


def test_value_of_most_failures_ranks_first():
    runs, caused, dice = some_runs()
    runs["attributes.model"] = np.where(caused, "m-large", named("m", dice.integers(0, 5, RUNS)))
    runs["attributes.copy"] = np.where(dice.random(RUNS) < 0.1, ~caused, caused)
    found = explain(store(runs))
    first = found.differences[0]
    assert str(first) == "attributes.model = m-large"
    assert (first.fields, first.shape, first.value) == (("attributes.model",), "value", "m-large")
    failed = runs["status"] == "FAIL"
    assert first.selection.rows == (failed & caused).sum()
    assert first.rest.rows == (~failed & caused).sum()
    assert first.selection.share == pytest.approx((failed & caused).sum() / failed.sum())
    assert first.lift == pytest.approx(first.selection.share / first.rest.share)
    assert first.rate == pytest.approx((failed & caused).sum() / caused.sum())
    assert first.other_rate == pytest.approx((failed & ~caused).sum() / (~caused).sum())
    assert first.excess == pytest.approx(caused.sum() * (first.rate - first.other_rate))
    assert first.excess_low < first.excess < first.excess_high
    assert first.q_value < 1e-20
    newest = np.flatnonzero(failed & caused)[np.argsort(runs["started_at"][failed & caused])[::-1]][:5]
    assert list(first.run_ids) == [f"run{number}" for number in newest]


def test_difference_that_a_cause_accounts_for_refers_to_it():
    runs, caused, dice = some_runs()
    runs["attributes.cause"] = caused
    runs["attributes.copy"] = np.where(dice.random(RUNS) < 0.05, ~caused, caused)
    failed = runs["status"] == "FAIL"
    runs["attributes.other"] = dice.random(RUNS) < np.where(failed, 0.5, 0.05)
    found = by_field(explain(store(runs)).differences)
    assert found["attributes.cause"].verdict == "independent"
    assert found["attributes.other"].verdict in ("independent", "remains")
    assert found["attributes.copy"].verdict == "explained"
    assert found["attributes.copy"].relates_to == "attributes.cause = true"
    assert list(found) == ["attributes.cause", "attributes.other", "attributes.copy"]


def test_q_values_are_corrected_by_benjamini_and_yekutieli():
    """The factor over Benjamini-Hochberg, the harmonic number, is for fields that depend on each other."""
    runs, caused, dice = some_runs(failures=0.2)
    runs["attributes.cause"] = dice.random(RUNS) < np.where(caused, 0.5, 0.2)
    p_values = set()
    for decoys in (0, 20, 60):
        for number in range(decoys):
            runs[f"attributes.decoy{number}"] = dice.random(RUNS) < 0.5
        found = explain(store(runs))
        first = found.differences[0]
        assert first.fields == ("attributes.cause",)
        hypotheses = found.fields + 4  # and four combinations of fields
        harmonic = sum(1 / rank for rank in range(1, hypotheses + 1))
        p_values.add(f"{first.q_value / (hypotheses * harmonic):.10g}")
    assert len(p_values) == 1


def test_number_is_split_where_the_distributions_differ_most():
    runs, caused, dice = some_runs()
    runs["attributes.tokens"] = np.where(caused, dice.uniform(813, 2_000, RUNS), dice.uniform(0, 812, RUNS))
    runs["attributes.tries"] = np.where(caused, 3, 1)
    found = by_field(explain(store(runs)).differences)
    tokens, tries = found["attributes.tokens"], found["attributes.tries"]
    assert (tokens.shape, tries.shape) == ("threshold", "value")
    assert isinstance(tokens.value, float)
    assert 800 < tokens.value < 830
    assert tokens.description == f"attributes.tokens > {tokens.value:g}"
    assert tries.description == "attributes.tries = 3"


@pytest.mark.parametrize(("failed", "ok"), [(1, 5), (2, 6), (1, 300), (3, 3), (3, 20_000)])
def test_split_of_few_runs_has_a_q_value_of_at_least_its_probability(failed: int, ok: int):
    """No test of the order of numbers can report less than the probability of that order by chance."""
    count = failed + ok
    runs: Columns = {
        "pipeline_run_id": named("run", range(count)),
        "status": np.array(["FAIL"] * failed + ["OK"] * ok, dtype=object),
        "started_at": np.datetime64("2026-11-24T00:00:00", "us") + np.arange(count).astype("timedelta64[h]"),
        "duration_ms": np.arange(float(count), 0, -1),
        "sample_rate": np.ones(count),
    }
    chance = 2 / math.comb(count, failed)
    found = explain(store(runs))
    assert all(chance <= one.q_value for one in found.differences)
    if chance > 0.05:
        assert not found.differences


def test_time_is_split_at_the_start_of_an_incident():
    runs, caused, _ = some_runs()
    hour = np.datetime64("2026-11-24T00:00:00", "us") + np.where(caused, 7_300, 100).astype("timedelta64[s]")
    runs["started_at"] = hour + np.arange(RUNS).astype("timedelta64[ms]")
    first = explain(store(runs)).differences[0]
    assert str(first) == "started_at > 2026-11-24T02:00:00"


def test_presence_and_absence_of_a_value_are_differences():
    runs, caused, dice = some_runs()
    ids = named("id", range(RUNS))
    runs["attributes.tier"] = np.where(caused, None, named("tier", dice.integers(0, 3, RUNS)))
    runs["attributes.note"] = np.where(caused, ids, None)
    runs["attributes.score"] = np.where(caused, np.nan, dice.random(RUNS))
    connection = store(runs)
    connection.execute('UPDATE runs SET "attributes.score" = NULL WHERE isnan("attributes.score")')
    (found, *_) = explain(connection).differences
    assert {str(found), *found.synonyms} == {
        "attributes.tier is missing",
        "attributes.note has a value",
        "attributes.score is missing",
    }
    assert found.shape == "absence"


def test_absence_is_an_effect_only_of_attributes_that_the_library_writes():
    runs, caused, dice = some_runs()
    failed = runs["status"] == "FAIL"
    runs["attributes.cause"] = caused
    runs["attributes.answer"] = np.where(failed, None, named("a", dice.integers(0, 9, RUNS)))
    runs["user_id"] = np.where(
        failed & (dice.random(RUNS) < 0.6), None, named("u", dice.integers(0, 99, RUNS))
    )
    runs["attributes.llm.calls"] = np.where(failed, np.nan, 1.0)
    connection = store(runs)
    connection.execute('UPDATE runs SET "attributes.llm.calls" = NULL WHERE isnan("attributes.llm.calls")')
    found = explain(connection)
    assert {str(one) for one in found.differences} == {
        "attributes.cause = true",
        "user_id is missing",
        "attributes.answer is missing",
    }
    assert [str(one) for one in found.effects] == ["attributes.llm.calls is missing"]


def test_value_that_never_fails_is_reported_as_not_equal():
    runs, _, dice = some_runs(failures=0.3)
    failed = runs["status"] == "FAIL"
    regions = dice.integers(0, 5, RUNS)
    runs["attributes.region"] = named(
        "r", np.where(failed & (regions == 0), dice.integers(1, 5, RUNS), regions)
    )
    found = by_field(explain(store(runs)).differences)["attributes.region"]
    assert found.description == "attributes.region <> r0"


@pytest.mark.parametrize("seed", range(8))
def test_random_failures_have_no_differences(seed: int):
    runs, caused, dice = some_runs(seed)
    runs["attributes.cause"] = caused
    for number in range(20):
        runs[f"attributes.value{number}"] = named("v", dice.integers(0, 5 + number * 20, RUNS))
        runs[f"attributes.number{number}"] = dice.lognormal(0, 1, RUNS)
    runs["status"] = dice.permutation(runs["status"])
    found = explain(store(runs))
    assert found.differences == found.effects == ()
    assert found.summary == "No field differs."
    assert found.fields == 46
    assert found.comparisons > 1_000


def test_summary_without_differences_states_the_number_of_likely_effects():
    runs, _, dice = some_runs()
    runs["status"] = dice.permutation(runs["status"])
    runs["duration_ms"] = np.where(runs["status"] == "FAIL", 5_000, 100) * dice.uniform(0.5, 1, RUNS)
    found = explain(store(runs))
    assert found.differences == ()
    assert found.summary == f"None of the {found.fields} compared fields differs, except for 1 likely effect."


def test_fields_that_define_the_selection_are_left_out():
    runs, caused, _ = some_runs()
    failed = runs["status"] == "FAIL"
    for name in ("outcome", "error_type", "first_failed_stage", "reason"):
        runs[name] = np.where(failed, name, None)
    runs["stages_failed"] = failed.astype(int)
    runs["error"] = np.where(failed, named("error ", range(RUNS)), None)
    runs["exception"] = runs["error"]
    runs["attributes.cause"] = caused
    found = explain(store(runs))
    assert [one.fields[0] for one in found.differences] == ["attributes.cause"]
    why = excluded(found)
    defining = ("status", "outcome", "error", "error_type", "first_failed_stage", "reason", "stages_failed")
    assert {why[name] for name in defining} == {"used to define the selection"}
    assert why["pipeline_run_id"] == "unique ids"
    assert why["request_id"] == "nearly every value is unique"


def test_fields_equivalent_to_the_defining_field_are_left_out():
    runs, _, dice = some_runs()
    numbers = dice.integers(0, 30, RUNS)
    runs["org_id"], runs["attributes.org_name"] = named("org", numbers), named("Org No. ", numbers)
    runs["attributes.plan"] = np.where(numbers == 3, "free", named("plan", dice.integers(0, 3, RUNS)))
    found = explain(store(runs), "org_id = 'org3'")
    assert [str(one) for one in found.differences] == ["attributes.plan = free"]
    assert excluded(found)["attributes.org_name"] == "equivalent to a field that defines the selection"


def test_equivalent_values_are_synonyms_of_one_difference():
    runs, caused, dice = some_runs()
    numbers = np.where(caused, 7, dice.integers(0, 7, RUNS))
    runs["org_id"], runs["attributes.org_name"] = named("org", numbers), named("Org No. ", numbers)
    (found,) = explain(store(runs)).differences
    assert str(found) == "org_id = org7"
    assert found.synonyms == ("attributes.org_name = Org No. 7",)


def test_id_that_repeats_is_compared():
    runs, caused, dice = some_runs()
    runs["user_id"] = named("user", np.where(caused, 0, dice.integers(1, RUNS, RUNS)))
    assert [str(one) for one in explain(store(runs)).differences] == ["user_id = user0"]


@pytest.mark.parametrize("rate", [4, 10])
def test_sampled_row_counts_with_its_weight(rate: int):
    runs, caused, dice = some_runs()
    runs["attributes.cause"] = named("v", np.where(caused, 9, dice.integers(0, 4, RUNS)))
    runs["attributes.tokens"] = np.where(caused, 500.0, 0.0) + dice.random(RUNS).round(2)
    failed = runs["status"] == "FAIL"
    rates = np.where(failed, 1, np.where(np.arange(RUNS) % 2, rate, 1))
    weighted = explain(store({**runs, "sample_rate": rates.astype(float)}))
    expanded = explain(store({name: np.repeat(values, rates) for name, values in runs.items()}))
    assert [str(one) for one in weighted.differences] == [str(one) for one in expanded.differences]
    for one, other in zip(weighted.differences, expanded.differences, strict=True):
        assert one.selection.share == pytest.approx(other.selection.share)
        assert one.rest.share == pytest.approx(other.rest.share)
        assert one.lift == pytest.approx(other.lift)
        assert one.rest.count == pytest.approx(other.rest.count)
        assert one.rest.rows < other.rest.rows
        assert one.q_value > other.q_value


@pytest.mark.parametrize("seed", range(5))
def test_weights_add_no_certainty(seed: int):
    runs, _, dice = some_runs(seed, many=1_000, failures=0.1)
    runs["sample_rate"] = 1 + dice.lognormal(1, 2, 1_000)
    for number in range(20):
        runs[f"attributes.value{number}"] = named("v", dice.integers(0, 2 + number * 2, 1_000))
        runs[f"attributes.number{number}"] = dice.lognormal(0, 1, 1_000)
    found = explain(store(runs))
    assert found.differences == ()
    assert found.selection.count > 5 * found.selection.rows


def stages_of(runs: Columns, names: Iterable[str], dice: Any) -> Columns:
    many, names = len(runs["pipeline_run_id"]), list(names)
    whole = many * len(names)
    return {
        "pipeline_run_id": np.repeat(runs["pipeline_run_id"], len(names)),
        "event_id": named("event", range(whole)),
        "stage_name": np.array(names * many, dtype=object),
        "status": np.array(["OK"] * whole, dtype=object),
        "error_type": np.array([None] * whole, dtype=object),
        "duration_ms": dice.lognormal(3, 1, whole),
        "queue_ms": dice.random(whole),
        "attempts": np.ones(whole, dtype=int),
        "attributes.model": named("m", dice.integers(0, 4, whole)),
    }


def test_fields_of_the_stages_of_runs_are_compared():
    runs, caused, dice = some_runs()
    stages = stages_of(runs, ("fetch", "answer", "store"), dice)
    failed = np.repeat(runs["status"] == "FAIL", 3)
    fetch, answer, last = (stages["stage_name"] == name for name in ("fetch", "answer", "store"))
    stages["attributes.model"][np.repeat(caused, 3) & fetch] = "m9"
    stages["status"][failed & answer] = "FAIL"
    stages["error_type"][failed & answer] = "TimeoutError"
    stages["duration_ms"][failed & answer] += 1_000
    # A stage that never ran has no attributes, which is an effect of the failure and not its cause.
    stages["status"][failed & last] = "CANCEL"
    stages["attributes.model"][failed & last] = None
    connection = store(runs, stages)
    connection.execute(
        "INSERT INTO stages SELECT * REPLACE ('RETRY' AS status) FROM stages WHERE attempts = 0"
    )
    found = explain(connection)
    assert str(found.differences[0]) == "fetch/attributes.model = m9"
    assert [one.fields[0] for one in found.differences] == ["fetch/attributes.model"]
    came = found.effects[0]
    same = {str(came), *came.synonyms}
    assert {"answer/status = FAIL", "store/status = CANCEL", "store/attributes.model is missing"} <= same
    assert "answer/duration_ms" in by_field(found.effects) or "answer/duration_ms" in str(same)
    assert runs_of(connection, found.differences[0].sql) == found.differences[0].selection.rows


def test_slow_runs_have_the_slow_stage_as_a_consequence():
    runs, caused, dice = some_runs()
    stages = stages_of(runs, ("fetch", "answer"), dice)
    stages["duration_ms"][np.repeat(caused, 2) & (stages["stage_name"] == "answer")] += 5_000
    runs["duration_ms"] = stages["duration_ms"].reshape(-1, 2).sum(axis=1)
    runs["attributes.cold"] = caused
    found = explain(store(runs, stages), "duration_ms > 3000")
    assert str(found.differences[0]) == "attributes.cold = true"
    assert found.effects[0].fields == ("answer/duration_ms",)
    assert excluded(found)["duration_ms"] == "used to define the selection"


def test_failures_of_a_version_are_a_difference():
    runs, caused, _ = some_runs()
    runs["service_version"] = np.where(caused, "2.0", "1.0").astype(object)
    found = explain(store(runs), "service_version = '2.0'")
    assert [str(one) for one in found.differences] == ["status = FAIL"]
    assert found.effects == ()


def test_stages_are_compared_with_stages():
    runs, _, dice = some_runs()
    stages = stages_of(runs, ("fetch", "answer"), dice)
    stages["status"][(dice.random(2 * RUNS) < 0.05) & (stages["attributes.model"] == "m1")] = "FAIL"
    found = explain(store(runs, stages), over="stages")
    assert str(found.differences[0]) == "attributes.model = m1"
    assert found.over == "stages"
    assert found.selection.rows + found.rest.rows == 2 * RUNS


def test_stages_are_clustered_by_run():
    runs, _, dice = some_runs(many=60)
    stages = stages_of(runs, [f"s{number}" for number in range(40)], dice)
    cancelled = np.isin(stages["pipeline_run_id"], ["run1", "run2"])
    stages["status"][cancelled] = "CANCEL"
    stages["user_id"] = np.where(
        np.isin(stages["pipeline_run_id"], ["run1", "run2", "run3"]), "u1", "u2"
    ).astype(object)
    found = explain(store(runs, stages), "status = 'CANCEL'", over="stages")
    assert "user_id" not in by_field(found.differences)


def test_against_restricts_the_rest():
    runs, caused, _ = some_runs()
    runs["attributes.cause"] = caused
    found = explain(store(runs), against="status = 'OK' AND org_id <> 'org1'")
    assert found.differences[0].fields == ("attributes.cause",)
    assert found.rest.rows == ((runs["status"] == "OK") & (runs["org_id"] != "org1")).sum()
    assert "org_id" in excluded(found)


def runs_of(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    ((many,),) = connection.execute(f"SELECT count(*) FROM ({sql.removesuffix(' LIMIT 100')})").fetchall()
    return int(many)


def test_queries_of_differences_return_the_counted_rows():
    runs, caused, dice = some_runs()
    for number, values in enumerate(
        (
            np.where(caused, 'it\'s -- a "quote"', named("v", dice.integers(0, 4, RUNS))),
            np.where(caused, 812.25, dice.random(RUNS) * 800),
            np.where(dice.random(RUNS) < 0.01, ~caused, caused),
            np.where(caused & (dice.random(RUNS) < 0.9), None, named("v", dice.integers(0, 4, RUNS))),
            np.where(caused & (dice.random(RUNS) < 0.8), 0, -1 - dice.integers(0, 4, RUNS)),
        )
    ):
        runs[f'attributes."select".{number}'] = values
    runs["started_at"] += np.where(caused & (dice.random(RUNS) < 0.9), 10**6, 0).astype("timedelta64[s]")
    connection = store(runs)
    connection.execute("ALTER TABLE runs ALTER started_at TYPE TIMESTAMPTZ")
    found = explain(connection, "status = 'FAIL' -- the failed ones")
    assert len({name for one in found.differences for name in (str(one), *one.synonyms)}) == 6
    for one in found.differences:
        assert runs_of(connection, one.sql) == one.selection.rows, one.sql


def test_explain_leaves_no_table_behind():
    runs, _, _ = some_runs()
    connection = store(runs)
    explain(connection)
    with pytest.raises(QueryError):
        explain(connection, "1 / org_id > 3")
    assert [row[0] for row in connection.execute("SHOW TABLES").fetchall()] == ["runs"]


def test_transaction_of_the_caller_continues():
    runs, caused, _ = some_runs()
    connection = store({**runs, "attributes.cause": caused})
    connection.begin()
    connection.execute("DELETE FROM runs WHERE org_id = 'org1'")
    found = explain(connection)
    connection.rollback()
    assert found.differences[0].fields == ("attributes.cause",)
    assert found.selection.rows + found.rest.rows == (runs["org_id"] != "org1").sum()


def test_explain_is_deterministic():
    runs, caused, _ = some_runs(many=60_000)
    runs["attributes.cause"] = caused
    connection = store(runs)
    found = explain(connection)
    assert found == explain(connection)
    assert found.rest_compared < found.rest.rows
    assert found.differences[0].fields == ("attributes.cause",)


@pytest.mark.parametrize(
    ("where", "summary"),
    [
        ("status = 'NONE'", "No rows are selected."),
        (
            "status IN ('OK', 'FAIL')",
            "No other rows remain for the comparison.",
        ),
        ("NULL", "No rows are selected."),
    ],
)
def test_summary_reports_a_side_without_rows(where: str, summary: str):
    runs, _, _ = some_runs(many=100)
    found = explain(store(runs), where)
    assert found.summary == summary
    assert found.differences == ()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("stauts = 'FAIL'", "did you mean 'status'?"),
        ('"attributes.sise" > 3', 'did you mean "attributes.size"?'),
        ("status = ", "syntax error"),
        ("status = 'FAIL'); DROP TABLE runs; --", "invalid predicate"),
        ("status = 'FAIL'; DROP TABLE runs", "invalid predicate"),
        ("org_id > now()", "org_id > now()"),
        ("foo(org_id)", "foo does not exist"),
    ],
)
def test_invalid_predicate_raises_an_error_with_a_hint(where: str, said: str):
    connection = store(some_runs(many=100)[0])
    for asked in ({"where": where}, {"against": where}):
        with pytest.raises(QueryError, match=re.escape(said)) as caught:
            explain(connection, **asked)
        assert caught.value.sql == where
        assert caught.value.hint
        assert isinstance(caught.value, ValueError)
    assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(100,)]


def test_missing_view_is_an_error():
    with pytest.raises(QueryError, match="the view 'runs' does not exist"):
        explain(duckdb.connect())
    with pytest.raises(QueryError, match="cannot explain 'events'"):
        explain(duckdb.connect(), over="events")  # type: ignore[arg-type]


def test_missing_package_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("stageflow.store.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "stageflow[store]"')):
        explain(duckdb.connect())


def test_only_the_most_frequent_stages_are_compared():
    runs, caused, dice = some_runs()
    stages = stages_of(runs, ("fetch",), dice)
    kinds = np.where(caused, 0, dice.integers(1, 100, RUNS))
    stages["stage_name"] = named("fetch", kinds)
    found = explain(store(runs, stages))
    assert str(found.differences[0]) == "fetch0/status has a value"
    assert len([why for why in excluded(found).values() if why == "stages that occur in few runs"]) == 50


def drawn(found: Explanation, width: int | None, **how: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width or 200, **how)
    console.print(draw_explanation(found, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_drawing_fits_the_width_and_describes_every_difference(width: int):
    runs, caused, dice = some_runs()
    runs["attributes.gen_ai.request.model"] = np.where(caused, "m-large\x1b[2J", "m-small").astype(object)
    runs["attributes.copy"] = np.where(dice.random(RUNS) < 0.05, ~caused, caused)
    runs["duration_ms"] *= np.where(runs["status"] == "FAIL", 5, 1)
    found = explain(store(runs))
    text = drawn(found, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for words in (
        "of the failures match",
        r"m-large\x1b[2J",
        "explained by 1",
        "likely effects",
        "not compared: ",
        "the rows of the first difference",
    ):
        assert words in text
    assert "\x1b" not in text
    assert "…" not in text


def test_drawing_of_an_empty_selection_contains_the_verdict():
    found = explain(store(some_runs(many=100)[0]), "status = 'NONE'")
    assert "No rows are selected." in drawn(found, 80)


def test_two_causes_that_only_fail_together_are_reported_together() -> None:
    connection = duckdb.connect()
    connection.execute("""
        CREATE TABLE runs AS SELECT
            'run-' || i AS pipeline_run_id, 'OK' AS status,
            TIMESTAMPTZ '2026-11-24 08:00:00Z' + to_seconds(i) AS started_at,
            'org-' || i * 7919 % 6 AS org_id,
            'm-' || i * 31 % 5 AS "attributes.model",
            i * 61 % 97 / 10 AS "attributes.db_ms",
            if(org_id = 'org-3' AND "attributes.model" = 'm-2', 900, 100) + i * 61 % 97 AS duration_ms,
            duration_ms / 2000 AS "attributes.gen_ai.response.time_to_first_chunk",
        FROM range(6000) r(i)
    """)
    found = explain(connection, "duration_ms > 500")
    first, *others = found.differences
    assert (first.shape, set(first.fields)) == ("combination", {"org_id", "attributes.model"})
    assert set(str(first).split(" and ")) == {"org_id = org-3", "attributes.model = m-2"}
    assert (first.selection.share, first.rest.share) == (1.0, 0.0)
    assert len(connection.execute(first.sql).fetchall()) == 100
    assert {one.verdict for one in others} == {"explained"}
    # A measured time, such as the time to the first chunk, is not a cause of a slow run.
    name = "attributes.gen_ai.response.time_to_first_chunk"
    assert name not in by_field(found.differences)
    assert name in by_field(found.effects)
    assert found.summary.startswith("100% of the slow runs match ")


def test_single_cause_is_not_reported_as_two() -> None:
    connection = duckdb.connect()
    connection.execute("""
        CREATE TABLE runs AS SELECT 'run-' || i AS pipeline_run_id,
            'org-' || i * 7919 % 6 AS org_id, 'm-' || i * 31 % 5 AS "attributes.model",
            if(org_id = 'org-3' AND i * 31 % 101 < 80, 'FAIL', 'OK') AS status,
        FROM range(6000) r(i)
    """)
    found = explain(connection)
    assert [str(one) for one in found.differences] == ["org_id = org-3"]


@pytest.mark.parametrize(
    ("predicate", "problem"),
    [
        ("1.4", "does not refer to a field"),
        ("1 = 1", "does not refer to a field"),
        ("user = 'u1'", "use user_id"),
        ("user = 'u1' and status = 'OK'", "use user_id"),
        ("status = 'OK' and current_user = 'u1'", "use user_id"),
        ("status = 'OK' and current_schema = 'main'", "not a field"),
    ],
)
def test_predicate_that_does_not_depend_on_fields_is_an_error(predicate: str, problem: str) -> None:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE runs AS SELECT 'a' AS user_id, 'OK' AS status")
    with pytest.raises(QueryError, match=problem):
        explain(connection, predicate)
