"""Validates the definition of a pipeline, and reports all problems at once."""

from __future__ import annotations

import functools
import inspect
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidArgumentError, did_you_mean
from ..executors import Executor
from ..retry import Retry
from ..stages import StageKind
from ._annotations import annotation_problems
from ._deadlocks import deadlock_problems
from ._plan import GraphOptions
from ._spec import (
    ChildSpec,
    Entry,
    MapSpec,
    Parameter,
    StageSpec,
    class_of,
    entry_of,
    generator_kind,
    limit_of,
    parameters_of,
    returns_coroutine,
)

__all__ = ["problems_of"]

_MAX_NAME_LENGTH = 200
_MAX_CYCLE_SHOWN = 20


def problems_of(name: Any, specs: Sequence[StageSpec], options: GraphOptions) -> list[str]:
    """Return one sentence per problem, with a hint; an empty list if the pipeline is valid."""
    problems = []
    if problem := _name_problem(name):
        problems.append(f"the pipeline name {problem}")
    if not specs:
        problems.append("the pipeline has no stages; add one with .with_stage(name, runner)")
    known = [spec.name for spec in specs if isinstance(spec.name, str)]
    for stage, count in Counter(known).items():
        if count > 1:
            problems.append(
                f"stage {stage!r} is defined {count} times; names must be unique: rename all but one"
            )
    routers = {spec.name for spec in specs if spec.kind == StageKind.ROUTE and isinstance(spec.name, str)}
    names = set(known)
    for spec in specs:
        problems += _stage_problems(spec, names, routers)
        problems += _option_problems(spec, options)
    problems += [f"build(): {problem}" for problem in _interceptor_problems(options.interceptors)]
    cycle = _cycle(specs)
    if cycle:
        shown = [repr(stage) for stage in cycle]
        if len(shown) > _MAX_CYCLE_SHOWN:
            shown[6:-5] = [f"… {len(shown) - 11} more …"]
        problems.append(f"dependency cycle: {' -> '.join(shown)}; remove one of these edges")
    return problems or deadlock_problems(specs) or annotation_problems(specs)


def _stage_problems(spec: StageSpec, names: set[str], routers: set[str]) -> list[str]:
    stage = f"stage {spec.name!r}"
    problems = []
    if problem := _name_problem(spec.name):
        problems.append(f"{stage}: the name {problem}")
    if not isinstance(spec.kind, StageKind):
        kinds = ", ".join(kind.name for kind in StageKind)
        problems.append(f"{stage}: kind must be a StageKind, got {spec.kind!r}; use one of {kinds}")
    dependencies = [d for d in spec.dependencies if isinstance(d, str)]
    problems += [
        f"{stage}: dependencies must be stage names (str), got {d!r}"
        for d in spec.dependencies
        if not isinstance(d, str)
    ]
    for dependency in dependencies:
        if dependency == spec.name:
            problems.append(f"{stage} depends on itself; remove this dependency")
        elif dependency not in names:
            near = did_you_mean(dependency, sorted(names - {spec.name}))
            problems.append(f"{stage}: unknown dependency {dependency!r}{near}")
    streamed = Counter(ref.name for ref in spec.streams)
    problems += [
        f"{stage} reads the stream of {name!r} {count} times; list it once: all iterators over a stream share"
        " one buffer"
        for name, count in streamed.items()
        if count > 1
    ]
    for dependency, count in Counter(dependencies).items():
        if count > 1 and count == streamed[dependency]:
            continue
        if count > 1 and dependency in streamed:
            problems.append(
                f"{stage} depends on both the stream and the collected value of {dependency!r};"
                " remove one of the two"
            )
        elif count > 1:
            problems.append(f"{stage} lists the dependency {dependency!r} {count} times")
    problems += [f"{stage}: {each}" for each in _stream_problems(spec)]
    problems += [f"{stage}: {each}" for each in _executor_problems(spec)]
    if spec.child is not None:
        problems += [f"{stage}: {each}" for each in _child_problems(spec, spec.child)]
    elif (runner_problem := _runner_problem(spec)) is not None:
        problems.append(f"{stage}: {runner_problem}")
    if spec.map is None:
        problems += [f"{stage}: {each}" for each in _policy_problems("timeout", spec.timeout, spec.retry)]
    else:
        problems += [f"{stage}: {each}" for each in _map_problems(spec, spec.map)]
    if spec.when is not None and not _accepts(spec.when, 1):
        problems.append(
            f"{stage}: when must be a function that takes the stage's context, got {_name_of(spec.when)}"
        )
    if not spec.ended and spec.inputs is None:
        instead = f"; read the stream with ctx.inputs.stream({next(iter(streamed))!r})" if streamed else ""
        problems += [
            f"{stage}: parameter {name!r} takes its value from a dependency, but no dependency ends before"
            f" the stage starts{instead}"
            for name, has_default, _ in _named_parameters(spec.runner)
            if not has_default
        ]
    if spec.route is not None and not routers.intersection(dependencies):
        problems.append(f"{stage}: route={spec.route!r}, but none of its dependencies has kind ROUTE")
    return problems


def _stream_problems(spec: StageSpec) -> list[str]:
    problems = []
    idle = spec.idle_timeout
    if idle is not None and not (_is_number(idle) and 0 < idle < math.inf):
        problems.append(f"idle_timeout must be more than 0 seconds, got {idle!r}")
    if spec.restart and spec.retry is None:
        problems.append("restart=True has no effect without a retry policy; add retry=Retry(...)")
    for ref in spec.streams:
        buffer: Any = ref.buffer
        if buffer != "collect" and (not isinstance(buffer, int) or isinstance(buffer, bool) or buffer < 1):
            problems.append(
                f'the buffer of the stream of {ref.name!r} must be a positive integer or "collect",'
                f" got {buffer!r}"
            )
    if spec.map is not None and spec.streams:
        problems.append("a mapped stage cannot read a stream; use a stage that is a generator function")
    if spec.child is not None and (spec.streams or spec.restart or idle is not None):
        problems.append(
            "a stage that runs a pipeline cannot send or read a stream;"
            " remove streams=, idle_timeout= and restart="
        )
    return problems


def _executor_problems(spec: StageSpec) -> list[str]:
    executor: Any = spec.executor
    if executor is None:
        return []
    if not isinstance(executor, Executor):
        return [f"executor must be an executor such as ProcessExecutor(), got {executor!r}"]
    if spec.child is not None:
        return [
            "a stage that runs a pipeline cannot have an executor; pass it to the stages of that pipeline"
        ]
    if spec.streams:
        return [
            "a stage with an executor cannot read a stream; read the collected value of the stage instead"
        ]
    problem = executor.problem_of(spec.runner)
    if problem is not None:
        return [problem]
    try:
        _ = executor.context_vars
    except InvalidArgumentError as error:
        return [f"{error.message}; {error.hint}"]
    return []


def _policy_problems(name: str, timeout: Any, retry: Any) -> list[str]:
    problems = []
    if timeout is not None and not (_is_number(timeout) and 0 < timeout < math.inf):
        problems.append(f"{name} must be more than 0 seconds, got {timeout!r}")
    if retry is not None and not isinstance(retry, Retry):
        problems.append(f"retry must be a policy such as Retry(attempts=3), got {retry!r}")
    return problems


def _map_problems(spec: StageSpec, options: MapSpec) -> list[str]:
    problems = _policy_problems("timeout", options.timeout, options.retry)
    problems += _policy_problems("total_timeout", spec.timeout, None)
    if spec.kind is StageKind.ROUTE:
        problems.append("a mapped stage cannot have kind ROUTE: its items cannot choose a route")
    entry = entry_of(spec.runner)
    if entry is not None and generator_kind(entry.called) is not None:
        problems.append(
            "the function of a mapped stage cannot be a generator function; return a list,"
            " or send chunks with ctx.send()"
        )
    most = options.max_concurrency
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        problems.append(f"max_concurrency must be a positive integer, got {most!r}")
    for name, allowed in (
        ("on_item_failure", ("fail", "skip", "collect")),
        ("item_events", ("problems", "all", "none")),
    ):
        if getattr(options, name) not in allowed:
            expected = ", ".join(f'"{each}"' for each in allowed)
            problems.append(f"{name} must be one of {expected}, got {getattr(options, name)!r}")
    key = options.item_key
    if key is not None and (not _accepts(key, 1) or returns_coroutine(key)):
        problems.append(f"item_key must be a synchronous function that takes an item, got {_name_of(key)}")
    if not (_is_number(options.slow_after) and options.slow_after >= 0):
        problems.append(f"slow_after must be 0 or more seconds, got {options.slow_after!r}")
    return problems


def _child_problems(spec: StageSpec, child: ChildSpec) -> list[str]:
    problems = []
    if spec.kind is StageKind.ROUTE:
        problems.append("a stage that runs a pipeline cannot have kind ROUTE: it cannot choose a route")
    most = child.max_iterations
    if most is None:
        return problems
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        problems.append(f"max_iterations must be a positive integer, got {most!r}")
    if not _accepts(child.until, 1):
        problems.append(
            f"until must be a function that takes the results of an iteration, got {_name_of(child.until)}"
        )
    return problems


def _option_problems(spec: StageSpec, options: GraphOptions) -> list[str]:
    stage = f"stage {spec.name!r}"
    problems = [f"{stage}: {problem}" for problem in _interceptor_problems(spec.interceptors)]
    limit = limit_of(spec)
    if limit is not None and limit not in options.limits:
        near = did_you_mean(str(limit), list(options.limits))
        known = ", ".join(repr(name) for name in options.limits) or "none"
        problems.append(f"{stage}: unknown limit {limit!r}; build() has {known}{near}")
    return problems


def _interceptor_problems(interceptors: Sequence[Any]) -> list[str]:
    return [
        f"an interceptor must be an async callable (call, proceed), got {_name_of(interceptor)}"
        for interceptor in interceptors
        if inspect.isclass(interceptor) or not returns_coroutine(interceptor) or not _accepts(interceptor, 2)
    ]


def _name_problem(name: Any) -> str:
    if not isinstance(name, str):
        return f"must be a str, got {name!r}"
    if not name.strip():
        return "must not be empty"
    if len(name) > _MAX_NAME_LENGTH:
        return f"has {len(name)} characters; the maximum is {_MAX_NAME_LENGTH}"
    if "/" in name:
        return "contains a '/', which separates the parts of an event id; use '.' or '_'"
    if not name.isprintable():
        return "contains a character that is not printable"
    return ""


def _runner_problem(spec: StageSpec) -> str | None:
    runner = spec.runner
    entry = entry_of(runner)
    cls = class_of(runner)
    if entry is None:
        if cls is not None:
            return f"class {cls.__name__} has no method `execute(ctx)`"
        return (
            f"{_name_of(runner)} is not a function and has no method `execute(ctx)`; "
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
        except ValueError:  # Python cannot determine the signature
            pass
    return _call_problem(entry) if spec.inputs is None else _inputs_problem(entry, spec)


def _inputs_problem(entry: Entry, spec: StageSpec) -> str | None:
    """Return why the inputs of a stage of a flow do not match the parameters of its function."""
    inputs = spec.inputs or ()
    called = entry.called
    try:
        inspect.signature(called).bind(*[object()] * (entry.context_at + spec.takes_context + len(inputs)))
    except TypeError as error:
        context = "the context and " if spec.takes_context else ""
        names = [ref.name for ref in inputs]
        if spec.map is not None:
            names[0] = f"an item of {names[0]}"
        given = ", ".join(names) or "none"
        count = f"{len(inputs)} input{'' if len(inputs) == 1 else 's'}"
        return f"{_name_of(called)} cannot be called with {context}{count} ({given}): {error}"
    except ValueError:  # Python cannot determine the signature
        pass
    return None


def _named_parameters(runner: Any) -> tuple[Parameter, ...]:
    entry = entry_of(runner)
    return () if entry is None else parameters_of(entry.called, entry.context_at)


def _accepts(called: Any, arguments: int) -> bool:
    """Return whether `called` can be called with this number of positional arguments."""
    if not callable(called):
        return False
    try:
        inspect.signature(called).bind(*[object()] * arguments)
    except TypeError:
        return False
    except ValueError:  # Python cannot determine the signature
        return True
    return True


def _call_problem(entry: Entry) -> str | None:
    called = entry.called
    names = [name for name, _, _ in parameters_of(called, entry.context_at)]
    try:
        inspect.signature(called).bind(*[object()] * (entry.context_at + 1), **dict.fromkeys(names))
    except TypeError:
        problem = f"{_name_of(called)} cannot be called with the context as its only positional argument; "
        if isinstance(called, functools.partial):
            return problem + "bind the parameters before the context by position: functools.partial(f, value)"
        return problem + (
            "write `execute(self, ctx)`, or a function that takes `ctx` (other parameters are passed by name)"
        )
    except ValueError:  # Python cannot determine the signature
        pass
    return None


def _name_of(value: Any) -> str:
    return getattr(value, "__qualname__", None) or repr(value)[:80]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cycle(specs: Sequence[StageSpec]) -> list[str]:
    """Return a cycle, with its first stage repeated at the end, or an empty list."""
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
    ready = [name for name, count in waiting.items() if not count]
    while ready:
        for name in dependents[ready.pop()]:
            waiting[name] -= 1
            if not waiting[name]:
                ready.append(name)
    left = [name for name, count in waiting.items() if count]
    if not left:
        return []
    # Every stage that is left depends on another one that is left: follow these until a stage repeats.
    places: dict[str, int] = {}
    at = left[0]
    while at not in places:
        places[at] = len(places)
        at = next(d for d in needs[at] if waiting.get(d))
    cycle = list(places)[places[at] :]
    # In the direction of the data: from a stage to the one that depends on it.
    cycle.reverse()
    return [*cycle, cycle[0]]
