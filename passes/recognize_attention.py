"""Every attention core becomes one gw.attention op over [T, H, D]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir import ConstantTensor, Mask, PassError, Program
from graphwright.ir.layout import size_of
from graphwright.ir.source import source_line
from graphwright.ir.weights import Expression
from graphwright.passes.attention_core import AttentionCore, NoCoreError, find_core, is_core_root
from graphwright.passes.base import Pass, Stage
from graphwright.passes.content_free import content_free_nodes
from graphwright.passes.key_choice import find_choice
from graphwright.passes.layout_chains import Atom, Chain, arrange, collapse_chains, trace
from graphwright.passes.mask_bias import MaskTerm
from graphwright.passes.mask_recognition import RecognizedMask, recognize_mask
from graphwright.passes.mask_terms import split_terms
from graphwright.passes.recognize_rope import RecognizeRope

__all__ = ["RecognizeAttention"]


@dataclass(frozen=True)
class RecognizeAttention(Pass):
    """sdpa, or matmul → scale, cap, mask, sinks → softmax → matmul  →  gw.attention.

    Keys and values lose the expansion to the number of query heads. Masks are recognised by what
    they evaluate to; keys that tokens choose by scores of index queries and keys become a
    gw.choose_keys. A mask that depends on content in another way, or that the mask algebra lacks,
    is an error.
    Leaves: attention over another axis than the tokens; a softmax that no product surrounds.
    """

    stage: ClassVar[Stage] = Stage.ATTENTION
    after: ClassVar = (RecognizeRope,)
    optional: ClassVar = False  # the cache cannot go in without it

    def run(self, program: Program) -> int:
        content_free = content_free_nodes(program)
        masks = _Masks(program, content_free)
        rewrites = 0
        for root in list(program.graph.nodes):
            if not is_core_root(program, root):
                continue
            try:
                core = find_core(program, root, content_free)
                operands = _operands(core)
            except NoCoreError as reason:
                self.miss(f"{reason}.")
                continue
            if not self.allowed():
                break
            _rewrite(program, core, operands, masks)
            rewrites += 1
        if rewrites:
            program.drop_dead()
            collapse_chains(program)
        return rewrites


class _Masks:
    """The masks of one program, each recognised once."""

    def __init__(self, program: Program, content_free: set[fx.Node]) -> None:
        self._program = program
        self._content_free = content_free
        self._known: dict[tuple[MaskTerm, ...], tuple[RecognizedMask, dict[int, fx.Node]]] = {}
        self._chosen: dict[fx.Node, tuple[fx.Node, Mask]] = {}

    def of(self, core: AttentionCore, heads: int) -> tuple[Mask, fx.Node | None, fx.Node | None]:
        """The mask of `core`, the nodes of its slopes [heads] and of the keys that it chooses,
        where there are any."""
        terms, marked = split_terms(self._program, core.terms, self._content_free)
        mask, slopes = self._of_positions(core, tuple(terms), heads)
        if len(marked) > 1:
            names = "' and '".join(node.name for node in marked)
            raise PassError(f"'{core.result.name}' sees only keys that both '{names}' choose.")
        return mask, slopes, self._choice(core, marked[0], mask) if marked else None

    def _choice(self, core: AttentionCore, marked: fx.Node, mask: Mask) -> fx.Node:
        """gw.choose_keys in place of `marked`, made where it is first asked for."""
        if marked not in self._chosen:
            choice = find_choice(self._program, marked, self._content_free)
            if not choice.terms:
                raise PassError(
                    f"'{marked.name}' chooses among the keys of all tokens, later ones too"
                    f"{source_line(marked)}: what a token sees would change when others follow."
                )
            found = recognize_mask(self._program, choice.terms, self._content_free)
            if found.slopes is not None:
                raise PassError(
                    f"the scores by which '{marked.name}' chooses keys fall with their distance"
                    f"{source_line(marked)}, which is not known of such scores."
                )
            node = choice.build(self._program, core.rescaled or core.result, str(found.mask))
            node.meta["stack_trace"] = marked.meta.get("stack_trace")
            self._chosen[marked] = node, found.mask
        node, own = self._chosen[marked]
        if own != mask:
            raise PassError(
                f"'{core.result.name}' sees keys by the mask '{mask}', and '{marked.name}' chooses "
                f"them by '{own}': it would choose some that are not seen, and any where fewer are "
                f"left than it chooses{source_line(marked)}."
            )
        return node

    def _of_positions(
        self, core: AttentionCore, key: tuple[MaskTerm, ...], heads: int
    ) -> tuple[Mask, fx.Node | None]:
        """What the terms `key` of the mask of `core`, which follow from positions, say."""
        if not key:
            if core.causal:
                return Mask(), None
            raise PassError(
                f"'{core.result.name}' attends without a mask: every token sees every later one. "
                "Only causal attention can be decoded."
            )
        if key not in self._known:
            self._known[key] = (recognize_mask(self._program, key, self._content_free), {})
        found, nodes = self._known[key]
        if found.shifted and core.sinks is not None:
            raise PassError(
                f"the attention bias of '{core.result.name}' moves all scores of a query, which "
                "its sinks would notice."
            )
        if found.slopes is None:
            return found.mask, None
        if len(found.slopes) not in (1, heads):
            raise PassError(
                f"the attention bias of '{core.result.name}' has {len(found.slopes)} heads, the "
                f"queries have {heads}."
            )
        if heads not in nodes:
            slopes = found.slopes.expand(heads).contiguous()
            weight = ConstantTensor.of(slopes, "slopes found in the attention bias")
            nodes[heads] = self._program.add_weight("attention_slopes", weight)
        return found.mask, nodes[heads]


@dataclass
class _Operand:
    """A chain whose axes are grouped as tokens, heads (those not repeated) and channels."""

    chain: Chain
    wanted: list[list[Atom]]

    @property
    def heads(self) -> int:
        return math.prod(atom.size for atom in self.wanted[1])

    def build(self, program: Program, before: fx.Node) -> fx.Node:
        """The value as [T, heads, channels]."""
        return arrange(program, before, self.chain.base, self.chain.base_axes, self.wanted)


def _operands(core: AttentionCore) -> tuple[_Operand, _Operand, _Operand]:
    """q, k and v as [T, H, D] of what they are made of. Raises NoCoreError."""
    weights: Any = core.q if core.k_transposed is False else core.result.args[0]
    q = _operand(core.q, None, folded=math.prod(core.folded))
    k = _operand(core.k, None if core.grouped else core.q, core.k_transposed)
    v = _operand(core.v, None if core.grouped else weights)
    if q is None or k is None or v is None:
        raise NoCoreError(f"the operands of '{core.result.name}' share heads in an unknown order")
    if k.heads != v.heads:
        k = _operand(core.k, None if core.grouped else core.q, core.k_transposed, repeats=False)
        v = _operand(core.v, None if core.grouped else weights, repeats=False)
    if k is None or v is None or k.heads != v.heads or q.heads % k.heads:
        raise NoCoreError(f"the keys and values of '{core.result.name}' differ in heads")
    return q, k, v


def _operand(
    node: fx.Node,
    against: fx.Node | None,
    transposed: bool = False,
    repeats: bool = True,
    folded: int = 1,
) -> _Operand | None:
    """`node` [heads…, T, D] (D, T when transposed). Heads that a product with `against` repeats by
    broadcasting count as repeated; `folded` more lie before T in one axis with it. None unless the
    repeated heads are the innermost."""
    chain = trace(node, repeats)
    rows, channels = chain.axes[-2:][:: -1 if transposed else 1]
    leading = chain.axes[:-2]
    if folded > 1:
        leading, rows = [*leading, rows[:-1]], rows[-1:]
        if math.prod(atom.size for atom in leading[-1]) != folded:
            return None
    repeated = set(chain.repeated)
    if against is not None:
        sizes = [size_of(size) for size in against.meta["val"].shape[:-2]]
        leading = [[] for _ in range(len(sizes) - len(leading))] + leading
        for i, size in enumerate(sizes):
            if size != 1 and not leading[i]:
                leading[i] = [Atom(size)]
                repeated.update(leading[i])
    heads = [atom for axis in leading for atom in axis]
    kept = [atom for atom in heads if atom not in repeated]
    usable = heads[: len(kept)] == kept and not repeated & {*rows, *channels}
    usable = usable and all(isinstance(atom.size, int) for atom in (*heads, *channels))
    if usable:
        return _Operand(chain, [rows, kept, channels])
    return _operand(node, against, transposed, False, folded) if repeats else None


def _rewrite(
    program: Program,
    core: AttentionCore,
    operands: tuple[_Operand, _Operand, _Operand],
    masks: _Masks,
) -> None:
    before = core.rescaled or core.result
    value = before.meta["val"]
    heads = operands[0].heads
    mask, slopes, chosen = masks.of(core, heads)
    q, k, v = (operand.build(program, before) for operand in operands)
    attention = program.call(
        before,
        torch.ops.gw.attention.default,
        q,
        k,
        v,
        program.placeholder("positions"),
        slopes,
        _sinks(program, core, heads),
        *([] if chosen is None else [chosen]),
        scale=core.scale,
        mask=str(mask),
        softcap=core.softcap,
    )
    attention.meta["stack_trace"] = core.result.meta.get("stack_trace")
    axes = [[] if s == 1 else [Atom(s)] for s in map(size_of, value.shape)]
    if core.folded_weights:
        tokens = size_of(attention.meta["val"].shape[0])
        axes[-2] = [Atom(size) for size in (*core.folded_weights, tokens)]
    flat = [atom for axis in (*axes[:-2], axes[-2][:-1]) for atom in axis]
    assert math.prod(atom.size for atom in flat) == heads
    result = arrange(program, before, attention, [axes[-2][-1:], flat, axes[-1]], axes)
    program.replace(before, result)


def _sinks(program: Program, core: AttentionCore, heads: int) -> fx.Node | None:
    """The sink logits as [heads]."""
    if core.sinks is None:
        return None
    chain = trace(core.sinks)
    axes = chain.axes if core.rescaled is not None else chain.axes[:-2]
    kept = [atom for axis in axes for atom in axis if atom not in chain.repeated]
    weight = program.weight_of(chain.base)
    if weight is None or math.prod(atom.size for atom in kept) != heads:
        raise PassError(
            f"the attention sinks '{core.sinks.name}' are not one weight for each of {heads} heads."
        )
    if kept != [atom for axis in chain.base_axes for atom in axis if atom in kept]:
        return arrange(program, core.rescaled or core.result, chain.base, chain.base_axes, [kept])
    if weight.shape == (heads,):
        return chain.base
    flat = Expression.of(torch.ops.aten.reshape.default, weight, [heads])
    return program.add_weight(str(chain.base.target), flat)
