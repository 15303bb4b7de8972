"""`python -m benchmarks.ui`: the web UI over many runs, with many viewers, and in a browser."""

from __future__ import annotations

import argparse
import tempfile

from .browser import bench_browser
from .questions import bench_questions
from .records import archive_runs
from .viewers import bench_viewers


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ui", description=__doc__)
    parser.add_argument("--journal", help="a journal with an archive; default a new one")
    parser.add_argument("--runs", type=int, default=200_000, help="runs of a new journal (default 200,000)")
    parser.add_argument("--viewers", action="store_true", help="measure viewers and writers instead")
    parser.add_argument("--seconds", type=int, default=60, help="time for which they write (default 60)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.viewers:
            bench_viewers(f"{folder}/journal", seconds=arguments.seconds)
            return
        journal = arguments.journal
        if journal is None:
            journal = f"{folder}/journal"
            archive_runs(journal, arguments.runs)
        bench_questions(journal)
        bench_browser(journal)


if __name__ == "__main__":
    main()
