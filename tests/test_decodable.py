"""Threads decode values of the same class for the first time at the same time."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "stageflow"

SHARED = """
import sys, threading
sys.setswitchinterval(1e-6)

def at_the_same_time(function, threads=4):
    barrier, errors = threading.Barrier(threads), []
    def call():
        barrier.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)
    started = [threading.Thread(target=call) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert not errors, errors
"""

NEW_CLASSES = """
import msgspec
from stageflow._decodable import decodable

for number in range(150):
    exec(f'''
class Inner{number}(msgspec.Struct):
    name: str = ""
    tags: list[str] = []

class Outer{number}(msgspec.Struct):
    one: Inner{number} | None = None
    more: dict[str, Inner{number}] = {{}}
''', globals())
    outer = globals()[f"Outer{number}"]

    def decode() -> None:
        content = b'{"one": {"name": "a"}, "more": {"x": {"tags": ["b"]}}}'
        assert msgspec.json.decode(content, type=decodable(outer)).more["x"].tags == ["b"]

    def convert() -> None:
        assert msgspec.convert({"one": {"name": "a"}}, decodable(outer)).one.name == "a"

    at_the_same_time(decode if number % 2 else convert)
"""

FORKS = """
import msgspec, os
from stageflow._decodable import decodable

class Kind(msgspec.Struct):
    name: str

def fork() -> None:
    for _ in range(20):
        if (child := os.fork()) == 0:
            os._exit(msgspec.json.decode(b'{"name": "a"}', type=decodable(Kind)).name != "a")
        assert os.waitpid(child, 0)[1] == 0

at_the_same_time(fork)
"""

SIGNAL_HANDLER = """
import msgspec, os, signal
from stageflow._decodable import decodable

class Other(msgspec.Struct):
    name: str

handled = []

def handle(*_: object) -> None:
    handled.append(msgspec.json.decode(b'{"name": "a"}', type=decodable(Other)))
    handled.append(msgspec.json.decode(b'{"name": "a"}', type=decodable(Kind)))
    if (child := os.fork()) == 0:
        os._exit(msgspec.json.decode(b'{"name": "a"}', type=decodable(Other)).name != "a")
    assert os.waitpid(child, 0)[1] == 0

signal.signal(signal.SIGUSR1, handle)

def kind_of_name() -> type:
    if not handled:
        os.kill(os.getpid(), signal.SIGUSR1)
    return str

class Kind(msgspec.Struct):
    name: "kind_of_name()"

assert msgspec.json.decode(b'{"name": "a"}', type=decodable(Kind)).name == "a"
assert len(handled) == 2
"""


def run(program: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text("from __future__ import annotations\n" + SHARED + program)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr}"


def test_threads_decode_new_classes(tmp_path: Path) -> None:
    run(NEW_CLASSES, tmp_path)


def test_forked_child_decodes(tmp_path: Path) -> None:
    run(FORKS, tmp_path)


def test_signal_handler_decodes_and_forks_while_its_thread_inspects_a_class(tmp_path: Path) -> None:
    run(SIGNAL_HANDLER, tmp_path)


def unprepared(program: str) -> Iterator[str]:
    """Yield each call that lets msgspec inspect a class which did not pass through `decodable`."""
    for call in ast.walk(ast.parse(program)):
        if not isinstance(call, ast.Call):
            continue
        function = ast.unparse(call.func)
        position = {"msgspec.convert": 1, "msgspec.json.Decoder": 0}.get(function)
        kinds = [named.value for named in call.keywords if named.arg == "type"]
        if position is not None:
            kinds += call.args[position : position + 1]
        elif function != "msgspec.json.decode":
            continue
        for kind in map(ast.unparse, kinds):
            if not kind.startswith("decodable(") and kind not in ("datetime", "dict[str, Any]"):
                yield ast.unparse(call)


def test_every_class_that_the_library_decodes_is_decodable() -> None:
    modules = {str(path.relative_to(SOURCE)): path.read_text() for path in SOURCE.rglob("*.py")}
    assert len(modules) > 100
    found = {name: list(unprepared(program)) for name, program in modules.items()}
    assert {name: calls for name, calls in found.items() if calls} == {
        "_decodable.py": ["msgspec.json.Decoder(kind)"]
    }


def test_a_class_that_is_not_decodable_is_found() -> None:
    calls = ["msgspec.convert(a, Run)", "msgspec.json.decode(a, type=Run)", "msgspec.json.Decoder(Run)"]
    assert list(unprepared("\n".join(calls))) == calls
    assert list(unprepared("msgspec.json.decode(a)\nmsgspec.convert(a, decodable(Run))")) == []
