"""Runs with one planted cause of their failures, among decoys: what `explain` has to find, or not."""

from __future__ import annotations

from typing import Any, Literal

import duckdb
import numpy as np
from numpy.typing import NDArray

__all__ = ["CAUSES", "Cause", "planted"]

Cause = Literal["category", "number"]
CAUSES: tuple[Cause, ...] = ("category", "number")

_DECOYS = 40


def planted(
    seed: int, runs: int, failures: float, cause: Cause, *, shuffled: bool = False
) -> tuple[duckdb.DuckDBPyConnection, str]:
    """Return a connection with the view `runs`, and the field that is the cause.

    The cause holds of 1 to 5 % of the runs that do not fail, and of 60 to 80 % of those that do. Of
    the 40 decoys 8 copy the cause with errors, 2 are wider than it, 8 have many values, 12 are numbers of
    which 6 are skewed, and 10 are ordinary categories of 2 to 30 values, most far from uniform.

    Args:
        seed: Of the random numbers.
        runs: How many runs there are.
        failures: The share of them that failed.
        cause: Whether the cause is a value or a number above a limit.
        shuffled: Whether the failures are dealt anew, so that nothing explains them.
    """
    dice = np.random.default_rng(seed)
    failed = np.zeros(runs, dtype=bool)
    failed[dice.choice(runs, round(runs * failures), replace=False)] = True
    explained, background = dice.uniform(0.6, 0.8), dice.uniform(0.01, 0.05)
    caused = dice.random(runs) < np.where(failed, explained, background)
    columns: dict[str, NDArray[Any]] = {
        "pipeline_run_id": _named("run", dice.permutation(runs)),
        "status": np.where(failed, "FAIL", "OK").astype(object),
        "duration_ms": dice.lognormal(5, 1, runs) * np.where(failed, 0.6, 1),
        "sample_rate": np.ones(runs),
        "request_id": _named("request", np.arange(runs)),
        "pid": dice.integers(4000, 4016, runs),
        "memory_peak_bytes": dice.integers(10**8, 10**9, runs),
    }
    name = "attributes.cause"
    if cause == "category":
        values = dice.integers(0, 20, runs)
        columns[name] = _named("value", np.where(caused, 20, values))
    else:
        limit = dice.uniform(50, 500)
        below, above = dice.uniform(0, limit, runs), limit + dice.exponential(limit, runs)
        columns[name] = np.where(caused, above, below)
    for number in range(_DECOYS):
        columns[f"attributes.decoy_{number:02}"] = _decoy(dice, number, runs, caused)
    if shuffled:
        columns["status"] = dice.permutation(columns["status"])
    connection = duckdb.connect()
    connection.register("given", columns)
    connection.execute("CREATE TABLE runs AS SELECT * FROM given")
    connection.unregister("given")
    return connection, name


def _decoy(dice: np.random.Generator, number: int, runs: int, caused: NDArray[np.bool_]) -> NDArray[Any]:
    if number < 8:
        # A copy, right in 50 to 97 % of the runs with the cause, and wrong in 0.3 to 10 % of the others.
        copied = dice.random(runs) < np.where(caused, dice.uniform(0.5, 0.97), dice.uniform(0.003, 0.1))
        if number < 4:
            return np.where(copied, "yes", "no").astype(object)
        return dice.normal(0, 1, runs) + np.where(copied, dice.uniform(2, 5), 0)
    if number < 16:
        many = int(dice.choice([500, 5_000, runs // 4]))
        return _named("user", (dice.random(runs) ** dice.uniform(1, 3) * many).astype(int))
    if number < 22:
        return dice.normal(0, 1, runs)
    if number < 28:
        return dice.lognormal(0, dice.uniform(1, 3), runs)
    if number < 30:  # something wider, that the cause is a part of
        wider = caused | (dice.random(runs) < dice.uniform(0.1, 0.5))
        return np.where(wider, "eu", "us").astype(object)
    many = int(dice.integers(2, 30))
    values = _named("value", dice.choice(many, runs, p=dice.dirichlet(np.full(many, 0.5))))
    return np.where(dice.random(runs) < dice.uniform(0, 0.3), None, values) if number % 3 == 0 else values


def _named(kind: str, numbers: NDArray[Any]) -> NDArray[Any]:
    names, at = np.unique(numbers, return_inverse=True)
    named: NDArray[Any] = np.array([f"{kind}_{name}" for name in names], dtype=object)[at]
    return named
