"""Standard terms in the prose of the project: phrases to avoid, and what to write instead.

The patterns apply to the comments and strings of Python files, and to the text of Markdown files. They find
only what can be found mechanically. `CLEAN` lists the files that must not contain these phrases.
"""

from __future__ import annotations

import bisect
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent

CLEAN = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "docs",
    "src/stageflow/*.py",
    "src/stageflow/alerts",
    "src/stageflow/cli",
    "src/stageflow/events",
    "src/stageflow/executors",
    "src/stageflow/export",
    "src/stageflow/journal",
    "src/stageflow/mcp",
    "src/stageflow/observability",
    "src/stageflow/pipeline",
    "src/stageflow/render",
    "src/stageflow/store",
    "src/stageflow/testing",
)
"""Files, directories and glob patterns, relative to the project. The goal is ("src", "docs", "README.md")."""

AVOID = {
    r"(?<![Tt]here )\bis no (?!longer\b|more than\b)[a-z]+": "is not a ...",
    r"\b(told|tells?|telling)\b": "report, log, notify, state or describe",
    r"\bsa(y|ys|id|ying) (so|once)\b": "report, state; (further occurrences are not logged)",
    r"\bof (my|our|your|its|his|their) own\b": "a possessive, custom or separate",
    r"\bof (ours|yours|theirs)\b": "a possessive",
    r"\b(so|how) many that\b|\bso many\b": "the number of ..., a maximum of ...",
    r"\bone more\b": "another",
    r"\bunder way\b": "running, in progress",
    r"\bbegun\b": "started",
    r"\bgo(es)? on\b": "continue, propagate",
    r"\bat hand\b": "current",
    r"\bbeside\b": "in addition to, next to, compared with",
    r"\bfor ever\b": "indefinitely",
    r"\banew\b": "again",
    r"\bwho(so)?ever\b": "the subject",
    r"\bthat there (is|are)\b": "a sentence with a subject",
    r"\bwhere there (is|are) (one|none)\b": "if there is one, or None",
    r"\bless than \w+ (runs|stages|events|rows|attempts|files|values|segments|times)\b": "fewer than",
    r"\bsome (tens|dozens|hundreds|thousands|seconds|minutes)\b": "a few",
    r"\bstands? (in|under|once|where)\b": "is recorded in, is stored under, is included in",
    r"\bcame to\b": "ended with, resulted in",
    r"\bas they come\b": "by default, in arrival order",
    r"\b(be|been) seen to\b": "needs attention",
    r"\bby hand\b": "manually",
    r"\bthe law\b": "record guarantees, invariants",
    r"\bthe way out\b": "how to fix it, the shutdown",
    r"[;:] give\b": "expected ..., or: X must be ..., got ...",
    r"\btime-outs?\b": "timeout",
    r"\bclean-ups?\b": "cleanup",
    r"\bdependants?\b": "dependent",
    r"\b(colou|behaviou|neighbou|honou)r": "American spelling",
    r"\b(serial|recogn|organ|normal|initial|optim|summar)is(e|ed|es|ing|ation)\b": "American spelling",
    r"(^|[.:] )(What|Who) (is|was|has|had|cannot|can|came|does|did|wants|sets)\b[^.?]*\.": "the subject",
}
"""For each pattern, what to write instead."""

_FIND = {re.compile(pattern): instead for pattern, instead in AVOID.items()}


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each block of prose in a file."""
    if path.suffix != ".py":
        yield 1, path.read_text()
        return
    comment: list[str] = []
    first = last = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            kind, line = tokenize.tok_name[token.type], token.start[0]
            if kind == "COMMENT":
                if line != last + 1:
                    yield first, "\n".join(comment)
                    comment, first = [], line
                comment.append(token.string.lstrip("#"))
                last = line
            elif kind in ("STRING", "FSTRING_MIDDLE"):
                yield line, token.string
    yield first, "\n".join(comment)


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line (from 0), the phrase and what to write instead, for each phrase to avoid in a text."""
    words = [(word, number) for number, line in enumerate(text.splitlines()) for word in line.split()]
    joined = " ".join(word for word, _ in words)
    starts, start = [], 0
    for word, _ in words:
        starts.append(start)
        start += len(word) + 1
    for pattern, instead in _FIND.items():
        for match in pattern.finditer(joined):
            yield words[bisect.bisect_right(starts, match.start()) - 1][1], match[0], instead


def clean_files() -> list[Path]:
    paths: set[Path] = set()
    for entry in CLEAN:
        found = list(PROJECT.glob(entry))
        assert found, f"{entry} does not exist"
        for path in found:
            paths.update(path.rglob("*.py") if path.is_dir() else [path])
            paths.update(path.rglob("*.md") if path.is_dir() else [])
    return sorted(paths)


def test_prose_of_clean_files_contains_no_phrase_to_avoid() -> None:
    problems = [
        f"{path.relative_to(PROJECT)}:{first + line}: {phrase!r}; write: {instead}"
        for path in clean_files()
        for first, text in prose(path)
        for line, phrase, instead in findings(text)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("A stage of kind ROUTE is told the labels that its dependants take.", "told"),
        ("`missing_inputs` stands in the\nrecord, so that a typo shows.", "stands in"),
        ("all events; then the cancellation goes on", "goes on"),
        ("make demo    # set up, answer some hundreds of questions about Python", "some hundreds"),
        ("a retry that happened has an event of its own", "of its own"),
        ("then the demo takes some\n    seconds", "some seconds"),
        ("its event in the journal about one more", "one more"),
        ("'soon' is no time; it may be 2h", "is no time"),
        ("Retry(attempts=0): give a whole number", ": give"),
        ("A value that less than three runs have is left out.", "less than three runs"),
        ("What was not found is named in the record.", "What was not found is named in the record."),
        ("Whatever it is. Who is no reader may leave.", ". Who is no reader may leave."),
    ],
)
def test_phrase_to_avoid_is_found(text: str, phrase: str) -> None:
    assert phrase in [found for _, found, _ in findings(text)]


@pytest.mark.parametrize(
    "text",
    [
        "There is no journal at this path, so there is nothing to read.",
        "The lock is no longer held, and `stages_total` is no more than 100.",
        "What is a stage? Who can read it?",
        "It continues with the next attempt; expected a positive integer, got 0.",
    ],
)
def test_standard_phrase_is_accepted(text: str) -> None:
    assert not list(findings(text))


def test_finding_has_the_line_of_its_first_word() -> None:
    assert [line for line, *_ in findings("one\ntwo\n    three is\nno time")] == [2]


def test_python_file_is_searched_in_comments_and_strings_only(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""It is\n\nno module."""\n\ntold = 1  # under\n# way\nmessage = f"told {name} times"\n# anew\n'
    )
    found = [(first + line, phrase) for first, text in prose(path) for line, phrase, _ in findings(text)]
    assert sorted(found) == [(1, "is no module"), (5, "under way"), (7, "told"), (8, "anew")]
