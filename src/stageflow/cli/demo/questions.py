"""What people ask: one question for each way a run can end, and any number of others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

__all__ = ["Question", "questions"]


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
