"""A snapshot of the types of the public API, to detect changes that the type checkers of users see."""

from __future__ import annotations

import difflib

import pytest
from public_types import SNAPSHOTS, revealed

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", SNAPSHOTS)
def test_types_of_the_public_api_are_those_of_the_snapshot(checker: str) -> None:
    expected, found = SNAPSHOTS[checker].read_text(), revealed(checker)
    changed = difflib.unified_diff(
        expected.splitlines(), found.splitlines(), "snapshot", checker, lineterm="", n=0
    )
    assert found == expected, "\n".join([*changed, "`python -m tests.public_types` writes the snapshots"])


@pytest.mark.parametrize("checker", SNAPSHOTS)
def test_few_types_are_unknown(checker: str) -> None:
    lines = SNAPSHOTS[checker].read_text().splitlines()
    assert len(lines) > 200
    unknown = [line.partition(":")[0] for line in lines if "Unknown" in line or line.endswith(": Any")]
    # pyarrow contains no types.
    assert unknown in ([], ["stageflow.store.Rows.to_arrow"])
