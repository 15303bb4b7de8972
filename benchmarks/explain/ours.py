"""The search for planted causes with `explain`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import duckdb
import numpy as np

from stageflow.store import explain

from .kinds import Planted
from .scoring import Found
from .tables import Mask

__all__ = ["search"]


def search(planted: Planted) -> Sequence[Found]:
    """Return the differences of `explain`."""
    explanation = explain(planted.connection, planted.selects)
    count = len(planted.failed)
    return [
        Found(frozenset(one.fields), partial(_rows, planted.connection, one.condition, count), str(one))
        for one in explanation.differences
    ]


def _rows(connection: duckdb.DuckDBPyConnection, condition: str, count: int) -> Mask:
    rows = np.zeros(count, dtype=bool)
    found = connection.execute(f"SELECT rowid FROM runs WHERE ({condition})").fetchnumpy()
    rows[found["rowid"]] = True
    return rows
