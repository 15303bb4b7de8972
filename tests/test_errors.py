"""Every error class is documented in docs/errors.md, includes its location, and can be pickled."""

from __future__ import annotations

import ast
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


INTERNAL = {"_format.py", "_state_file.py", "_timeparse.py", "_toml.py"}
"""Modules that raise ValueError to callers in the library, which report the error with a location."""


def test_library_raises_no_plain_value_errors() -> None:
    package = Path(errors.__file__).parent
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        if path.name not in INTERNAL and "demo" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in ("TypeError", "ValueError")
    ]
    assert not found


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (0, "got 0"),
        ("Ok", "got 'Ok'; did you mean 'OK'?"),
        ("x" * 1_000, "got '" + "x" * 199 + "..."),
        (Unprintable(), "got <repr() of Unprintable failed: RuntimeError>"),
    ],
    ids=["value", "suggestion", "long", "unprintable"],
)
def test_error_about_an_argument_contains_its_value(value: object, given: str) -> None:
    error = errors.invalid_argument("Call", "name", value, "one of OK, FAIL", known=("OK", "FAIL"))
    assert str(error) == f"Call: name must be one of OK, FAIL, {given}"
    assert isinstance(error, ValueError)
    assert isinstance(error, TypeError)


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
