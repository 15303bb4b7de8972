"""Renders the graph of a pipeline, from plain records, as Mermaid, DOT, or text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["graph_as_dot", "graph_as_mermaid", "graph_as_text"]


Record = Mapping[str, Any]
"""One stage: `name`, `kind`, `dependencies`, and `policies`, a mapping of policy names to their texts."""

_SHAPES = {"route": ("{{", "}}"), "guard": ("[/", "/]"), "enrich": ("([", "])"), "agent": ("[[", "]]")}
_DOT_SHAPES = {"route": "diamond", "guard": "parallelogram", "agent": "component"}


def graph_as_mermaid(stages: Sequence[Record]) -> str:
    """Return a Mermaid flowchart.

    The shape shows the kind. Edges to stages that can be skipped are dashed, and those of streams are bold.

    Example:
        >>> print(graph_as_mermaid([{"name": "a", "kind": "work", "dependencies": (), "policies": {}}]))
        flowchart LR
            s0["a"]
    """
    number = {stage["name"]: f"s{index}" for index, stage in enumerate(stages)}
    routers = _routers(stages)
    lines = ["flowchart LR"]
    for stage in stages:
        left, right = _SHAPES.get(stage["kind"], ("[", "]"))
        label = "<br/>".join(_escaped(line) for line in _label(stage))
        lines.append(f'    {number[stage["name"]]}{left}"{label}"{right}')
    for stage in stages:
        for dependency in stage["dependencies"]:
            route = stage["policies"].get("route") if dependency in routers else None
            arrow = "-.->" if _can_be_skipped(stage) else "-->"
            if dependency in stage.get("streams", ()):
                arrow = "==>"
            label = f"|{_escaped(route)}|" if route else ""
            source = number.get(dependency, _escaped(dependency))
            lines.append(f"    {source} {arrow}{label} {number[stage['name']]}")
    return "\n".join(lines)


def graph_as_dot(stages: Sequence[Record], name: str = "pipeline") -> str:
    """Return the graph in DOT, the language of Graphviz.

    Example:
        >>> print(graph_as_dot([{"name": "a", "kind": "work", "dependencies": (), "policies": {}}]))
        digraph "pipeline" {
            rankdir=LR;
            node [shape=box, fontname="sans-serif"];
            "a" [label="a"];
        }
    """
    lines = [
        f"digraph {_quoted(name)} {{",
        "    rankdir=LR;",
        '    node [shape=box, fontname="sans-serif"];',
    ]
    routers = _routers(stages)
    for stage in stages:
        shape = _DOT_SHAPES.get(stage["kind"])
        attributes = [f"label={_quoted(chr(10).join(_label(stage)))}"]
        if shape:
            attributes.append(f"shape={shape}")
        lines.append(f"    {_quoted(stage['name'])} [{', '.join(attributes)}];")
    for stage in stages:
        for dependency in stage["dependencies"]:
            route = stage["policies"].get("route") if dependency in routers else None
            style = ["style=dashed"] if _can_be_skipped(stage) else []
            if dependency in stage.get("streams", ()):
                style = ["style=bold"]
            style += [f"label={_quoted(route)}"] if route else []
            tail = f" [{', '.join(style)}]" if style else ""
            lines.append(f"    {_quoted(dependency)} -> {_quoted(stage['name'])}{tail};")
    lines.append("}")
    return "\n".join(lines)


def graph_as_text(stages: Sequence[Record]) -> str:
    """Return a table of stages with their kind, dependencies and policies, in topological order.

    Example:
        >>> print(graph_as_text([{"name": "a", "kind": "work", "dependencies": (), "policies": {}}]))
        level  stage  kind  after  policies
        1      a      work  -      -
    """
    level: dict[str, int] = {}
    rows = []
    for stage in _topological(stages):
        level[stage["name"]] = 1 + max((level[name] for name in stage["dependencies"]), default=0)
        policies = " ".join(
            key if value == "" else f"{key}={value}" for key, value in stage["policies"].items()
        )
        after = ", ".join(stage["dependencies"]) or "-"
        rows.append((level[stage["name"]], stage["name"], stage["kind"], after, policies or "-"))
    rows.sort(key=lambda row: row[0])
    cells = [("level", "stage", "kind", "after", "policies"), *[tuple(map(str, row)) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in cells
    )


def _topological(stages: Sequence[Record]) -> Iterable[Record]:
    """Yield the stages in topological order."""
    waiting = {stage["name"]: len(stage["dependencies"]) for stage in stages}
    dependents: dict[str, list[Record]] = {stage["name"]: [] for stage in stages}
    for stage in stages:
        for dependency in stage["dependencies"]:
            dependents[dependency].append(stage)
    ready = [stage for stage in stages if not stage["dependencies"]]
    for stage in ready:  # the list grows during the iteration
        yield stage
        for dependent in dependents[stage["name"]]:
            waiting[dependent["name"]] -= 1
            if not waiting[dependent["name"]]:
                ready.append(dependent)


def _label(stage: Record) -> list[str]:
    policies = [
        key if value == "" else f"{key}={value}" for key, value in stage["policies"].items() if key != "route"
    ]
    return [stage["name"], *policies]


def _routers(stages: Sequence[Record]) -> set[str]:
    return {stage["name"] for stage in stages if stage["kind"] == "route"}


def _can_be_skipped(stage: Record) -> bool:
    return bool({"route", "when", "conditional"} & stage["policies"].keys())


def _escaped(text: str) -> str:
    for character, entity in (("&", "&amp;"), ('"', "&quot;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(character, entity)
    return text


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
