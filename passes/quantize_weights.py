"""Weights as small integers with scales, by a recipe."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from graphwright.ir.layout import VIEW_OPS
from graphwright.ir.program import Level, Program
from graphwright.ir.schemes import Scheme, quantize_weight
from graphwright.ir.weights import Expression, Weight
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.head import logits_linears
from graphwright.passes.recipe import Recipe, Role

__all__ = ["QuantizeWeights", "QuantizedPart"]

gw = torch.ops.gw
_PLACE: dict[Role, int] = {"embedding": 0, "experts": 2}  # of the weight; 1 elsewhere


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """gw.linear, gw.routed_linear, gw.embedding  →  quantized over quantize_weight(w, scheme).

    A table and a head that share a weight and a scheme share the quantized one. A weight whose
    inputs do not divide into the scheme's groups gets one scale per output channel instead, with a
    miss. Leaves: what the recipe says; tables read by anything but the tokens (position tables:
    small, and their values matter); weights that are not float.
    """

    stage: ClassVar[Stage] = Stage.QUANTIZE
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    reaches: ClassVar[Level | None] = Level.QUANTIZED

    recipe: Recipe = field(default_factory=Recipe)

    def run(self, program: Program) -> int:
        heads = logits_linears(program)
        made: dict[tuple[str, str], tuple[fx.Node, fx.Node]] = {}
        count = 0
        for node in list(program.graph.nodes):
            role = _role(node, heads)
            if role is None:
                continue
            source = node.args[_PLACE.get(role, 1)]
            weight = program.weight_of(source)
            scheme = self._scheme(node, str(source.target), weight, role)
            if weight is None or scheme is None:
                continue
            if not self.allowed():
                break
            key = (str(source.target), str(scheme))
            if key not in made:
                made[key] = _quantized(program, *key, weight)
            _replace(program, node, role, *made[key], scheme)
            count += 1
        return count

    def _scheme(self, node: fx.Node, name: str, weight: Weight | None, role: Role) -> Scheme | None:
        scheme = self.recipe.scheme_for(name, role)
        if scheme is None:
            return None
        if weight is None or not weight.dtype.is_floating_point:
            self.miss(f"'{node.name}': '{name}' is no floating-point weight.")
            return None
        if role == "embedding" and not _reads_tokens(node.args[1]):
            self.miss(f"'{node.name}': the table '{name}' is not read by token id.")
            return None
        inputs = weight.shape[-1]
        if scheme.group and inputs % scheme.group:
            self.miss(
                f"'{node.name}': {inputs} inputs of '{name}' do not divide into groups of "
                f"{scheme.group}; it gets one scale a channel (w{scheme.bits})."
            )
            return Scheme(scheme.bits)
        return scheme


@dataclass(frozen=True, eq=False)
class QuantizedPart(Expression):
    """One output of a quantization that several weights share: it is computed once for all."""

    shared: _Shared | None = None

    def load(self) -> torch.Tensor:
        assert self.shared is not None and self.output is not None
        return self.shared.take(self.output)


class _Shared:
    """A quantization whose results each wait until they are taken, and are dropped then."""

    def __init__(self, weight: Weight, scheme: str) -> None:
        self._weight, self._scheme = weight, scheme
        self._waiting: dict[int, torch.Tensor] = {}
        self._lock = threading.Lock()

    def take(self, output: int) -> torch.Tensor:
        """Output number `output`; computes all when it is not waiting."""
        with self._lock:
            if output not in self._waiting:
                results = quantize_weight(self._weight.load(), self._scheme)
                self._waiting = dict(enumerate(results))
            return self._waiting.pop(output)


def _role(node: fx.Node, heads: set[fx.Node]) -> Role | None:
    if node.target is gw.embedding.default:
        return "embedding"
    if node.target is gw.linear.default:
        return "head" if node in heads else "linear"
    return "experts" if node.target is gw.routed_linear.default else None


def _reads_tokens(ids: object) -> bool:
    """Do the indices come from the tokens, unchanged but for their shape?"""
    while isinstance(ids, fx.Node) and ids.target in VIEW_OPS:
        ids = ids.args[0]
    return isinstance(ids, fx.Node) and ids.target == "tokens"


def _quantized(program: Program, name: str, scheme: str, weight: Weight) -> tuple[fx.Node, fx.Node]:
    shared = _Shared(weight, scheme)
    nodes = []
    for output, stem in enumerate((f"{name}_{scheme}", f"{name}_scale")):
        plain = Expression.of(quantize_weight, weight, scheme, output=output)
        part = QuantizedPart(
            plain.shape, plain.dtype, plain.function, plain.args, plain.kwargs, output, shared
        )
        nodes.append(program.add_weight(stem, part))
    return nodes[0], nodes[1]


def _replace(
    program: Program, node: fx.Node, role: Role, weight: fx.Node, scale: fx.Node, scheme: Scheme
) -> None:
    if role == "experts":
        x, experts, _, *bias = node.args
        new = program.call(
            node,
            gw.quantized_routed_linear.default,
            *(x, experts, weight, scale, *bias),
            scheme=str(scheme),
        )
    elif role == "embedding":
        new = program.call(
            node, gw.quantized_embedding.default, weight, scale, node.args[1], scheme=str(scheme)
        )
    else:
        x, _, *epilogue = node.args
        new = program.call(
            node,
            gw.quantized_linear.default,
            x,
            weight,
            scale,
            *epilogue,
            scheme=str(scheme),
            activation=node.kwargs.get("activation", "none"),
        )
    new.meta["stack_trace"] = node.meta.get("stack_trace", "")
    program.replace(node, new)
