"""Other ways to find what failed runs have in common, on the same planted causes.

This module runs in an environment of its own, without stageflow. `python -m benchmarks.explain --peers`
creates the environment and starts it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas
import pysubgroup
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from .kinds import KINDS, Planted
from .scoring import Found, Search, print_results, score_all
from .tables import Mask

__all__: list[str] = []

_NOT_COMPARED = {"pipeline_run_id", "status", "rest", "sample_rate", "critical_path", "duration_ms"}

_MIN_ROWS = 10
"""Values that fewer runs have are not compared."""

_MAX_VALUES = 200
"""Of a field with more values, the most frequent ones are compared."""

_BINS = 20
"""Number of intervals of a number, with the same number of runs in each."""

_BEAM, _DEPTH = 50, 3


@dataclass(frozen=True)
class Condition:
    """A value of a field, or an interval of a number."""

    field: str
    text: str
    rows: Mask


class Fields:
    """The fields of planted runs, and of their stages, as numbers and categories."""

    def __init__(self, planted: Planted) -> None:
        connection = planted.connection
        self.failed = planted.failed
        self.numbers: dict[str, NDArray[np.float64]] = {}
        self.categories: dict[str, NDArray[Any]] = {}
        runs = connection.execute("SELECT * FROM runs ORDER BY rowid").df()
        frames = [("", runs)]
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if "stages" in tables:
            stages = connection.execute("SELECT * FROM stages").df()
            for name, rows in stages.groupby("stage_name"):
                attributes = [each for each in rows.columns if each.startswith("attributes.")]
                by_run = rows.set_index("pipeline_run_id")[attributes]
                frames.append((f"{name}/", by_run.reindex(runs["pipeline_run_id"])))
        for prefix, frame in frames:
            for column in frame.columns:
                if column not in _NOT_COMPARED and frame[column].notna().any():
                    self._add(prefix + column, frame[column])

    def _add(self, name: str, values: pandas.Series) -> None:
        if isinstance(values.dtype, pandas.DatetimeTZDtype):
            self.numbers[name] = values.astype("int64").to_numpy().astype(float)
        elif values.dtype.kind in "if":
            self.numbers[name] = values.to_numpy().astype(float)
        else:
            self.categories[name] = (
                values.astype(object).where(values.notna(), "missing").astype(str).to_numpy()
            )

    @cached_property
    def conditions(self) -> list[Condition]:
        """The frequent values of categories, and the intervals of numbers."""
        found = []
        for name, values in self.categories.items():
            distinct, at, count = np.unique(values, return_inverse=True, return_counts=True)
            found += [
                Condition(name, f"{name} = {distinct[number]}", at == number)
                for number in np.argsort(-count)[:_MAX_VALUES]
                if count[number] >= _MIN_ROWS
            ]
        for name, numbers in self.numbers.items():
            distinct = np.unique(numbers[~np.isnan(numbers)])
            if len(distinct) > _BINS:
                edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, _BINS + 1)))
            else:
                edges = np.append(distinct, np.inf)
            for low, high in pairwise(edges):
                rows = (numbers >= low) & ((numbers < high) | (high == edges[-1]) & (numbers <= high))
                found.append(Condition(name, f"{low:g} <= {name} < {high:g}", rows))
            if np.isnan(numbers).any():
                found.append(Condition(name, f"{name} is missing", np.isnan(numbers)))
        return found

    @property
    def thresholds(self) -> list[Condition]:
        """Numbers below and above their deciles, of which two form an interval."""
        found = []
        for name, numbers in self.numbers.items():
            for limit in np.unique(np.nanquantile(numbers, np.linspace(0.1, 0.9, _BINS // 2 - 1))):
                found.append(Condition(name, f"{name} < {limit:g}", numbers < limit))
                found.append(Condition(name, f"{name} >= {limit:g}", numbers >= limit))
        return found


def _found(rows: Mask, fields: frozenset[str], text: str) -> Found:
    return Found(fields, lambda: rows, text)


def bubble_up(planted: Planted) -> Sequence[Found]:
    """Rank single values by the difference of their shares, as BubbleUp does."""
    fields = Fields(planted)
    failed = fields.failed
    ranked = sorted(
        fields.conditions,
        key=lambda one: one.rows[failed].mean() - one.rows[~failed].mean(),
        reverse=True,
    )
    return [_found(one.rows, frozenset({one.field}), one.text) for one in ranked[:10]]


def tree(planted: Planted) -> Sequence[Found]:
    """Rank the nodes of a decision tree of depth 4 by the correlation with the failures."""
    fields = Fields(planted)
    features: list[tuple[str, NDArray[np.float64]]] = list(fields.numbers.items())
    features += [
        (one.field, one.rows.astype(float)) for one in fields.conditions if one.field in fields.categories
    ]
    matrix = np.stack([values for _, values in features], axis=1).astype(np.float32)
    model = DecisionTreeClassifier(
        max_depth=4, class_weight="balanced", min_samples_leaf=_MIN_ROWS, random_state=0
    )
    model.fit(matrix, fields.failed)
    nodes = model.tree_
    reached = model.decision_path(matrix).tocsc()
    found: list[tuple[float, Found]] = []

    def visit(node: int, names: frozenset[str]) -> None:
        if names:
            rows = np.zeros(len(matrix), dtype=bool)
            rows[reached.indices[reached.indptr[node] : reached.indptr[node + 1]]] = True
            correlation = float(np.corrcoef(rows, fields.failed)[0, 1]) if not rows.all() else 0.0
            found.append((correlation, _found(rows, names, " and ".join(sorted(names)))))
        if nodes.children_left[node] >= 0:
            inner = names | {features[nodes.feature[node]][0]}
            visit(nodes.children_left[node], inner)
            visit(nodes.children_right[node], inner)

    visit(0, frozenset())
    return [one for _, one in sorted(found, key=lambda item: item[0], reverse=True)[:10]]


def subgroups(planted: Planted) -> Sequence[Found]:
    """Rank conjunctions of up to three conditions with pysubgroup, by their chi-squared statistic."""
    fields = Fields(planted)
    # Twenty conditions a field: the time grows with the square of their number.
    conditions = fields.thresholds
    seen: dict[str, int] = {}
    for one in fields.conditions:
        seen[one.field] = seen.get(one.field, 0) + 1
        if seen[one.field] <= _BINS and (one.field in fields.categories or one.text.endswith("missing")):
            conditions.append(one)
    by_name = {f"condition {number}": one for number, one in enumerate(conditions)}
    task = pysubgroup.SubgroupDiscoveryTask(
        pandas.DataFrame({"failed": fields.failed, **{name: one.rows for name, one in by_name.items()}}),
        pysubgroup.BinaryTarget("failed", True),
        [pysubgroup.EqualitySelector(name, True) for name in by_name],
        result_set_size=10,
        depth=_DEPTH,
        qf=pysubgroup.ChiSquaredQF(direction="positive", min_instances=_MIN_ROWS),
    )
    results = pysubgroup.BeamSearch(beam_width=_BEAM).execute(task).results
    found = []
    for _, conjunction, _ in results:
        parts = [by_name[selector.attribute_name] for selector in conjunction.selectors]
        names = frozenset(part.field for part in parts)
        rows = np.logical_and.reduce([part.rows for part in parts])
        found.append(_found(rows, names, " and ".join(part.text for part in parts)))
    return found


_SEARCHES: dict[str, Search] = {
    "BubbleUp": bubble_up,
    "decision tree, depth 4": tree,
    f"pysubgroup, beam {_BEAM}": subgroups,
}


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain.peers", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="tables of each kind (default 10)")
    parser.add_argument("--runs", type=int, default=20_000, help="runs of each table (default 20,000)")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default 1)")
    parser.add_argument("--strong", action="store_true", help="half of the runs with the cause fail")
    parser.add_argument("--show", action="store_true", help="print the first three rows of each result")
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if not kind.slow]
    search: Callable[[Planted], Sequence[Found]]
    for name, search in _SEARCHES.items():
        results = score_all(
            search,
            kinds,
            arguments.seeds,
            strong=arguments.strong,
            runs=arguments.runs,
            jobs=arguments.jobs,
            exact=False,
        )
        print_results(f"{name}, {arguments.runs:,} runs", results, show=arguments.show)


if __name__ == "__main__":
    main()
