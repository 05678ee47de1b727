"""Where values lie: buffers in one arena; shared by the planner, its verifier and the backends.

A *step* is a node that runs code: a gw op or a region. Its results are buffers, named after the
node (`node.0`, `node.1` when there are several); row views and getitem have none of their own, and
a step that works *in place* has that of what it adds to.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.ir.errors import PassError
from graphwright.ir.int8_results import integer_reader
from graphwright.ir.layout import RowView, is_view, row_axis, row_size, row_view

__all__ = ["ALIGNMENT", "ATTENTION_CHUNK", "ATTENTION_SEGMENTS", "Buffer", "MemoryPlan", "Scratch",
           "SHORT_ROW", "align", "buffer_name", "candidate_words", "in_place", "memory_table",
           "operands", "result_of", "results", "scratch", "steps"]  # fmt: skip

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
ATTENTION_SEGMENTS = 8  # parts that the keys of a decoding token may be cut into
ATTENTION_CHUNK = 64  # keys that attention computes the scores of at once
FEW_TOKENS = 16  # the most tokens of an entry whose attention is cut so: it has few other parts
SHORT_ROW = 8192  # elements of a row that each thread may compute for itself in a small step


@dataclass(frozen=True)
class Buffer:
    """`bytes` of the arena from `offset` on, taken from step `first` to step `last`."""

    name: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """The arena of one entry, for at most `max_tokens` tokens of which `max_rows` are sampled."""

    entry: str
    max_tokens: int
    max_rows: int
    arena_bytes: int
    buffers: tuple[Buffer, ...]

    def buffer(self, name: str) -> Buffer:
        """The buffer called `name`. Raises PassError."""
        for buffer in self.buffers:
            if buffer.name == name:
                return buffer
        raise PassError(f"the plan of '{self.entry}' has no buffer '{name}'.")


@dataclass(frozen=True)
class Scratch:
    """Memory a step needs beside its results: `row_bytes` a token.

    Steps that name the same scratch share its content: the first one fills it.
    """

    name: str
    row_bytes: int


def align(size: int) -> int:
    """`size` rounded up to ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def steps(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that run code, in order. Raises PassError for one that has no kernel."""
    found = []
    for node in graph.nodes:
        if node.op == "call_module":
            found.append(node)
        elif (
            node.op == "call_function" and node.target is not operator.getitem and not is_view(node)
        ):
            if getattr(node.target, "namespace", "") != "gw":
                shape = getattr(node.meta.get("val"), "shape", None)
                raise PassError(
                    f"node '{node.name}' ({node.target}, shape {shape and tuple(shape)}) moves "
                    "memory and is no row view; it belongs into a region."
                )
            found.append(node)
    return found


def results(step: fx.Node) -> dict[str, torch.Tensor]:
    """What a step computes: fake tensors by buffer name."""
    value = step.meta["val"]
    if isinstance(value, (tuple, list)):
        return {f"{step.name}.{i}": item for i, item in enumerate(value)}
    return {buffer_name(step): value}


def in_place(step: fx.Node) -> fx.Node | None:
    """The step in whose result this one writes its own: the product that an adapter's product is
    added to, where nothing else reads it."""
    gw = torch.ops.gw
    if step.target is not gw.routed_linear.default or len(step.args) < 5:
        return None
    residual: Any = step.args[4]
    view = row_view(residual) if isinstance(residual, fx.Node) else None
    if view is None or not step.kwargs.get("optional"):
        return None
    base = view.base
    product = base.target in (gw.linear.default, gw.quantized_linear.default) or in_place(base)
    whole = view.dense and view.row_size == row_size(base.meta["val"])
    node = residual
    alone = len(node.users) == 1
    while node is not base:
        node = node.args[0]
        alone &= len(node.users) == 1
    return base if product and whole and alone else None


def buffer_name(base: fx.Node) -> str:
    """The buffer that holds `base`, the base of a row view: a step, or getitem of one."""
    if base.target is operator.getitem:
        source, index = base.args
        assert isinstance(source, fx.Node)
        return f"{source.name}.{index}"
    source = in_place(base)
    return base.name if source is None else buffer_name(source)


def result_of(graph: fx.Graph) -> str:
    """The buffer of the program's result: the caller's, not in the arena. Raises PassError."""
    node: Any = graph.output_node().args[0]
    node = node[0] if isinstance(node, (tuple, list)) else node
    view = row_view(node)
    if view is None or view.base.op not in ("call_function", "call_module"):
        raise PassError(f"the program's result '{node.name}' is not computed by any step.")
    if not view.dense or view.row_size != row_size(view.base.meta["val"]):
        raise PassError(
            f"the program's result '{node.name}' is a part of '{view.base.name}': "
            "it must be computed on its own."
        )
    return buffer_name(view.base)


def operands(step: fx.Node) -> list[RowView]:
    """The row views a step reads, of steps and inputs, in argument order. Weights are not here."""
    views = []
    for node in step.all_input_nodes:
        if row_axis(node.meta.get("val")) is not None:
            view = row_view(node)
            assert view is not None
            views.append(view)
    return views


def scratch(step: fx.Node, tokens: int) -> tuple[Scratch, ...]:
    """The scratch of a step in an entry for at most `tokens` tokens: a rule by op.

    gw.quantized_linear: its input as int8. gw.routed_linear: its pairs of tokens and slots by
    expert. gw.quantized_routed_linear: both. gw.cached_attention: partial results, if the tokens
    are few and do not choose their keys. gw.cached_choose_keys: candidates, if the tokens are few.
    A norm or a gated activation that only the first of these read: its result as int8,
    where rows are short or tokens are many.
    """
    gw, arguments = torch.ops.gw, step.args
    if step.target is gw.quantized_linear.default:
        return _int8_rows(arguments[0], arguments[1], arguments[2])
    if step.target is gw.cached_choose_keys.default and tokens <= FEW_TOKENS:
        words = ATTENTION_SEGMENTS * candidate_words(int(step.kwargs["count"]))  # type: ignore[arg-type]
        return (Scratch(f"{step.name}.candidates", 4 * words),)
    if step.target is gw.cached_attention.default and tokens <= FEW_TOKENS:
        if any(node.target is gw.cached_choose_keys.default for node in step.all_input_nodes):
            return ()
        return (_partial_results(step, arguments[0], arguments[3]),)
    if step.target is gw.routed_linear.default:
        return (_pairs_by_expert(arguments[1]),)
    if step.target is gw.quantized_routed_linear.default:
        return (
            *_int8_rows(arguments[0], arguments[2], arguments[3]),
            _pairs_by_expert(arguments[1]),
        )
    reader = integer_reader(step)
    if reader is not None:
        x, weight, scale = reader.args[:3]
        if tokens > FEW_TOKENS or row_size(x.meta["val"]) <= SHORT_ROW:  # type: ignore[union-attr]
            return _int8_rows(x, weight, scale)
    return ()


def _int8_rows(x: Any, weight: Any, scale: Any) -> tuple[Scratch, Scratch]:
    """Each vector of the rows of `x` as int8, padded to 64, then the int32 sum of each group; and
    one float32 scale per group. Shared by all steps that read the same rows in as many groups.
    """
    view = row_view(x)
    assert view is not None
    groups, length = (int(each.meta["val"].shape[-1]) for each in (scale, weight))
    vectors = max(1, view.row_size // length)
    several = f"{vectors}x" if vectors > 1 else ""
    name = f"{_name_of(view)}.int8{several}g{groups}"
    vector_bytes = align(align(view.row_size // vectors) + 4 * groups)
    return (
        Scratch(name, vectors * vector_bytes),
        Scratch(f"{name}.scale", 4 * vectors * groups),
    )


def _pairs_by_expert(experts: Any) -> Scratch:
    """The pairs of a token and one of its slots in the order of their experts, where each expert's
    start, and which expert that is: int32. Shared by all steps with the same routing.
    """
    view = row_view(experts)
    assert view is not None
    return Scratch(f"{_name_of(view)}.by_expert", 4 * (3 * view.row_size + 2))


def _partial_results(step: fx.Node, q: Any, k_cache: Any) -> Scratch:
    """Of each segment of the keys and each head: the sum of the values, and the maximum and the sum
    of the weights, and room for the scores of a chunk of keys, in float32. Beside int8 keys also
    the query as int16, padded to float32s."""
    _, heads, value_dim = step.meta["val"].shape
    integers = k_cache.meta["val"].dtype is torch.int8
    query = -(-int(q.meta["val"].shape[-1]) // 2) if integers else 0
    floats = ATTENTION_SEGMENTS * int(heads) * (int(value_dim) + 2 + ATTENTION_CHUNK + query)
    return Scratch(f"{step.name}.partial", 4 * floats)


def candidate_words(count: int) -> int:
    """int32 words that a segment of a token's keys leaves of which `count` are chosen: how many
    candidates there are, their scores and their positions."""
    return 1 + 2 * count


def _name_of(view: RowView) -> str:
    whole = view.dense and not view.offset
    part = "" if whole else f"[{view.offset}:{view.offset + view.row_size}]"
    return f"{buffer_name(view.base)}{part}"


def memory_table(plan: MemoryPlan) -> str:
    """The plan as text for people: buffer, offset, bytes, first and last step."""
    total = sum(buffer.bytes for buffer in plan.buffers)
    lines = [
        f"{plan.entry}: {plan.arena_bytes:,} bytes of arena for {plan.max_tokens} tokens; "
        f"{len(plan.buffers)} buffers of {total:,} bytes",
        *_table(plan.buffers),
    ]
    return "\n".join(lines) + "\n"


def _table(buffers: Iterable[Buffer]) -> list[str]:
    rows = [("buffer", "offset", "bytes", "steps")]
    rows += [(b.name, f"{b.offset:,}", f"{b.bytes:,}", f"{b.first}-{b.last}") for b in buffers]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}"
        for a, b, c, d in rows
    ]
