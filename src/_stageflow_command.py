"""The console script: ends with exit code 130 on Ctrl-C, also while it imports the packages that it needs.

It is not part of the package `stageflow`, because the import of that package takes most of the time.
"""

import contextlib
import importlib
import importlib.util
import os
import signal
import sys
from typing import NoReturn

__all__ = ["main"]

_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run the command that the arguments of the process name."""
    # Not where a shell started it in the background: there, Ctrl-C is ignored.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if is_default:
            # An exception may be swallowed during an import, for example by a module that tries another one.
            signal.signal(signal.SIGINT, _exit)
        with contextlib.suppress(ImportError):  # `run` reports a package that is missing
            importlib.import_module("stageflow.cli._app")
        if is_default:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not _is_installed():
            sys.exit(
                "another distribution replaced the package `stageflow`, for example stageflow-core or"
                " stageflow-framework: uninstall it, then run"
                " `pip install --force-reinstall --no-deps stageflow`"
            )
        from stageflow.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("stageflow.cli._app") is not None
    except ImportError as error:
        sys.exit(str(error))


def _exit(*_: object) -> NoReturn:
    os._exit(_INTERRUPTED)  # nothing has been written or opened yet
