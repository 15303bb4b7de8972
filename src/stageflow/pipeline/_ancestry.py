"""Which stages must have ended before a stage starts, in memory that is linear in the size of the graph."""

from __future__ import annotations

from collections.abc import Sequence

from .node import Node

__all__ = ["Ancestry"]


class Ancestry:
    """Answers whether one stage is an ancestor of another.

    A depth-first traversal along the edges numbers the stages in the order in which it leaves them. The
    stages that it visits from one stage have consecutive numbers, up to that of the stage itself: two numbers
    per stage are enough to recognise them as its descendants. A third number, the lowest among all
    descendants of a stage, excludes most other stages. Only what both leave undecided is searched.
    """

    __slots__ = ("_last", "_lowest", "_nodes", "_places", "_visited_from")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._places = {node.name: node.index for node in nodes}
        self._last = [0] * len(nodes)
        self._visited_from = [-1] * len(nodes)
        self._lowest = [0] * len(nodes)
        left = 0
        for root in nodes:
            if root.dependencies:
                continue
            self._visited_from[root.index] = left
            path = [(root.index, iter(root.dependents))]
            while path:
                index, dependents = path[-1]
                for after in dependents:
                    if self._visited_from[after] < 0:
                        self._visited_from[after] = left
                        path.append((after, iter(nodes[after].dependents)))
                        break
                else:
                    path.pop()
                    self._last[index] = left
                    self._lowest[index] = min(
                        (self._lowest[after] for after in nodes[index].dependents),
                        default=left,
                    )
                    left += 1

    def contains(self, index: int, ancestor: int) -> bool:
        """Return whether stage number `ancestor` must have ended before stage number `index` starts."""
        first, last, lowest = self._visited_from[ancestor], self._last[ancestor], self._lowest[ancestor]
        if index == ancestor:
            return False
        seen = {index}
        following = [index]
        while following:
            at = following.pop()
            if first <= self._last[at] <= last:
                return True
            if not lowest <= self._last[at] < last:
                continue
            for name in self._nodes[at].dependencies:
                before = self._places[name]
                if before not in seen:
                    seen.add(before)
                    following.append(before)
        return False

    def names(self, index: int) -> set[str]:
        """Return the names of all ancestors of stage number `index`."""
        found: set[str] = set()
        following = [index]
        while following:
            for name in self._nodes[following.pop()].dependencies:
                if name not in found:
                    found.add(name)
                    following.append(self._places[name])
        return found
