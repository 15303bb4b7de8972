"""How a command ends that cannot go on: a sentence on standard error, and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import JournalNotFoundError, StageflowError
from ._options import forget_journal, hint_with_journal
from ._output import print_text

__all__ = ["NOT_FOUND", "Commands"]


NOT_FOUND = 2
"""Exit code where there is no journal: that of any other wrong argument."""

_PIPE_CLOSED = 128 + 13
"""What a shell says of a program that SIGPIPE ended, as it does others whose reader went away."""


class Commands(TyperGroup):
    """All commands: what went wrong with a journal is told without a traceback."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the arguments."""
        with _plain_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Ctrl-C is typer's to handle: it exits with 130."""
        forget_journal()
        try:
            try:
                with _plain_errors():
                    return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            _forget_standard_output()
            raise typer.Exit(_PIPE_CLOSED) from None
        except JournalNotFoundError as error:
            text = f"{error}\n  hint: name it with --journal DIR or STAGEFLOW_JOURNAL=DIR"
            print_text(hint_with_journal(text), err=True)
            raise typer.Exit(NOT_FOUND) from None
        except (StageflowError, OSError) as error:
            print_text(hint_with_journal(str(error)), err=True)
            raise typer.Exit(1) from None
        finally:
            forget_journal()


@contextlib.contextmanager
def _plain_errors() -> Generator[None]:
    """Print an error about an argument as text: typer would draw a box, which breaks paths and words."""
    try:
        yield
    except Exception as error:
        wrong: Any = error
        # Errors of the parser are those of a library that typer vendors. One of them only ends the help.
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
            raise
        if (context := getattr(wrong, "ctx", None)) is not None:
            print_text(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n", err=True)
        print_text(f"Error: {wrong.format_message()}", err=True)
        raise typer.Exit(wrong.exit_code) from None


def _forget_standard_output() -> None:
    # What is left in the buffer is flushed at exit once more: it must have somewhere to go.
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
