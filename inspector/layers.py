"""The nodes of a planned graph by layer, layers that compute the same folded into one.

A node is of the layer that its weights are of, by the first number in a weight's name; one without
weights of the last layer among its operands; what reads neither is outside of all layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from graphwright.inspector.graph_nodes import GraphNode, names_replaced

__all__ = ["LayerGroup", "fold_layers", "layerless", "layers_of", "number_ranges"]

_NUMBER = re.compile(r"(?:^|[_.])(\d+)(?=[_.])")  # as of `.3.` in a path: not a last `_1`


@dataclass(frozen=True)
class LayerGroup:
    """Layers that compute the same; or what is outside of layers, before them or behind.

    nodes: indices into the graph of the first of them; members: of all, layer by layer.
    """

    layers: tuple[int, ...]
    nodes: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]


def layers_of(nodes: Sequence[GraphNode]) -> list[int | None]:
    """The layer of each node; of inputs None."""
    known: dict[str, int | None] = {}
    weights = {node.name for node in nodes if node.op == "weight"}
    found: list[int | None] = []
    for node in nodes:
        if node.op == "weight":
            match = _NUMBER.search(node.name)
            layer = int(match[1]) if match else None
        elif own := [name for name in node.operands if name in weights]:
            numbers = [known[name] for name in own]
            layer = next((each for each in numbers if each is not None), None)
        else:
            below = [known.get(name) for name in node.operands]
            layer = max((each for each in below if each is not None), default=None)
        known[node.name] = layer
        found.append(layer)
    return found


def fold_layers(nodes: Sequence[GraphNode]) -> list[LayerGroup]:
    """The computed nodes in groups, in the order in which the graph begins them. Outside of layers
    are two at most: what needs no layer, and what needs one.

    Two layers are the same if they hold the same nodes, however ordered: ops, types, constants,
    and operands, of which those from a layer below count as one and the same. Weights and states
    are the same if their names differ in the layer's number alone.
    """
    layers = layers_of(nodes)
    members: dict[int, list[int]] = {}
    outside: dict[bool, list[int]] = {}  # by whether it needs a layer
    above: set[str] = set()
    for index, (node, layer) in enumerate(zip(nodes, layers, strict=True)):
        if layer is not None or not above.isdisjoint(node.operands):
            above.add(node.name)
        if node.computed and layer is None:
            outside.setdefault(node.op == "return" or node.name in above, []).append(index)
        elif node.computed and layer is not None:
            members.setdefault(layer, []).append(index)
    alike: dict[tuple[int, ...], list[int]] = {}
    own, numbers = _used_by_one_layer(nodes, layers), dict[str, int]()
    for layer, indices in members.items():
        alike.setdefault(_signature(nodes, indices, layers, own, numbers), []).append(layer)
    groups = [
        LayerGroup(
            tuple(same), tuple(members[same[0]]), tuple(tuple(members[each]) for each in same)
        )
        for same in alike.values()
    ]
    groups += [LayerGroup((), tuple(each), (tuple(each),)) for each in outside.values()]
    return sorted(groups, key=lambda group: group.nodes[0])


def _used_by_one_layer(nodes: Sequence[GraphNode], layers: Sequence[int | None]) -> set[str]:
    """Nodes outside that one layer alone reads, as the embedding that the first one begins with."""
    readers: dict[str, set[int]] = {}
    for node, layer in zip(nodes, layers, strict=True):
        if layer is not None:
            for name in node.operands:
                readers.setdefault(name, set()).add(layer)
    return {name for name, found in readers.items() if len(found) == 1}


def _signature(
    nodes: Sequence[GraphNode],
    indices: Iterable[int],
    layers: Sequence[int | None],
    own: set[str],
    numbers: dict[str, int],
) -> tuple[int, ...]:
    """What a layer computes; `numbers` says which nodes of all layers are the same."""
    keys: dict[str, int] = {}
    kinds = {node.name: (node.op, of) for node, of in zip(nodes, layers, strict=True)}
    for index in indices:
        node = nodes[index]
        reads = [_operand(name, keys, kinds, own) for name in node.operands]
        text = f"{node.type} {node.op}({names_replaced(node.arguments, reads)})"
        text = "\n".join((text, *node.body))
        keys[node.name] = numbers.setdefault(text, len(numbers))
    return tuple(sorted(keys.values()))


def _operand(
    name: str, keys: Mapping[str, int], kinds: Mapping[str, tuple[str, int | None]], own: set[str]
) -> str:
    if name in keys:
        return str(keys[name])
    op, of = kinds.get(name, ("", None))
    if op == "input":
        return re.sub(r"\d+", "#", name)
    if op == "weight":
        return layerless(name)
    return "below" if of is not None or name in own else name


def layerless(weight: str) -> str:
    """A weight's name without the number of its layer."""
    return _NUMBER.sub(lambda match: match[0].replace(match[1], "#"), weight, count=1)


def number_ranges(numbers: Sequence[int]) -> str:
    """`0-3, 8`: increasing numbers, neighbours together; `0, 2, … 30` for every second and so."""
    steps = {later - earlier for earlier, later in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}, {numbers[1]}, … {numbers[-1]}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
