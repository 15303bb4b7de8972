"""`SqlRows`: a query of your own returned rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..render.foreign import on_one_line
from .rule import Measured, WrongField
from .threshold import Threshold
from .window import Window
from .wording import exactly, in_shell, rfc3339_of

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = ["SqlRows"]

_MOST = 1000
_PARAMETER = re.compile(r"\$(since|now)\b")


class SqlRows(Threshold, frozen=True, kw_only=True, tag="sql"):
    """Fires where a query over `runs`, `stages` and `events` returns rows, more than so many.

    `$now` and `$since` in it are the window. Its first rows are in the message; a column
    `pipeline_run_id` names the runs. `pipeline` and `stage` mean nothing to it: the query chooses.

    Attributes:
        sql: The query, in DuckDB's SQL.
        above: A count of rows; default 0, so that one is enough.
        resolve_below: A count of rows too. An alert resolves as well when there are none.
        min_events: Rows too; default 1.

    Example:
        >>> SqlRows(name="dear runs", sql="select * from runs where ended_at > $since").parameters(
        ...     Window(datetime(2026, 11, 24), datetime(2026, 11, 25))
        ... ).keys()
        dict_keys(['since'])
    """

    sql: str
    above: float = 0.0
    min_events: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sql.strip():
            raise WrongField(self.name, "sql", "must not be empty; expected a query")

    def parameters(self, window: Window) -> Mapping[str, Any]:
        """Return those of `$since` and `$now` that the query asks for."""
        given = {"since": window.since, "now": window.until}
        return {name: given[name] for name in sorted(set(_PARAMETER.findall(self.sql)))}

    def measure(self, store: EventStore, now: datetime) -> Measured:
        window = Window.ending(now, self.window)
        found = store.sql(self.sql, self.parameters(window) or None, limit=_MOST)
        many = len(found.rows)
        bad, good = self.verdict(float(many), enough=many >= self.min_events, exact=True)
        runs = [
            str(row["pipeline_run_id"]) for row in found.dicts() if row.get("pipeline_run_id") is not None
        ]
        return Measured(
            value=float(many),
            says=f"{many:,} {'row' if many == 1 else 'rows'}{' and more' if found.more else ''}",
            threshold=f"above {self.above:g}",
            bad=bad,
            good=good,
            rows=many,
            events=float(many),
            noun="rows",
            window=window,
            runs=tuple(dict.fromkeys(runs)),
            notes=tuple(_told(row) for row in found.dicts()[:3]),
        )

    def commands(self, window: Window) -> Sequence[str]:
        query = self.sql
        for name, moment in self.parameters(window).items():
            query = re.sub(rf"\${name}\b", f"timestamptz '{exactly(moment)}'", query)
        return [f"stageflow query {in_shell(query.strip())}"]


def _told(row: Mapping[str, Any]) -> str:
    told = "  ".join(f"{name}={_short(value)}" for name, value in row.items() if value is not None)
    return told if len(told) <= 200 else told[:199] + "…"


def _short(value: Any) -> str:
    return rfc3339_of(value) if isinstance(value, datetime) and value.tzinfo else on_one_line(value)
