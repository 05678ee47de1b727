"""From nodes of a trace to a step: the same for one token, of static shapes and plain ops."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from graphwright.frontend.recurrent.shrink_repeats import shrink_repeats
from graphwright.frontend.recurrent.step_cut import StepCut
from graphwright.frontend.recurrent.step_vocabulary import at_one_token
from graphwright.frontend.recurrent.tidy_step import tidy_step
from graphwright.ir.errors import FrontendError
from graphwright.ir.levels import INDEXING, POINTWISE, REDUCTION, SHAPE
from graphwright.ir.scan_step import ScanState, ScanStep

__all__ = ["StepGraphs"]

aten = torch.ops.aten
_KNOWN = (
    POINTWISE
    | REDUCTION
    | INDEXING
    | SHAPE - frozenset("split.Tensor split_with_sizes.default chunk.default unbind.int".split())
)


class StepGraphs:
    """Makes steps; those of equal nodes are made once. tokens: the symbol of their number."""

    def __init__(self, tokens: Any) -> None:
        self._tokens = tokens
        self._known: dict[str, ScanStep] = {}

    def step(
        self,
        states: Sequence[fx.Node],
        new: Sequence[fx.Node],
        cut: StepCut,
        initial: Sequence[float],
    ) -> ScanStep:
        """The step of `cut`, from `states` to `new`; initial: what each state starts as.

        Raises FrontendError for an op that cannot be written in plain ones.
        """
        given = [*states, *cut.rows, *cut.weights]
        wanted = [*new, *cut.results]
        key = self._key(given, cut.nodes, wanted, initial)
        if key not in self._known:
            sizes = [[int(size) for size in node.meta["val"].shape[1:]] for node in states]
            held = [ScanState(tuple(s), n) for s, n in zip(sizes, initial, strict=True)]
            graph = self._trace(given, cut.nodes, wanted)
            self._known[key] = ScanStep(graph, tuple(held), len(cut.rows))
        return self._known[key]

    def _trace(
        self, given: Sequence[fx.Node], nodes: Sequence[fx.Node], wanted: Sequence[fx.Node]
    ) -> fx.Graph:
        examples = [self._example(node.meta["val"]) for node in given]

        def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
            values: dict[fx.Node, Any] = dict(zip(given, inputs, strict=True))

            def value(node: fx.Node) -> Any:
                return values[node] if node in values else self._size(node)

            for node in nodes:
                target: Any = node.target
                if target in _VIEWS:  # of the trace's strides, which are not those here
                    target = aten.reshape.default
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
                values[node] = target(*args, **kwargs)
            return [value(node) for node in wanted]

        traced = make_fx(run, decomposition_table=_decompositions(), tracing_mode="fake")(*examples)
        graph = _plain(traced.graph)
        shrink_repeats(graph)
        tidy_step(graph)
        return graph

    def _example(self, value: torch.Tensor) -> torch.Tensor:
        sizes = [at_one_token(size, self._tokens) for size in value.shape]
        return torch.zeros(sizes, dtype=value.dtype)

    def _size(self, node: fx.Node) -> int:
        return at_one_token(node.meta["val"], self._tokens)

    def _key(
        self, given: Sequence[fx.Node], nodes: Sequence[fx.Node], wanted: Sequence[fx.Node],
        initial: Sequence[float],
    ) -> str:  # fmt: skip
        numbers = {node: f"%{i}" for i, node in enumerate([*given, *nodes])}

        def name(node: fx.Node) -> Any:
            return _Name(numbers[node]) if node in numbers else self._size(node)

        lines = [str(list(initial))]
        for node in given:
            value = node.meta["val"]
            lines.append(f"{[at_one_token(s, self._tokens) for s in value.shape]} {value.dtype}")
        for node in nodes:
            args = fx.node.map_arg((node.args, node.kwargs), name)
            lines.append(f"{node.target} {args}")
        return "\n".join([*lines, str([name(node) for node in wanted])])


class _Name(str):
    def __repr__(self) -> str:
        return str(self)


def _plain(graph: fx.Graph) -> fx.Graph:
    """The spellings of regions, without what does nothing. Raises FrontendError."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        source: Any = node.args[0] if node.args else None
        node.kwargs = {key: value for key, value in node.kwargs.items() if key not in _PLACES}
        if node.target in _VIEWS:
            node.target = aten.reshape.default
        elif node.target in _SAME or (node.target is aten._to_copy.default and _is_same(node)):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif node.target is operator.getitem:
            _write_part(graph, node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.op == "call_function" and str(node.target).removeprefix("aten.") not in _KNOWN:
            raise FrontendError(f"a recurrence computes {node.target}, which no step can hold.")
    return graph


_VIEWS = frozenset({aten.view.default, aten._unsafe_view.default})
_PLACES = frozenset({"memory_format", "device", "layout", "pin_memory", "non_blocking"})
_SAME = frozenset(
    {aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default}
)


def _is_same(node: fx.Node) -> bool:
    source: Any = node.args[0]
    return bool(source.meta["val"].dtype == node.meta["val"].dtype)


def _write_part(graph: fx.Graph, node: fx.Node) -> None:
    """Part `i` of a split as a slice."""
    split: Any = node.args[0]
    number: Any = node.args[1]
    parts = split.meta["val"]
    axis = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
    if split.target is aten.unbind.int:
        axis = split.args[1] if len(split.args) > 1 else 0
        with graph.inserting_before(node):
            new = graph.call_function(aten.select.int, (split.args[0], axis, number))
    else:
        start = sum(int(part.shape[axis]) for part in parts[:number])
        end = start + int(parts[number].shape[axis])
        with graph.inserting_before(node):
            new = graph.call_function(aten.slice.Tensor, (split.args[0], axis, start, end))
    new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Matrix products and convolutions as sums of products; the rest is torch's."""
    table = get_decompositions(
        [aten.addmm, aten.baddbmm, aten.select_scatter, aten.slice_scatter, aten.mv, aten.dot,
         aten.addcmul, aten.new_zeros, aten.zeros_like, aten.squeeze.default, aten.hardsigmoid,
         aten.log_sigmoid_forward, aten.logsumexp, aten.std, aten.var_mean, aten.rsub]
    )  # fmt: skip
    return {**table, **_OWN}


def _bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum([-2])


def _copy(old: torch.Tensor, new: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return new.to(old.dtype).expand(old.shape)


def _convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: list[int],
    padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
    groups: int,
) -> torch.Tensor:  # fmt: skip
    """x [B, C, L], weight [O, C / groups, K]: a sum over the taps and the channels of a group."""
    one = [1] * len(stride)
    if transposed or x.dim() != 3 or stride != one or dilation != one or any(padding):
        raise FrontendError(
            f"a recurrence computes a convolution of x {list(x.shape)} with stride {stride}, "
            f"padding {padding} and dilation {dilation}, which no step can hold."
        )
    outputs, inner, taps = weight.shape
    length = x.shape[2] - taps + 1
    x = x.reshape(x.shape[0], groups, 1, inner, x.shape[2])
    kernel = weight.reshape(groups, outputs // groups, inner, taps)
    total = None
    for tap in range(taps):
        part = x[..., tap : tap + length] * kernel[..., tap : tap + 1]
        part = part.squeeze(3) if inner == 1 else part.sum([3])
        total = part if total is None else total + part
    assert total is not None
    total = total.reshape(x.shape[0], outputs, length)
    return total if bias is None else total + bias.reshape(-1, 1)


_OWN: dict[Any, Callable[..., Any]] = {
    aten.bmm.default: _bmm,
    aten.mm.default: _bmm,
    aten.copy.default: _copy,
    aten.convolution.default: _convolution,
}
