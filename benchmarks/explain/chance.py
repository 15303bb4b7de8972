"""Tables in which nothing explains the failures: how often `explain` reports a difference anyway."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stageflow.store import explain

from .tables import Mask, connect, draw_runs

__all__ = ["CHANCES", "Chance", "print_chances", "search_all"]

_SHOWN = 10
"""Number of wrong tables that `--show` prints for each kind."""

ALPHA = 0.05
"""The `alpha` of `explain`: at most this share of the tables may have a difference."""

_MIN_SESSIONS = 12


@dataclass(frozen=True)
class Chance:
    """A kind of table without a cause.

    Attributes:
        name: Its name.
        sizes: Draws the number of runs of each session, for a number of runs in total; None if the runs
            have no sessions.
        failing: The share of runs, or of sessions, that fail.
    """

    name: str
    sizes: Callable[[np.random.Generator, int], NDArray[np.int64]] | None = None
    failing: tuple[float, float] = (0.01, 0.2)

    def draw(self, seed: int) -> duckdb.DuckDBPyConnection:
        """Return a connection with the tables `runs` and `stages` of this seed."""
        dice = np.random.default_rng((seed, *self.name.encode()))
        count = int(10 ** dice.uniform(np.log10(500), np.log10(20_000)))
        share = dice.uniform(*self.failing)
        if self.sizes is None:
            runs = draw_runs(dice, count)
            failed = _some(dice, count, share)
        else:
            per_session = self.sizes(dice, count)
            sessions = np.repeat(np.arange(len(per_session)), per_session)
            runs = draw_runs(dice, len(sessions))
            runs.group(dice, sessions)
            failed = _some(dice, len(per_session), share)[sessions]
        runs.stages = seed % 4 == 0
        return connect(runs, failed, dice)


def _some(dice: np.random.Generator, count: int, share: float) -> Mask:
    some = np.zeros(count, dtype=bool)
    some[dice.choice(count, max(3, round(count * share)), replace=False)] = True
    return some


def _equal(size: int) -> Callable[[np.random.Generator, int], NDArray[np.int64]]:
    return lambda dice, count: np.full(max(_MIN_SESSIONS, count // size), size)


def _unequal(dice: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Most sessions have a few runs, and some have more than a hundred."""
    return np.minimum(1 + dice.pareto(1.1, max(_MIN_SESSIONS, count // 5)) * 2, 200).astype(np.int64)


CHANCES = (
    Chance("runs fail at random"),
    Chance("few failures", failing=(0.001, 0.01)),
    Chance("half of the runs fail", failing=(0.3, 0.6)),
    Chance("sessions of 5 fail", _equal(5)),
    Chance("sessions of 20 fail", _equal(20)),
    Chance("sessions of 1 to 200 fail", _unequal),
)


@dataclass(frozen=True)
class _Outcome:
    seed: int
    found: tuple[str, ...]
    seconds: float


def _search(work: tuple[str, int]) -> _Outcome:
    name, seed = work
    chance = next(one for one in CHANCES if one.name == name)
    connection = chance.draw(seed)
    connection.execute("SET threads = 1")
    began = time.perf_counter()
    explanation = explain(connection, alpha=ALPHA)
    seconds = time.perf_counter() - began
    connection.close()
    found = tuple(f"{one}  q {one.q_value:.2g}" for one in explanation.differences)
    return _Outcome(seed, found, seconds)


def search_all(chances: Iterable[Chance], tables: int, jobs: int) -> Iterable[tuple[Chance, list[_Outcome]]]:
    """Yield the outcomes of each kind of table."""
    with ProcessPoolExecutor(jobs) as processes:
        for chance in chances:
            work = [(chance.name, seed) for seed in range(tables)]
            yield chance, list(processes.map(_search, work, chunksize=4))


def print_chances(outcomes: Iterable[tuple[Chance, list[_Outcome]]], *, show: bool = False) -> None:
    """Print the share of tables in which there is a difference, and its upper 95 % bound."""
    print(f"\ntables without a cause, alpha = {ALPHA}\n")
    print("| table | tables | with a difference | share | upper bound | median seconds |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for chance, searched in outcomes:
        wrong = [outcome for outcome in searched if outcome.found]
        count, total = len(wrong), len(searched)
        bound = float(stats.beta.ppf(0.95, count + 1, total - count)) if count < total else 1.0
        seconds = float(np.median([outcome.seconds for outcome in searched]))
        print(
            f"| {chance.name} | {total} | {count} | {count / total:.1%} | {bound:.1%}"
            f"{'' if bound <= ALPHA else ' (above alpha)'} | {seconds:.2f} |",
            flush=True,
        )
        if show:
            for outcome in wrong[:_SHOWN]:
                print(f"    seed {outcome.seed}: {'; '.join(outcome.found[:3])}", flush=True)
