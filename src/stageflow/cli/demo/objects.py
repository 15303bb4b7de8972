"""Looks up the Python object that a dotted name stands for."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import inspect
import sys
from typing import Any, NamedTuple

__all__ = ["Described", "describe_object"]

# Importing one of these does more than to define names: it prints, opens a browser, plays.
_NOT_IMPORTED = {"antigravity", "idlelib", "this", "turtledemo"}


class Described(NamedTuple):
    """An object of Python in two lines: how it is called, and the first line of its docstring."""

    signature: str
    summary: str


def describe_object(name: str) -> Described:
    """Describe a builtin, or a name in a module of the standard library.

    Raises:
        LookupError: The name stands for nothing; the cause says where the way to it ended.

    Example:
        >>> describe_object("len")
        Described(signature='len(obj, /)', summary='Return the number of items in a container.')
    """
    try:
        found = _find(name)
    except (AttributeError, ImportError) as error:
        raise LookupError(f"Python has no object {name!r}") from error
    try:
        signature = f"{name}{inspect.signature(found)}"
    except (TypeError, ValueError):  # no callable, or written in C without a signature
        signature = name
    return Described(signature, (inspect.getdoc(found) or "").partition("\n")[0])


def _find(name: str) -> Any:
    first, *rest = name.split(".")
    if hasattr(builtins, first):
        found: Any = builtins
        rest = [first, *rest]
    elif first in sys.stdlib_module_names - _NOT_IMPORTED:
        found = importlib.import_module(first)
    else:
        raise ModuleNotFoundError(f"neither a builtin nor a module of the standard library: {first!r}")
    for part in rest:
        if inspect.ismodule(found) and not hasattr(found, part):
            with contextlib.suppress(ImportError):  # no module either: the next line says so better
                importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found
