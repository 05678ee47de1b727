"""Which steps of an entry share a launch: found before lowering, as memory is laid out for it.

    rms_norm → products of its rows              the product norms its own input (decode)
    product → gated_act                          the product writes activation(gate) * up
    (rms_norm → rope) of q and k → attention     one launch rotates and appends
    product → rope of q and k → attention        the product does (decode, no norms, no int8 cache)
    rms_norm → add_rms_norm                      norm, sum and norm in one launch

A step that is *absorbed* launches nothing and its result is never in memory; the step that absorbs
it reads what it would have read. Norms join products only where few rows are multiplied: there a
product is bound by its weights, and norming the same row in every program is free.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from graphwright.backends.registry import arguments
from graphwright.backends.triton.dtypes import StoredTypes
from graphwright.ir.layout import RowView, is_view, row_size, row_view
from graphwright.ir.memory import operands, result_of, results, steps
from graphwright.ir.program import Program

__all__ = ["Fusions", "GatedProduct", "Rotation"]

gw = torch.ops.gw
_PRODUCTS = frozenset({gw.linear.default, gw.quantized_linear.default})
_CACHED = gw.cached_attention.default


@dataclass(frozen=True)
class GatedProduct:
    """The product below a gated activation, and where in its row the gate and the rest begin."""

    product: fx.Node
    gate: int
    up: int


@dataclass(frozen=True)
class Rotation:
    """The gw.rope steps of queries and keys of an attention, and the norms of heads before them.

    product: which makes queries, keys and values, in this order, and turns them itself.
    """

    q: fx.Node
    k: fx.Node
    q_norm: fx.Node | None
    k_norm: fx.Node | None
    product: fx.Node | None = None


@dataclass
class Fusions:
    """gates: by the gated_act; rotations: by the attention; norms: absorbed ones of whole rows."""

    absorbed: set[fx.Node] = field(default_factory=set)
    gates: dict[fx.Node, GatedProduct] = field(default_factory=dict)
    rotations: dict[fx.Node, Rotation] = field(default_factory=dict)
    _logits: str = ""

    @classmethod
    def of(cls, program: Program, types: StoredTypes, entry: str) -> Fusions:
        """The fusions of one entry."""
        found = cls(_logits=result_of(program.graph))
        for node in steps(program.graph):
            if node.target is gw.gated_act.default:
                found._gate(node)
            elif node.target is _CACHED:
                found._rotate(node, entry)
            elif node.target is gw.add_rms_norm.default:
                found._norm_of_sum(node)
        # float16 ends at 65504: rows that were not normed yet, times the norm's weight, may not fit
        if entry == "decode" and types.activations != "float16":
            for node in steps(program.graph):
                if node.target is gw.rms_norm.default and node not in found.absorbed:
                    found._norm_of_products(node, types)
        return found

    def norm(self, value: Any) -> fx.Node | None:
        """The absorbed norm whose rows `value` is, if it is one."""
        view = row_view(value) if isinstance(value, fx.Node) else None
        base = None if view is None else view.base
        return base if base in self.absorbed and base.target is gw.rms_norm.default else None

    def reads(self, step: fx.Node) -> list[RowView]:
        """What the launches of a step read: through the steps that it absorbs."""
        views: list[RowView] = []
        for view in operands(step):
            views.extend(self.reads(view.base) if view.base in self.absorbed else [view])
        return views

    def writes(self, step: fx.Node) -> dict[str, tuple[fx.Node, torch.Tensor]]:
        """What the launches of a step write: (the step whose result it is, the value) by buffer."""
        if step in self.absorbed:
            return {}
        owners = [step]
        if step in self.rotations:
            owners.append(self.rotations[step].q)  # read by the attention, written before it
        return {name: (each, value) for each in owners for name, value in results(each).items()}

    def _is_result(self, node: fx.Node) -> bool:
        return self._logits in results(node)

    def _gate(self, node: fx.Node) -> None:
        given = arguments(node)
        gate, up = row_view(given["gate"]), row_view(given["up"])
        if gate is None or up is None or gate.base is not up.base:
            return
        product = gate.base
        if product.target not in _PRODUCTS or self._is_result(product):
            return
        halves = sorted((gate.offset, up.offset)) == [0, gate.row_size] == [0, up.row_size]
        whole = 2 * gate.row_size == row_size(product.meta["val"])
        if halves and whole and _is_plain(product) and set(_readers(product)) == {node}:
            self.absorbed.add(product)
            self.gates[node] = GatedProduct(product, gate.offset, up.offset)

    def _rotate(self, node: fx.Node, entry: str) -> None:
        given = arguments(node)
        q, k = given["q"], given["k"]
        if k is None or given["v"] is None:
            return
        sources = [row_view(each) for each in (q, k)]
        ropes = [view.base for view in sources if view is not None]
        if len(ropes) != 2 or any(each.target is not gw.rope.default for each in ropes):
            return
        alike = ("cos", "sin", "interleaved")
        first, second = (arguments(each) for each in ropes)
        if any(first[name] is not second[name] for name in alike):
            return
        cos, sin = row_view(first["cos"]), row_view(first["sin"])
        if cos is None or sin is None or cos.row_stride != sin.row_stride:
            return
        whole = all(
            view is not None and view.offset == 0 and view.row_size == row_size(rope.meta["val"])
            for view, rope in zip(sources, ropes, strict=True)
        )
        heads = [rope.meta["val"].shape[-1] for rope in ropes]
        if not whole or heads[0] != heads[1] or any(set(_readers(r)) != {node} for r in ropes):
            return
        norms = [_norm_of_heads(rope) for rope in ropes]
        self.absorbed.update(ropes)
        self.absorbed.update(norm for norm in norms if norm is not None)
        product = None
        if entry == "decode" and given["k_scale"] is None and norms == [None, None]:
            product = self._heads_of_product(node, ropes)
        if product is not None:
            self.absorbed.add(product)
        self.rotations[node] = Rotation(ropes[0], ropes[1], norms[0], norms[1], product)

    def _heads_of_product(self, node: fx.Node, ropes: list[fx.Node]) -> fx.Node | None:
        """The product whose rows are the queries, keys and values of attention `node`."""
        parts = [arguments(rope)["x"] for rope in ropes] + [arguments(node)["v"]]
        views = [row_view(part) for part in parts]
        product = None if views[0] is None else views[0].base
        if product is None or product.target not in _PRODUCTS:
            return None
        end = 0
        for part, view in zip(parts, views, strict=True):
            if view is None or view.base is not product or view.offset != end:
                return None
            end += view.row_size
            if int(part.meta["val"].shape[-1]) % 2:
                return None
        even = int(arguments(ropes[0])["cos"].meta["val"].shape[-1]) % 2 == 0
        readers = set(_readers(product)) == {*ropes, node}
        whole = end == row_size(product.meta["val"])
        return product if even and readers and whole and _is_plain(product) else None

    def _norm_of_sum(self, node: fx.Node) -> None:
        """Of the second summand; the first is tried when that is no norm."""
        given = arguments(node)
        for name in ("residual", "x"):
            view = row_view(given[name])
            norm = None if view is None else view.base
            if norm is None or view is None or norm.target is not gw.rms_norm.default:
                continue
            made = arguments(norm)
            width = row_size(node.meta["val"][0])
            same = view.offset == 0 and view.row_size == width == row_size(norm.meta["val"])
            one = (
                int(made["x"].meta["val"].shape[-1])
                == width
                == int(given["x"].meta["val"].shape[-1])
            )
            if same and one and made["weight"] is not None and set(_readers(norm)) == {node}:
                self.absorbed.add(norm)
                return

    def _norm_of_products(self, node: fx.Node, types: StoredTypes) -> None:
        given = arguments(node)
        width = int(given["x"].meta["val"].shape[-1])
        readers = set(_readers(node))
        if (
            given["weight"] is None
            or row_size(node.meta["val"]) != width
            or types.of(given["x"]) != types.activations
            or self._is_result(node)
        ):
            return
        for reader in readers:
            if reader.target not in _PRODUCTS:
                return
            made = arguments(reader)
            view = row_view(made["x"])
            whole = view is not None and view.base is node and view.row_size == width
            integer = "scheme" in made and types.activations == "float32"
            residual = None if made["residual"] is None else row_view(made["residual"])
            if not whole or integer or (residual is not None and residual.base is node):
                return
        if readers:
            self.absorbed.add(node)


def _is_plain(product: fx.Node) -> bool:
    """Is it one vector a row, with no activation and no residual?"""
    given = arguments(product)
    vectors = row_view(given["x"])
    single = vectors is not None and vectors.row_size == given["weight"].meta["val"].shape[1]
    return single and given["activation"] == "none" and given["residual"] is None


def _norm_of_heads(rope: fx.Node) -> fx.Node | None:
    """The RMS norm of each head that only this rotation reads."""
    source = arguments(rope)["x"]
    view = row_view(source)
    norm = None if view is None else view.base
    if norm is None or view is None or norm.target is not gw.rms_norm.default:
        return None
    given = arguments(norm)
    heads = int(given["x"].meta["val"].shape[-1]) == int(rope.meta["val"].shape[-1])
    whole = view.offset == 0 and view.row_size == row_size(norm.meta["val"])
    alone = set(_readers(norm)) == {rope}
    return norm if heads and whole and alone and given["weight"] is not None else None


def _readers(node: fx.Node) -> list[fx.Node]:
    """The steps, or the output, that read a result, through views."""
    found: list[fx.Node] = []
    for user in node.users:
        through = is_view(user) or getattr(user.target, "__name__", "") == "getitem"
        found.extend(_readers(user) if through else [user])
    return found
