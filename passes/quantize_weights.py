"""Weights as small integers with scales, by a recipe."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx

from graphwright.ir.program import Level, Program
from graphwright.ir.schemes import Scheme
from graphwright.ir.stored_codes import kept_parts, stored_scheme
from graphwright.ir.weights import Weight
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.calibration import Calibration, calibrate
from graphwright.passes.head import logits_linears
from graphwright.passes.quantized_calls import call_with_parts
from graphwright.passes.quantized_part import KEPT_BYTES, KeptBytes, QuantizedPart
from graphwright.passes.recipe import Recipe
from graphwright.passes.self_written_tokens import SelfWritten
from graphwright.passes.weight_roles import Role, refusal, weight_readers

__all__ = ["QuantizeWeights"]


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """gw.linear, gw.routed_linear, gw.embedding  →  quantized over quantize_weight(w, scheme).

    A table and a head that share a weight and a scheme share the quantized one. A weight whose
    inputs do not divide into the scheme's groups gets smaller ones, or w8, with a miss. A weight
    that the checkpoint stores as such integers keeps them, and their scales. Other values are
    rounded to nearest, or by the inputs that a `calibration` gives them, which the program may
    write itself. Leaves: what the recipe says; tables read by anything but the tokens (position
    tables: small, and their values matter); weights that are not float.
    """

    stage: ClassVar[Stage] = Stage.QUANTIZE
    reaches: ClassVar[Level | None] = Level.QUANTIZED

    recipe: Recipe = field(default_factory=Recipe)
    calibration: Calibration | SelfWritten | None = None
    kept_bytes: int = KEPT_BYTES  # of results that are computed once, for whoever asks next

    @property
    def exactness(self) -> Exactness:  # type: ignore[override]
        """By the fewest bits of the recipe."""
        return Exactness.COARSE if self.recipe.bits < 8 else Exactness.APPROXIMATE

    def run(self, program: Program) -> int:
        readers = weight_readers(program, logits_linears(program))
        made: dict[tuple[str, str], list[fx.Node]] = {}
        memory = KeptBytes(self.kept_bytes)
        how: Counter[str] = Counter()
        count = 0
        calibration = self.calibration
        if isinstance(calibration, SelfWritten):
            calibration = calibration.write(program)
        for node, role, source in readers:
            weight = program.weight_of(source)
            scheme = self._scheme(node, str(source.target), weight, role)
            if weight is None or scheme is None:
                how[_how_stored("{} weights become floats", weight)] += 1
                continue
            if not self.allowed():
                break
            key = (str(source.target), str(scheme))
            if key not in made:
                stored = kept_parts(weight, scheme)
                how[_how_rounded(weight, stored)] += 1
                parts = QuantizedPart.all_of(weight, str(scheme), memory, stored)
                made[key] = _named(program, *key, parts)
            _replace(program, node, role, made[key], scheme)
            count += 1
        for text in filter(None, how):
            self.note(text.format(how[text]))
        if count and calibration is not None:
            self.note(calibrate(program, calibration))
        return count

    def _scheme(self, node: fx.Node, name: str, weight: Weight | None, role: Role) -> Scheme | None:
        scheme = self.recipe.scheme_for(name, role)
        if not isinstance(scheme, Scheme):
            return None
        if (why := refusal(node, name, weight, role)) is not None:
            self.miss(f"'{node.name}': {why}.")
            return None
        assert weight is not None
        inputs = weight.shape[-1]
        fitting = scheme.for_inputs(inputs)
        if fitting != scheme:
            self.miss(
                f"'{node.name}': {inputs} inputs of '{name}' do not divide into groups of "
                f"{scheme.group}; it gets {fitting}."
            )
        return fitting


def _how_rounded(weight: Weight, stored: list[Weight] | None) -> str:
    """A note about as many weights as will be put in; "" for those that were never integers."""
    if stored is not None:
        return "{} weights keep the integers that the checkpoint stores"
    return _how_stored("{} weights are rounded again", weight)


def _how_stored(what: str, weight: Weight | None) -> str:
    scheme = None if weight is None else stored_scheme(weight)
    return f"{what}; the checkpoint stores them as {scheme}" if scheme else ""


def _named(program: Program, name: str, scheme: str, parts: list[QuantizedPart]) -> list[fx.Node]:
    """The nodes of the values, scales and perhaps zero points of the weight `name`."""
    stems = (f"{name}_{scheme}", f"{name}_scale", f"{name}_zero")
    return [program.add_weight(stem, part) for stem, part in zip(stems, parts, strict=False)]


def _replace(
    program: Program, node: fx.Node, role: Role, parts: list[fx.Node], scheme: Scheme
) -> None:
    call = (node.target, node.args, node.kwargs)
    target, arguments, options = call_with_parts(call, role, parts, scheme)
    new = program.call(node, target, *arguments, **options)
    new.meta["stack_trace"] = node.meta.get("stack_trace", "")
    program.replace(node, new)
