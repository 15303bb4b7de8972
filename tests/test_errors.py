"""Every error class is documented in docs/errors.md, includes its location, and can be pickled."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from stageflow import errors
from stageflow.errors import PipelineValidationError, RunFailedError, StageflowError

CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, StageflowError)
]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_error_class_has_a_section_in_the_reference(error: type) -> None:
    page = (Path(__file__).parents[1] / "docs" / "errors.md").read_text()
    (section,) = re.findall(rf"^## {error.__name__}\n\n(\S.*)", page, re.MULTILINE)
    assert section


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_error_class_is_in_the_hierarchy_of_the_module_docstring(error: type) -> None:
    assert errors.__doc__ is not None
    assert error.__name__ in errors.__doc__


def test_error_message_contains_location_and_hint() -> None:
    error = StageflowError("it broke", pipeline="p", stage="s", run_id="r1", hint="mend it")
    assert str(error) == "it broke [stage 's', pipeline 'p', run r1]\n  hint: mend it"


def test_errors_survive_pickling() -> None:
    sent = [
        StageflowError("it broke", stage="s", hint="mend it"),
        PipelineValidationError("p", ["one", "two"]),
        RunFailedError("failed", results={"s": 1}, stage="s"),
    ]
    for error in sent:
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)
