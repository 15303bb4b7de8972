"""Generates a Markdown page for each public package, from signatures and docstrings."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import griffe

# griffe warns about fields of base classes that it cannot resolve.
logging.getLogger("griffe").setLevel(logging.ERROR)

__all__ = ["api_pages", "page_of"]


def page_of(package: str) -> str:
    """Return the name of the page of a package."""
    return f"api-{package.removeprefix('stageflow.').replace('.', '-')}"


def api_pages(source: Path, packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the Markdown of the page of each package.

    A name that several packages export is documented in the first of them.
    """
    root = griffe.load("stageflow", search_paths=[source], docstring_parser="google", resolve_aliases=True)
    documented: dict[str, str] = {}
    for package in packages:
        module = root[package.removeprefix("stageflow.")] if package != "stageflow" else root
        lines = [f"# {package}", "", *_docstring(module), ""]
        for name in module.exports or ():
            member = module.members[str(name)]
            target = member.final_target if member.is_alias else member
            if target.path in documented:
                lines += [f"## {name}", "", f"See [{name}]({documented[target.path]}).", ""]
                continue
            documented[target.path] = f"{page_of(package)}.md#{str(name).lower()}"
            lines += _entry(str(name), target)
        yield page_of(package), "\n".join(lines)


def _entry(name: str, target: griffe.Object) -> Iterator[str]:
    yield from (f"## {name}", "")
    if target.is_class:
        yield from _code(_signature_of_class(name, target))
        yield from _docstring(target)
        for method, member in target.members.items():
            if method.startswith("_") or member.is_alias or not member.docstring:
                continue
            if member.is_function:
                yield from (f"### {name}.{method}", "")
                yield from _code(_signature(member, method))
                yield from _docstring(member)
            elif "property" in member.labels:
                yield from (f"### {name}.{method}", "")
                yield from _code(f"{method}: {member.annotation}")
                yield from _docstring(member)
    elif target.is_function:
        yield from _code(_signature(target, name))
        yield from _docstring(target)
    else:
        yield from _code(f"{name} = {target.value}" if target.value is not None else name)
        yield from _docstring(target)


def _signature_of_class(name: str, target: griffe.Object) -> str:
    if "__init__" in target.members:
        return f"class {_signature(target.members['__init__'], name)}".removesuffix(" -> None")
    bases = ", ".join(str(base) for base in target.bases if str(base) != "Struct")
    return f"class {name}({bases})" if bases else f"class {name}"


def _signature(function: griffe.Object, name: str) -> str:
    """Return a signature, on one line if it is short."""
    prefix = "async def " if "async" in function.labels else ""
    parameters = [_parameter(each) for each in function.parameters if each.name not in ("self", "cls")]
    kinds = [each.kind for each in function.parameters if each.name not in ("self", "cls")]
    keyword_only = griffe.ParameterKind.keyword_only
    if keyword_only in kinds and griffe.ParameterKind.var_positional not in kinds:
        parameters.insert(kinds.index(keyword_only), "*")
    returns = f" -> {function.returns}" if function.returns is not None else ""
    line = f"{prefix}{name}({', '.join(parameters)}){returns}"
    if len(line) <= 90:
        return line
    return f"{prefix}{name}(\n" + "".join(f"    {each},\n" for each in parameters) + f"){returns}"


def _parameter(parameter: griffe.Parameter) -> str:
    stars = {
        griffe.ParameterKind.var_positional: "*",
        griffe.ParameterKind.var_keyword: "**",
    }.get(parameter.kind, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not None:
        text += f": {parameter.annotation}"
    if parameter.default is not None and not stars:
        text += f" = {parameter.default}"
    return text


def _code(text: str) -> list[str]:
    return ["```python", text, "```", ""]


def _docstring(target: griffe.Object) -> Iterator[str]:
    for section in target.docstring.parsed if target.docstring else ():
        kind = section.kind.value
        if kind == "text":
            yield from (section.value, "")
        elif kind == "admonition":
            yield from ("**Example**", "")
            example = section.value.description
            yield from (f"```{'pycon' if example.startswith('>>>') else 'python'}", example, "```", "")
        elif kind in ("parameters", "attributes"):
            yield from (f"**{kind.capitalize()}**", "")
            yield from (f"- `{each.name}`: {_joined(each.description)}" for each in section.value)
            yield ""
        elif kind == "raises":
            yield from ("**Raises**", "")
            yield from (f"- `{each.annotation}`: {_joined(each.description)}" for each in section.value)
            yield ""
        elif kind in ("returns", "yields"):
            yield from (f"**{kind.capitalize()}**", "")
            yield from (_joined(each.description) for each in section.value)
            yield ""
        else:
            raise ValueError(f"{target.path}: unknown section {kind} in the docstring")


def _joined(text: str) -> str:
    return " ".join(text.split())
