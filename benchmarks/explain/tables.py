"""Tables of runs and stages with fields of every type, none of which explains a failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

__all__ = ["DAY", "Mask", "Runs", "connect", "draw_runs"]

Mask = NDArray[np.bool_]
Numbers = NDArray[Any]

DAY = 86_400
_FIRST_LARGE = 2**53 + 1
"""The first integer that a double cannot represent. Ids of tenants start here."""

_STAGES = ("search", "rank", "answer")

_COLUMNS = {
    "started_at": "TIMESTAMPTZ '2026-11-02 00:00:00Z' + to_microseconds((start * 1e6)::BIGINT)",
    "topology": "'topology-' || topology",
    "service_version": "'1.' || (20 + release) || '.0'",
    "host": "'host-' || host",
    "pid": "(4000 + host * 41 + worker)::BIGINT",
    "user_id": "'user-' || \"user\"",
    "org_id": "'org-' || org",
    "sample_rate": "1.0::DOUBLE",
    "duration_ms": "duration",
    "memory_peak_bytes": "memory::BIGINT",
    "attributes.plan": "'plan-' || plan",
    "attributes.model": "'model-' || model",
    "attributes.country": "'country-' || country",
    "attributes.question_chars": "floor(chars)::DOUBLE",
    "attributes.temperature": "temperature / 10",
    "attributes.cached": "cached = 1",
    "attributes.path": "'/v1/' || list_extract(['answer', 'search', 'chat', 'ingest', 'export', 'embed', "
    "'rank', 'files', 'users', 'billing', 'admin', 'status'], resource + 1) || '/' || hash(run)",
    "attributes.client_version": "major || '.' || minor || '.' || patch",
    "attributes.shard": "shard::DOUBLE",
    "attributes.code": "(200 + code)::DOUBLE",
    "attributes.timeout_ms": "list_extract([100, 250, 500, 1000], timeout + 1)::DOUBLE",
    "attributes.score": "score",
    "attributes.variant": "CASE WHEN variant >= 0 THEN 'variant-' || variant END",
    "attributes.upstream_code": "CASE WHEN upstream < 6 THEN 500::DOUBLE + upstream END",
    "attributes.trace": "md5(run::VARCHAR)",
    "attributes.copy": "if(copy = 1, 'yes', 'no')",
    "attributes.copied_number": "copied_number",
}
"""The SQL expression of each column. The archive stores every number of an attribute as a double."""

_REST = {
    "tags": "to_json(list_filter(['alpha', 'beta', 'gamma', 'delta'], "
    "lambda tag: (tags >> (list_position(['alpha', 'beta', 'gamma', 'delta'], tag) - 1)) & 1 = 1))",
    "config": """'{"depth":' || depth || ',"mode":"' || if(mode = 1, 'fast', 'exact') || '"}'""",
    "tenant": f"({_FIRST_LARGE} + tenant)::VARCHAR",
    "upstream_code": "CASE WHEN upstream >= 6 THEN '\"E' || (11 + upstream) || '\"' END",
}
"""The SQL expression of the JSON of each attribute that the archive cannot store in a column."""

_OF_SESSIONS = (
    *("user", "org", "plan", "country", "major", "minor", "patch"),
    *("host", "worker", "release", "tags", "shard", "tenant", "topology", "variant"),
    *("copy", "copied_number"),
)
"""The values that are the same in all runs of a session, and so are the columns computed from them."""


@dataclass
class Runs:
    """Runs before they become a table.

    Attributes:
        count: Number of runs.
        values: The random numbers from which the columns are computed, by name.
        columns: The SQL expression of each column.
        days: The runs start within this number of days.
        stages: Whether the runs have stages, and thus a table `stages`.
    """

    count: int
    values: dict[str, Numbers]
    columns: dict[str, str] = field(default_factory=lambda: dict(_COLUMNS))
    days: int = 7
    stages: bool = False

    def plant_copies(self, dice: np.random.Generator, cause: Mask) -> None:
        """Set two fields that copy a cause, but are wrong in many runs."""
        share = cause.mean()
        copies = [
            dice.random(self.count) < np.where(cause, dice.uniform(0.5, 0.8), share * dice.uniform(0.3, 1.0))
            for _ in range(2)
        ]
        self.values["copy"] = copies[0].astype(np.int64)
        self.values["copied_number"] = dice.normal(0, 1, self.count) + np.where(copies[1], 3.0, 0.0)

    def group(self, dice: np.random.Generator, sessions: NDArray[np.int64]) -> None:
        """Give the runs of a session some values in common, and start them within an hour.

        Args:
            dice: The source of random numbers.
            sessions: The session of each run, in ascending order.
        """
        first = np.searchsorted(sessions, sessions)
        for name in _OF_SESSIONS:
            self.values[name] = self.values[name][first]
        self.values["start"] = self.values["start"][first] + dice.uniform(0, 3600, self.count)
        self.values["session"] = sessions
        self.columns["session_id"] = "'session-' || session"


def _skewed(dice: np.random.Generator, count: int, distinct: int, power: float = 2.0) -> Numbers:
    """Return integers from 0, of which low ones are more frequent."""
    return (dice.random(count) ** power * distinct).astype(np.int64)


def draw_runs(dice: np.random.Generator, count: int, *, days: int = 7) -> Runs:
    """Return runs with random fields.

    Args:
        dice: The source of random numbers.
        count: Number of runs.
        days: The runs start within this number of days, fewer of them at night.
    """
    seconds = dice.uniform(0, days * DAY, count * 3)
    by_day = dice.random(count * 3) < 0.55 + 0.4 * np.sin((seconds / DAY - 0.4) * 2 * np.pi)
    start = seconds[by_day][:count]
    start = np.sort(np.append(start, dice.uniform(0, days * DAY, count - len(start))))
    host, user = dice.integers(0, 20, count), _skewed(dice, count, 5_000)
    # Each host is updated within two hours.
    releases = np.array([0.24, 0.52, 0.77]) * days * DAY
    release = (start[:, None] >= releases + (host * 360)[:, None]).sum(axis=1)
    values: dict[str, Numbers] = {
        "run": np.arange(count),
        "start": start,
        "host": host,
        "release": release,
        "worker": dice.integers(0, 4, count),
        "user": user,
        "org": user % 200,
        "topology": _skewed(dice, count, 3),
        "duration": dice.lognormal(6, 1, count),
        "memory": dice.lognormal(19, 0.5, count),
        "plan": _skewed(dice, count, 4, 1.5),
        "model": _skewed(dice, count, 5, 1.5),
        "country": _skewed(dice, count, 40, 3.0),
        "chars": dice.lognormal(5, 1.2, count),
        "temperature": dice.integers(0, 11, count),
        "cached": (dice.random(count) < 0.34).astype(np.int64),
        "resource": _skewed(dice, count, 12, 1.5),
        "major": 1 + (dice.random(count) < 0.6),
        "minor": dice.integers(0, 8, count),
        "patch": dice.integers(0, 6, count),
        "shard": dice.integers(0, 64, count),
        "code": dice.integers(0, 32, count),
        "timeout": _skewed(dice, count, 4),
        "score": dice.uniform(0, 100, count),
        "variant": np.where(dice.random(count) < 0.036, -1, dice.integers(0, 6, count)),
        "upstream": dice.choice(9, count, p=[0.6, 0.1, 0.08, 0.05, 0.04, 0.04, 0.03, 0.03, 0.03]),
        "tags": (dice.random((count, 4)) < [0.3, 0.05, 0.1, 0.2]) @ np.array([1, 2, 4, 8]),
        "depth": dice.integers(0, 12, count),
        "mode": dice.integers(0, 2, count),
        "tenant": dice.integers(0, 40, count),
        "region": dice.integers(0, 12, count),
        "hits": _skewed(dice, count, 30),
        "cache": (dice.random(count) < 0.1).astype(np.int64),
        "tokens": dice.lognormal(6, 1, count),
    }
    runs = Runs(count, values, days=days)
    runs.plant_copies(dice, dice.random(count) < dice.uniform(0.01, 0.2))
    return runs


def connect(runs: Runs, failed: Mask, dice: np.random.Generator) -> duckdb.DuckDBPyConnection:
    """Return a connection with the table `runs`, and the table `stages` if the runs have stages.

    Args:
        runs: The runs.
        failed: The runs that fail.
        dice: The source of random numbers.
    """
    connection = duckdb.connect()
    connection.execute("SET preserve_insertion_order = false")  # as a store does
    connection.execute("SET TimeZone = 'UTC'")
    first_failed = dice.integers(0, len(_STAGES), runs.count)
    numbers = {
        **runs.values,
        "failed": failed.astype(np.int64),
        "failed_at": np.where(failed, first_failed, len(_STAGES)),
    }
    connection.register("given", numbers)
    rest = ", ".join(f"'\"{key}\":' || {value}" for key, value in _REST.items())
    columns = ", ".join(f'{sql} AS "{name}"' for name, sql in runs.columns.items())
    connection.execute(
        "CREATE TABLE runs AS SELECT 'run-' || run AS pipeline_run_id, "
        f"if(failed = 1, 'FAIL', 'OK') AS status, {columns}, "
        f"""'{{"attributes":{{' || concat_ws(',', {rest}) || '}}}}' AS rest FROM given ORDER BY run"""
    )
    if runs.stages:
        connection.execute(f"CREATE TABLE stages AS {_stages()}")
    connection.unregister("given")
    return connection


def _stages() -> str:
    names = ", ".join(f"({number}, '{name}')" for number, name in enumerate(_STAGES))
    attributes = {
        "region": ("search", "'region-' || region"),
        "hits": ("search", "hits::DOUBLE"),
        "cache": ("rank", "if(cache = 1, 'miss', 'hit')"),
        "tokens": ("answer", "floor(tokens)::DOUBLE"),
    }
    # A stage that was cancelled because an earlier one failed has written nothing.
    columns = ", ".join(
        f"CASE WHEN stage_name = '{stage}' AND number <= failed_at THEN {sql} END AS \"attributes.{key}\""
        for key, (stage, sql) in attributes.items()
    )
    status = "CASE WHEN number = failed_at THEN 'FAIL' WHEN number > failed_at THEN 'CANCEL' ELSE 'OK' END"
    return (
        "SELECT 'run-' || run AS pipeline_run_id, 'run-' || run || '/' || stage_name || '/1' AS event_id, "
        f"stage_name, {status} AS status, if(number = failed_at, 'TimeoutError', NULL) AS error_type, "
        f"if(number > failed_at, 0, 1)::BIGINT AS attempts, "
        f"if(number > failed_at, 0, duration * (0.2 + 0.1 * number)) AS duration_ms, "
        f"{_COLUMNS['started_at']} AS started_at, 1.0::DOUBLE AS sample_rate, {columns} "
        f"FROM given, (VALUES {names}) s(number, stage_name)"
    )
