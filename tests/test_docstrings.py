"""Every example in a docstring runs, and gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import stageflow

MODULES = sorted(module.name for module in pkgutil.walk_packages(stageflow.__path__, "stageflow."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_produce_the_documented_output(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = {**vars(stageflow), **vars(module)}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(module, name, extraglobs=names):
        runner.run(test)
    assert runner.failures == 0
