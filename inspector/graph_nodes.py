"""A printed graph (ir/printer.py) as nodes again: what the artifact holds of a graph is its text.

No torch is needed to read it. Any text is taken: a line that is no node becomes one without a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["GraphNode", "names_replaced", "parse_graph", "stem"]

_LINE = re.compile(r"%(?P<name>.+?) : (?P<type>.+?) = (?P<op>[\w.]+)(?:\((?P<arguments>.*)\))?")
_NAME = re.compile(r"%([\w.]+)")
_BODY = "  |"


@dataclass(frozen=True)
class GraphNode:
    """One line of a graph. type: `f32[1, T, 64]`; op: `input`, `weight`, `gw.rms_norm`, `region`,
    `return`, or "" for a line of another form; body: the lines of what a region computes."""

    line: str
    name: str = ""
    type: str = ""
    op: str = ""
    arguments: str = ""
    body: tuple[str, ...] = ()
    operands: tuple[str, ...] = field(default=())  # names, in order, as often as they are read

    @property
    def computed(self) -> bool:
        """Is it neither an input nor a weight?"""
        return self.op not in ("input", "weight")

    @property
    def runs(self) -> bool:
        """Does it run code in a planned graph? Row views and getitem do not."""
        return self.op.startswith("gw.") or self.op == "region"

    @property
    def text(self) -> str:
        """Its line and those of its body."""
        return "\n".join((self.line, *self.body))


def parse_graph(text: str) -> list[GraphNode]:
    """The nodes of a printed graph, in order; the last one is `return`."""
    found: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        if line.startswith(_BODY) and found:
            found[-1][1].append(line)
        elif line:
            found.append((line, []))
    return [_node(line, tuple(body)) for line, body in found]


def _node(line: str, body: tuple[str, ...]) -> GraphNode:
    match = _LINE.fullmatch(line)
    if match is None:
        if line.startswith("return "):
            return GraphNode(line, "", "", "return", line[7:], body, _names(line))
        return GraphNode(line, body=body, operands=_names(line))
    arguments = match["arguments"] or ""
    return GraphNode(
        line, match["name"], match["type"], match["op"], arguments, body, _names(arguments)
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(_NAME.findall(text))


def stem(name: str) -> str:
    """What a name says of a node: names are numbered anew whenever a graph is printed."""
    return re.sub(r"_\d+$", "", name)


def names_replaced(arguments: str, names: Iterable[str]) -> str:
    """`arguments` with its operands, in order, called `names`."""
    left: Sequence[str] = list(names)
    following = iter(left)
    return _NAME.sub(lambda match: f"%{next(following, match[1])}", arguments)
