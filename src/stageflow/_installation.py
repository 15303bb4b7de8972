"""Detects unsupported systems, and other distributions that install a package named `stageflow`.

pip does not report this: the distribution that is installed last overwrites files of the other one. The
import of this module raises ImportError if the directory contains modules of another distribution.
"""

from __future__ import annotations

import os
import sys

__all__ = ["other_distributions"]

_OWN_NAME = "stageflow"
_FOREIGN_MODULES = ("protocols.py", "capabilities.py")
"""A module of `stageflow-core`, and one of `stageflow-framework`, which this package does not have."""


def other_distributions() -> list[str]:
    """Return the problems with other installed distributions that contain a package `stageflow`.

    Example:
        >>> other_distributions()
        []
    """
    from importlib.metadata import packages_distributions

    # The same name twice, if the package has an editable installation.
    names = {*packages_distributions().get(_OWN_NAME, ())} - {_OWN_NAME}
    return [
        f"the distribution {name} also installs a package named `stageflow`, and one overwrites files of"
        f" the other: run `pip uninstall {name}`, then `pip install --force-reinstall --no-deps stageflow`"
        for name in sorted(names)
    ]


def _check_installation() -> None:
    """Raise an ImportError if the directory of this package contains modules of another distribution."""
    folder = os.path.dirname(os.path.abspath(__file__))
    if any(os.path.exists(os.path.join(folder, name)) for name in _FOREIGN_MODULES):
        leftover = (
            f"{folder} contains modules of another distribution:"
            " remove this directory, and install stageflow again"
        )
        raise ImportError("\n".join(other_distributions() or [leftover]))


def _check_system() -> None:
    """Raise an ImportError on Windows: the journal uses `fcntl` locks and the semantics of POSIX files."""
    if sys.platform == "win32":
        raise ImportError(
            "stageflow runs on Linux and macOS, not on Windows: use the Windows Subsystem for Linux (WSL)"
            " or a container"
        )


# Before any other module of the package is imported: a package of the other distribution may replace it.
_check_system()
_check_installation()
