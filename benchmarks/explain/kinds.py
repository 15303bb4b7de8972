"""The kinds of planted causes: what the failed runs have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .tables import DAY, Mask, Runs, connect, draw_runs

__all__ = ["KINDS", "Kind", "Planted", "plant"]

Dice = np.random.Generator

_OUTSIDE = 0.01
"""The share of failures among the runs without the cause."""

_STRONG_INSIDE, _STRONG_OUTSIDE = 0.5, 0.004


@dataclass(frozen=True)
class Cause:
    """A planted cause.

    Attributes:
        rows: The runs that have the cause.
        fields: The combinations of fields that describe it; any of them is right.
        parts: Smaller sets of runs whose description is right as well.
        failed: The runs that fail; by default, they are drawn so that the cause is as certain as
            the kind states.
    """

    rows: Mask
    fields: tuple[frozenset[str], ...]
    parts: tuple[Mask, ...] = ()
    failed: Mask | None = None


def _cause(rows: NDArray[np.bool_], *fields: str, either: tuple[str, ...] = ()) -> Cause:
    """Return a cause that needs all of the fields, or any one of `either`."""
    together = (frozenset(fields),) if fields else ()
    return Cause(np.asarray(rows, dtype=bool), together + tuple(frozenset({name}) for name in either))


@dataclass(frozen=True)
class Kind:
    """A kind of cause.

    Attributes:
        name: Its name.
        plant: Sets the fields of the runs that have the cause, and returns it.
        runs: Number of runs.
        days: The runs start within this number of days.
        log_p: The p-value of Fisher's exact test of the runs with the cause is drawn between these
            powers of ten. A test that was told the field still has to find the value or the interval, or
            for a combination, to show that each part is necessary; it is lower for these kinds.
        failures: Number of failures; by default 1 % of the runs without the cause, and those that the
            p-value needs.
        selects: The predicate of the selection.
        stages: Whether the runs have stages.
        slow: Whether the kind needs a million runs.
    """

    name: str
    plant: Callable[[Dice, Runs], Cause]
    runs: int = 60_000
    days: int = 7
    log_p: tuple[float, float] = (-20, -8)
    failures: int | None = None
    selects: str | None = None
    stages: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Planted:
    """Tables with a planted cause.

    Attributes:
        connection: A connection with the table `runs`, whose row number is the index of a run.
        selects: The predicate of the selection.
        cause: The planted cause.
        failed: The runs that fail, or that the predicate selects.
        p: The p-value of Fisher's exact test of the runs with the cause.
    """

    connection: duckdb.DuckDBPyConnection
    selects: str | None
    cause: Cause
    failed: Mask
    p: float


def plant(kind: Kind, seed: int, *, strong: bool = False, runs: int | None = None) -> Planted:
    """Return tables with a cause of this kind.

    Args:
        kind: The kind of the cause.
        seed: The seed of the random numbers.
        strong: Whether half of the runs with the cause fail, and 0.4 % of the others. By default, the
            cause is as uncertain as the kind allows.
        runs: Number of runs; by default that of the kind.
    """
    dice = np.random.default_rng((seed, *kind.name.encode()))
    table = draw_runs(dice, runs or kind.runs, days=kind.days)
    table.stages = kind.stages
    cause = kind.plant(dice, table)
    table.plant_copies(dice, cause.rows)
    if cause.failed is not None:
        failed = cause.failed
    elif strong and kind.failures is None:
        failed = dice.random(table.count) < np.where(cause.rows, _STRONG_INSIDE, _STRONG_OUTSIDE)
    else:
        failed = _failed(dice, cause.rows, 10 ** dice.uniform(*kind.log_p), kind.failures)
    if kind.selects is None:
        table.values["duration"] = table.values["duration"] * np.where(failed, 0.6, 1)
        connection = connect(table, failed, dice)
    else:
        # The selection is that of the slow runs. Failures are unrelated to it.
        slow = 5_000 + dice.exponential(3_000, table.count)
        table.values["duration"] = np.where(failed, slow, np.minimum(table.values["duration"], 5_000))
        connection = connect(table, dice.random(table.count) < _OUTSIDE, dice)
    inside, total = int((failed & cause.rows).sum()), int(failed.sum())
    p = float(stats.hypergeom.sf(inside - 1, table.count, int(cause.rows.sum()), total))
    return Planted(connection, kind.selects, cause, failed, p)


def _failed(dice: Dice, rows: Mask, p: float, failures: int | None) -> Mask:
    """Draw the runs that fail, so that the rows with the cause differ from the others with a p-value."""
    count, inside = len(rows), np.flatnonzero(rows)
    outside = np.flatnonzero(~rows)
    numbers = np.arange(min(len(inside), failures or len(inside)) + 1)
    others = np.full(len(numbers), round(_OUTSIDE * len(outside))) if failures is None else failures - numbers
    reached = stats.hypergeom.sf(numbers - 1, count, len(inside), numbers + others) <= p
    at = int(np.argmax(reached)) if reached.any() else len(numbers) - 1
    failed = np.zeros(count, dtype=bool)
    failed[dice.choice(inside, numbers[at], replace=False)] = True
    failed[dice.choice(outside, others[at], replace=False)] = True
    return failed


# ------------------------------------------------------------ one field


def _value(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["country"] == dice.integers(5, 15), "attributes.country")


def _interval(dice: Dice, runs: Runs) -> Cause:
    score = runs.values["score"]
    return _cause((score > 30) & (score < 40), "attributes.score")


def _narrow_interval(dice: Dice, runs: Runs) -> Cause:
    score = runs.values["score"]
    return _cause((score > 50) & (score < 52), "attributes.score")


def _both_ends(dice: Dice, runs: Runs) -> Cause:
    score = runs.values["score"]
    return _cause((score < 5) | (score > 95), "attributes.score")


def _version(dice: Dice, runs: Runs) -> Cause:
    return _cause((runs.values["major"] == 2) & (runs.values["minor"] == 3), "attributes.client_version")


def _path(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["resource"] == 4, "attributes.path")


def _shard(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["shard"] == 37, "attributes.shard")


def _code(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["code"] == 17, "attributes.code")


def _tag(dice: Dice, runs: Runs) -> Cause:
    return _cause((runs.values["tags"] & 2) == 2, "attributes.tags")


def _setting(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["timeout"] == 2, "attributes.timeout_ms")


def _five_values(dice: Dice, runs: Runs) -> Cause:
    return _cause(np.isin(runs.values["org"], dice.choice(200, 5, replace=False)), "org_id")


def _absence(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["variant"] < 0, "attributes.variant")


def _rare_absence(dice: Dice, runs: Runs) -> Cause:
    missing = dice.random(runs.count) < 0.003
    runs.values["variant"] = np.where(missing, -1, dice.integers(0, 6, runs.count))
    return _cause(missing, "attributes.variant")


def _config(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["depth"] == 9, either=("attributes.config", "attributes.config.depth"))


def _mixed_types(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["upstream"] == 6, "attributes.upstream_code")


def _large_integer(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["tenant"] == dice.integers(0, 40), "attributes.tenant")


# ------------------------------------------------------------ time


def _deploy(dice: Dice, runs: Runs) -> Cause:
    rows = runs.values["release"] == 3
    both = frozenset({"started_at", "service_version"})
    return Cause(rows, (frozenset({"started_at"}), frozenset({"service_version"}), both))


def _incident(dice: Dice, runs: Runs) -> Cause:
    after = runs.values["start"] - (dice.integers(1, 6) * DAY + dice.uniform(10, 18) * 3600)
    return _cause((after >= 0) & (after < 1800), "started_at")


def _night(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["start"] % DAY // 3600 == 3, "started_at")


def _weekday(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["start"] // DAY % 7 == dice.integers(0, 7), "started_at")


def _host_after(dice: Dice, runs: Runs) -> Cause:
    since = dice.uniform(0.36, 0.48) * runs.days * DAY
    rows = (runs.values["host"] == dice.integers(0, 20)) & (runs.values["start"] > since)
    return _cause(rows, "host", "started_at")


# ------------------------------------------------------------ several fields


def _two_fields(dice: Dice, runs: Runs) -> Cause:
    rows = (runs.values["model"] == 3) & (runs.values["plan"] == 2)
    return _cause(rows, "attributes.model", "attributes.plan")


def _three_fields(dice: Dice, runs: Runs) -> Cause:
    rows = (runs.values["model"] == 1) & (runs.values["plan"] == 1) & (runs.values["cached"] == 1)
    return _cause(rows, "attributes.model", "attributes.plan", "attributes.cached")


def _narrow_beside_wide(dice: Dice, runs: Runs) -> Cause:
    rows = np.zeros(runs.count, dtype=bool)
    rows[dice.choice(runs.count, 70, replace=False)] = True
    runs.values["org"] = np.where(rows, 999, runs.values["org"])
    # 50 % of the other failures are cached, and 34 % of all runs.
    cached = runs.values["cached"] == 1
    failed = rows | (dice.random(runs.count) < np.where(cached, 0.049, 0.025))
    return Cause(rows, (frozenset({"org_id"}),), failed=failed)


def _confounded(dice: Dice, runs: Runs) -> Cause:
    plan = dice.integers(0, 12, runs.count)
    rows = plan < 3
    runs.values["plan"] = plan
    runs.values["area"] = (dice.random(runs.count) < np.where(rows, 0.85, 0.25)).astype(np.int64)
    runs.columns["attributes.area"] = "if(area = 1, 'east', 'west')"
    return Cause(rows, (frozenset({"attributes.plan"}),), tuple(plan == number for number in range(3)))


def _certain_customer(dice: Dice, runs: Runs) -> Cause:
    rows = np.zeros(runs.count, dtype=bool)
    rows[dice.choice(runs.count, 100, replace=False)] = True
    runs.values["org"] = np.where(rows, 999, runs.values["org"])
    return Cause(rows, (frozenset({"org_id"}),), failed=rows | (dice.random(runs.count) < 0.4))


def _sessions(dice: Dice, runs: Runs) -> Cause:
    # A session fails as a whole, so the p-value is that of the sessions.
    sessions = np.arange(runs.count) // 5
    runs.group(dice, sessions)
    rows = runs.values["country"] == dice.integers(1, 5)
    failed = _failed(dice, rows[::5], 10 ** dice.uniform(-20, -8), None)[sessions]
    return Cause(rows, (frozenset({"attributes.country"}),), failed=failed)


# ------------------------------------------------------------ stages


def _stage_attribute(dice: Dice, runs: Runs) -> Cause:
    return _cause(runs.values["region"] == 5, "search/attributes.region")


def _slow_stage(dice: Dice, runs: Runs) -> Cause:
    runs.columns["critical_path"] = (
        "if(cache = 1, ['search', 'rank', 'answer'], ['search', 'answer'])::VARCHAR[]"
    )
    return _cause(runs.values["cache"] == 1, "rank/attributes.cache")


def _early_end(dice: Dice, runs: Runs) -> Cause:
    # Most failed runs end before the model is called.
    runs.values["never_called"] = dice.random(runs.count)
    for name in ("gen_ai.usage.output_tokens", "llm.calls"):
        runs.columns[f"attributes.{name}"] = (
            "CASE WHEN never_called > if(failed = 1, 0.95, 0.002) THEN floor(tokens)::DOUBLE END"
        )
    return _cause(runs.values["model"] == 4, "attributes.model")


KINDS = (
    Kind("a value", _value),
    Kind("two fields together", _two_fields, log_p=(-30, -20)),
    Kind("three fields together", _three_fields, log_p=(-40, -32)),
    Kind("30 < x < 40", _interval, log_p=(-20, -10)),
    Kind("50 < x < 52", _narrow_interval, log_p=(-22, -13)),
    Kind("x < 5 or x > 95", _both_ends, log_p=(-20, -10)),
    Kind("since a deploy", _deploy),
    Kind("an incident of 30 minutes", _incident, log_p=(-22, -13)),
    Kind("every night, 3 to 4", _night),
    Kind("one weekday of 4 weeks", _weekday, days=28),
    Kind("version 2.3.*", _version),
    Kind("path /v1/export/*", _path),
    Kind("shard = 37 of 64", _shard),
    Kind("code = 217 of 32", _code),
    Kind("list contains beta", _tag),
    Kind("attribute of a stage", _stage_attribute, stages=True),
    Kind("absence, 3.6 %", _absence),
    Kind("absence, 0.3 %", _rare_absence),
    Kind("timeout_ms = 500", _setting),
    Kind("5 values of 200", _five_values, log_p=(-22, -18)),
    Kind("narrow beside wide", _narrow_beside_wide),
    Kind("confounded area", _confounded),
    # With a higher p-value, the failures of the host before that time could be due to chance.
    Kind("a host after a time", _host_after, log_p=(-46, -36)),
    Kind("leaf of an object", _config),
    Kind("text of a mixed key", _mixed_types),
    Kind("integer beyond 2^53", _large_integer),
    Kind("stage of slow runs", _slow_stage, stages=True, selects="duration_ms > 5000"),
    Kind("runs that end early", _early_end),
    Kind("a value of sessions of 5", _sessions),
    Kind("20 failures of 1M", _code, runs=1_000_000, failures=20, slow=True),
    Kind("100 of 100 in 1M", _certain_customer, runs=1_000_000, slow=True),
)
