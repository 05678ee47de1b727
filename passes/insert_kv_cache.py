"""What looks at other tokens gets a state: a paged cache, a rolling or a recurrent state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir import (
    ConvState,
    IndexState,
    KVState,
    Level,
    Mask,
    PassError,
    Program,
    RecurrentState,
)
from graphwright.ir.scan_step import ScanStep
from graphwright.passes.base import Pass, Stage
from graphwright.passes.layout_chains import trace
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.recognize_causal_conv import RecognizeCausalConv
from graphwright.passes.region_module import source_line
from graphwright.passes.token_convs import find_shift, find_token_conv, is_conv
from graphwright.passes.token_proof import prove_per_token
from graphwright.passes.token_windows import NoWindowError

__all__ = ["InsertKvCache"]

gw = torch.ops.gw
_Caches = dict[Any, tuple[fx.Node, fx.Node]]  # of keys and values, by where those come from


@dataclass(frozen=True)
class InsertKvCache(Pass):
    """gw.attention  →  gw.cached_attention,   gw.choose_keys  →  gw.cached_choose_keys,
    gw.conv_along_tokens  →  gw.causal_conv,   gw.scan_along_tokens  →  gw.cached_scan.

    New inputs: query_start and block_table, shared by all, and the tensors of each state, all of N
    blocks.
    Afterwards every other op is proven to work on each token alone: one that does not, or is not
    known to, is an error. Two nodes that attend to the same keys and values share a cache; the
    second gets None for both.
    """

    stage: ClassVar[Stage] = Stage.ATTENTION
    after: ClassVar = (RecognizeAttention, RecognizeCausalConv)
    reaches: ClassVar = Level.CACHED
    optional: ClassVar = False

    block_size: int = 16

    def run(self, program: Program) -> int:
        if program.level >= Level.CACHED:
            return 0
        rewrites = {
            gw.attention.default: self._cache,
            gw.choose_keys.default: self._choose,
            gw.conv_along_tokens.default: self._roll,
            gw.scan_along_tokens.default: self._carry,
        }
        nodes = [node for node in program.graph.nodes if node.target in rewrites]
        if nodes:
            start = program.add_input("query_start", ["B1"], torch.int32, hint=4)
            table = program.add_input("block_table", ["B", "M"], torch.int32, hint=3)
            caches: _Caches = {}
            for node in nodes:
                rewrites[node.target](program, node, (start, table), caches)
        program.drop_dead()
        _refuse_other_convolutions(program)
        for unconfirmed in prove_per_token(program):
            self.miss(unconfirmed)
        return len(nodes)

    def _cache(
        self, program: Program, node: fx.Node, batch: tuple[fx.Node, fx.Node], caches: _Caches
    ) -> None:
        q, k, v, positions, slopes, sinks, chosen = (*node.args, None)[:7]
        key = (_origin(k), _origin(v), node.kwargs["mask"], chosen is not None)
        known = key in caches
        if not known:
            caches[key] = self._add_cache(program, node, chosen)
        new = program.call(
            node,
            gw.cached_attention.default,
            q,
            None if known else k,
            None if known else v,
            *caches[key],
            positions,
            *batch,
            slopes,
            sinks,
            *([] if chosen is None else [None, None, chosen]),
            **node.kwargs,
        )
        new.meta["stack_trace"] = node.meta.get("stack_trace")
        program.replace(node, new)

    def _choose(
        self, program: Program, node: fx.Node, batch: tuple[fx.Node, fx.Node], caches: _Caches
    ) -> None:
        k: Any
        q, k, weights, positions = node.args
        _, heads, head_dim = k.meta["val"].shape
        mask, dtype = Mask.parse(str(node.kwargs["mask"])), k.meta["val"].dtype
        name = f"index{len(program.states)}"
        state = IndexState(name, int(heads), int(head_dim), dtype, mask)
        program.states.append(state)
        shape = state.shapes(0, self.block_size)[0][1:]
        held = program.add_input(state.name, ["N", *shape], state.dtype, hint=7)
        target = gw.cached_choose_keys.default
        new = program.call(node, target, q, k, weights, held, positions, *batch, **node.kwargs)
        new.meta["stack_trace"] = node.meta.get("stack_trace")
        program.replace(node, new)

    def _roll(
        self, program: Program, node: fx.Node, batch: tuple[fx.Node, fx.Node], caches: _Caches
    ) -> None:
        x: Any
        weight: Any
        x, weight, bias = node.args
        value, kept = x.meta["val"], int(weight.meta["val"].shape[1]) - 1
        number = len(program.states)
        state = ConvState(f"conv{number}", kept, int(value.shape[1]), value.dtype)
        program.states.append(state)
        held = program.add_input(state.name, ["N", kept, state.channels], state.dtype, hint=7)
        positions = program.placeholder("positions")
        new = program.call(node, gw.causal_conv.default, x, weight, bias, held, positions, *batch)
        new.meta["stack_trace"] = node.meta.get("stack_trace")
        program.replace(node, new)

    def _carry(
        self, program: Program, node: fx.Node, batch: tuple[fx.Node, fx.Node], caches: _Caches
    ) -> None:
        text = str(node.kwargs["step"])
        state = RecurrentState(f"scan{len(program.states)}", ScanStep.parse(text).state_size)
        program.states.append(state)
        held = program.add_input(state.name, ["S", state.size], torch.float32, hint=6)
        positions = program.placeholder("positions")
        new = program.call(
            node, gw.cached_scan.default, *node.args, held, positions, *batch, step=text
        )
        new.meta["stack_trace"] = node.meta.get("stack_trace")
        program.replace(node, new)

    def _add_cache(
        self, program: Program, attention: fx.Node, chosen: Any
    ) -> tuple[fx.Node, fx.Node]:
        k: Any
        v: Any
        k, v = attention.args[1:3]
        number = len(program.states)
        _, heads, head_dim = k.meta["val"].shape
        value_dim = v.meta["val"].shape[2]
        state = KVState(
            name=f"kv{number}",
            heads=int(heads),
            head_dim=int(head_dim),
            value_dim=int(value_dim),
            dtype=k.meta["val"].dtype,
            mask=Mask.parse(str(attention.kwargs["mask"])),
            chosen=0 if chosen is None else int(chosen.meta["val"].shape[1]),
        )
        program.states.append(state)
        shapes = state.shapes(0, self.block_size)
        inputs = [
            program.add_input(name, ["N", *shape[1:]], state.dtype, hint=7)
            for name, shape in zip(state.inputs, shapes, strict=True)
        ]
        return inputs[0], inputs[1]


def _refuse_other_convolutions(program: Program) -> None:
    """Says why a convolution or a shift along the tokens was not given a state."""
    for node in program.graph.nodes:
        try:
            if is_conv(node):
                find_token_conv(program, node)
                raise NoWindowError(f"the convolution '{node.name}' was not recognised")
            find_shift(program, node)
        except NoWindowError as reason:
            raise PassError(
                f"{reason}{source_line(node)}. It cannot be decoded token by token."
            ) from None


def _origin(node: Any) -> tuple[Any, ...]:
    """The same for two nodes that arrange the same value in the same way."""
    chain = trace(node)
    flat = [atom for axis in chain.base_axes for atom in axis]
    axes = tuple(
        tuple(-1 if atom in chain.repeated else flat.index(atom) for atom in axis)
        for axis in chain.axes
    )
    return (chain.base, axes, tuple(str(atom.size) for atom in flat))
