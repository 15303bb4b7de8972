"""`python -m benchmarks.explain`: whether planted causes are found, and nothing where there are none."""

from __future__ import annotations

import argparse

from .chance import CHANCES, print_chances, search_all
from .kinds import KINDS
from .ours import search
from .scoring import print_results, score_all
from .timing import print_times

_RUNS, _BIG_RUNS = 83_334, 833_334
"""A million stages, and ten million."""


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="tables of each kind (default 50)")
    parser.add_argument("--kind", action="append", help="only this kind of cause; can be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default 1)")
    parser.add_argument("--null", type=int, default=100, help="tables without a cause (default 100)")
    parser.add_argument("--strong", action="store_true", help="half of the runs with the cause fail")
    parser.add_argument("--full", action="store_true", help="include the kinds with a million runs")
    parser.add_argument("--show", action="store_true", help="print the first three rows of each result")
    parser.add_argument("--time", action="store_true", help="measure only the time of questions")
    parser.add_argument("--big", action="store_true", help="measure the time over ten million stages too")
    arguments = parser.parse_args()
    if arguments.time:
        for runs in (_RUNS, _BIG_RUNS) if arguments.big else (_RUNS,):
            print_times(runs)
        return
    kinds = [
        kind
        for kind in KINDS
        if (kind.name in arguments.kind if arguments.kind else arguments.full or not kind.slow)
    ]
    if arguments.kind and len(kinds) < len(set(arguments.kind)):
        parser.error("unknown kind; expected one of: " + ", ".join(kind.name for kind in KINDS))
    if arguments.seeds:
        results = score_all(search, kinds, arguments.seeds, strong=arguments.strong, jobs=arguments.jobs)
        strength = "half of the runs with the cause fail" if arguments.strong else "weak causes"
        print_results(f"planted causes, {strength}", results, show=arguments.show)
    if arguments.null and not arguments.kind:
        print_chances(search_all(CHANCES, arguments.null, arguments.jobs), show=arguments.show)


if __name__ == "__main__":
    main()
