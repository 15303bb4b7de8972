"""Pickling of functions, calls and context variables for executors."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import FunctionType
from typing import Any

from msgspec.structs import replace

from ..errors import InvalidArgumentError, SerializationError, describe, invalid_argument, type_name
from ._executor import Call
from ._main_module import MAIN_MODULE

__all__ = ["context_variables", "function_problem", "pickled_call"]

_PROTOCOL = pickle.HIGHEST_PROTOCOL


def function_problem(runner: Any) -> str | None:
    """Return why a runner cannot be sent by its import path, or None."""
    try:
        _pickled_function(runner)
    except Exception as error:
        name = getattr(runner, "__qualname__", None) or type_name(runner)
        if "<lambda>" in name or "<locals>" in name:
            return (
                f"{name} cannot be sent to a worker, which imports functions by import path; define it at"
                " the top level of a module"
            )
        return (
            f"{name} cannot be sent to a worker: {describe(error)}; define the function at the top level of a"
            " module, and pass only values that can be pickled"
        )
    if _module_of(runner) == "__main__" and not _main_can_be_imported():
        name = getattr(runner, "__qualname__", None) or type_name(runner)
        return f"{name} is defined interactively, and a worker cannot import it; move it to a module"
    return None


def _pickled_function(runner: Any) -> bytes:
    """Return a runner in pickled form: a function or a class as its import path, an instance by value.

    Raises:
        Exception: It cannot be pickled.
    """
    if isinstance(runner, FunctionType):
        # `@stage` returns a copy of a function, which can be sent as the function that its path refers to.
        found: Any = sys.modules.get(runner.__module__)
        for name in runner.__qualname__.split("."):
            found = getattr(found, name, None)
        if isinstance(found, FunctionType) and found.__code__ is runner.__code__:
            runner = found
    return pickle.dumps(runner, _PROTOCOL)


def _module_of(runner: Any) -> str:
    module = getattr(runner, "__module__", None)
    return module if isinstance(module, str) else type(runner).__module__


def _main_can_be_imported() -> bool:
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return True
    file = getattr(main, "__file__", None)
    return file is not None and os.path.exists(file)  # not for a program that Python reads from stdin


def _canonical(module: str) -> str:
    """Return `__main__` for the module of the program, whose import by name would create a second module."""
    if module in sys.modules:
        return module
    main = sys.modules["__main__"]
    if module == getattr(getattr(main, "__spec__", None), "name", None):
        return "__main__"
    file = getattr(main, "__file__", None)
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return module  # the import raises the error
    is_main = file and found and found.origin and os.path.realpath(file) == os.path.realpath(found.origin)
    return "__main__" if is_main else module


def context_variables(paths: Iterable[str]) -> dict[str, ContextVar[Any]]:
    """Return the context variables with these paths, such as "app.tenant:current_tenant".

    Raises:
        InvalidArgumentError: A path is malformed, or does not refer to a context variable.
    """
    found = {}
    for path in paths:
        module, colon, name = path.partition(":") if isinstance(path, str) else ("", "", "")
        if not (module and colon and name):
            raise invalid_argument(
                "executor", "context_vars", path, 'paths such as "app.tenant:current_tenant"'
            )
        try:
            module = _canonical(module)
            if module == "__main__":
                MAIN_MODULE.ensure()
            found_module = importlib.import_module(module)
        except ImportError as error:
            raise InvalidArgumentError(
                f"executor: cannot import {module!r} for the context variable {path!r}: {describe(error)}",
                hint="check the name of the module",
            ) from error
        variable = getattr(found_module, name, None)
        if not isinstance(variable, ContextVar):
            what = f"must be a ContextVar, got {type_name(variable)}"
            raise InvalidArgumentError(
                f"executor: {path!r} {what if hasattr(found_module, name) else 'does not exist'}",
                hint="check the name of the variable; it must be defined at the top level of its module,"
                " before the graph is built",
            )
        found[f"{module}:{name}"] = variable
    return found


def pickled_call(
    call: Call,
    dump_function: Callable[[Any], bytes] = _pickled_function,
    dumps: Callable[[Any, int], bytes] = pickle.dumps,
) -> bytes:
    """Return a call in pickled form.

    Args:
        call: The call.
        dump_function: Pickles a function.
        dumps: Pickles other values.

    Raises:
        SerializationError: A part of it cannot be pickled; the message names the part.
    """
    try:
        return dumps(replace(call, function=dump_function(call.function)), _PROTOCOL)
    except Exception as error:
        part, cause = _part_that_fails(call, dumps) or ("a value", error)
        raise SerializationError(
            f"{part} cannot be sent to a worker: {describe(cause)}",
            stage=call.context.stage,
            hint="pass plain data, and create clients and locks in the worker; the `resources` of a run are"
            " not sent",
        ) from cause


def _part_that_fails(call: Call, dumps: Callable[[Any, int], bytes]) -> tuple[str, Exception] | None:
    context = call.context
    parts: list[tuple[str, Any]] = [
        (f"the data of dependency {name!r}", output) for name, output in context.dependencies.items()
    ]
    parts += [(f"argument {name!r}", value) for name, value in call.keywords.items()]
    parts += [
        (f"argument {number} of the function", value)
        for arguments in call.arguments
        for number, value in enumerate(arguments, 1)
    ]
    parts += [(f"`ctx.run.{name}`", value) for name, value in context.run.items()]
    parts += [(f"context variable {name!r}", value) for name, value in call.variables.items()]
    for name, value in parts:
        try:
            dumps(value, _PROTOCOL)
        except Exception as error:
            return name, error
    return None
