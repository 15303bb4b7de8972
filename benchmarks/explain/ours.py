"""The search for planted causes with `explain`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import duckdb
import numpy as np

from stageflow.store import Explanation, explain

from .kinds import Planted
from .scoring import Found
from .tables import Mask

__all__ = ["search"]


def search(planted: Planted) -> Sequence[Found]:
    """Return the differences of `explain`."""
    explanation = explain(planted.connection, planted.selects)
    return _found(planted.connection, explanation, len(planted.failed))


def _found(connection: duckdb.DuckDBPyConnection, explanation: Explanation, count: int) -> list[Found]:
    found = [
        Found(frozenset({one.field}), partial(_rows, connection, _condition(one.sql), count), str(one))
        for one in explanation.differences
    ]
    both = explanation.together
    if both is not None:
        names = {str(one): one.field for one in explanation.differences}
        fields = frozenset(names.get(text, text) for text in both.descriptions)
        rows = partial(_rows, connection, _condition(both.sql), count)
        found.insert(0, Found(fields, rows, " and ".join(both.descriptions)))
    return found


def _condition(sql: str) -> str:
    """Return the condition of a difference from its query."""
    _, _, condition = sql.partition(") AND ")
    return condition.rpartition(" ORDER BY")[0]


def _rows(connection: duckdb.DuckDBPyConnection, condition: str, count: int) -> Mask:
    rows = np.zeros(count, dtype=bool)
    found = connection.execute(f"SELECT rowid FROM runs WHERE ({condition})").fetchnumpy()
    rows[found["rowid"]] = True
    return rows
