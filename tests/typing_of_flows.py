"""Flows that type checkers accept and reject: mypy and pyright check this file, and unused ignores in it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_type

from stageflow import PipelineResults, Retry, StageContext, StageOutput
from stageflow.pipeline import Flow
from stageflow.stages import ItemFailure, StageRef, StreamRef


@dataclass
class Document:
    text: str
    score: float


async def search(ctx: StageContext) -> list[Document]:
    return []


async def rank(ctx: StageContext, documents: list[Document]) -> list[Document] | StageOutput:
    return documents if documents else StageOutput.skip("no documents")


async def embed(documents: Sequence[Document]) -> list[float]:
    return [document.score for document in documents]


def best(documents: list[Document]) -> Document:
    return documents[0]


def shorten(text: str, limit: int = 80) -> str:
    return text[:limit]


async def write(ctx: StageContext, documents: list[Document], vectors: list[float]) -> str:
    return f"{len(documents)} {len(vectors)}"


async def lenient(documents: list[Document] | None, document: Document) -> int:
    return len(documents or ())


async def stop(ctx: StageContext) -> StageOutput:
    return StageOutput.stop("enough")


flow = Flow("accepted")
documents = flow.add(search, timeout=5)
ranked = flow.add(rank, documents, retry=Retry(attempts=3))
vectors = flow.add(embed, ranked)
top = flow.add(best, ranked, name="top")
reply = flow.add(write, ranked, vectors, dependencies=(top, "search"))
number = flow.add(lenient, ranked.or_none(), top)
short = flow.add(partial(shorten, limit=10), reply)
empty = flow.add(embed, documents.or_default([]), name="empty")
length = flow.add(lambda text: len(text), short, name="length")
flow.add(stop)
graph = flow.build(on_failure="continue", max_concurrency=3)

assert_type(documents, StageRef[list[Document]])
assert_type(ranked, StageRef[list[Document]])  # not `list[Document] | StageOutput`
assert_type(vectors, StageRef[list[float]])
assert_type(top, StageRef[Document])
assert_type(reply, StageRef[str])
assert_type(number, StageRef[int])
assert_type(top.or_none(), StageRef[Document | None])
assert_type(top.or_default(3), StageRef[Document | int])


async def vector(document: Document) -> list[float]:
    return [document.score]


async def compare(ctx: StageContext, document: Document, query: str) -> float:
    return document.score


def shorter(text: str) -> str:
    return text[:3]


def rows() -> AsyncIterator[str]:
    raise NotImplementedError


async def table() -> AsyncIterable[str]:
    return rows()


each = flow.map(vector, ranked, max_concurrency=8, retry=Retry(attempts=3))
scores = flow.map(compare, ranked, reply, name="scores")
kept = flow.map(compare, ranked, reply, name="kept", on_item_failure="collect")
lines = flow.map(shorter, flow.add(table), on_item_failure="skip")
longest = flow.add(max, lines, name="longest")

assert_type(each, StageRef[list[list[float]]])
assert_type(scores, StageRef[list[float]])
assert_type(kept, StageRef[list[float | ItemFailure]])
assert_type(lines, StageRef[list[str]])


async def tokens(ctx: StageContext, documents: list[Document]) -> AsyncIterator[str]:
    yield "a"


async def sentences(words: AsyncIterator[str]) -> AsyncIterator[str | StageOutput]:
    async for word in words:
        yield word
    yield StageOutput.ok(sentences=1)


def speak(words: Iterator[str]) -> Iterator[bytes]:
    for word in words:
        yield word.encode()


async def total(text: str, spoken: AsyncIterator[bytes]) -> int:
    return len(text) + len([each async for each in spoken])


words = flow.add(tokens, ranked, idle_timeout=5)
split = flow.add(sentences, words.chunks(buffer=8))
spoken = flow.add(speak, split.chunks())
size = flow.add(total, reply, spoken.chunks(buffer="collect"))

assert_type(words, StreamRef[str])
assert_type(split, StreamRef[str])
assert_type(spoken, StreamRef[bytes])
assert_type(size, StageRef[int])


async def reads_by_name(ctx: StageContext) -> None:
    stream = ctx.inputs.stream("tokens")
    async for _ in stream:
        await stream.aclose()


def reads_by_name_in_a_thread(ctx: StageContext) -> list[str]:
    return [word.upper() for word in ctx.inputs.stream("tokens")]


async def streams() -> None:
    async with flow.build().stream(stages=[words, "speak"]) as run:
        assert_type([chunk.number async for chunk in run], list[int])


def accepted(results: PipelineResults) -> tuple[str, Document, Document | None]:
    return results.value(reply), results.value(top), results.value(top.or_none())


async def reads(ctx: StageContext, found: list[Document]) -> str:
    return ctx.inputs.value(reply) + ctx.inputs.value(top).text


flow.add(reads, ranked)


def rejected(results: PipelineResults, ctx: StageContext) -> None:
    flow.add(rank, vectors)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(speak, spoken.chunks())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank, top)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(best, reply)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(write, vectors, ranked)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(write, ranked)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(write, ranked, vectors, top)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(search, ranked)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(embed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(best, ranked, ranked)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank, ranked.or_none())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(best, ranked.or_default(3))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(embed, ranked.or_default("none"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank, [])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank, search)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank, "search")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank, ranked, retri=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    flow.add(rank, ranked, retry=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank, ranked, timeout="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank, ranked, dependencies=(search,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(42)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(None)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.map(vector, top)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.map(vector, lines)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.map(embed, ranked)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.map(compare, ranked)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.map(compare, reply, ranked)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.map(vector, ranked, max_concurrency="8")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.map(vector, ranked, on_item_failure="ignore")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    flow.add(rank, each)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    number_of: int = results.value(reply)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    text: str = results.value(number)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(results.value(reply).nope)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    print(results.value(top.or_none()).text)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    results.value(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    found: int = ctx.inputs.value(ranked)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    ctx.inputs.value("search")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    flow.build(on_failure="stop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    flow.build(max_concurency=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    print(number_of, text, found)
