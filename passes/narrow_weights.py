"""Weights as 16-bit floats, by a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from graphwright.ir.errors import PassError
from graphwright.ir.float_scheme import FloatScheme, narrow_weight
from graphwright.ir.program import Program
from graphwright.ir.weights import Expression, Weight
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.head import logits_linears
from graphwright.passes.quantized_calls import call_with_parts
from graphwright.passes.recipe import Recipe
from graphwright.passes.weight_roles import Role, refusal, weight_readers

__all__ = ["NarrowWeights", "NarrowedWeight"]


@dataclass(frozen=True)
class NarrowWeights(Pass):
    """gw.linear, gw.routed_linear, gw.embedding over w  →  the same over narrow_weight(w, scheme).

    These ops convert to float32 what they read. A table and a head that share a weight and a scheme
    share the narrow one. Refuses a recipe with a pattern that no weight's name has, also on behalf
    of the passes that follow. Leaves: what the recipe says; tables read by anything but the tokens
    (position tables: small, and their values matter); weights that are not float.
    """

    stage: ClassVar[Stage] = Stage.QUANTIZE
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE

    recipe: Recipe = field(default_factory=Recipe)

    def run(self, program: Program) -> int:
        readers = weight_readers(program, logits_linears(program))
        weights = (source for _, _, source in readers if program.weight_of(source) is not None)
        if program.info.vocab_size:  # a part of a model need not have all that a recipe names
            self.recipe.check(str(source.target) for source in weights)
        made: dict[tuple[str, str], fx.Node] = {}
        count = 0
        for node, role, source in readers:
            name, weight = str(source.target), program.weight_of(source)
            scheme = self._scheme(node, name, weight, role)
            if weight is None or scheme is None:
                continue
            if not self.allowed():
                break
            key = (name, str(scheme))
            if key not in made:
                made[key] = program.add_weight(f"{name}_{scheme}", _narrowed(name, weight, scheme))
            call = (node.target, node.args, node.kwargs)
            target, arguments, options = call_with_parts(call, role, [made[key]], scheme)
            new = program.call(node, target, *arguments, **options)
            new.meta["stack_trace"] = node.meta.get("stack_trace", "")
            program.replace(node, new)
            count += 1
        return count

    def _scheme(
        self, node: fx.Node, name: str, weight: Weight | None, role: Role
    ) -> FloatScheme | None:
        scheme = self.recipe.scheme_for(name, role)
        if not isinstance(scheme, FloatScheme):
            return None
        if (why := refusal(node, name, weight, role)) is not None:
            self.miss(f"'{node.name}': {why}.")
            return None
        assert weight is not None
        return None if weight.dtype == scheme.dtype else scheme


@dataclass(frozen=True, eq=False)
class NarrowedWeight(Expression):
    """narrow_weight of one weight, whose `name` its errors say."""

    name: str = ""

    @property
    def scheme(self) -> str:
        return str(self.args[1])

    def load(self) -> torch.Tensor:
        try:
            return super().load()
        except PassError as error:
            raise PassError(f"'{self.name}': {error}") from error


def _narrowed(name: str, weight: Weight, scheme: FloatScheme) -> NarrowedWeight:
    plain = Expression.of(narrow_weight, weight, str(scheme))
    return NarrowedWeight(
        plain.shape, plain.dtype, plain.function, plain.args, plain.kwargs, name=name
    )
