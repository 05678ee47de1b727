"""One functional ATen graph: its parts as native code, the rest as it was."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch import fx

from graphwright.frontend.row_parts.find import Found, RowPart, find_row_parts
from graphwright.frontend.row_parts.forms import (
    PRODUCTS,
    NoFormError,
)
from graphwright.frontend.row_parts.program import RowSpace, part_program
from graphwright.frontend.row_parts.replace import PartCall, part_module, replace_parts
from graphwright.ir.errors import GraphwrightError, PassError
from graphwright.passes.recipe import Recipe
from graphwright.passes.verification import should_check
from graphwright.runtime.threads import choose_threads
from graphwright.torch_backend.crossover import most_rows
from graphwright.torch_backend.options import BackendOptions
from graphwright.torch_backend.part_call import part_call
from graphwright.torch_backend.part_code import PartCode, PartCodes
from graphwright.torch_backend.part_pool import PartPool
from graphwright.torch_backend.quiet_torch import QuietTorch
from graphwright.torch_backend.write_in_place import write_in_place

__all__ = ["GraphReport", "compile_graph"]

_LOG = logging.getLogger("graphwright.torch_backend")
_CODES = PartCodes()
_POOLS: dict[int, PartPool] = {}
_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass
class GraphReport:
    """What became of a graph's nodes and of the weights that its products read.

    left: products, or whole parts, that torch computes, and why.
    """

    nodes: int
    parts: int = 0
    kinds: int = 0
    nodes_in_parts: int = 0
    products: int = 0
    weight_bytes: int = 0
    weight_bytes_in_parts: int = 0
    left: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        share = self.weight_bytes_in_parts / self.weight_bytes if self.weight_bytes else 0
        lines = [
            f"graph of {self.nodes} nodes: {self.nodes_in_parts} run in {self.parts} native parts "
            f"of {self.kinds} kinds, with {share:.0%} of the weights that products read"
        ]
        count = Counter(self.left)
        lines += [f"  left to torch, {n} x: {why}" for why, n in count.items()]
        return "\n".join(lines)


def compile_graph(
    module: fx.GraphModule,
    weights: Sequence[fx.Node],
    names: Mapping[fx.Node, str],
    values: Mapping[fx.Node, torch.Tensor],
    options: BackendOptions,
) -> tuple[Callable[..., Any], GraphReport]:
    """`module` with native code where it can be, as a function of a list, and what was taken.

    weights: the placeholders of parameters and buffers; names: what the model calls them; values:
    what they hold, as far as it is known. Raises PassError for a recipe that cannot be.
    """
    found = find_row_parts(module.graph, weights)
    report = _report(module, found)
    calls: list[PartCall] = []
    kinds: set[int] = set()
    quiet, space = QuietTorch(), RowSpace()
    for part in found.parts:
        try:
            call, code = _part(module, part, found, names, values, options, quiet, space)
        except (NoFormError, GraphwrightError) as error:
            report.left.append(str(error).splitlines()[0])
            _LOG.warning("a part of %d products is left to torch: %s", _products(part), error)
            continue
        calls.append(call)
        kinds.add(id(code))
        report.parts += 1
        report.nodes_in_parts += len(part.nodes)
        report.weight_bytes_in_parts += _bytes(part.nodes)
    report.kinds = len(kinds)
    if report.products and options.quant != "auto" and names:
        _check_names(Recipe.parse(options.quant), names, report)
    made = replace_parts(module, calls) if calls else module
    write_in_place(made)
    compiled = make_boxed_func(made.forward)
    if not calls:
        return compiled, report
    arguments, fixed = module.graph.find_nodes(op="placeholder"), set(weights)
    places = [place for place, node in enumerate(arguments) if node not in fixed]
    return quiet.around(compiled, places), report


def _part(
    module: fx.GraphModule,
    part: RowPart,
    found: Found,
    names: Mapping[fx.Node, str],
    values: Mapping[fx.Node, torch.Tensor],
    options: BackendOptions,
    quiet: QuietTorch,
    space: RowSpace,
) -> tuple[PartCall, PartCode]:
    recipe = _recipe(part, options.quant)
    named = names if recipe.overrides else {}
    program, tensors, sources = part_program(part, found, named, space)
    example = [values[each] for each in sources] if all(s in values for s in sources) else None
    check = should_check(program) if options.check is None else options.check
    code = _CODES.get(program, tensors, recipe, example, check)
    threads = choose_threads(options.threads)
    pool = _POOLS.setdefault(threads, PartPool(threads))
    by_torch = part_module(module, part, sources).forward
    limit = most_rows(_types(part)) if options.quant == "auto" else None
    call = part_call(part, found.forms, code, pool, quiet, by_torch, limit)
    return PartCall(part, sources, call), code


def _products(part: RowPart) -> int:
    return sum(node.target in PRODUCTS for node in part.nodes)


def _types(part: RowPart) -> set[torch.dtype]:
    """Of the matrices in its products."""
    return {_matrix(node).meta["val"].dtype for node in part.nodes if node.target in PRODUCTS}


def _check_names(recipe: Recipe, names: Mapping[fx.Node, str], report: GraphReport) -> None:
    """An expression that meets no weight is not an error here: a model may have several graphs."""
    try:
        recipe.check(names.values())
    except PassError as error:
        report.left.append(str(error))
        _LOG.warning("%s", error)


def _recipe(part: RowPart, quant: str) -> Recipe:
    """`auto`: weights as they are, so that results differ from torch's by rounding only."""
    if quant != "auto":
        return Recipe.parse(quant)
    types = _types(part)
    return Recipe.parse(_NAMES.get(types.pop(), "f32") if len(types) == 1 else "f32")


def _matrix(product: fx.Node) -> fx.Node:
    node: Any = product.args[PRODUCTS[product.target] + 1]
    assert isinstance(node, fx.Node)
    return node


def _bytes(nodes: Sequence[fx.Node]) -> int:
    return sum(_matrix(n).meta["val"].nbytes for n in nodes if n.target in PRODUCTS)


def _report(module: fx.GraphModule, found: Found) -> GraphReport:
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    products = [node for node in nodes if node.target in PRODUCTS]
    report = GraphReport(len(nodes), products=len(products))
    read = [node for node in products if _matrix(node) in found.constants]
    report.weight_bytes = _bytes(read)
    report.left += [_general(why) for why in found.refused.values()]
    return report


def _general(reason: str) -> str:
    return re.sub(r"_\d+", "", reason)
