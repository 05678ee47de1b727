"""How a recurrence is computed: stages, and the tiles that they are cut into."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from graphwright.backends.regions.shapes import MOVES, pieces
from graphwright.backends.scans.body import Body, is_reduction
from graphwright.backends.scans.stages import Place, plan_stages
from graphwright.backends.scans.tiles import Tiles, tiles_of
from graphwright.ir.scan_step import ScanStep

__all__ = ["plan_tiles"]

FEW = 4  # of so many elements of a tile's states one, at most, is of a value that is kept


def plan_tiles(step: ScanStep, lanes: int) -> Tiles:
    """The tiles of a recurrence. What many elements are computed from, such as the decay of a row
    of a matrix, is stored when it is small. Raises BackendError."""
    body = Body.of(step)
    kept = set(_spread(body))
    while True:
        tiles = tiles_of(plan_stages(body, kept), lanes)
        states = range(len(body.states))
        held = sum(tiles.elements(Place("state", number)) for number in states)
        stored = tiles.stages.stored
        large = {node for node in kept if FEW * tiles.elements(stored[node]) > held}
        if not large:
            return tiles
        kept -= large


def _spread(body: Body) -> Iterator[fx.Node]:
    """The small values each of which many elements of larger ones are computed from."""
    most = max((state.count for state in body.states), default=0)
    for node in body.needed():
        if node.op != "call_function" or is_reduction(node) or node in body.new_states:
            continue
        value = node.meta["val"]
        small = FEW * value.numel() <= most and value.dtype is torch.float32
        if small and not _moves(node) and any(_readers(node, value.numel())):
            yield node


def _readers(node: fx.Node, elements: int) -> Iterator[fx.Node]:
    """What reads `node`, as it is or moved, and has more elements."""
    for user in node.users:
        if user.op == "call_function":
            if _moves(user):
                yield from _readers(user, elements)
            elif max(each.meta["val"].numel() for each in (user, *user.all_input_nodes)) > elements:
                yield user


def _moves(node: fx.Node) -> bool:
    return str(node.target).removeprefix("aten.") in MOVES or pieces(node) is not None
