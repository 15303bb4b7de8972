"""Parameters of a stage that are filled by name from the data of its dependencies."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from ..context import StageContext
from ..errors import MissingInputError, did_you_mean

__all__ = ["Parameter", "arguments", "parameters_of"]

Parameter = tuple[str, bool, Any]
"""Name, whether it has a default, and the default."""


def parameters_of(called: Any, context_at: int = 0) -> tuple[Parameter, ...]:
    """Return the parameters after the context, which are taken by name.

    Parameters that a `functools.partial` binds keep their values, and so do those with a default whose name
    begins with an underscore: `lambda ctx, _n=n: ...`.
    """
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return ()
    bound: set[str] = set()
    while isinstance(called, functools.partial):
        bound.update(called.keywords)
        called = called.func
    return tuple(
        (parameter.name, has_default, parameter.default)
        for parameter in parameters[context_at + 1 :]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in bound
        and not ((has_default := parameter.default is not parameter.empty) and parameter.name[0] == "_")
    )


def arguments(
    ctx: StageContext, parameters: tuple[Parameter, ...], stages: tuple[str, ...]
) -> dict[str, Any]:
    """Return a value for each parameter: the key of that name in what one of `stages` gave.

    Raises:
        MissingInputError: None of them has it and it has no default, or several have it.
    """
    values: dict[str, Any] = {}
    given = {stage: ctx.inputs.result_from(stage).data for stage in stages}
    for name, has_default, default in parameters:
        holders = [stage for stage, data in given.items() if name in data]
        if len(holders) == 1:
            values[name] = given[holders[0]][name]
        elif not holders and has_default:
            values[name] = default
            ctx.inputs.note_missing(name, stages)
        else:
            ctx.inputs.note_missing(name, stages)
            raise _missing(ctx, name, holders, given)
    return values


def _missing(ctx: StageContext, name: str, holders: list[str], given: dict[str, Any]) -> MissingInputError:
    where = {"stage": ctx.stage, "run_id": str(ctx.run.pipeline_run_id)}
    if holders:
        stages = " and ".join(repr(stage) for stage in holders)
        return MissingInputError(
            f"several dependencies have a value for parameter {name!r}: {stages}",
            hint=f"read one of them with ctx.inputs.get_from(stage, {name!r})",
            **where,
        )
    keys = [str(key) for data in given.values() for key in data]
    listed = ", ".join(
        f"{stage!r} returned {sorted(map(str, data)) or 'nothing'}" for stage, data in given.items()
    )
    return MissingInputError(
        f"no dependency has a value for parameter {name!r}{did_you_mean(name, keys)}",
        hint=listed or "the stage has no dependencies; pass them to with_stage",
        **where,
    )
