"""Draws the Mermaid diagrams of the documentation with Graphviz.

GitHub draws Mermaid itself. The site must not load a script from another host, so it gets pictures.
"""

from __future__ import annotations

import re

__all__ = ["with_drawn_diagrams"]

_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TRANSITION = re.compile(r"(\[\*\]|\w+) --> (\[\*\]|\w+)(?:: (.+))?")
_NODE = re.compile(r'(\w+)\["(.+)"\]')

_STYLE = """\
    bgcolor="transparent"; rankdir=TB; nodesep=0.4; ranksep=0.5;
    node [shape=box, style="rounded,filled", fillcolor="#f8fafc", color="#64748b"];
    node [fontcolor="#0f172a", fontname="sans-serif", fontsize=11];
    edge [color="#64748b", fontcolor="#64748b", fontname="sans-serif", fontsize=10];"""


def with_drawn_diagrams(page: str) -> str:
    """Return a page with `graphviz` directives instead of its Mermaid diagrams.

    Raises:
        ValueError: A diagram contains a line that is neither a transition nor a node.
    """
    return _BLOCK.sub(lambda block: f"```{{graphviz}}\n:align: center\n\n{_as_dot(block[1])}\n```", page)


def _as_dot(diagram: str) -> str:
    lines = [line.strip() for line in diagram.strip().splitlines()[1:]]
    nodes: dict[str, str] = {}
    edges: list[str] = []
    for line in lines:
        if transition := _TRANSITION.fullmatch(line):
            start, end, label = transition.groups()
            names = ["begin" if start == "[*]" else start, "end" if end == "[*]" else end]
            for name in names:
                nodes.setdefault(name, "" if name in ("begin", "end") else name)
            wrapped = r"\n".join(_wrapped(label or ""))
            edges.append(f'{names[0]} -> {names[1]} [label="{wrapped}"]')
        elif node := _NODE.fullmatch(line):
            nodes[node[1]] = node[2].replace("<br/>", r"\n")
        else:
            raise ValueError(f"a diagram contains a line that cannot be drawn: {line!r}")
    drawn = [
        f'{name} [label="", shape=circle, width=0.15, style=filled, fillcolor="#64748b"]'
        if not label
        else f'{name} [label="{label}"]'
        for name, label in nodes.items()
    ]
    return "\n".join(["digraph {", _STYLE, *(f"    {line};" for line in (*drawn, *edges)), "}"])


def _wrapped(label: str, width: int = 26) -> list[str]:
    lines: list[str] = []
    for word in label.split():
        if lines and len(lines[-1]) + len(word) < width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
