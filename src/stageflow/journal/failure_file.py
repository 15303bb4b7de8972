"""The file of a journal that states which outcomes count as failures, for readers in every process."""

from __future__ import annotations

import os

from .._failures import FailureOutcomes
from .disk import make_private, replace_file
from .layout import FAILURES
from .stored import StateFile, encode_state, read_state

__all__ = ["FAILURES_FILE", "read_failures", "write_failures"]

FAILURES_FILE = StateFile(
    FAILURES,
    FailureOutcomes,
    "set `failure_outcomes` again, with `stageflow.configure` or in `[tool.stageflow]`;"
    " `stageflow doctor --repair` moves the file to broken/; failed, timeout and crashed are then failures",
    after="set `failure_outcomes` again, unless it had its default: failed, timeout and crashed",
)


def read_failures(journal: str | None) -> FailureOutcomes:
    """Return which outcomes count as failures in a journal; the default if it does not state any.

    Raises:
        DamagedFileError: The file is damaged. The default could be another definition.
        OSError: It cannot be read.
    """
    if journal is None:
        return FailureOutcomes()
    found = read_state(os.path.join(journal, FAILURES), FailureOutcomes, FAILURES_FILE.remedy)
    return found or FailureOutcomes()


def write_failures(journal: str, failures: FailureOutcomes) -> None:
    """Store which outcomes count as failures, also in place of a damaged file.

    Raises:
        OSError: The directory cannot be written.
    """
    try:
        same = read_failures(journal) == failures
    except ValueError:
        same = False
    if not same:
        make_private(journal)
        replace_file(os.path.join(journal, FAILURES), encode_state(failures))
