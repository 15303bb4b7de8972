"""The command classes: help without types of flags, and errors as one sentence with an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import JournalNotFoundError, StageflowError
from ._options import forget_journal, hint_with_journal
from ._output import print_text

__all__ = ["NOT_FOUND", "Command", "CommandGroup", "Commands"]


NOT_FOUND = 2
"""Exit code if there is no journal: the same as for any other invalid argument."""

_JOURNAL_HINT = (
    "name the directory of a journal with --journal DIR or STAGEFLOW_JOURNAL=DIR;"
    " `stageflow demo` creates one in .stageflow/demo"
)

_PIPE_CLOSED = 128 + 13
"""The exit code that a shell reports for a program that was terminated by SIGPIPE."""


class Command(TyperCommand):
    """A command whose help omits the types of flags and arguments."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _without_types(super().get_params(ctx))


class CommandGroup(TyperGroup):
    """A group of commands whose help omits the types of flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _without_types(super().get_params(ctx))


class Commands(CommandGroup):
    """All commands: errors about a journal are printed without a traceback."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the arguments."""
        with _plain_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Typer handles Ctrl-C: it exits with 130."""
        forget_journal()
        try:
            try:
                with _plain_errors():
                    return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            _discard_standard_output()
            raise typer.Exit(_PIPE_CLOSED) from None
        except JournalNotFoundError as error:
            print_text(f"{error.message}\n  hint: {_JOURNAL_HINT}", err=True)
            raise typer.Exit(NOT_FOUND) from None
        except (StageflowError, OSError) as error:
            print_text(hint_with_journal(str(error)), err=True)
            raise typer.Exit(1) from None
        finally:
            forget_journal()


def _without_types(parameters: list[Any]) -> list[Any]:
    # Typer would print `<bool>` for a flag and `<str>` or `<Any>` next to the name of an argument.
    for parameter in parameters:
        if parameter.param_type_name == "argument" or getattr(parameter, "is_flag", False):
            parameter.display_type_rich = lambda ctx: None
    return parameters


@contextlib.contextmanager
def _plain_errors() -> Generator[None]:
    """Print an error about an argument as text: Typer would draw a box, which breaks paths and words."""
    try:
        yield
    except Exception as error:
        wrong: Any = error
        # Typer vendors the parser that raises these errors. `NoArgsIsHelpError` only prints the help.
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
            raise
        if (context := getattr(wrong, "ctx", None)) is not None:
            print_text(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n", err=True)
        print_text(f"Error: {wrong.format_message()}", err=True)
        raise typer.Exit(wrong.exit_code) from None


def _discard_standard_output() -> None:
    # The interpreter flushes the rest of the buffer at exit: it must not write to the closed pipe again.
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
