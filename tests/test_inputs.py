"""`ctx.inputs`: the data that a stage can read from its ancestors, and the errors for typos."""

from __future__ import annotations

import asyncio
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from oracle import check_record, stage_wide

from stageflow import Pipeline, PipelineContext, PipelineResults, StageContext, StageOutput, StageStatus
from stageflow.errors import InputError, MissingInputError, PipelineValidationError, UnknownInputError
from stageflow.events import MemoryEventSink
from stageflow.observability import WideEventEmitter

Read = Callable[[StageContext], Any]


async def search(ctx: StageContext) -> dict[str, Any]:
    return {"hits": 3, "query": "why?", "nothing": None}


async def skipped(ctx: StageContext) -> StageOutput:
    return StageOutput.skip("nobody asked", partial=1)


async def failing(ctx: StageContext) -> None:
    raise ConnectionError("search is down")


def reading(read: Read) -> Pipeline:
    """Return a pipeline with a stage `reader` that reads from its ancestors; `aside` is not an ancestor.

    search -> rank -> reader
    skipped --------> reader
    failing --------> reader      aside, later: not ancestors
    """

    async def reader(ctx: StageContext) -> dict[str, Any]:
        return {"read": read(ctx)}

    async def rank(ctx: StageContext) -> dict[str, Any]:
        return {"best": "a"}

    return (
        Pipeline("ask")
        .with_stage("search", search)
        .with_stage("rank", rank, dependencies=("search",))
        .with_stage("skipped", skipped)
        .with_stage("failing", failing, optional=True)
        .with_stage("aside", search)
        .with_stage("reader", reader, dependencies=("rank", "skipped", "failing"))
        .with_stage("later", search, dependencies=("reader",))
    )


async def run(read: Read, sink: MemoryEventSink | None = None) -> PipelineResults:
    graph = reading(read).build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink or MemoryEventSink()),
    )
    return await graph.run(PipelineContext(data={"question": "why?"}))


async def value_read(read: Read) -> Any:
    results = await run(read)
    results.raise_on_failure()
    return results.data("reader")["read"]


async def error_raised(read: Read) -> tuple[InputError, str]:
    """Return the error of the stage that reads, and the id of the run."""
    results = await run(read)
    assert results["reader"].status is StageStatus.FAIL
    error = results["reader"].exception
    assert isinstance(error, InputError)
    assert isinstance(error, LookupError)
    return error, str(results.context.pipeline_run_id)


# ---------------------------------------------------------------- get_from


async def test_get_from_reads_a_dependency() -> None:
    assert await value_read(lambda ctx: ctx.inputs.get_from("rank", "best")) == "a"


async def test_get_from_reads_any_ancestor() -> None:
    assert await value_read(lambda ctx: ctx.inputs.get_from("search", "hits")) == 3


async def test_get_from_behaves_like_dict_get() -> None:
    def read(ctx: StageContext) -> list[Any]:
        return [
            ctx.inputs.get_from("search", "absent"),
            ctx.inputs.get_from("search", "absent", 7),
            ctx.inputs.get_from("search", "absent", default=8),
            ctx.inputs.get_from("search", "nothing", 9),  # the key exists, and its value is None
        ]

    assert await value_read(read) == [None, 7, 8, None]


async def test_get_from_returns_the_default_for_a_skipped_or_failed_stage() -> None:
    def read(ctx: StageContext) -> list[Any]:
        return [ctx.inputs.get_from("skipped", "hits", 1), ctx.inputs.get_from("failing", "hits", 2)]

    assert await value_read(read) == [1, 2]


async def test_input_of_the_run_is_run_data() -> None:
    assert await value_read(lambda ctx: ctx.run.data["question"]) == "why?"


async def test_result_from_returns_the_complete_result_of_an_ancestor() -> None:
    def read(ctx: StageContext) -> list[Any]:
        result = ctx.inputs.result_from("skipped")
        return [result.status, result.reason, ctx.inputs.result_from("failing").error]

    assert await value_read(read) == ["SKIP", "nobody asked", "ConnectionError: search is down"]


async def test_inputs_can_be_read_in_a_thread() -> None:
    def plain(ctx: StageContext) -> dict[str, Any]:
        return {"hits": ctx.inputs.require_from("search", "hits")}

    pipeline = Pipeline("p").with_stage("search", search).with_stage("plain", plain, dependencies=("search",))
    results = await pipeline.build().run()
    assert results.data("plain") == {"hits": 3}


# ---------------------------------------------------------------- stages that are not ancestors


async def test_reading_an_unknown_stage_raises_with_a_hint() -> None:
    error, run_id = await error_raised(lambda ctx: ctx.inputs.get_from("serch", "hits"))
    assert type(error) is UnknownInputError
    assert str(error) == (
        "'serch' is not an ancestor of 'reader'; did you mean 'search'? "
        f"[stage 'reader', pipeline 'ask', run {run_id}]\n"
        "  hint: it can read 'failing', 'rank', 'search', 'skipped'; "
        "add 'serch' to its dependencies to read it"
    )


@pytest.mark.parametrize("stage", ["aside", "later", "reader"])
async def test_reading_a_stage_that_is_not_an_ancestor_raises_with_a_hint(stage: str) -> None:
    # Even if the stage has ended, this is an error: it may not have run yet.
    error, run_id = await error_raised(lambda ctx: ctx.inputs.get_from(stage, "hits", "default"))
    assert type(error) is UnknownInputError
    assert str(error) == (
        f"{stage!r} is not an ancestor of 'reader' [stage 'reader', pipeline 'ask', run {run_id}]\n"
        "  hint: it can read 'failing', 'rank', 'search', 'skipped'; "
        f"add {stage!r} to its dependencies to read it"
    )
    assert (error.pipeline, error.stage, error.run_id) == ("ask", "reader", run_id)


@pytest.mark.parametrize("how", ["get_from", "require_from", "result_from"])
async def test_every_read_method_rejects_a_stage_that_is_not_an_ancestor(how: str) -> None:
    def read(ctx: StageContext) -> Any:
        arguments = ("aside",) if how == "result_from" else ("aside", "hits")
        return getattr(ctx.inputs, how)(*arguments)

    error, _ = await error_raised(read)
    assert type(error) is UnknownInputError


async def test_stage_without_dependencies_can_read_nothing() -> None:
    async def first(ctx: StageContext) -> None:
        ctx.inputs.get_from("second", "key")

    results = await Pipeline("p").with_stage("first", first).with_stage("second", search).build().run()
    assert str(results["first"].exception) == (
        "'second' is not an ancestor of 'first' "
        f"[stage 'first', pipeline 'p', run {results.context.pipeline_run_id}]\n"
        "  hint: it can read nothing; add 'second' to its dependencies to read it"
    )


async def test_error_lists_the_first_of_many_ancestors() -> None:
    pipeline = Pipeline("p")
    names = [f"s{number:02}" for number in range(20)]
    for name in names:
        pipeline = pipeline.with_stage(name, search)

    async def reader(ctx: StageContext) -> None:
        ctx.inputs.get_from("zzz", "key")

    results = await pipeline.with_stage("reader", reader, dependencies=names).build().run()
    shown = ", ".join(repr(name) for name in names[:12])
    assert str(results["reader"].exception).splitlines()[1] == (
        f"  hint: it can read {shown} and 8 more; add 'zzz' to its dependencies to read it"
    )


# ---------------------------------------------------------------- require_from


async def test_require_from_reads_any_ancestor() -> None:
    assert await value_read(lambda ctx: ctx.inputs.require_from("search", "hits")) == 3


async def test_require_from_accepts_the_value_none() -> None:
    assert await value_read(lambda ctx: ctx.inputs.require_from("search", "nothing")) is None


async def test_require_from_raises_for_a_missing_key_with_known_keys_and_the_closest_match() -> None:
    error, run_id = await error_raised(lambda ctx: ctx.inputs.require_from("search", "hit"))
    assert type(error) is MissingInputError
    assert str(error) == (
        "'search' did not return 'hit'; did you mean 'hits'? "
        f"[stage 'reader', pipeline 'ask', run {run_id}]\n"
        "  hint: it returned 'hits', 'query', 'nothing'"
    )


async def test_require_from_raises_for_a_skipped_stage() -> None:
    error, run_id = await error_raised(lambda ctx: ctx.inputs.require_from("skipped", "hits"))
    assert type(error) is MissingInputError
    assert str(error) == (
        "'skipped' did not return 'hits': it ended with SKIP (nobody asked) "
        f"[stage 'reader', pipeline 'ask', run {run_id}]\n"
        "  hint: use get_from('skipped', 'hits', default) to run without it, "
        "or conditional=True to skip this stage when the value is missing"
    )


async def test_require_from_raises_for_a_skipped_stage_even_if_it_returned_the_key() -> None:
    error, _ = await error_raised(lambda ctx: ctx.inputs.require_from("skipped", "partial"))
    assert type(error) is MissingInputError


async def test_require_from_raises_for_an_optional_stage_that_failed() -> None:
    error, run_id = await error_raised(lambda ctx: ctx.inputs.require_from("failing", "hits"))
    assert str(error).splitlines()[0] == (
        "'failing' did not return 'hits': it ended with FAIL (ConnectionError: search is down) "
        f"[stage 'reader', pipeline 'ask', run {run_id}]"
    )


# ---------------------------------------------------------------- the record


async def test_missing_keys_are_recorded(sink: MemoryEventSink) -> None:
    def read(ctx: StageContext) -> None:
        ctx.inputs.get_from("search", "hits")
        ctx.inputs.get_from("search", "hist")
        ctx.inputs.get_from("rank", "worst", "default")
        ctx.inputs.get_from("search", "hist")  # listed once

    results = await run(read, sink)
    check_record(sink.events, results)
    assert stage_wide(sink.events, "reader")["missing_inputs"] == ["search.hist", "rank.worst"]
    assert results["reader"].missing_inputs == ("search.hist", "rank.worst")
    assert stage_wide(sink.events, "rank")["missing_inputs"] == []


async def test_missing_required_keys_are_recorded(sink: MemoryEventSink) -> None:
    results = await run(lambda ctx: ctx.inputs.require_from("search", "hist"), sink)
    check_record(sink.events, results)
    assert stage_wide(sink.events, "reader")["missing_inputs"] == ["search.hist"]


async def test_each_attempt_records_its_missing_keys(sink: MemoryEventSink) -> None:
    async def reader(ctx: StageContext) -> StageOutput | None:
        ctx.inputs.get_from("search", f"key{ctx.attempt}")
        return StageOutput.retry("once more", after=0) if ctx.attempt == 1 else None

    pipeline = (
        Pipeline("p").with_stage("search", search).with_stage("reader", reader, dependencies=("search",))
    )
    await pipeline.build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
    ).run()
    named = [data["missing_inputs"] for data in sink.of_type("stage.wide") if data["stage_name"] == "reader"]
    assert named == [["search.key1"], ["search.key2"]]


# ---------------------------------------------------------------- large graphs


async def test_reading_a_distant_ancestor_in_a_long_chain_does_not_recurse() -> None:
    async def last(ctx: StageContext) -> dict[str, Any]:
        return {"first": ctx.inputs.get_from("s0", "hits")}

    pipeline = Pipeline("p").with_stage("s0", search)
    for number in range(1, 1500):
        pipeline = pipeline.with_stage(f"s{number}", search, dependencies=(f"s{number - 1}",))
    pipeline = pipeline.with_stage("last", last, dependencies=("s1499",))
    results = await pipeline.build().run()
    assert results.data("last") == {"first": 3}


async def test_reading_a_dependency_in_a_wide_graph_is_fast() -> None:
    # Reading from a dependency does not traverse the thousand ancestors.
    async def last(ctx: StageContext) -> None:
        began = time.perf_counter()
        for _ in range(1000):
            ctx.inputs.get_from("s0", "hits")
        assert time.perf_counter() - began < 1
        await asyncio.sleep(0)

    names = [f"s{number}" for number in range(1000)]
    pipeline = Pipeline("p")
    for name in names:
        pipeline = pipeline.with_stage(name, search)
    results = await pipeline.with_stage("last", last, dependencies=names).build().run()
    results.raise_on_failure()


def peak_bytes(graph: Any) -> int:
    """Return the peak memory that one run allocates."""
    tracemalloc.start()
    try:
        asyncio.run(graph.run()).raise_on_failure()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def chain(size: int, read: Callable[[StageContext, int], Any]) -> Pipeline:
    """Return a chain of stages, each of which reads."""

    def reader(number: int) -> Callable[[StageContext], Any]:
        async def reads(ctx: StageContext) -> dict[str, Any]:
            return {"hits": read(ctx, number)}

        return reads

    stages = [*Pipeline("p").with_stage("s0", search).stages]
    for number in range(1, size):
        stages += (
            Pipeline("p").with_stage(f"s{number}", reader(number), dependencies=(f"s{number - 1}",)).stages
        )
    return Pipeline("p", stages=stages)


@pytest.mark.parametrize(
    "distance", [lambda number: number, lambda number: min(number, 2), lambda number: (number + 1) // 2]
)
def test_reading_a_distant_ancestor_needs_memory_linear_in_the_graph(distance: Callable[[int], int]) -> None:
    def read(ctx: StageContext, number: int) -> Any:
        return ctx.inputs.require_from(f"s{number - distance(number)}", "hits")

    size = 2000
    reads_nothing = peak_bytes(chain(size, lambda ctx, number: 3).build())
    graph = chain(size, read).build()
    # A set of ancestors for each stage would need 60 MB.
    assert peak_bytes(graph) < reads_nothing + 1000 * size


def test_stage_can_read_exactly_its_ancestors_in_random_graphs() -> None:
    rng = random.Random(4)
    for _ in range(60):
        size = rng.randrange(2, 16)
        share = rng.choice((0.1, 0.25, 0.5))
        places = rng.sample(range(size), size)  # the order of the description is not that of the edges
        needs = {
            f"s{n}": tuple(f"s{before}" for before in range(n) if rng.random() < share) for n in range(size)
        }
        ancestors: dict[str, set[str]] = {}
        for name, before in needs.items():
            ancestors[name] = set(before).union(*(ancestors[each] for each in before))

        async def reads(ctx: StageContext, names: tuple[str, ...] = tuple(needs)) -> dict[str, Any]:
            readable = set()
            for name in names:
                try:
                    ctx.inputs.result_from(name)
                except UnknownInputError:
                    continue
                readable.add(name)
            return {"readable": readable}

        pipeline = Pipeline("p")
        for place in places:
            pipeline = pipeline.with_stage(f"s{place}", reads, dependencies=needs[f"s{place}"])
        results = await_run(pipeline)
        assert {name: results.data(name)["readable"] for name in needs} == ancestors


def await_run(pipeline: Pipeline) -> PipelineResults:
    return asyncio.run(pipeline.run()).raise_on_failure()


@pytest.mark.timeout(20)
async def test_missing_parameters_of_a_stage_with_many_dependencies_cost_linear_time() -> None:
    async def takes(
        ctx: StageContext, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0, g: int = 0
    ) -> None: ...

    async def gives(ctx: StageContext) -> None: ...

    names = [f"s{number}" for number in range(16_000)]
    stages = [spec for name in names for spec in Pipeline("p").with_stage(name, gives).stages]
    pipeline = Pipeline("p", stages=stages).with_stage("takes", takes, dependencies=names)
    results = await pipeline.run()
    assert len(results["takes"].missing_inputs) == 7 * 16_000


def test_error_about_a_long_cycle_shows_its_ends() -> None:
    size = 3000
    stages = [
        spec
        for number in range(size)
        for spec in Pipeline("p")
        .with_stage(f"s{number}", search, dependencies=(f"s{(number + 1) % size}",))
        .stages
    ]
    with pytest.raises(PipelineValidationError, match=r"cycle: .* -> … 2990 more … -> .*; remove"):
        Pipeline("p", stages=stages).build()


async def test_error_for_a_missing_parameter_lists_the_available_inputs() -> None:
    async def gives(ctx: Any) -> dict[str, int]:
        return {"answer": 1, "amount": 2}

    async def gives_nothing(ctx: Any) -> None: ...

    async def asks(ctx: Any, answr: int) -> None: ...

    pipeline = (
        Pipeline("p")
        .with_stage("a", gives)
        .with_stage("b", gives_nothing)
        .with_stage("c", asks, dependencies=("a", "b"))
    )
    error = (await pipeline.run())["c"].exception
    assert isinstance(error, MissingInputError)
    assert "did you mean 'answer'?" in error.message
    assert error.hint == "'a' returned ['amount', 'answer'], 'b' returned nothing"
