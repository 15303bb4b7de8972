"""Whether a stage costs more in a large pipeline than in a small one."""

from __future__ import annotations

import gc
from collections.abc import Callable

from .rounds import Contestant, measure
from .shapes import Shape, chain, fan_out
from .stages import contestants

__all__ = ["bench_scale"]

_SMALL, _LARGE = 100, 10_000


async def bench_scale(rounds: int, folder: str) -> None:
    """Print the ratio to the floor at both sizes, and the quotient of the two: at most 1.3 is the goal.

    The last column has no floor in it: what a stage costs at the larger size, by what it costs at
    the smaller. The floor itself grows, for the garbage collector walks through all of its tasks, and
    then the quotient alone is too kind.
    """
    shapes: dict[str, Callable[[int], Shape]] = {"chain": chain, "fan-out": fan_out}
    few = max(3, rounds // 6)
    heads = f"of {_SMALL:,}", f"of {_LARGE:,}", "quotient", "by itself"
    print(f"{'ratio to the floor':<28}" + "".join(f"{head:>12}" for head in heads))
    for title, of_size in shapes.items():
        small, large = (_contestants(of_size(size), folder) for size in (_SMALL, _LARGE))
        # The graphs are no garbage for the runs to look through.
        gc.collect()
        gc.freeze()
        try:
            at_small, at_large = await measure(small, rounds), await measure(large, few)
            for name in small:
                grown = (await measure({"small": small[name], "large": large[name]}, few))["large"][1]
                ratio, ratio_then = at_small[name][1], at_large[name][1]
                figures = ratio, ratio_then, ratio_then / ratio, grown * _SMALL / _LARGE
                print(f"  {f'{title}, {name}':<26}" + "".join(f"{figure:>12.2f}" for figure in figures))
        finally:
            gc.unfreeze()
    print()


def _contestants(shape: Shape, folder: str) -> dict[str, Contestant]:
    found = contestants(shape, folder)
    return {name: found[name] for name in ("floor", "events off", "journal")}
