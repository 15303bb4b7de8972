"""The stages of the reference desk: what each does for one question."""

from __future__ import annotations

import re
import sqlite3
from typing import cast

from ...context import StageContext
from ...stages import StageOutput
from .alike import Pair, most_alike
from .corpus import Passage, words_in
from .desk import Desk
from .index import Hit
from .objects import Described, describe_object

__all__ = [
    "answer",
    "compare",
    "contrast",
    "guard",
    "look_up",
    "match_titles",
    "names_an_object",
    "quote",
    "route",
    "search",
    "tally",
]

_LONGEST_QUESTION = 200
_LONGEST_QUOTE = 600
_HITS = 5
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
    """Turn away what is no question, and find the words of one."""
    question = ctx.run.data["question"].strip()
    ctx.annotate(chars=len(question))
    if not question:
        return StageOutput.cancel("nothing was asked")
    if len(question) > _LONGEST_QUESTION:
        return StageOutput.fail(f"the question has {len(question)} characters; ask in {_LONGEST_QUESTION}")
    quoted = [word for text in _QUOTED.findall(question) for word in words_in(text)]
    words = [word for word in words_in(question) if word in quoted or word not in _STOP_WORDS]
    return StageOutput.ok(question=question, words=words, names=_NAMED.findall(question))


async def search(ctx: StageContext) -> StageOutput:
    """Search the passages, by words or by an expression after "fts:".

    The index is in memory and answers in a fraction of a millisecond: a thread would cost more.
    """
    question: str = ctx.inputs.require_from("guard", "question")
    words: list[str] = ctx.inputs.require_from("guard", "words")
    index = _desk(ctx).index
    if question.startswith("fts:"):
        expression = question.removeprefix("fts:").strip()
        ctx.annotate(query=expression)
        try:
            hits = index.match(expression, _HITS)
        except sqlite3.OperationalError as error:
            raise ValueError(f"no FTS5 expression: {expression!r}") from error
    else:
        ctx.annotate(query=" ".join(words))
        hits = index.search(words, _HITS)
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
    """Count the words of the question. Another run may be counting its own: then this one is retried."""
    words: list[str] = ctx.inputs.require_from("guard", "words")
    known = _desk(ctx).tally.add(words)
    ctx.annotate(words=len(words), words_known=known)
    return StageOutput.ok(known=known)


def names_an_object(ctx: StageContext) -> bool:
    """Tell whether a name stands in backquotes."""
    return bool(ctx.inputs.require_from("guard", "names"))


def look_up(ctx: StageContext) -> StageOutput:
    """Describe the Python object of that name, or fail: there may be none. It may have to be imported."""
    names: list[str] = ctx.inputs.require_from("guard", "names")
    ctx.annotate(object=names[0])
    return StageOutput.ok(described=describe_object(names[0]))


async def route(ctx: StageContext) -> StageOutput:
    """Decide whether to quote the best passage or to compare topics; stop where nothing was found."""
    question: str = ctx.inputs.require_from("guard", "question")
    topics: list[str] = ctx.inputs.require_from("match_titles", "topics")
    if _COMPARES.search(question) and len(topics) != 1:
        return StageOutput.route("compare", topics=topics)
    if not ctx.inputs.require_from("search", "hits"):
        return StageOutput.cancel("the language reference has nothing on that")
    return StageOutput.route("quote")


async def quote(ctx: StageContext) -> StageOutput:
    """Quote the best passage, preferably one out of a topic that the question names."""
    hits: list[Hit] = ctx.inputs.require_from("search", "hits")
    topics: list[str] = ctx.inputs.require_from("match_titles", "topics")
    best = next((hit for hit in hits if hit.passage.topic in topics), hits[0])
    ctx.annotate(topic=best.passage.topic, score=round(best.score, 1))
    return StageOutput.ok(passage=best.passage)


async def compare(ctx: StageContext) -> StageOutput:
    """Find the two passages most alike: of the topics named, or of all there are."""
    desk = _desk(ctx)
    topics: list[str] = ctx.inputs.require_from("route", "topics")
    if topics:
        left = desk.topics[topics[0]]
        right = [passage for topic in topics[1:] for passage in desk.topics[topic]]
    else:
        left = right = desk.passages
    pair, compared = await most_alike(left, right)
    ctx.annotate(pairs=compared, ratio=round(pair.ratio, 3) if pair else None)
    return StageOutput.ok(pair=pair)


async def contrast(ctx: StageContext) -> StageOutput:
    """Find the words that only one of the two passages has."""
    pair: Pair | None = ctx.inputs.require_from("compare", "pair")
    if pair is None:
        return StageOutput.skip("no two passages have a word in common")
    left, right = (dict.fromkeys(words_in(passage.text)) for passage in (pair.left, pair.right))
    only = [[word for word in one if word not in other] for one, other in ((left, right), (right, left))]
    ctx.annotate(only_left=len(only[0]), only_right=len(only[1]))
    return StageOutput.ok(only_left=only[0], only_right=only[1])


async def answer(ctx: StageContext) -> StageOutput:
    """Put the answer together, say where it comes from, and leave it in the journal."""
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
        parts.append(f"Only the first has: {only[0]}\nOnly the second has: {only[1]}")
    text = "\n\n".join(parts) or "The language reference does not say."
    sources = [f'help("{topic}")' for topic in dict.fromkeys(passage.topic for passage in passages)]
    question = ctx.inputs.require_from("guard", "question")
    ctx.emit_event("desk.answered", {"question": question, "answer": text, "sources": sources})
    ctx.annotate(chars=len(text), sources=len(sources))
    return StageOutput.ok(text=text, sources=sources)


def _cut(text: str) -> str:
    """Return the text, or whole paragraphs of it, or as much of the first as there is room for."""
    if len(text) <= _LONGEST_QUOTE:
        return text
    end = text.rfind("\n\n", 0, _LONGEST_QUOTE)
    return text[:end] if end > 0 else text[: text.rfind(" ", 0, _LONGEST_QUOTE)] + " …"
