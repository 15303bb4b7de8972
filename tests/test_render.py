"""Text for the terminal: content, alignment and width."""

import io
import re

import pytest
from rich.console import Console

from stageflow.render import draw_run, draw_runs, draw_summary
from stageflow.render._tables import percentile

RUN_ID = "01a20968-4daf-7b4d-b7d6-fe34deaba3ae"
IDS = {
    "pipeline_run_id": RUN_ID,
    "request_id": "r-1",
    "session_id": None,
    "user_id": "u-7",
    "org_id": None,
}
LABELS = {"service": "desk", "topology": "reference", "execution_mode": "default"}


def at(ms: float) -> str:
    return f"2026-11-23T17:00:{ms / 1000:09.6f}Z"


def core_stage(name, status="OK", start=0.0, took=10.0, error=None, **more):
    """Return a `stage.wide` with only the keys that stageflow-core documents."""
    return {
        "stage_name": name,
        "status": status,
        "duration_ms": took,
        "started_at": at(start),
        "ended_at": at(start + took),
        "error": error,
        "data_keys": [],
        "artifacts_count": 0,
        "events_count": 0,
        "correlation_ids": IDS,
        "pipeline_metadata": LABELS,
        **more,
    }


def stage(name, status="OK", start=0.0, took=10.0, *, tries=1, queue=0.0, **more):
    return core_stage(name, status, start, took, attempts=tries, attempt=tries, queue_ms=queue, **more)


def core_run(stages, status="OK", took=100.0, error=None, **more):
    """Return a `pipeline.wide` with only the keys that stageflow-core documents."""
    ends = [stage for stage in stages if stage["status"] != "RETRY"]
    return {
        "status": status,
        "duration_ms": took,
        "started_at": at(0),
        "ended_at": at(took),
        "stages_total": len(ends),
        "stages_completed": sum(stage["status"] == "OK" for stage in ends),
        "stages_failed": sum(stage["status"] == "FAIL" for stage in ends),
        "stages_skipped": sum(stage["status"] == "SKIP" for stage in ends),
        "stages_cancelled": sum(stage["status"] == "CANCEL" for stage in ends),
        "error": error,
        "stage_summaries": [
            {key: stage[key] for key in ("stage_name", "status", "duration_ms", "error")} for stage in ends
        ],
        "correlation_ids": IDS,
        "pipeline_metadata": LABELS,
        **more,
    }


EXCEPTION = {
    "type": "ValueError",
    "message": "no expression: 'a AND ('",
    "stack": ["desk.py:10 in search", "index.py:20 in match"],
    "chain": [
        {
            "type": "sqlite3.OperationalError",
            "message": "syntax error",
            "stack": ["index.py:21 in _ask"],
            "chain": [],
            "relation": "cause",
        }
    ],
    "relation": None,
}
STAGES = [
    stage("guard", start=0, took=20, attributes={"chars": 16, "query": "two words"}),
    stage("search", "FAIL", start=40, took=50, queue=20, error="ValueError: no", exception=EXCEPTION),
    stage("tally", "RETRY", start=20, took=10, error="database is locked"),
    stage("tally", "OK", start=50, took=40, tries=2, queue=30, missing_inputs=["guard.wrods"]),
    stage("quote", "SKIP", start=90, took=0, tries=0, reason="route 'quote' was not chosen"),
    stage("answer", "CANCEL", start=100, took=0, tries=0, reason="never started"),
    stage("close", "CANCEL", start=100, took=0, tries=0, reason="never started"),
]
FAILED = core_run(
    STAGES,
    "FAIL",
    error="stage 'search' failed: ValueError: no",
    outcome="failed",
    pipeline_name="reference-desk",
    reason="stage 'search' failed",
    critical_path=["guard", "search"],
    exception=EXCEPTION,
    trace={"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"},
    attributes={},
)


def drawn(renderable, width=80, **console) -> str:
    file = io.StringIO()
    Console(file=file, width=width, **console).print(renderable)
    return file.getvalue()


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.lstrip("* ").startswith(start + " "))


def rule(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("───"))


def test_draw_run_shows_ids_labels_attributes_and_reasons():
    text = drawn(draw_run(FAILED, STAGES))
    head = text.splitlines()[0]
    assert head.split() == ["reference-desk", "failed", "100.00", "ms"]
    for expected in (
        RUN_ID,
        "user_id=u-7",
        "service=desk",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        'chars=16  query="two words"',
        "attempt 1: database is locked",
        "missing inputs: guard.wrods",
        "route 'quote' was not chosen",
    ):
        assert expected in text
    assert "session_id" not in text, "ids that are None are omitted"
    assert "stage 'search' failed: ValueError: no" in text
    assert "reason" not in text.split("stage")[0], "the error contains it already"


def test_waterfall_shows_when_each_stage_ran():
    text = drawn(draw_run(FAILED, STAGES))
    bar_at = line(text, "stage").index("0 to 100.00 ms")
    bars = {name: line(text, name)[bar_at:].rstrip() for name in ("guard", "search", "tally", "quote")}
    width = len(rule(text)) - bar_at
    cell = width / 100
    assert bars["guard"].strip("█") == ""
    assert len(bars["guard"]) == pytest.approx(20 * cell, abs=1)
    assert bars["search"].index("·") == pytest.approx(20 * cell, abs=1)
    assert bars["search"].index("█") == pytest.approx(40 * cell, abs=1)
    assert re.fullmatch(r" *░+·+█+", bars["tally"]), "an attempt, the wait after it, the last attempt"
    assert bars["quote"] == ""


def test_waterfall_marks_the_critical_path_without_color():
    text = drawn(draw_run(FAILED, STAGES))
    assert [name for name in ("guard", "search", "tally", "answer") if line(text, name)[0] == "*"] == [
        "guard",
        "search",
    ]


def test_waterfall_lists_stages_in_the_order_in_which_they_became_ready():
    text = drawn(draw_run(FAILED, STAGES))
    rows = re.findall(r"^(?:\* |  )(\w+) +(?:OK|FAIL|SKIP|CANCEL) ", text, re.MULTILINE)
    assert rows == ["guard", "search", "tally", "quote", "answer", "close"]


def test_waterfall_aligns_numbers_to_the_right():
    stages = [stage("one", took=1.5), stage("two", took=12345.678, tries=12), stage("three", took=0.004)]
    text = drawn(draw_run(core_run(stages, took=20000.0), stages), width=100)
    ends = {re.search(r"\d\.\d\d  ", line(text, name)[30:]).end() for name in ("one", "two", "three")}
    assert len(ends) == 1
    assert "12,345.68" in text


def test_stages_with_the_same_details_share_one_entry():
    assert re.search(r"answer, close +never started", drawn(draw_run(FAILED, STAGES)))


def test_exception_is_shown_once_with_its_stack_and_cause():
    text = drawn(draw_run(FAILED, STAGES))
    shown = text[text.index("exception in search") :]
    assert shown.index("desk.py:10 in search") < shown.index("index.py:20 in match")
    assert shown.index("caused by sqlite3.OperationalError: syntax error") < shown.index(
        "index.py:21 in _ask"
    )
    assert text.count("index.py:20") == 1, "the run has the same exception as its stage"


def test_exception_of_the_run_is_shown_if_no_stage_failed():
    late = {**EXCEPTION, "type": "DeadlineExceededError", "chain": []}
    run = core_run([stage("slow", "CANCEL")], "FAIL", outcome="timeout", exception=late)
    assert "exception in the run" in drawn(draw_run(run, [stage("slow", "CANCEL")]))


def test_draw_run_requires_only_the_documented_keys():
    stages = [core_stage("input"), core_stage("llm", "FAIL", error="boom")]
    run = core_run(stages, "FAIL", error="boom")
    run["started_at"], run["ended_at"] = "2026-11-23T17:00:00Z", "2026-11-23T17:00:00.1Z"
    text = drawn(draw_run(run, stages))
    assert text.startswith("reference  FAIL  100.00 ms")
    assert "█" in line(text, "llm")
    assert "boom" in text


def test_run_without_stage_events_is_drawn_from_its_summaries():
    text = drawn(draw_run(FAILED))
    assert "50.00" in line(text, "search")
    assert "█" not in text.split("* on the critical")[0]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_output_fits_and_uses_the_width(width):
    names = {f"stage_with_a_name_of_some_length_{number}": number for number in range(3)}
    many = [*STAGES, *(stage(name, start=number) for name, number in names.items())]
    run = core_run(many, "FAIL", error="x" * 300, outcome="failed", exception=EXCEPTION)
    lines = drawn(draw_run(run, many), width=width).splitlines()
    lines += drawn(draw_summary([run], many), width=width).splitlines()
    assert max(map(len, lines)) <= width
    shown = drawn(draw_run(FAILED, STAGES), width=width)
    assert len(rule(shown)) == width


def test_narrow_terminal_shows_numbers_without_bars():
    text = drawn(draw_run(FAILED, STAGES), width=50)
    assert "█" not in text.split("* on the critical")[0]
    assert "50.00" in line(text, "search")


def test_ascii_terminal_is_supported():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=80).print(draw_run(FAILED, STAGES), draw_summary([FAILED], STAGES))
    file.seek(0)
    assert re.search(r"%+\.+#+", line(file.read(), "tally"))


def test_text_is_the_same_with_and_without_color():
    def colored(**console):
        return drawn(draw_run(FAILED, STAGES), force_terminal=True, **console)

    assert "\x1b[31mfailed" in colored(color_system="standard")
    plain = colored(color_system=None)
    assert "\x1b" not in plain
    assert plain == drawn(draw_run(FAILED, STAGES))


def custom_event(number, **data):
    """Return the type and data that a sink receives for `ctx.emit_event`."""
    envelope = {"event_id": f"{RUN_ID}/guard/1/{number}", "stage_name": "guard", "attempt": 1}
    return "desk.asked", {**envelope, "emitted_at": at(number), "correlation_ids": IDS, **data}


def test_custom_events_are_listed_up_to_a_limit():
    text = drawn(draw_run(FAILED, STAGES, events=[custom_event(number, hits=number) for number in range(25)]))
    assert re.search(r"3.00  desk.asked  guard  hits=3 *$", text, re.MULTILINE)
    assert "and 5 more" in text
    assert "hits=20" not in text
    assert "event_id" not in text


def test_long_custom_event_is_truncated():
    text = drawn(draw_run(FAILED, STAGES, events=[custom_event(1, text="x" * 5000)]))
    assert 290 < text.count("x") < 320


def test_child_runs_are_listed():
    text = drawn(draw_run(FAILED, STAGES, children=[{**FAILED, "pipeline_name": "inner"}]))
    assert re.search(r"failed +inner +100.00 ", text[text.index("child runs") :])


def test_interrupted_stage_is_drawn_as_waiting():
    interrupted = [
        stage("ready", "CANCEL", start=100, took=0, tries=0, queue=60.0),
        stage("again", "RETRY", start=10, took=20, error="down"),
        {**stage("again", "CANCEL", start=100, took=0, tries=1, queue=70.0), "attempt": 2},
        stage("never", "CANCEL", start=100, took=0, tries=0),
    ]
    text = drawn(draw_run(core_run(interrupted, "FAIL", outcome="crashed"), interrupted))
    assert re.search(r"60.00 +·+$", line(text, "ready"))
    assert re.search(r"70.00 +0.00 +░+·+$", line(text, "again"))
    assert line(text, "never").split() == ["never", "CANCEL", "0"]


def test_run_in_progress_is_drawn_with_its_duration_so_far():
    stages = [stage("guard"), stage("search", "OPEN", took=0.0)]
    run = {**core_run(stages, "OPEN", outcome="open"), "ended_at": None}
    text = drawn(draw_run(run, stages[:1]))
    assert text.startswith("reference  open  100.00 ms so far")
    assert line(text, "search").split() == ["search", "OPEN"]


def test_list_of_runs_omits_the_least_important_columns_first():
    def headings(width):
        return drawn(draw_runs([FAILED], width=width), width=width or 500).splitlines()[0].split()

    assert headings(None) == ["began", "outcome", "pipeline", "ms", "stages", "run", "user", "request", "why"]
    assert headings(140)[-2:] == ["user", "request"]
    assert headings(80) == ["began", "outcome", "pipeline", "ms", "stages", "run"]
    assert headings(60) == ["began", "outcome", "pipeline", "run"]
    assert drawn(draw_runs([], width=80)).split()[0] == "began"


def test_bidirectional_control_characters_are_escaped():
    stages = [stage("guard", error="exe.\u202efdp")]
    assert r"exe.\u202efdp" in drawn(draw_run(core_run(stages), stages))


def test_control_characters_and_markup_in_records_are_not_interpreted():
    evil = "\x1b[2J\x1b]0;owned\x07[bold]:boom:\r\x9b1m"
    stages = [stage(evil, "FAIL", error=evil, attributes={evil: evil}, reason=evil)]
    run = core_run(stages, "FAIL", error=evil, outcome=evil)
    exception = {"type": evil, "message": evil, "stack": [evil], "chain": [], "relation": None}
    stages[0]["exception"] = exception
    text = drawn(draw_run(run, stages), width=200) + drawn(draw_summary([run], stages), width=200)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert r"\x1b[2J" in text
    assert "[bold]:boom:" in text, "neither markup nor emoji"


def row(text: str, name: str) -> list[str]:
    return line(text, name).split()


def test_summary_counts_runs_by_outcome():
    runs = [
        *(core_run([], outcome="ok", took=float(ms)) for ms in range(1, 101)),
        *(core_run([], outcome="failed", took=5.0) for _ in range(25)),
    ]
    text = drawn(draw_summary(runs, []))
    assert row(text, "ok") == ["ok", "100", "80.0", "%", "50.00", "95.00"]
    assert row(text, "failed") == ["failed", "25", "20.0", "%", "5.00", "5.00"]
    assert row(text, "all")[:2] == ["all", "125"]


def test_summary_counts_statuses_of_stages():
    events = [
        *(stage("search", took=float(ms)) for ms in range(1, 20)),
        stage("search", "FAIL", took=500.0),
        stage("search", "RETRY", took=9000.0),
        stage("search", "SKIP", took=0, tries=0),
        stage("search", "CANCEL", took=0, tries=0),
    ]
    text = drawn(draw_summary([], events))
    #                                  ran, p50, p95, fail, retry, skip, cancel
    assert row(text, "search") == ["search", "20", "10.00", "19.00", "1", "1", "1", "1"]


def test_summary_weights_sampled_records_by_their_sample_rate():
    runs = [core_run([], outcome="ok", took=1.0, sample_rate=99.0), core_run([], outcome="failed", took=9.0)]
    text = drawn(draw_summary(runs, [stage("search", sample_rate=10)]))
    assert row(text, "ok") == ["ok", "99", "99.0", "%", "1.00", "1.00"]
    assert row(text, "search")[1] == "10"


def test_summary_without_runs_has_a_total_of_zero():
    assert row(drawn(draw_summary([], [])), "all") == ["all", "0"]


def test_percentiles_are_measured_values():
    assert percentile([], 50) is None
    assert percentile([(3.0, 1)], 95) == 3.0
    assert [percentile([(float(n), 1) for n in range(1, 11)], rank) for rank in (0, 50, 95, 100)] == [
        1.0,
        5.0,
        10.0,
        10.0,
    ]


def test_table_of_runs_shows_an_event_of_another_producer_without_counts() -> None:
    run = core_run([stage("guard")])
    for name in ("stages_total", "stages_completed", "stages_failed", "stages_skipped", "stages_cancelled"):
        del run[name]
    text = drawn(draw_runs([run], width=120), width=120)
    assert "stages" in text
    assert "None" not in text
