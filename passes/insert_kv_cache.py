"""Attention gets its keys and values from a paged cache; nothing else may look at other tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir import KVState, Level, Mask, PassError, Program
from graphwright.passes.attention_core import NoCoreError, find_core, is_core_root
from graphwright.passes.base import Pass, Stage
from graphwright.passes.content_free import content_free_nodes
from graphwright.passes.layout_chains import trace
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.token_axis import find_token_axes

__all__ = ["InsertKvCache"]


@dataclass(frozen=True)
class InsertKvCache(Pass):
    """gw.attention  →  gw.cached_attention over new inputs: query_start, block_table, caches.

    Afterwards every other op is proven to work on each token alone: one that does not, or is not
    known to, is an error. Two nodes that attend to the same keys and values share a cache; the
    second gets None for both.
    """

    stage: ClassVar[Stage] = Stage.ATTENTION
    after: ClassVar = (RecognizeAttention,)
    reaches: ClassVar = Level.CACHED
    optional: ClassVar = False

    block_size: int = 16

    def run(self, program: Program) -> int:
        if program.level >= Level.CACHED:
            return 0
        nodes = [n for n in program.graph.nodes if n.target is torch.ops.gw.attention.default]
        if nodes:
            start = program.add_input("query_start", ["B1"], torch.int32, hint=4)
            table = program.add_input("block_table", ["B", "M"], torch.int32, hint=3)
            states: dict[Any, tuple[fx.Node, fx.Node]] = {}
            for node in nodes:
                self._rewrite(program, node, (start, table), states)
        program.graph.eliminate_dead_code()
        _refuse_other_attention(program)
        find_token_axes(program)
        return len(nodes)

    def _rewrite(
        self,
        program: Program,
        node: fx.Node,
        batch: tuple[fx.Node, fx.Node],
        states: dict[Any, tuple[fx.Node, fx.Node]],
    ) -> None:
        q, k, v, positions, slopes, sinks = node.args
        key = (_origin(k), _origin(v), node.kwargs["mask"])
        known = key in states
        if not known:
            states[key] = self._add_state(program, k, v, str(node.kwargs["mask"]))
        new = program.call(
            node,
            torch.ops.gw.cached_attention.default,
            q,
            None if known else k,
            None if known else v,
            *states[key],
            positions,
            *batch,
            slopes,
            sinks,
            **node.kwargs,
        )
        new.meta["stack_trace"] = node.meta.get("stack_trace")
        program.replace(node, new)

    def _add_state(self, program: Program, k: Any, v: Any, mask: str) -> tuple[fx.Node, fx.Node]:
        number = len(program.states)
        _, heads, head_dim = k.meta["val"].shape
        value_dim = v.meta["val"].shape[2]
        state = KVState(
            name=f"kv{number}",
            heads=int(heads),
            head_dim=int(head_dim),
            value_dim=int(value_dim),
            dtype=k.meta["val"].dtype,
            mask=Mask.parse(mask),
        )
        program.states.append(state)
        shapes = state.shapes(0, self.block_size)
        inputs = [
            program.add_input(name, [f"{letter}{number}", *shape[1:]], state.dtype, hint=7)
            for name, letter, shape in zip(state.inputs, "KV", shapes, strict=True)
        ]
        return inputs[0], inputs[1]


def _refuse_other_attention(program: Program) -> None:
    """Says why attention that is left was not recognised: clearer than where the proof stops."""
    roots = [node for node in program.graph.nodes if is_core_root(program, node)]
    content_free = content_free_nodes(program) if roots else set()
    for root in roots:
        try:
            find_core(program, root, content_free)
            reason = f"'{root.name}' is attention that was not recognised"
        except NoCoreError as error:
            reason = str(error)
        raise PassError(f"{reason}. It looks at other tokens and cannot be given a cache.")


def _origin(node: Any) -> tuple[Any, ...]:
    """The same for two nodes that arrange the same value in the same way."""
    chain = trace(node)
    flat = [atom for axis in chain.base_axes for atom in axis]
    axes = tuple(
        tuple(-1 if atom in chain.repeated else flat.index(atom) for atom in axis)
        for axis in chain.axes
    )
    return (chain.base, axes, tuple(str(atom.size) for atom in flat))
