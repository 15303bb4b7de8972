"""The pipeline of the demo."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

from ...context import StageContext
from ...pipeline import Pipeline
from ...retry import Exponential, Retry
from ...stages import StageKind, StageOutput
from ._corpus import (
    Described,
    Hit,
    Index,
    Pair,
    Passage,
    describe_object,
    most_similar,
    open_index,
    read_corpus,
    words_in,
)

__all__ = [
    "Desk",
    "Tally",
    "answer",
    "compare",
    "contrast",
    "guard",
    "look_up",
    "match_titles",
    "names_an_object",
    "quote",
    "reference_desk",
    "route",
    "search",
    "tally",
]


_PASSAGES_PER_WRITE = 80
"""Number of passages whose words are counted before each write."""

_LOCK_TIMEOUT = 5.0
"""Seconds to wait for another demo in the same directory."""


class Tally:
    """Counts how often each word of the reference was asked about.

    SQLite allows one writer at a time. With `timeout=0`, other writers do not wait: they fail with
    `sqlite3.OperationalError: database is locked`, and must retry.

    Args:
        path: Path of the database; created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._writing(timeout=_LOCK_TIMEOUT) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS word (word TEXT PRIMARY KEY, passages INT, asked INT DEFAULT 0)"
            )

    def learn(self, passages: Sequence[Passage]) -> None:
        """Store the number of passages that contain each word, in one transaction. This method blocks.

        Other writers fail until the transaction is committed.

        Raises:
            sqlite3.OperationalError: The database was locked for 5 s.
        """
        with self._writing(timeout=_LOCK_TIMEOUT) as database:
            database.execute("UPDATE word SET passages = 0")
            for at in range(0, len(passages), _PASSAGES_PER_WRITE):
                batch = passages[at : at + _PASSAGES_PER_WRITE]
                known = Counter(word for passage in batch for word in set(words_in(passage.text)))
                _insert(database, list(known.items()))

    def add(self, words: Sequence[str]) -> int:
        """Count `words`, and return the number of them that occur in the reference.

        Raises:
            sqlite3.OperationalError: The database is locked.
        """
        with self._writing() as database:
            counted = database.execute(
                f"UPDATE word SET asked = asked + 1 WHERE word IN ({', '.join('?' * len(words))})", words
            )
            return counted.rowcount

    @contextmanager
    def _writing(self, timeout: float = 0) -> Generator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=timeout, isolation_level=None)) as database:
            # Writes are not synced: losing counts in a power failure is acceptable.
            database.execute("PRAGMA synchronous = OFF")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")


def _insert(database: sqlite3.Connection, rows: list[tuple[str, int]]) -> None:
    # Many rows per statement: each statement releases the GIL and has to acquire it again.
    for at in range(0, len(rows), 400):
        batch = rows[at : at + 400]
        database.execute(
            f"INSERT INTO word(word, passages) VALUES {', '.join(['(?, ?)'] * len(batch))}"
            " ON CONFLICT(word) DO UPDATE SET passages = passages + excluded.passages",
            [value for row in batch for value in row],
        )


class Desk:
    """The resources that all runs share.

    Args:
        directory: Directory of the database of the tally.

    Attributes:
        passages: All passages of the reference.
        topics: The passages of each topic.
        index: The index of the passages.
        index_name: Name of the index.
        tally: Counts the words of the questions.

    Raises:
        ModuleNotFoundError: This Python installation does not include the language reference.
        OSError: The directory cannot be created.
        sqlite3.OperationalError: The database of the tally cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.passages = read_corpus()
        self.topics: dict[str, list[Passage]] = {}
        for passage in self.passages:
            self.topics.setdefault(passage.topic, []).append(passage)
        self.index: Index
        self.index, self.index_name = open_index(self.passages)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.tally = Tally(directory / "tally.sqlite3")


_MAX_QUESTION = 200
_MAX_QUOTE = 600
_MAX_HITS = 5
_STOP_WORDS = {
    "a", "an", "and", "are", "as", "at", "be", "by", "can", "do", "does", "for", "from", "given",
    "give", "how", "i", "if", "in", "is", "it", "its", "may", "mean", "not", "of", "on", "or",
    "than", "that", "the", "their", "there", "they", "this", "to", "use", "used", "using", "was",
    "what", "when", "where", "which", "who", "why", "with", "work", "works", "would", "you", "your",
    "python",
}  # fmt: skip
_QUOTED = re.compile(r'"([^"]+)"')
_NAMED = re.compile(r"`([\w.]+)`")
_COMPARES = re.compile(r"\b(compare|difference|differ|alike)\b", re.IGNORECASE)


def _desk(ctx: StageContext) -> Desk:
    return cast(Desk, ctx.run.resources["desk"])


async def guard(ctx: StageContext) -> StageOutput:
    """Reject empty and long questions, and extract the words of the others."""
    question = ctx.run.data["question"].strip()
    ctx.annotate(chars=len(question))
    if not question:
        return StageOutput.stop("the question is empty")
    if len(question) > _MAX_QUESTION:
        return StageOutput.fail(
            f"the question has {len(question)} characters; the maximum is {_MAX_QUESTION}"
        )
    quoted = [word for text in _QUOTED.findall(question) for word in words_in(text)]
    words = [word for word in words_in(question) if word in quoted or word not in _STOP_WORDS]
    return StageOutput.ok(question=question, words=words, names=_NAMED.findall(question))


async def search(ctx: StageContext) -> StageOutput:
    """Search the passages, for words or for an expression after "fts:".

    The index is in memory and answers in a fraction of a millisecond, so a thread would cost more.
    """
    question: str = ctx.inputs.require_from("guard", "question")
    words: list[str] = ctx.inputs.require_from("guard", "words")
    index = _desk(ctx).index
    if question.startswith("fts:"):
        expression = question.removeprefix("fts:").strip()
        ctx.annotate(query=expression)
        try:
            hits = index.match(expression, _MAX_HITS)
        except sqlite3.OperationalError as error:
            raise ValueError(f"invalid FTS5 expression: {expression!r}") from error
    else:
        ctx.annotate(query=" ".join(words))
        hits = index.search(words, _MAX_HITS)
    ctx.annotate(hits=len(hits), topic=hits[0].passage.topic if hits else None)
    return StageOutput.ok(hits=hits)


async def match_titles(ctx: StageContext) -> StageOutput:
    """Find the topics that the question names."""
    words: list[str] = ctx.inputs.require_from("guard", "words")
    topics = _desk(ctx).topics
    named = [word for word in dict.fromkeys(words) if word in topics]
    ctx.annotate(topics=named)
    return StageOutput.ok(topics=named)


def tally(ctx: StageContext) -> StageOutput:
    """Count the words of the question. The stage is retried if another run has locked the database."""
    words: list[str] = ctx.inputs.require_from("guard", "words")
    known = _desk(ctx).tally.add(words)
    ctx.annotate(words=len(words), words_known=known)
    return StageOutput.ok(known=known)


def names_an_object(ctx: StageContext) -> bool:
    """Return whether the question contains a name in backquotes."""
    return bool(ctx.inputs.require_from("guard", "names"))


def look_up(ctx: StageContext) -> StageOutput:
    """Describe the Python object of that name, importing its module if necessary; fail if there is none."""
    names: list[str] = ctx.inputs.require_from("guard", "names")
    ctx.annotate(object=names[0])
    return StageOutput.ok(described=describe_object(names[0]))


async def route(ctx: StageContext) -> StageOutput:
    """Select whether to quote the best passage or to compare topics; stop if nothing was found."""
    question: str = ctx.inputs.require_from("guard", "question")
    topics: list[str] = ctx.inputs.require_from("match_titles", "topics")
    if _COMPARES.search(question) and len(topics) != 1:
        return StageOutput.route("compare", topics=topics)
    if not ctx.inputs.require_from("search", "hits"):
        return StageOutput.stop("the language reference contains no match")
    return StageOutput.route("quote")


async def quote(ctx: StageContext) -> StageOutput:
    """Quote the best passage, preferably from a topic that the question names."""
    hits: list[Hit] = ctx.inputs.require_from("search", "hits")
    topics: list[str] = ctx.inputs.require_from("match_titles", "topics")
    best = next((hit for hit in hits if hit.passage.topic in topics), hits[0])
    ctx.annotate(topic=best.passage.topic, score=round(best.score, 1))
    return StageOutput.ok(passage=best.passage)


async def compare(ctx: StageContext) -> StageOutput:
    """Find the two most similar passages of the named topics, or of all topics."""
    desk = _desk(ctx)
    topics: list[str] = ctx.inputs.require_from("route", "topics")
    if topics:
        left = desk.topics[topics[0]]
        right = [passage for topic in topics[1:] for passage in desk.topics[topic]]
    else:
        left = right = desk.passages
    pair, compared = await most_similar(left, right)
    ctx.annotate(pairs=compared, ratio=round(pair.ratio, 3) if pair else None)
    return StageOutput.ok(pair=pair)


async def contrast(ctx: StageContext) -> StageOutput:
    """Find the words that occur in only one of the two passages."""
    pair: Pair | None = ctx.inputs.require_from("compare", "pair")
    if pair is None:
        return StageOutput.skip("no two passages have a word in common")
    left, right = (dict.fromkeys(words_in(passage.text)) for passage in (pair.left, pair.right))
    only = [
        [word for word in words if word not in others] for words, others in ((left, right), (right, left))
    ]
    ctx.annotate(only_left=len(only[0]), only_right=len(only[1]))
    return StageOutput.ok(only_left=only[0], only_right=only[1])


async def answer(ctx: StageContext) -> AsyncIterator[str | StageOutput]:
    """Send the lines of the answer, name its sources, and record it as an event."""
    parts: list[str] = []
    passages: list[Passage] = []
    if ctx.inputs.result_from("look_up").ok:
        described: Described = ctx.inputs.require_from("look_up", "described")
        parts.append(f"{described.signature}\n{described.summary}")
    if ctx.inputs.result_from("quote").ok:
        passages = [ctx.inputs.require_from("quote", "passage")]
        parts.append(_cut(passages[0].text))
    if ctx.inputs.result_from("contrast").ok:
        pair: Pair = ctx.inputs.require_from("compare", "pair")
        passages = [pair.left, pair.right]
        parts += [f"{passage.topic}: {_cut(passage.text)}" for passage in passages]
        only = [
            " ".join(ctx.inputs.require_from("contrast", key)[:12]) for key in ("only_left", "only_right")
        ]
        parts.append(f"Only in the first: {only[0]}\nOnly in the second: {only[1]}")
    text = "\n\n".join(parts) or "The language reference has no answer."
    for line in text.splitlines():
        yield line
    sources = [f'help("{topic}")' for topic in dict.fromkeys(passage.topic for passage in passages)]
    question = ctx.inputs.require_from("guard", "question")
    ctx.emit_event("desk.answered", {"question": question, "answer": text, "sources": sources})
    ctx.annotate(chars=len(text), sources=len(sources))
    yield StageOutput.ok(text=text, sources=sources)


def _cut(text: str) -> str:
    """Return the text, truncated after a paragraph if possible, otherwise after a word."""
    if len(text) <= _MAX_QUOTE:
        return text
    end = text.rfind("\n\n", 0, _MAX_QUOTE)
    return text[:end] if end > 0 else text[: text.rfind(" ", 0, _MAX_QUOTE)] + " …"


def reference_desk() -> Pipeline:
    """Return the pipeline that `stageflow demo` runs."""
    locked = Retry(attempts=8, wait=Exponential(0.05, maximum=0.5), on=sqlite3.OperationalError)
    return (
        Pipeline("reference-desk")
        .with_stage("guard", guard, StageKind.GUARD)
        .with_stage(
            "look_up",
            look_up,
            StageKind.ENRICH,
            ("guard",),
            optional=True,
            when=names_an_object,
        )
        .with_stage("tally", tally, StageKind.WORK, ("guard",), optional=True, retry=locked, limit="writers")
        .with_stage("match_titles", match_titles, StageKind.WORK, ("guard",))
        .with_stage("search", search, StageKind.WORK, ("guard",))
        .with_stage("route", route, StageKind.ROUTE, ("match_titles", "search"))
        .with_stage("quote", quote, StageKind.TRANSFORM, ("route",), route="quote")
        .with_stage("compare", compare, StageKind.WORK, ("route",), route="compare")
        .with_stage("contrast", contrast, StageKind.TRANSFORM, ("compare",), conditional=True)
        .with_stage("answer", answer, StageKind.TRANSFORM, ("quote", "contrast", "look_up", "tally"))
    )
