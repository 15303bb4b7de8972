"""`python -m benchmarks.peers`: this library beside the floor and other engines, interleaved."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from ..chunks import CHUNKS, SOURCES
from ..shapes import Shape, chain, fan_out, layers
from .contestants import OURS, PEERS, Contestant, InstallError, install
from .process import NoAnswerError, Process

_MOST_SECONDS = 20.0
"""A run that takes longer is given up."""

_WARM_UP = 2
_LEAST_ROUNDS = 3
_RUNS_IN_FLIGHT = 1000


@dataclass(frozen=True)
class Column:
    """A shape and how many runs of it go on at once, or a map of so many items."""

    title: str
    shape: Shape
    times: int = 1
    items: int = 0

    @property
    def request(self) -> dict[str, Any]:
        """What prepares a contestant for it."""
        if self.items:
            return {"do": "prepare", "items": self.items}
        return {"do": "prepare", "shape": self.shape, "times": self.times}

    @property
    def size(self) -> int:
        """Number of stages or items."""
        return self.items or len(self.shape) * self.times


COLUMNS = (
    Column("chain of 100", chain(100)),
    Column("fan-out of 100", fan_out(100)),
    Column("10 x 10 layers", layers(10, 10)),
    Column("1,000 runs of 5", chain(5), 1000),
    Column("chain of 1,000", chain(1000)),
    Column("map of 100", {}, items=100),
    Column("map of 10,000", {}, items=10_000),
)

Cells = dict[str, str]
Notes = dict[str, list[str]]
"""What was not measured and why, and the columns without it."""


def _found_contestants(names: list[str], notes: Notes) -> list[Contestant]:
    found = list(OURS)
    for name in names:
        try:
            found.append(install(name))
        except InstallError as error:
            notes[f"{PEERS[name]} is left out: {error}"] = []
    return found


def _ready(process: Process, column: Column) -> float:
    """Prepare and warm up, and return the seconds of the last run of that."""
    # A graph is built twice and checked by one run, beside an import that may take its time.
    process.ask(column.request, within=_MOST_SECONDS * 3)
    seconds = 0.0
    for _ in range(_WARM_UP):
        seconds = process.ask({"do": "run"}, within=_MOST_SECONDS)["seconds"]
    return seconds


def _measure(
    processes: dict[str, Process], column: Column, rounds: int, budget: float, notes: Notes
) -> Cells:
    """Return a cell for each contestant that could run the shape."""
    shares: dict[str, int] = {}
    for title, process in processes.items():
        try:
            took = _ready(process, column)
        except NoAnswerError as error:
            _note(notes, title, column.title, error)
        else:
            shares[title] = rounds if title == "floor" else _rounds_of(took, rounds, budget)
    seconds: dict[str, list[float]] = {title: [] for title in shares}
    ratios: dict[str, list[float]] = {title: [] for title in shares}
    for number in range(rounds):
        names = [title for title, share in shares.items() if number * share % rounds < share]
        turn = number % len(names)
        took_now: dict[str, float] = {}
        for title in names[turn:] + names[:turn]:
            try:
                took_now[title] = processes[title].ask({"do": "run"}, within=_MOST_SECONDS)["seconds"]
            except NoAnswerError as error:
                _note(notes, title, column.title, error)
                del shares[title]
        for title, took in took_now.items():
            seconds[title].append(took)
            ratios[title].append(took / took_now["floor"])
    return {
        title: _cell(statistics.median(seconds[title]) / column.size * 1e6, statistics.median(ratios[title]))
        for title in shares
    }


def _note(notes: Notes, title: str, column: str, error: NoAnswerError) -> None:
    notes.setdefault(f"{title}: {error}", []).append(column)


def _rounds_of(took: float, rounds: int, budget: float) -> int:
    """Return in how many of the rounds a contestant takes part: the slow ones in fewer."""
    return max(min(_LEAST_ROUNDS, rounds), min(rounds, int(budget / took)))


def _cell(microseconds: float, ratio: float) -> str:
    ratio_text = f"({ratio:.2f})" if ratio < 9.995 else f"({ratio:,.0f})"
    return f"{microseconds:,.1f} {ratio_text:>7}"


def _measure_streams(contestant: Contestant, folder: str, rounds: int, budget: float, notes: Notes) -> Cells:
    """Return a cell for each source whose chunks the contestant could stream."""
    cells: Cells = {}
    process = Process(contestant, folder)
    try:
        for source in SOURCES:
            request = {"do": "stream", "source": source}
            try:
                took = process.ask(request | {"rounds": 1}, within=_MOST_SECONDS * 3)["seconds"]
                found = process.ask(
                    request | {"rounds": _rounds_of(took, rounds, budget)},
                    within=_MOST_SECONDS * 3 + budget * 2,
                )
            except NoAnswerError as error:
                _note(notes, contestant.title, source, error)
            else:
                cells[source] = _cell(found["seconds"] / CHUNKS * 1e6, found["ratio"])
    finally:
        process.end()
    return cells


def _memory(contestant: Contestant, folder: str, times: int) -> float:
    """Return the median kB of a run in flight, each time in a new process, as nothing is left over there."""
    found = []
    for _ in range(times):
        process = Process(contestant, folder)
        try:
            answer = process.ask({"do": "memory", "runs": _RUNS_IN_FLIGHT}, within=_MOST_SECONDS * 3)
        finally:
            process.end()
        found.append(answer["kB"])
    return statistics.median(found)


def _print_costs(heading: str, columns: list[str], rows: dict[str, Cells]) -> None:
    width = max(len(title) for title in rows) + 2
    widths = {column: max(18, len(column) + 2) for column in columns}
    print(heading)
    print(f"{'':<{width}}" + "".join(f"{column:>{widths[column]}}" for column in columns))
    for title, cells in rows.items():
        print(
            f"{title:<{width}}" + "".join(f"{cells.get(column, '-'):>{widths[column]}}" for column in columns)
        )
    print()


def _print_memory(contestants: list[Contestant], folder: str, notes: Notes) -> None:
    width = max(len(contestant.title) for contestant in contestants) + 2
    print(f"memory that a run holds while its only stage waits, {_RUNS_IN_FLIGHT:,} in flight; medians")
    for contestant in contestants:
        try:
            found = f"{_memory(contestant, folder, 3):.1f} kB"
        except NoAnswerError as error:
            _note(notes, contestant.title, "memory", error)
            found = "-"
        print(f"{contestant.title:<{width}}{found:>12}")
    print()


def _bench(names: list[str], rounds: int, budget: float, folder: str) -> None:
    notes: Notes = {}
    contestants = _found_contestants(names, notes)
    processes = {contestant.title: Process(contestant, folder) for contestant in contestants}
    costs: dict[str, Cells] = {title: {} for title in processes}
    try:
        for column in COLUMNS:
            print(f"measuring {column.title}", file=sys.stderr)
            for title, cell in _measure(processes, column, rounds, budget, notes).items():
                costs[title][column.title] = cell
    finally:
        for process in processes.values():
            process.end()
    _print_costs(
        "microseconds per no-op stage or item, and in brackets the ratio to the floor; medians",
        [column.title for column in COLUMNS],
        costs,
    )
    print("measuring streams", file=sys.stderr)
    _print_costs(
        f"microseconds per chunk, of {CHUNKS:,} from a stage to a reader outside the run, and in brackets\n"
        "the ratio to a hop through a bare bounded queue in the same process; medians",
        list(SOURCES),
        {
            contestant.title: _measure_streams(contestant, folder, rounds, budget, notes)
            for contestant in contestants
        },
    )
    _print_memory(contestants, folder, notes)
    for note, columns in notes.items():
        print(f"{note} ({', '.join(columns)})" if columns else note)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="peer", help=f"of {', '.join(PEERS)}; default all")
    parser.add_argument("--rounds", type=int, default=30, help="rounds per shape (default 30)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=15,
        help="a contestant takes part in fewer rounds of a shape, but at least 3, "
        "where they would take longer than this (default 15)",
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.peers) - set(PEERS):
        parser.error(f"no peer is called {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        _bench(chosen.peers or list(PEERS), max(1, chosen.rounds), chosen.seconds, folder)


if __name__ == "__main__":
    main()
