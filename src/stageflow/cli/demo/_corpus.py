"""The documents and questions of the demo."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import importlib
import inspect
import random
import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Any, NamedTuple, Protocol

__all__ = [
    "Described",
    "FullText",
    "Hit",
    "Index",
    "LinearScan",
    "Pair",
    "Passage",
    "Question",
    "describe_object",
    "most_similar",
    "open_index",
    "questions",
    "read_corpus",
    "words_in",
]


_UNDERLINE = re.compile(r"([*=\-~\"'^])\1{2,}")
_CONTINUATION = re.compile(r"\s|\* |(?:Changed|New|Deprecated) |See also|(?!class )[a-z]+ ")
"""Beginnings of blocks that belong to the previous one: code, list items, notes, continued sentences."""
_WORD = re.compile(r"[a-z_]\w*", re.IGNORECASE)


class Passage(NamedTuple):
    """One paragraph of the reference, with the code or list that belongs to it.

    Attributes:
        topic: Argument of `help()` for the whole topic, as in `help("yield")`.
        heading: Heading of the section.
        text: Text of the passage.
    """

    topic: str
    heading: str
    text: str


def read_corpus() -> list[Passage]:
    """Return all passages, without duplicates.

    Raises:
        ModuleNotFoundError: This Python installation does not include `pydoc_data`.
    """
    from pydoc_data.topics import topics

    # Some topics contain others completely; a passage belongs to the shortest topic that contains it.
    by_text: dict[str, Passage] = {}
    for topic, text in sorted(topics.items(), key=lambda item: len(item[1])):
        for passage in _passages(topic, text):
            by_text.setdefault(passage.text, passage)
    return list(by_text.values())


def words_in(text: str) -> list[str]:
    """Return the words and names of a text in lower case.

    Example:
        >>> words_in("What is __init__?")
        ['what', 'is', '__init__']
    """
    return [word.lower() for word in _WORD.findall(text)]


def _passages(topic: str, text: str) -> Iterator[Passage]:
    heading, kept = "", ""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.strip("\n").split("\n")
        if len(lines) > 1 and _UNDERLINE.fullmatch(lines[1].strip()):
            if kept:
                yield Passage(topic, heading, kept)
            heading, kept = lines[0].strip(), "\n".join(lines[2:])
        elif kept and (_CONTINUATION.match(lines[0]) or kept.startswith(" ")):
            kept += "\n\n" + "\n".join(lines)
        else:
            if kept:
                yield Passage(topic, heading, kept)
            kept = "\n".join(lines)
    if kept:
        yield Passage(topic, heading, kept)


_PAIRS_PER_STEP = 25
"""Number of pairs to compare, in about half a millisecond, before yielding to the event loop."""

_MAX_WORDS = 60
"""Number of words of a passage that are compared."""


class Pair(NamedTuple):
    """Two passages and their similarity, from 0 to 1 for identical texts."""

    left: Passage
    right: Passage
    ratio: float


async def most_similar(left: Iterable[Passage], right: Iterable[Passage]) -> tuple[Pair | None, int]:
    """Compare each passage of `left` with each of `right`; return the best pair and the number of pairs.

    Passages of the same topic are not compared. The comparison can be cancelled every few pairs.
    """
    best: Pair | None = None
    compared = 0
    others = [(passage, passage.text.split()[:_MAX_WORDS]) for passage in right]
    for passage in left:
        # A matcher preprocesses its second sequence once, for any number of first sequences.
        matcher = SequenceMatcher(None, b=passage.text.split()[:_MAX_WORDS], autojunk=False)
        for other, words in others:
            if other.topic == passage.topic:
                continue
            compared += 1
            if compared % _PAIRS_PER_STEP == 0:
                await asyncio.sleep(0)
            matcher.set_seq1(words)
            minimum = best.ratio if best else 0.0
            # The quick ratios are upper bounds, which rule out most pairs.
            if matcher.real_quick_ratio() > minimum and matcher.quick_ratio() > minimum:
                ratio = matcher.ratio()
                if ratio > minimum:
                    best = Pair(passage, other, ratio)
    return best, compared


class Hit(NamedTuple):
    """A passage that matches, with its score; higher is better."""

    passage: Passage
    score: float


class Index(Protocol):
    """An index of passages."""

    def search(self, words: Sequence[str], limit: int) -> list[Hit]:
        """Return the passages that contain any of `words`, best first."""
        ...

    def match(self, expression: str, limit: int) -> list[Hit]:
        """Return the passages that an FTS5 expression matches, best first."""
        ...

    def close(self) -> None:
        """Release the resources of the index."""
        ...


class FullText:
    """An index in SQLite FTS5 with stemming, ranked by BM25; topic and heading have a higher weight.

    Raises:
        sqlite3.OperationalError: This SQLite was compiled without FTS5.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._database = sqlite3.connect(":memory:")
        self._database.execute(
            "CREATE VIRTUAL TABLE passage USING fts5(topic, heading, text, tokenize='porter unicode61')"
        )
        self._database.executemany(
            "INSERT INTO passage(rowid, topic, heading, text) VALUES (?, ?, ?, ?)",
            ((number, *passage) for number, passage in enumerate(passages)),
        )

    def search(self, words: Sequence[str], limit: int) -> list[Hit]:
        return self.match(" OR ".join(f'"{word}"' for word in words), limit) if words else []

    def match(self, expression: str, limit: int) -> list[Hit]:
        rows = self._database.execute(
            "SELECT rowid, -bm25(passage, 4, 3, 1) FROM passage WHERE passage MATCH ?"
            " ORDER BY 2 DESC LIMIT ?",
            (expression, limit),
        ).fetchall()
        return [Hit(self._passages[number], score) for number, score in rows]

    def close(self) -> None:
        self._database.close()


class LinearScan:
    """A linear scan in Python, ranked by the number of matching words."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._words = [(passage, frozenset(words_in(" ".join(passage)))) for passage in passages]

    def search(self, words: Sequence[str], limit: int) -> list[Hit]:
        wanted = set(words)
        hits = [Hit(passage, len(wanted & known)) for passage, known in self._words if wanted & known]
        # Among passages with the same number of words, prefer the shorter one.
        return sorted(hits, key=lambda hit: (-hit.score, len(hit.passage.text)))[:limit]

    def match(self, expression: str, limit: int) -> list[Hit]:
        raise LookupError(f"the expression {expression!r} requires SQLite with FTS5")

    def close(self) -> None:
        pass


def open_index(passages: Sequence[Passage]) -> tuple[Index, str]:
    """Return the best index that is available, and its name."""
    try:
        return FullText(passages), f"SQLite {sqlite3.sqlite_version} FTS5"
    except sqlite3.OperationalError as error:
        return LinearScan(passages), f"a linear scan in Python (this SQLite has no full-text search: {error})"


# Importing these modules has side effects: they print, open a browser or start a program.
_NOT_IMPORTED = {"antigravity", "idlelib", "this", "turtledemo"}


class Described(NamedTuple):
    """The signature of a Python object, and the first line of its docstring."""

    signature: str
    summary: str


def describe_object(name: str) -> Described:
    """Describe a builtin, or a name in a module of the standard library.

    Raises:
        LookupError: There is no object with that name; the cause is the failed import or attribute lookup.

    Example:
        >>> describe_object("len")
        Described(signature='len(obj, /)', summary='Return the number of items in a container.')
    """
    try:
        found = _find(name)
    except (AttributeError, ImportError) as error:
        raise LookupError(f"Python has no object {name!r}") from error
    try:
        signature = f"{name}{inspect.signature(found)}"
    except (TypeError, ValueError):  # not callable, or implemented in C without a signature
        signature = name
    return Described(signature, (inspect.getdoc(found) or "").partition("\n")[0])


def _find(name: str) -> Any:
    first, *rest = name.split(".")
    if hasattr(builtins, first):
        found: Any = builtins
        rest = [first, *rest]
    elif first in sys.stdlib_module_names - _NOT_IMPORTED:
        found = importlib.import_module(first)
    else:
        raise ModuleNotFoundError(f"neither a builtin nor a module of the standard library: {first!r}")
    for part in rest:
        if inspect.ismodule(found) and not hasattr(found, part):
            with contextlib.suppress(ImportError):  # not a module either; the next line raises a better error
                importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


@dataclass(frozen=True)
class Question:
    """A question, with time limits.

    Attributes:
        text: The question. "`a.b`" names an object; the prefix "fts:" marks an FTS5 expression.
        user: Number of the user who asks; default 0.
        deadline: Deadline of the run in seconds; default None.
        patience: Seconds after which the client cancels the run; default None.
    """

    text: str
    user: int = 0
    deadline: float | None = None
    patience: float | None = None


_LONG = "Which two topics of the reference are most alike?"
"""Compares all passages with all others, which takes one or two seconds if it is not interrupted."""

_ONE_PER_OUTCOME = (
    Question("When is an object considered false?"),  # ok
    Question("How do I add to a list with `list.push`?"),  # degraded: there is no such method
    Question("   "),  # stopped: the question is empty
    Question("fts: yield AND ("),  # failed: an invalid expression
    Question("Why? " * 60),  # failed: too long
    Question(_LONG, deadline=0.25),  # timeout
    Question(_LONG, patience=0.15),  # cancelled
)

_STATEMENTS = (
    "assert", "async", "await", "break", "class", "continue", "del", "for", "global", "if", "import",
    "lambda", "nonlocal", "pass", "raise", "return", "try", "while", "with", "yield",
)  # fmt: skip
_OBJECTS = (
    "asyncio.gather", "bytes.decode", "contextlib.suppress", "dict.setdefault", "functools.wraps",
    "itertools.pairwise", "json.dumps", "len", "list.sort", "os.path.join", "pathlib.Path", "range",
    "re.compile", "sorted", "str.join", "sum", "textwrap.dedent", "zip",
)  # fmt: skip
_NONEXISTENT_OBJECTS = (
    "asyncio.gather_all", "dict.has_key", "json.parse", "list.push", "numpy.array", "os.path.exist",
    "str.contains", "str.reverse",
)  # fmt: skip
_STATEMENT_QUESTIONS = (
    'How does "{statement}" work?',
    'What can appear in a "{statement}" statement?',
    'Where is "{statement}" not allowed?',
    'What happens when an exception is raised inside "{statement}"?',
)
_OTHER_QUESTIONS = (
    'What happens when "__eq__" is defined without "__hash__"?',
    "How are default parameter values evaluated?",
    "How is a slice of a sequence written?",
    "In which order are operands evaluated?",
    "What does a comparison chain mean?",
    "What is a coroutine function?",
    "Which names are looked up in the class body?",
    "Which format specification aligns a number to the right?",
    "fts: NEAR(generator close, 8)",
    "fts: heading:slots AND descriptor",
)
_WITHOUT_MATCH = ("qwertz uiopü", "Bitte einen Kaffee", "zzz")


def questions(number: int, *, seed: int = 1) -> list[Question]:
    """Return `number` questions: one for each outcome, then a pseudorandom mixture that depends on `seed`."""
    return [*_ONE_PER_OUTCOME, *islice(_mixture(random.Random(seed)), number)][:number]


def _mixture(rng: random.Random) -> Iterator[Question]:
    while True:
        user = round(rng.paretovariate(1.1)) % 40  # a few users ask most of the questions
        statement, other = rng.sample(_STATEMENTS, 2)
        about = rng.choice(_STATEMENT_QUESTIONS).format(statement=statement)
        (text,) = rng.choices(
            (
                about,
                rng.choice(_OTHER_QUESTIONS),
                f"{about} And what is `{rng.choice(_OBJECTS)}`?",
                f'Compare "{statement}" with "{other}".',
                f"How do I use `{rng.choice(_NONEXISTENT_OBJECTS)}`?",
                rng.choice(_WITHOUT_MATCH),
            ),
            (40, 25, 15, 10, 7, 3),
        )
        yield rng.choices(
            (
                Question(text, user),
                Question(_LONG, user, deadline=0.25),
                Question(_LONG, user, patience=0.15),
                Question("fts: " + statement + ' OR "', user),
            ),
            (194, 1, 1, 2),
        )[0]
