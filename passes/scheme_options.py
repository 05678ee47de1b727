"""What there is to choose: the weights of a program, schemes that each may have, their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.ir.float_scheme import AnyScheme, FloatScheme, narrow_weight
from graphwright.ir.memory import align
from graphwright.ir.program import Program
from graphwright.ir.schemes import GROUPS, Scheme, quantize_weight
from graphwright.ir.stored_codes import kept_parts, stored_scheme
from graphwright.ir.weights import Weight
from graphwright.passes.auto_recipe import AutoRecipe
from graphwright.passes.head import logits_linears
from graphwright.passes.weight_roles import Role, refusal, weight_argument, weight_readers

__all__ = ["Decision", "decisions_of", "fixed_bytes", "packed_bytes", "parts_of", "read_bytes",
           "stored_bytes"]  # fmt: skip

_TILE_ROWS, _TILE_INPUTS = 16, 64  # kernels pack weights in whole tiles


@dataclass(frozen=True)
class Decision:
    """The weight `name` gets one of `schemes` for all `readers`, nodes and the role of each.

    schemes: None is float32; the first is the one of most bits. fixed: there is nothing to choose.
    """

    name: str
    weight: Weight
    readers: tuple[tuple[fx.Node, Role], ...]
    schemes: tuple[AnyScheme | None, ...]
    fixed: bool

    @property
    def roles(self) -> tuple[Role, ...]:
        """Of the readers, each once."""
        return tuple(dict.fromkeys(role for _, role in self.readers))

    @property
    def elements(self) -> int:
        """How many numbers the weight has."""
        return math.prod(self.weight.shape)


def decisions_of(program: Program, auto: AutoRecipe) -> list[Decision]:
    """Those of all weights that recipes are about and that may be stored in fewer bits.

    The readers of a weight decide together, but for those that the recipe fixes. A scheme whose
    groups do not divide the inputs is the nearest that does. Unless the user named the candidates,
    the scheme that a checkpoint stores the weight in is one of them.
    """
    readers: dict[tuple[str, tuple[str, AnyScheme | None] | None], list[tuple[fx.Node, Role]]] = {}
    for node, role, source in weight_readers(program, logits_linears(program)):
        name = str(source.target)
        if refusal(node, name, program.weight_of(source), role) is None:
            readers.setdefault((name, auto.fixed_for(name, role)), []).append((node, role))
    found = []
    for (name, said), nodes in readers.items():
        weight = program.weights[name]
        schemes = auto.candidates if said is None else (said[1],)
        if said is None and not auto.named:
            schemes = (*schemes, *_stored_schemes(weight))
        fitting = dict.fromkeys(_fitting(scheme, weight) for scheme in schemes)
        ordered = sorted(fitting, key=lambda scheme: -stored_bytes(weight.shape, scheme))
        found.append(Decision(name, weight, tuple(nodes), tuple(ordered), said is not None))
    return found


def _fitting(scheme: AnyScheme | None, weight: Weight) -> AnyScheme | None:
    return scheme.for_inputs(weight.shape[-1]) if isinstance(scheme, Scheme) else scheme


def _stored_schemes(weight: Weight) -> Iterator[Scheme]:
    """The scheme of the fewest scales that keeps the integers that a checkpoint stores, if any."""
    match = re.fullmatch(r"w([48])(?:g\d+)?(z?)", stored_scheme(weight) or "")
    if match is None:  # no integers, or in another way than any scheme
        return
    bits, zero = int(match[1]), bool(match[2])
    whole = [Scheme(8)] if bits == 8 and not zero else []
    grouped = [
        Scheme(bits, group, zero)
        for group in sorted(GROUPS, reverse=True)
        if weight.shape[-1] % group == 0 and not (bits == 8 and zero)
    ]
    for scheme in (*whole, *grouped):
        if kept_parts(weight, scheme) is not None:
            yield scheme
            return


def parts_of(weight: Weight, values: torch.Tensor, scheme: AnyScheme) -> tuple[torch.Tensor, ...]:
    """What a program holds of the weight, whose `values` are loaded, in this scheme: rounded to
    nearest or as it is stored. Raises PassError where the scheme cannot hold it."""
    if isinstance(scheme, FloatScheme):
        return (narrow_weight(values, str(scheme)),)
    stored = kept_parts(weight, scheme)
    if stored is not None:
        return tuple(part.load() for part in stored)
    return quantize_weight(values, str(scheme))


def stored_bytes(shape: tuple[int, ...], scheme: AnyScheme | None) -> int:
    """Of a weight [..., N, K] in this scheme: values, scales and zero points."""
    return _bytes(shape, shape[-1], scheme)


def packed_bytes(shape: tuple[int, ...], scheme: AnyScheme | None) -> int:
    """At most what the weight takes in a file, in tiles that begin on cache lines."""
    *outer, rows, inputs = shape
    tiles = (*outer, _up(rows, _TILE_ROWS), _up(inputs, _TILE_INPUTS))
    return _bytes(tiles, inputs, scheme) + 3 * align(1)  # values, scales and zero points


def _bytes(shape: tuple[int, ...], inputs: int, scheme: AnyScheme | None) -> int:
    """Of a weight of that shape whose groups are those of so many `inputs`."""
    elements, rows = math.prod(shape), math.prod(shape[:-1])
    if not isinstance(scheme, Scheme):
        return elements * (4 if scheme is None else scheme.dtype.itemsize)
    group_bytes = 4 if scheme.bits == 8 else 2 + scheme.zero
    return -(-elements * scheme.bits // 8) + rows * scheme.groups(inputs) * group_bytes


def read_bytes(decision: Decision, scheme: AnyScheme | None) -> int:
    """That decoding one token reads: a row of a table, the chosen ones of all experts."""
    stored = stored_bytes(decision.weight.shape, scheme)
    return max(int(stored * _share_read(node, role)) for node, role in decision.readers)


def _share_read(node: fx.Node, role: Role) -> float:
    shape: Any = node.args[weight_argument(role)].meta["val"].shape  # type: ignore[union-attr]
    if role == "embedding":
        return 1 / int(shape[0])
    if role == "experts":
        slots = int(node.args[1].meta["val"].shape[-1])  # type: ignore[union-attr]
        return min(1.0, slots / int(shape[0]))
    return 1.0


def fixed_bytes(program: Program, decisions: list[Decision]) -> int:
    """At most what all weights take that are no decision: norms, biases, tables of positions."""
    chosen = {each.name for each in decisions}
    return sum(
        align(math.prod(weight.shape) * max(4, weight.dtype.itemsize))
        for name, weight in program.weights.items()
        if name not in chosen
    )


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
