"""Which recipe of ours comes nearest to what a GGUF file stores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from graphwright.frontend.gguf_files.reading import GgufFile, StoredTensor

__all__ = ["StoredRecipe", "stored_recipe"]

_HEAD, _TABLE = "output.weight", "token_embd.weight"
_FLOATS = {"F32": "f32", "F64": "f32", "F16": "f16", "BF16": "bf16"}
_KEPT = {"Q4_0": "w4g32"}  # types that fewer than eight bits can say


@dataclass(frozen=True)
class StoredRecipe:
    """recipe: as for `--quant`. stored: the types of the matrices, by how many weights they have,
    such as `Q4_K 71 %, Q6_K 29 %`."""

    recipe: str
    stored: str


def stored_recipe(file: GgufFile) -> StoredRecipe:
    """By the type that most weights of the products have, with the head and the table by theirs."""
    matrices = [each for each in file.tensors.values() if len(each.shape) > 1]
    table = file.tensors.get(_TABLE)
    head = file.tensors.get(_HEAD, table)
    products = [each for each in matrices if each.name not in (_HEAD, _TABLE)]
    default = _most(products or matrices)
    own = {"head": head, "embed": table}
    others = [
        f"{role}={_scheme(tensor.kind)}"
        for role, tensor in own.items()
        if tensor is not None and _scheme(tensor.kind) != default
    ]
    recipe = default + (f":{','.join(others)}" if others else "")
    return StoredRecipe(recipe, _shares(matrices))


def _scheme(kind: str) -> str:
    """The smallest scheme that keeps the values of a type, or nearly: other blocks of four bits and
    fewer become eight, as another rounding to four loses as much again (docs/gguf.md).
    """
    return _FLOATS.get(kind) or _KEPT.get(kind, "w8g32")


def _most(tensors: Iterable[StoredTensor]) -> str:
    """The scheme that most weights would get."""
    weights: Counter[str] = Counter()
    for each in tensors:
        weights[_scheme(each.kind)] += math.prod(each.shape)
    return weights.most_common(1)[0][0] if weights else "f32"


def _shares(tensors: Iterable[StoredTensor]) -> str:
    weights: Counter[str] = Counter()
    for each in tensors:
        weights[each.kind] += math.prod(each.shape)
    total = weights.total()
    return ", ".join(f"{kind} {count / total:.0%}" for kind, count in weights.most_common())
