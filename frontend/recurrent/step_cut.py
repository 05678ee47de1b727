"""What of a module belongs into the step of its recurrence: as little as is worth while.

All that the new states need of the old ones must be inside. Around it, the border is drawn where
the fewest elements cross it for each token: a state of [128, 16] that is summed up at once gives
128 elements, not 2048, and a decay that is computed from 128 numbers is not stored for all 2048.
Where two borders are alike, more is left outside, where all tokens are computed at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from graphwright.frontend.recurrent.step_vocabulary import StepNodes
from graphwright.ir.errors import FrontendError
from graphwright.ir.source import source_line

__all__ = ["StepCut", "cut_step", "reached"]

aten = torch.ops.aten


@dataclass(frozen=True)
class StepCut:
    """nodes: inside, in the order of the graph. rows, weights: what they read from outside, a value
    for each token or for all. results: nodes that need the states and are read outside."""

    nodes: list[fx.Node]
    rows: list[fx.Node]
    weights: list[fx.Node]
    results: list[fx.Node]


def cut_step(
    states: list[fx.Node], new: list[fx.Node], later: set[fx.Node], others: set[fx.Node],
    order: dict[fx.Node, int], known: StepNodes,
) -> StepCut:  # fmt: skip
    """The step that computes `new`, the states after a token, from `states`, those before it.

    later: states of recurrences that need this one, and so are not in its step. others: nodes that
    belong to the steps of others. order: every node's place in the graph. Raises FrontendError for
    an op that no step can hold.
    """
    behind = reached(states, lambda node: node.users)
    needed = reached(new, lambda node: node.all_input_nodes)
    inside = (behind & needed) | set(states)
    for node in sorted(inside - set(states), key=order.__getitem__):
        if not known.inside_with_state(node):
            raise FrontendError(
                f"the recurrence computes '{node.name}' ({node.target}), which no step can "
                f"hold{source_line(node)}."
            )
    free = behind - reached(later, lambda node: node.users)
    inside |= _worth_adding(inside, behind, free, known)
    inside |= _worth_computing(inside | set(new), set(states), others, known)
    inside = {node for node in inside if node not in states and not _is_size(node)}
    nodes = sorted(inside, key=order.__getitem__)
    outer = dict.fromkeys(n for node in nodes for n in _read(node) if n not in inside)
    outer.update(dict.fromkeys(node for node in new if node not in inside))
    given = [node for node in outer if node not in states and not _is_size(node)]
    rows = [node for node in given if not known.is_static(node)]
    for node in rows:
        if math.isinf(known.row_size(node)):
            raise FrontendError(
                f"the recurrence reads '{node.name}', which is no row for each "
                f"token{source_line(node)}."
            )
    # what needs no state is computed outside as well, for those who need it there
    held = sorted((inside & behind) | set(states), key=order.__getitem__)
    results = [node for node in held if any(user not in inside for user in node.users)]
    return StepCut(nodes, rows, [node for node in given if node not in rows], results)


def _worth_adding(
    inside: set[fx.Node], behind: set[fx.Node], free: set[fx.Node], known: StepNodes
) -> set[fx.Node]:
    """Nodes behind `inside` that belong to it, so that few elements leave. free: those behind it
    that may."""

    def may(node: fx.Node) -> bool:
        allowed = node in free and known.inside_with_state(node)
        return allowed and not _has_products(node, known)

    network = nx.DiGraph()
    pending, seen = list(inside), set(inside)
    while pending:
        node = pending.pop()
        network.add_edge((node, "in"), (node, "out"), **_capacity(known.row_size(node)))
        if node in inside:
            network.add_edge("source", (node, "in"))
        for user in node.users:
            if user in inside:
                continue
            if may(user):
                network.add_edge((node, "out"), (user, "in"))
                if user not in seen:
                    seen.add(user)
                    pending.append(user)
            else:
                network.add_edge((node, "out"), "sink")
        for source in _read(node) if node not in inside else []:
            if source not in behind or source in inside:
                continue
            # it needs the step itself, and cannot come in as a row
            network.add_edge((node, "in"), (source, "in") if may(source) else "sink")
            if may(source) and source not in seen:
                seen.add(source)
                pending.append(source)
    return {node for node, side in _near_source(network) if side == "in"}


def _worth_computing(
    inside: set[fx.Node], states: set[fx.Node], others: set[fx.Node], known: StepNodes
) -> set[fx.Node]:
    """Nodes before `inside` that belong to it, so that few elements come in; none of `others`."""
    network = nx.DiGraph()
    pending = list(inside - states)
    seen = set(pending)
    while pending:
        node = pending.pop()
        fixed = node in inside
        allowed = known.inside_with_state(node) if fixed else _may_be_inside(node, known)
        if not allowed or node in others:
            # a new state may need no old one and be anything: then it comes in whatever is inside
            size = 0.0 if fixed else _size_outside(node, known)
            network.add_edge((node, "in"), (node, "out"), **_capacity(size))
            network.add_edge((node, "out"), "sink")
            continue
        size = math.inf if fixed else _size_outside(node, known)
        network.add_edge((node, "in"), (node, "out"), **_capacity(size))
        if fixed:
            network.add_edge("source", (node, "in"))
        for source in _read(node):
            if source in states or (source in inside and source not in seen):
                continue
            network.add_edge((node, "out"), (source, "in"))
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return {node for node, side in _near_source(network) if side == "out"}


def _size_outside(node: fx.Node, known: StepNodes) -> float:
    """Elements that come in for each token when `node` is computed outside. What only repeats a
    weight is none: inside it is known to be the same everywhere."""
    if known.is_static(node):
        return math.inf if node.target is aten.expand.default else 0.0
    return known.row_size(node)


def _may_be_inside(node: fx.Node, known: StepNodes) -> bool:
    if known.is_static(node):
        return node.target is aten.expand.default
    return known.inside_with_state(node) and not _has_products(node, known)


def _near_source(network: nx.DiGraph) -> set[tuple[fx.Node, str]]:
    """The source's side of a smallest cut, the smallest there is."""
    near: set[object] = set(network)
    if "source" in network and "sink" in network:
        # networkx gives the part that is nearest to where the flow goes
        _, (_, near) = nx.minimum_cut(network.reverse(), "sink", "source")
    return {key for key in near if isinstance(key, tuple)}


def _capacity(size: float) -> dict[str, float]:
    return {} if math.isinf(size) else {"capacity": size}


def _has_products(node: fx.Node, known: StepNodes) -> bool:
    """Is it a product with a weight, which is better computed for all tokens at once?"""
    if known.inside(node):
        return False
    weights = [n.meta["val"] for n in node.all_input_nodes if known.is_static(n)]
    return any(w.dim() == 2 or (w.dim() > 2 and w.shape[1] > 1) for w in weights)


def reached(
    nodes: Iterable[fx.Node], after: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """`nodes`, and all that follows from them by `after`."""
    pending, seen = list(nodes), set(nodes)
    while pending:
        for other in after(pending.pop()):
            if other not in seen:
                seen.add(other)
                pending.append(other)
    return seen


def _read(node: fx.Node) -> list[fx.Node]:
    """The values that it reads: of sizes, nothing."""
    return [] if _is_size(node) else node.all_input_nodes


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))
