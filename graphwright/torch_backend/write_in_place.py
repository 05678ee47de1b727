"""Writes into an argument, as into a static KV cache, in place again."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["write_in_place"]

aten = torch.ops.aten


def write_in_place(module: fx.GraphModule) -> int:
    """y = op(x, …); …; copy_(x, y)  →  y = op_(x, …), for an argument x that nothing else reads.

    AOTAutograd makes the first of the second, which copies all of x twice for a write of a few
    rows. Leaves: an op without a variant in place, an argument with other readers, a result that
    the graph returns. Returns how many were rewritten.
    """
    count = 0
    for copy in list(module.graph.nodes):
        if copy.target is not aten.copy_.default or len(copy.args) != 2:
            continue
        place, made = copy.args
        if not isinstance(place, fx.Node) or not isinstance(made, fx.Node):
            continue
        variant = _variant(made)
        if variant is None or not _may_write(place, made, copy):
            continue
        made.target = variant
        copy.replace_all_uses_with(made)
        module.graph.erase_node(copy)
        count += 1
    if count:
        module.graph.lint()
        module.recompile()
    return count


def _may_write(place: fx.Node, made: fx.Node, copy: fx.Node) -> bool:
    returned = any(user.op == "output" for user in made.users)
    same = all(
        getattr(place.meta["val"], name) == getattr(made.meta["val"], name)
        for name in ("dtype", "shape", "device")
    )
    return (
        place.op == "placeholder"
        and set(place.users) == {made, copy}
        and made.args[:1] == (place,)
        and made.all_input_nodes.count(place) == 1
        and place not in made.args[1:]
        and same
        and not returned
    )


def _variant(node: fx.Node) -> Any:
    """The overload of the operator that writes to its first argument."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    packet = getattr(aten, target._schema.name.split("::")[1] + "_", None)
    name = target._overloadname
    return getattr(packet, name) if packet is not None and name in packet.overloads() else None
