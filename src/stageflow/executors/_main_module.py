"""Imports the main module of the parent process in a worker."""

from __future__ import annotations

import sys
from types import ModuleType

from ..errors import SerializationError, describe

__all__ = ["MAIN_MODULE"]


class MainModule:
    """The main module of the parent process, which a worker imports when a message refers to it.

    Attributes:
        importing: True while the worker imports it.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._path: str | None = None
        self._is_imported = False
        self._error: BaseException | None = None
        self.importing = False

    def set(self, name: str | None, path: str | None) -> None:
        """Set the name of the module if it was started with `python -m`, or its path."""
        self._name, self._path = name, path

    def ensure(self) -> None:
        """Import it as `__mp_main__`, like `multiprocessing`, so that `__name__ == "__main__"` is false.

        Raises:
            SerializationError: The module raised `SystemExit`.
            BaseException: The module raised it; every further call raises it again.
        """
        if self._error is not None:
            raise self._error
        if self._is_imported or (self._name is None and self._path is None):
            return
        import runpy  # only in workers

        self._is_imported = self.importing = True
        module = ModuleType("__mp_main__")
        try:
            if self._name is not None:
                content = runpy.run_module(self._name, run_name="__mp_main__", alter_sys=True)
            else:
                content = runpy.run_path(self._path or "", run_name="__mp_main__")
        except SystemExit as error:
            self._error = SerializationError(
                "a worker cannot import the main module of the program, because the module runs the program:"
                f' start it under `if __name__ == "__main__":` ({describe(error)})',
            )
            raise self._error from error
        except BaseException as error:
            self._error = error
            raise
        finally:
            self.importing = False
        module.__dict__.update(content)
        sys.modules["__main__"] = sys.modules["__mp_main__"] = module


MAIN_MODULE = MainModule()
