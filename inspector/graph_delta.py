"""What one pass changed: the nodes of two printed graphs, aligned by what they compute.

Every print numbers names anew, so that lines cannot be compared: after one node is removed, those
behind it have other names. Nodes are aligned by op, type and what they read, from the strictest
sense of "the same" to the loosest; then a node is unchanged if it is the same op with the same
constants, and its operands are those that correspond.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from graphwright.inspector.alignment import align
from graphwright.inspector.graph_hunks import Hunk, Row, folded
from graphwright.inspector.graph_nodes import GraphNode, names_replaced, parse_graph, stem

__all__ = ["GraphDelta", "compare_graphs"]

_DEPTHS = (4, 2, 0)  # operands of operands that a key knows, strictest first
_SYMBOL = re.compile(r"[A-Za-z_]\w*")  # in a type: the dtype, and sizes that are not known


@dataclass(frozen=True)
class GraphDelta:
    """Counts of nodes, weights and inputs among them, and the hunks; moved ones are in no hunk."""

    removed: int
    added: int
    changed: int
    moved: int
    hunks: tuple[Hunk, ...]

    @property
    def empty(self) -> bool:
        """Do both graphs compute the same in the same order?"""
        return not (self.removed or self.added or self.changed or self.moved)


def compare_graphs(old: str, new: str) -> GraphDelta:
    """The delta from the printed graph `old` to `new`."""
    if old == new:
        return GraphDelta(0, 0, 0, 0, ())
    before, after = parse_graph(old), parse_graph(new)
    partner = _partners(before, after)  # index in old -> index in new
    names = {before[i].name: after[j].name for i, j in partner.items()}
    moved = _moved(before, after, partner, names)
    rows = _removed_first(_rows(before, after, partner, moved, names))
    signs = [sign for sign, _ in rows]
    return GraphDelta(
        signs.count("-"), signs.count("+"), signs.count(">"), len(moved), folded(rows)
    )


def _partners(before: Sequence[GraphNode], after: Sequence[GraphNode]) -> dict[int, int]:
    """Which node of `after` is which of `before`: inputs and weights by name, others aligned."""
    places = {node.name: j for j, node in enumerate(after) if not node.computed}
    found = {
        i: places[node.name]
        for i, node in enumerate(before)
        if not node.computed and node.name in places
    }
    sides = [[i for i, node in enumerate(nodes) if node.computed] for nodes in (before, after)]
    numbers: dict[object, int] = {}
    keys = [
        [[every[i] for i in side] for every in _keys(nodes, numbers)]
        for nodes, side in zip((before, after), sides, strict=True)
    ]
    return found | {sides[0][i]: sides[1][j] for i, j in align(keys[0], keys[1])}


def _keys(nodes: Sequence[GraphNode], numbers: dict[object, int]) -> list[list[int]]:
    """Keys of all nodes: by depth; by op, type and constants; by op and known sizes. `numbers` says
    which keys are equal."""

    def number(key: object) -> int:
        return numbers.setdefault(key, len(numbers))

    own = []
    for node in nodes:
        reads = names_replaced(node.arguments, map(stem, node.operands))
        own.append(number((node.type, node.op, reads, node.body)) if node.computed
                   else number(node.name))  # fmt: skip
    levels = [own]
    for _ in range(max(_DEPTHS)):
        under = {node.name: key for node, key in zip(nodes, levels[-1], strict=True)}
        levels.append([
            number((own[i], *(under.get(name, name) for name in node.operands)))
            if node.computed else own[i] for i, node in enumerate(nodes)
        ])  # fmt: skip
    constants = [
        number((node.type, node.op, names_replaced(node.arguments, "_" * len(node.operands))))
        for node in nodes
    ]
    loosest = [number((node.op, _SYMBOL.sub("_", node.type))) for node in nodes]
    return [*(levels[depth] for depth in _DEPTHS), constants, loosest]


def _moved(
    before: Sequence[GraphNode],
    after: Sequence[GraphNode],
    partner: dict[int, int],
    names: dict[str, str],
) -> dict[int, int]:
    """Nodes without a partner that stand elsewhere unchanged; they are partners from now on."""
    taken = set(partner.values())
    free: dict[str, list[int]] = {}
    for j, node in enumerate(after):
        if j not in taken and node.computed and node.name:
            free.setdefault(_meaning(node), []).append(j)
    found = {}
    for i, node in enumerate(before):
        free_to_move = i not in partner and node.computed
        places = free.get(_meaning(node, names), []) if free_to_move else []
        if places and all(name in names for name in node.operands):
            found[i] = places.pop(0)
            names[node.name] = after[found[i]].name
    return found


def _meaning(node: GraphNode, names: Mapping[str, str] | None = None) -> str:
    """Everything about a node but its own name, its operands called by the names they have now."""
    called = node.operands if names is None else [names.get(n, "?") for n in node.operands]
    reads = names_replaced(node.arguments, called)
    return "\n".join((f"{node.type} {node.op} {reads}", *node.body))


def _rows(
    before: Sequence[GraphNode],
    after: Sequence[GraphNode],
    partner: Mapping[int, int],
    moved: Mapping[int, int],
    names: Mapping[str, str],
) -> Iterator[Row]:
    """Both graphs in one column: removed nodes where they stood, the order that of `after`."""
    backward = {j: i for i, j in partner.items()}
    arrived = set(moved.values())
    gone = [i for i in range(len(before)) if i not in partner and i not in moved]
    for j, node in enumerate(after):
        i = backward.get(j)
        if i is None:
            if j not in arrived:
                yield "+", node.text
            continue
        while node.computed and gone and gone[0] < i:
            yield "-", before[gone.pop(0)].text
        if _meaning(before[i], names) == _meaning(node):
            yield " ", node.text
        else:
            yield "<", before[i].text
            yield ">", node.text
    for i in gone:
        yield "-", before[i].text


def _removed_first(rows: Iterator[Row]) -> list[Row]:
    """Of removed and added nodes in a row, the removed ones first."""
    found: list[Row] = []
    for _, group in groupby(rows, key=lambda row: row[0] in "-+"):
        found += sorted(group, key=lambda row: row[0] == "+")  # others keep their order
    return found
