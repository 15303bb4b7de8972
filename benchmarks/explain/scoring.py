"""Whether the planted causes are found, by `explain` or by something else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from .kinds import Kind, Planted, plant
from .tables import Mask

__all__ = ["TOP", "Found", "Result", "Search", "print_results", "score", "score_all"]

TOP = 3
"""Number of rows in which the cause has to be."""

_MIN_JACCARD = 0.5


@dataclass(frozen=True)
class Found:
    """A row of a result.

    Attributes:
        fields: The fields that it names.
        rows: Returns the runs that it describes.
        text: The row as text.
    """

    fields: frozenset[str]
    rows: Callable[[], Mask]
    text: str


Search = Callable[[Planted], Sequence[Found]]
"""Finds causes, the most likely one first."""


@dataclass(frozen=True)
class Result:
    """The result of a search for one planted cause.

    Attributes:
        kind: The name of the kind.
        seed: The seed of the tables.
        rank: The rank of the first right row, from 1; None if it is not among the first three.
        jaccard: The highest Jaccard index of the cause and a row with the right fields, among the first
            three; 0 if there is none.
        seconds: The duration of the search.
        shown: The first three rows, with their Jaccard indices.
    """

    kind: str
    seed: int
    rank: int | None
    jaccard: float
    seconds: float
    shown: tuple[str, ...]


def jaccard(one: Mask, other: Mask) -> float:
    """Return the number of rows in both masks divided by the number in either."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def score(search: Search, planted: Planted, kind: str, seed: int, *, exact: bool = True) -> Result:
    """Search for a planted cause, and compare the first three rows with it.

    Args:
        search: What searches.
        planted: The tables.
        kind: The name of the kind of cause.
        seed: The seed of the tables.
        exact: Whether a row that names further fields is wrong.
    """
    began = time.perf_counter()
    found = search(planted)
    seconds = time.perf_counter() - began
    rank, best, shown = None, 0.0, []
    for number, one in enumerate(found[:TOP], 1):
        rows = one.rows()
        overlap = max(jaccard(rows, right) for right in (planted.cause.rows, *planted.cause.parts))
        shown.append(f"J {overlap:.2f}  {one.text}")
        if any(one.fields == right if exact else one.fields >= right for right in planted.cause.fields):
            best = max(best, overlap)
            if overlap >= _MIN_JACCARD and rank is None:
                rank = number
    return Result(kind, seed, rank, best, seconds, tuple(shown))


def _score_one(search: Search, strong: bool, runs: int | None, exact: bool, work: tuple[Kind, int]) -> Result:
    kind, seed = work
    planted = plant(kind, seed, strong=strong, runs=runs)
    planted.connection.execute("SET threads = 1")  # as many as processes, so that the times are comparable
    try:
        return score(search, planted, kind.name, seed, exact=exact)
    finally:
        planted.connection.close()


def score_all(
    search: Search,
    kinds: Iterable[Kind],
    seeds: int,
    *,
    strong: bool = False,
    runs: int | None = None,
    jobs: int = 1,
    exact: bool = True,
) -> Iterable[list[Result]]:
    """Yield the results of each kind.

    Args:
        search: What searches for the causes. It has to be a module's function if there are several jobs.
        kinds: The kinds of causes.
        seeds: Number of tables of each kind.
        strong: See `plant`.
        runs: Number of runs; by default that of each kind.
        jobs: Number of processes.
        exact: See `score`.
    """
    one = partial(_score_one, search, strong, runs, exact)
    if jobs == 1:
        for kind in kinds:
            yield [one((kind, seed)) for seed in range(seeds)]
        return
    with ProcessPoolExecutor(jobs) as processes:
        for kind in kinds:
            yield list(processes.map(one, [(kind, seed) for seed in range(seeds)]))


def print_results(title: str, results: Iterable[list[Result]], *, show: bool = False) -> None:
    """Print a table with a row for each kind, and how many causes were found in total."""
    print(f"\n{title}\n")
    print("| cause | seeds | in the first three | first | median seconds | median Jaccard |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    every = []
    for of_kind in results:
        every += of_kind
        _print_row(of_kind[0].kind, of_kind)
        if show:
            for result in of_kind:
                print(f"    seed {result.seed}, rank {result.rank or '-'}")
                print(*(f"        {row}" for row in result.shown or ("nothing",)), sep="\n", flush=True)
    if every:
        _print_row("all", every)


def _print_row(name: str, results: Sequence[Result]) -> None:
    found = sum(result.rank is not None for result in results)
    first = sum(result.rank == 1 for result in results)
    seconds = statistics.median(result.seconds for result in results)
    overlap = float(np.median([result.jaccard for result in results]))
    print(f"| {name} | {len(results)} | {found} | {first} | {seconds:.2f} | {overlap:.2f} |", flush=True)
