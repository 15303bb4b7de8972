"""The documents and questions of the demonstration."""

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
    "Pair",
    "Passage",
    "PlainScan",
    "Question",
    "describe_object",
    "most_alike",
    "open_index",
    "questions",
    "read_corpus",
    "words_in",
]


_UNDERLINE = re.compile(r"([*=\-~\"'^])\1{2,}")
_GOES_ON = re.compile(r"\s|\* |(?:Changed|New|Deprecated) |See also|(?!class )[a-z]+ ")
"""How a block begins that belongs to the one before it: code, an item, a remark, the rest of a sentence."""
_WORD = re.compile(r"[a-z_]\w*", re.IGNORECASE)


class Passage(NamedTuple):
    """One paragraph of the reference, with the code or the list that belongs to it.

    Attributes:
        topic: What to give to `help()` to read on: `help("yield")`.
        heading: The heading that it stands under.
        text: The passage itself.
    """

    topic: str
    heading: str
    text: str


def read_corpus() -> list[Passage]:
    """Return all passages, each text once.

    Raises:
        ModuleNotFoundError: This Python came without its `pydoc_data`.
    """
    from pydoc_data.topics import topics

    # Some topics contain others whole, so that each reads well by itself: the shortest has the passage.
    by_text: dict[str, Passage] = {}
    for topic, text in sorted(topics.items(), key=lambda item: len(item[1])):
        for passage in _passages(topic, text):
            by_text.setdefault(passage.text, passage)
    return list(by_text.values())


def words_in(text: str) -> list[str]:
    """Return the words and names of a text, lower case.

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
        elif kept and (_GOES_ON.match(lines[0]) or kept.startswith(" ")):
            kept += "\n\n" + "\n".join(lines)
        else:
            if kept:
                yield Passage(topic, heading, kept)
            kept = "\n".join(lines)
    if kept:
        yield Passage(topic, heading, kept)


_PAIRS_A_TURN = 25
"""So many pairs, about half a millisecond, and others have the loop."""

_WORDS = 60
"""Of longer passages the beginning is compared."""


class Pair(NamedTuple):
    """Two passages, and how alike they are: 0 not at all, 1 word for word."""

    left: Passage
    right: Passage
    ratio: float


async def most_alike(left: Iterable[Passage], right: Iterable[Passage]) -> tuple[Pair | None, int]:
    """Compare each passage of `left` with each of `right`; return the best pair and how many there were.

    Passages of one topic are not compared with each other. It can be cancelled every few pairs.
    """
    best: Pair | None = None
    compared = 0
    others = [(passage, passage.text.split()[:_WORDS]) for passage in right]
    for passage in left:
        # A matcher prepares its second sequence once, for any number of first ones.
        matcher = SequenceMatcher(None, b=passage.text.split()[:_WORDS], autojunk=False)
        for other, words in others:
            if other.topic == passage.topic:
                continue
            compared += 1
            if compared % _PAIRS_A_TURN == 0:
                await asyncio.sleep(0)
            matcher.set_seq1(words)
            least = best.ratio if best else 0.0
            # The quick ones are upper bounds: most pairs need no closer look.
            if matcher.real_quick_ratio() > least and matcher.quick_ratio() > least:
                ratio = matcher.ratio()
                if ratio > least:
                    best = Pair(passage, other, ratio)
    return best, compared


class Hit(NamedTuple):
    """A passage that was found; the higher the score, the better it fits."""

    passage: Passage
    score: float


class Index(Protocol):
    """A way to find passages."""

    def search(self, words: Sequence[str], limit: int) -> list[Hit]:
        """Return the passages with any of `words`, best first."""
        ...

    def match(self, expression: str, limit: int) -> list[Hit]:
        """Return the passages that an FTS5 expression matches, best first."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class FullText:
    """SQLite FTS5: words by their stems, ranked by BM25; topic and heading count for more.

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


class PlainScan:
    """Reads every passage for every question, in Python; ranks by how many of the words it has."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._read = [(passage, frozenset(words_in(" ".join(passage)))) for passage in passages]

    def search(self, words: Sequence[str], limit: int) -> list[Hit]:
        wanted = set(words)
        hits = [Hit(passage, len(wanted & known)) for passage, known in self._read if wanted & known]
        # Of two that have as many of the words, the shorter one says less beside the point.
        return sorted(hits, key=lambda hit: (-hit.score, len(hit.passage.text)))[:limit]

    def match(self, expression: str, limit: int) -> list[Hit]:
        raise LookupError(f"the expression {expression!r} needs a SQLite with FTS5")

    def close(self) -> None:
        pass


def open_index(passages: Sequence[Passage]) -> tuple[Index, str]:
    """Return the best index that this machine has, and its name in words."""
    try:
        return FullText(passages), f"SQLite {sqlite3.sqlite_version} FTS5"
    except sqlite3.OperationalError as error:
        return PlainScan(passages), f"a plain scan in Python (this SQLite has no full-text search: {error})"


# Importing one of these does more than to define names: it prints, opens a browser, plays.
_NOT_IMPORTED = {"antigravity", "idlelib", "this", "turtledemo"}


class Described(NamedTuple):
    """An object of Python in two lines: how it is called, and the first line of its docstring."""

    signature: str
    summary: str


def describe_object(name: str) -> Described:
    """Describe a builtin, or a name in a module of the standard library.

    Raises:
        LookupError: The name stands for nothing; the cause says where the way to it ended.

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
    except (TypeError, ValueError):  # no callable, or written in C without a signature
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
            with contextlib.suppress(ImportError):  # no module either: the next line says so better
                importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


@dataclass(frozen=True)
class Question:
    """A question, and how long whoever asks it will wait.

    Attributes:
        text: The question, in words. "`a.b`" names an object, "fts:" begins an FTS5 expression.
        user: Number of the user who asks.
        deadline: Seconds that the desk gives itself for it.
        patience: Seconds after which the client gives up and goes away.
    """

    text: str
    user: int = 0
    deadline: float | None = None
    patience: float | None = None


_LONG = "Which two topics of the reference are most alike?"
"""All passages with all others: a second or two of work where nothing ends it before."""

_ENDINGS = (
    Question("When is an object considered false?"),  # ok
    Question("How do I add to a list with `list.push`?"),  # degraded: there is no such method
    Question("   "),  # stopped: nothing was asked
    Question("fts: yield AND ("),  # failed: no expression
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
_MISTAKEN = (
    "asyncio.gather_all", "dict.has_key", "json.parse", "list.push", "numpy.array", "os.path.exist",
    "str.contains", "str.reverse",
)  # fmt: skip
_ABOUT = (
    'How does "{statement}" work?',
    'What may stand in a "{statement}" statement?',
    'Where is "{statement}" not allowed?',
    'What happens when an exception is raised inside "{statement}"?',
)
_OTHERS = (
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
_IN_VAIN = ("qwertz uiopü", "Bitte einen Kaffee", "zzz")


def questions(many: int, *, seed: int = 1) -> list[Question]:
    """Return `many` questions, the same each time: one of each ending first, then a mixture."""
    return [*_ENDINGS, *islice(_mixture(random.Random(seed)), many)][:many]


def _mixture(dice: random.Random) -> Iterator[Question]:
    while True:
        user = round(dice.paretovariate(1.1)) % 40  # a few people ask most
        statement, other = dice.sample(_STATEMENTS, 2)
        about = dice.choice(_ABOUT).format(statement=statement)
        (text,) = dice.choices(
            (
                about,
                dice.choice(_OTHERS),
                f"{about} And what is `{dice.choice(_OBJECTS)}`?",
                f'Compare "{statement}" with "{other}".',
                f"How do I use `{dice.choice(_MISTAKEN)}`?",
                dice.choice(_IN_VAIN),
            ),
            (40, 25, 15, 10, 7, 3),
        )
        yield dice.choices(
            (
                Question(text, user),
                Question(_LONG, user, deadline=0.25),
                Question(_LONG, user, patience=0.15),
                Question("fts: " + statement + ' OR "', user),
            ),
            (194, 1, 1, 2),
        )[0]
