"""Finds every mistake in a description at once, before anything runs."""

from __future__ import annotations

import functools
import inspect
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..errors import did_you_mean
from ..retry import Retry
from ..stages import StageKind
from ._plan import Around
from ._spec import Entry, Parameter, StageSpec, class_of, entry_of, gives_coroutine, parameters_of

__all__ = ["problems_of"]


_LONGEST_NAME = 200
_MOST_IN_CYCLE = 20


def problems_of(name: Any, specs: Sequence[StageSpec], around: Around) -> list[str]:
    """Return one sentence for each problem, with its hint; an empty list for a sound pipeline."""
    problems = []
    if not isinstance(name, str) or _bad_name(name):
        problems.append(f"the pipeline's name {name!r} {_bad_name(name)}")
    if not specs:
        problems.append("it has no stages; add one with .with_stage(name, runner)")
    known = [spec.name for spec in specs if isinstance(spec.name, str)]
    for stage, count in Counter(known).items():
        if count > 1:
            problems.append(
                f"stage {stage!r} is described {count} times; names must differ: rename all but one"
            )
    routers = {spec.name for spec in specs if spec.kind == StageKind.ROUTE and isinstance(spec.name, str)}
    names = set(known)
    for spec in specs:
        problems += _stage_problems(spec, names, routers)
        problems += _around_problems(spec, around)
    problems += [f"build(): {problem}" for problem in _interceptor_problems(around.interceptors)]
    cycle = _cycle(specs)
    if cycle:
        shown = [repr(stage) for stage in cycle]
        if len(shown) > _MOST_IN_CYCLE:
            shown[6:-5] = [f"… {len(shown) - 11} more …"]
        drawn = " -> ".join(shown)
        problems.append(f"stages depend on each other in a circle: {drawn}; remove one of these edges")
    return problems


def _stage_problems(spec: StageSpec, names: set[str], routers: set[str]) -> list[str]:
    stage = f"stage {spec.name!r}"
    problems = []
    if bad := _bad_name(spec.name):
        problems.append(f"{stage}: its name {bad}")
    if not isinstance(spec.kind, StageKind):
        kinds = ", ".join(kind.name for kind in StageKind)
        problems.append(f"{stage}: {spec.kind!r} is no StageKind; use one of {kinds}")
    dependencies = [d for d in spec.dependencies if isinstance(d, str)]
    problems += [
        f"{stage}: its dependency {d!r} is no text; give the name of a stage"
        for d in spec.dependencies
        if not isinstance(d, str)
    ]
    for dependency in dependencies:
        if dependency == spec.name:
            problems.append(f"{stage}: it depends on itself; remove that dependency")
        elif dependency not in names:
            near = did_you_mean(dependency, sorted(names - {spec.name}))
            problems.append(f"{stage}: it depends on {dependency!r}, which is no stage{near}")
    for dependency, count in Counter(dependencies).items():
        if count > 1:
            problems.append(f"{stage}: it names the dependency {dependency!r} {count} times")
    if (unfit := _runner_problem(spec.runner)) is not None:
        problems.append(f"{stage}: {unfit}")
    timeout = spec.timeout
    if timeout is not None and not (_number(timeout) and 0 < timeout < math.inf):
        problems.append(f"{stage}: timeout={timeout!r}; give seconds, more than 0")
    if spec.retry is not None and not isinstance(spec.retry, Retry):
        problems.append(f"{stage}: retry={spec.retry!r}; give a policy such as Retry(attempts=3)")
    if spec.when is not None and not _takes(spec.when, 1):
        problems.append(f"{stage}: when={_shown(spec.when)}; give a function of the stage's context")
    if not dependencies:
        problems += [
            f"{stage}: its parameter {name!r} is taken from its dependencies, and it has none"
            for name, has_default, _ in _by_name(spec.runner)
            if not has_default
        ]
    if spec.route is not None and not routers.intersection(dependencies):
        problems.append(f"{stage}: route={spec.route!r}, but none of its dependencies is of kind ROUTE")
    return problems


def _around_problems(spec: StageSpec, around: Around) -> list[str]:
    stage = f"stage {spec.name!r}"
    problems = [f"{stage}: {problem}" for problem in _interceptor_problems(spec.interceptors)]
    if spec.limit is not None and spec.limit not in around.limits:
        near = did_you_mean(str(spec.limit), list(around.limits))
        known = ", ".join(repr(name) for name in around.limits) or "none"
        problems.append(
            f"{stage}: limit={spec.limit!r} is not among the limits of build(), which has {known}{near}"
        )
    return problems


def _interceptor_problems(interceptors: Sequence[Any]) -> list[str]:
    return [
        f"{_shown(interceptor)} is no interceptor; give an async callable of (call, proceed)"
        for interceptor in interceptors
        if inspect.isclass(interceptor) or not gives_coroutine(interceptor) or not _takes(interceptor, 2)
    ]


def _bad_name(name: Any) -> str:
    if not isinstance(name, str):
        return "is no text; give a str"
    if not name.strip():
        return "is empty"
    if len(name) > _LONGEST_NAME:
        return f"is {len(name)} characters long; at most {_LONGEST_NAME} are allowed"
    if "/" in name:
        return "holds a '/', which separates the parts of an event id; use '.' or '_'"
    if not name.isprintable():
        return "holds a character that cannot be printed"
    return ""


def _runner_problem(runner: Any) -> str | None:
    entry = entry_of(runner)
    cls = class_of(runner)
    if entry is None:
        if cls is not None:
            return f"class {cls.__name__} has no method `execute(ctx)`"
        return (
            f"{_shown(runner)} is not a function and has no method `execute(ctx)`; "
            "pass a class, an instance or a function"
        )
    if cls is not None:
        if inspect.isabstract(cls):
            return f"class {cls.__name__} is abstract; pass a concrete class"
        try:
            inspect.signature(cls).bind()
        except TypeError as error:
            return (
                f"class {cls.__name__} cannot be instantiated without arguments ({error}); pass an instance"
            )
        except ValueError:  # a signature that Python cannot tell: let it be tried
            pass
    return _unfit(entry)


def _by_name(runner: Any) -> tuple[Parameter, ...]:
    entry = entry_of(runner)
    return () if entry is None else parameters_of(entry.called, entry.context_at)


def _takes(called: Any, arguments: int) -> bool:
    """Tell whether `called` may be called with so many arguments by position."""
    if not callable(called):
        return False
    try:
        inspect.signature(called).bind(*[object()] * arguments)
    except TypeError:
        return False
    except ValueError:  # a signature that Python cannot tell
        return True
    return True


def _unfit(entry: Entry) -> str | None:
    called = entry.called
    by_name = [name for name, _, _ in parameters_of(called, entry.context_at)]
    try:
        inspect.signature(called).bind(*[object()] * (entry.context_at + 1), **dict.fromkeys(by_name))
    except TypeError:
        problem = f"{_shown(called)} cannot be called with the context as its only positional argument; "
        if isinstance(called, functools.partial):
            return problem + "bind the parameters before the context by position: functools.partial(f, value)"
        return problem + (
            "write `execute(self, ctx)`, or a function of `ctx` (further parameters are taken by name)"
        )
    except ValueError:  # a signature that Python cannot tell
        pass
    if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called):
        return f"{_shown(called)} is a generator; a stage returns one value"
    return None


def _shown(value: Any) -> str:
    return getattr(value, "__qualname__", None) or repr(value)[:80]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cycle(specs: Sequence[StageSpec]) -> list[str]:
    """Return one cycle, its first stage repeated at the end, or an empty list."""
    needs = {
        spec.name: [d for d in spec.dependencies if d != spec.name and isinstance(d, str)]
        for spec in specs
        if isinstance(spec.name, str)
    }
    waiting = {name: len([d for d in deps if d in needs]) for name, deps in needs.items()}
    dependents: dict[str, list[str]] = {name: [] for name in needs}
    for name, deps in needs.items():
        for dependency in deps:
            if dependency in dependents:
                dependents[dependency].append(name)
    free = [name for name, count in waiting.items() if not count]
    while free:
        for name in dependents[free.pop()]:
            waiting[name] -= 1
            if not waiting[name]:
                free.append(name)
    left = [name for name, count in waiting.items() if count]
    if not left:
        return []
    # Every stage that is left waits for another that is left: follow until one comes again.
    places: dict[str, int] = {}
    at = left[0]
    while at not in places:
        places[at] = len(places)
        at = next(d for d in needs[at] if waiting.get(d))
    cycle = list(places)[places[at] :]
    # Drawn the way data flows: from a stage to the one that depends on it.
    cycle.reverse()
    return [*cycle, cycle[0]]
