"""`python -m benchmarks.explain`: whether planted causes are found, and nothing where there are none."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from ..peers.contestants import install_requirements
from .chance import CHANCES, print_chances, search_all
from .datasets import DATA_SETS
from .kinds import KINDS
from .ours import search
from .scoring import print_results, score_all
from .timing import print_times

_RUNS, _BIG_RUNS = 83_334, 833_334
"""A million stages, and ten million."""

_PEER_RUNS, _PEER_SEEDS = 20_000, 10
"""With more runs, some of the peers take minutes for a table."""


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="tables of each kind (default 50)")
    parser.add_argument("--kind", action="append", help="only this kind of cause; can be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default 1)")
    parser.add_argument("--null", type=int, default=100, help="tables without a cause (default 100)")
    parser.add_argument("--runs", type=int, help="runs of each table (default 60,000)")
    parser.add_argument("--strong", action="store_true", help="half of the runs with the cause fail")
    parser.add_argument("--full", action="store_true", help="include the kinds with a million runs")
    parser.add_argument("--show", action="store_true", help="print the first three rows of each result")
    parser.add_argument("--peers", action="store_true", help="compare with other tools instead")
    parser.add_argument("--datasets", action="store_true", help="explain two real data sets instead")
    parser.add_argument("--time", action="store_true", help="measure the time of questions instead")
    parser.add_argument("--big", action="store_true", help="measure the time over ten million stages too")
    arguments = parser.parse_args()
    if arguments.time:
        for runs in (_RUNS, _BIG_RUNS) if arguments.big else (_RUNS,):
            print_times(runs)
    elif arguments.peers:
        _run_peers(arguments)
    elif arguments.datasets:
        python = install_requirements("explain", Path(__file__).with_name("peers.txt"))
        for data_set in DATA_SETS:
            command = (sys.executable, "-m", "benchmarks.explain.datasets", data_set.name, python)
            subprocess.run(command, check=True)
    else:
        _run_planted(arguments, parser)


def _run_planted(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    names = arguments.kind or [kind.name for kind in KINDS if arguments.full or not kind.slow]
    kinds = [kind for kind in KINDS if kind.name in names]
    if len(kinds) < len(set(names)):
        parser.error("unknown kind; expected one of: " + ", ".join(kind.name for kind in KINDS))
    if arguments.seeds:
        results = score_all(
            search,
            kinds,
            arguments.seeds,
            strong=arguments.strong,
            runs=arguments.runs,
            jobs=arguments.jobs,
        )
        strength = "half of the runs with the cause fail" if arguments.strong else "weak causes"
        print_results(f"planted causes, {strength}", results, show=arguments.show)
    if arguments.null and not arguments.kind:
        print_chances(search_all(CHANCES, arguments.null, arguments.jobs), show=arguments.show)


def _run_peers(arguments: argparse.Namespace) -> None:
    python = install_requirements("explain", Path(__file__).with_name("peers.txt"))
    kinds = [kind for kind in KINDS if not kind.slow]
    seeds = min(arguments.seeds, _PEER_SEEDS)
    results = score_all(search, kinds, seeds, strong=arguments.strong, runs=_PEER_RUNS, jobs=arguments.jobs)
    print_results(f"explain, {_PEER_RUNS:,} runs", results, show=arguments.show)
    options = [f"--seeds={seeds}", f"--runs={_PEER_RUNS}", f"--jobs={arguments.jobs}"]
    options += [f"--{name}" for name in ("strong", "show") if getattr(arguments, name)]
    subprocess.run((python, "-W", "ignore", "-m", "benchmarks.explain.peers", *options), check=True)


if __name__ == "__main__":
    main()
