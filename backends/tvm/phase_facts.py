"""What each phase of an entry moves and computes, for phases.json.

`inspect --kernels` predicts from it, `bench --profile` measures against it. Counted are: weights
once a step, or a row for lookups and chosen experts; activations that the graph says a step reads
and writes; keys and values a position; the states of a recurrence once a sequence, read and
written. A product counts 2 operations for each multiplication, a recurrence one for each element
that an op of its body computes or sums; every other step one for each element that it reads or
writes, which is a lower bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import fx

from graphwright.backends.blobs import BlobTable
from graphwright.backends.regions.shapes import MOVES, pieces
from graphwright.backends.scans.body import Body, is_reduction
from graphwright.backends.tvm.context import arguments
from graphwright.backends.tvm.phases import Phase
from graphwright.ir.int8_results import integer_reader
from graphwright.ir.layout import row_axis, row_size, row_view
from graphwright.ir.memory import FEW_TOKENS, buffer_name, results, scratch
from graphwright.ir.program import Program
from graphwright.ir.scan_step import ScanStep

__all__ = ["PhaseFacts", "describe_phases"]

gw = torch.ops.gw
_LOOKUPS = {gw.embedding.default, gw.quantized_embedding.default}
_ROUTED = {gw.routed_linear.default, gw.quantized_routed_linear.default}
_PRODUCTS = {gw.linear.default, gw.quantized_linear.default} | _ROUTED
_PAGED = {gw.cached_attention.default, gw.cached_choose_keys.default}
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class PhaseFacts:
    """One phase. Bytes and operations of a step are

    bytes: weight_bytes + min(weight_bytes_per_row * rows, lookup_bytes) + bytes_per_row * rows
           + bytes_per_position * (positions that all rows attend to, counted once a sequence)
           + bytes_per_sequence * sequences
    operations: operations_per_row * rows + operations_per_position * (pairs of row and position)

    most_positions: to how many a row attends at the most, each row to its own; 0: to all.

    rows: T, the tokens of the step, or R, those that are sampled. layer: None outside of layers.
    arithmetic: what products multiply, "int8" or "float32".
    """

    step: str
    kernel: str
    layer: int | None
    rows: str
    arithmetic: str
    weight_bytes: int
    weight_bytes_per_row: int
    lookup_bytes: int
    bytes_per_row: int
    bytes_per_position: int
    operations_per_row: int
    operations_per_position: int
    bytes_per_sequence: int = 0
    most_positions: int = 0

    def describe(self) -> dict[str, Any]:
        """As JSON; what only recurrences and chosen keys have is left out elsewhere."""
        facts = asdict(self)
        for name in ("bytes_per_sequence", "most_positions"):
            if not facts[name]:
                del facts[name]
        return facts


def describe_phases(
    program: Program, phases: Sequence[Phase], blobs: BlobTable
) -> list[dict[str, Any]]:
    """The facts of an entry's phases, in order, as JSON."""
    nodes = {node.name: node for node in program.graph.nodes}
    weights = {each["name"]: each for each in blobs.describe()}
    states = {name for state in program.states for name in state.inputs}
    found: list[PhaseFacts] = []
    layer: int | None = None
    for step, group in groupby(phases, key=lambda phase: phase.step):
        same = list(group)
        own, layer = _layer_of(same, weights, layer)
        found += _step_facts(nodes[step], same, weights, own, states)
    return [each.describe() for each in found]


def _step_facts(
    node: fx.Node,
    phases: Sequence[Phase],
    weights: Mapping[str, Mapping[str, Any]],
    layer: int | None,
    states: set[str],
) -> list[PhaseFacts]:
    sizes = [
        sum(weights[each.blob]["bytes"] for each in phase.operands if each.blob) for phase in phases
    ]
    main = _main_phase(node, sizes)
    writer, last = min(main, 0 if node.target in _PRODUCTS else main), len(phases) - 1
    buffers = {each.buffer for phase in phases for each in phase.operands if each.buffer}
    read, written, filled = _row_bytes(node, states, buffers)
    position_bytes = _position_bytes(node, states)
    found = []
    for number, phase in enumerate(phases):
        moved = (read if number == 0 else 0) + (written + filled if number == last else 0)
        moved += filled if number == writer != last else 0
        size, share = sizes[number], _share_of_a_row(node)
        per_row, per_position = _operations(node, states) if number == main else (moved // 4, 0)
        found.append(
            PhaseFacts(
                step=phase.step,
                kernel=phase.kernel.name,
                layer=layer,
                rows=phase.rows,
                arithmetic="int8" if "quantized" in str(node.target) else "float32",
                weight_bytes=size if share is None else 0,
                weight_bytes_per_row=0 if share is None else math.ceil(size * share),
                lookup_bytes=0 if share is None else size,
                bytes_per_row=moved + (position_bytes if number != main else 0),
                bytes_per_position=position_bytes if number == main else 0,
                operations_per_row=per_row,
                operations_per_position=per_position,
                bytes_per_sequence=_sequence_bytes(node),
                most_positions=_most_positions(node) if number == main else 0,
            )
        )
    return found


def _main_phase(node: fx.Node, sizes: Sequence[int]) -> int:
    """Which phase of a step computes: after the append, or the one with the most weights."""
    if node.target is gw.cached_attention.default:
        return int(arguments(node)["k"] is not None)
    if node.target is gw.cached_choose_keys.default:
        return 1
    return max(range(len(sizes)), key=lambda number: (sizes[number], number))


def _share_of_a_row(node: fx.Node) -> float | None:
    """The part of its weight that one row reads; None where a step reads all of it once."""
    if node.target not in _LOOKUPS | _ROUTED:
        return None
    given = arguments(node)
    whole = int(given["weight"].meta["val"].shape[0])
    if node.target in _LOOKUPS:
        return 1 / whole
    return min(1.0, row_size(given["experts"].meta["val"]) / whole)


def _row_bytes(
    node: fx.Node, states: set[str], buffers: set[str] | None = None
) -> tuple[int, int, int]:
    """Bytes a row of what a step reads, what it writes, and its scratch; states are not here.

    buffers: those that its phases touch (None: all). A value that is handed on as int8 has none.
    """
    read = [each for each in node.all_input_nodes if each.target not in states]
    # Of attention's partial results most rows fill but a few: they are left out.
    needs = {need.name: need.row_bytes for need in scratch(node, FEW_TOKENS + 1)}
    written = results(node)
    if buffers is not None:
        needs = {name: size for name, size in needs.items() if name in buffers}
        if integer_reader(node) and needs:
            written.popitem()
        if node.target is gw.quantized_linear.default:
            read = [each for each in read if each is not node.args[0] or _touched(each, buffers)]
    values = [each.meta.get("val") for each in read]
    return (
        sum(map(_bytes_a_row, values)), sum(map(_bytes_a_row, written.values())),
        sum(needs.values()),
    )  # fmt: skip


def _touched(value: fx.Node, buffers: set[str]) -> bool:
    """Is it an input, or in one of these buffers?"""
    view = row_view(value)
    return view is None or view.base.op == "placeholder" or buffer_name(view.base) in buffers


def _bytes_a_row(value: Any) -> int:
    return 0 if row_axis(value) is None else row_size(value) * int(value.dtype.itemsize)


def _position_bytes(node: fx.Node, states: set[str]) -> int:
    """Bytes of one position in the paged states [blocks, positions, …] that a step reads."""
    if node.target not in _PAGED:
        return 0
    kept = [each.meta["val"] for each in node.all_input_nodes if each.target in states]
    return sum(
        math.prod(int(size) for size in value.shape[2:]) * int(value.dtype.itemsize)
        for value in kept
    )


def _operations(node: fx.Node, states: set[str]) -> tuple[int, int]:
    """(a row, a pair of row and position)."""
    if node.target in _PRODUCTS:
        given = arguments(node)
        shape = [int(size) for size in given["weight"].meta["val"].shape]
        share = _share_of_a_row(node)
        return int(2 * math.prod(shape) * (1 if share is None else share)), 0
    if node.target is gw.cached_attention.default:
        given = arguments(node)
        heads, dim = (int(size) for size in given["q"].meta["val"].shape[-2:])
        value_dim = int(given["v_cache"].meta["val"].shape[3])
        return 0, 2 * heads * (dim + value_dim)
    if node.target is gw.cached_choose_keys.default:
        return 0, 2 * math.prod(int(size) for size in arguments(node)["q"].meta["val"].shape[-2:])
    if node.target is gw.cached_scan.default:
        return _scan_operations(ScanStep.parse(str(node.kwargs["step"]))), 0
    read, written, _ = _row_bytes(node, states)
    return (read + written) // 4, 0


def _most_positions(node: fx.Node) -> int:
    chosen = arguments(node)["chosen"] if node.target is gw.cached_attention.default else None
    return 0 if chosen is None else int(chosen.meta["val"].shape[1])


def _sequence_bytes(node: fx.Node) -> int:
    """Of the states that a step reads and writes, whatever the number of a sequence's tokens."""
    if node.target is not gw.cached_scan.default:
        return 0
    return 2 * 4 * ScanStep.parse(str(node.kwargs["step"])).state_size


def _scan_operations(step: ScanStep) -> int:
    total = 0
    for node in Body.of(step).needed():
        if node.op == "call_function":
            moves = str(node.target).removeprefix("aten.") in MOVES or pieces(node) is not None
            values = node.all_input_nodes if is_reduction(node) else [] if moves else [node]
            total += sum(each.meta["val"].numel() for each in values)
    return total


def _layer_of(
    phases: Sequence[Phase], weights: Mapping[str, Mapping[str, Any]], last: int | None
) -> tuple[int | None, int | None]:
    """(the step's layer, the last layer so far): the first number in the path of one of its
    weights; None where the weights have none; the last layer where there are no weights."""
    paths = [
        weights[operand.blob]["source"]
        for phase in phases
        for operand in phase.operands
        if operand.blob
    ]
    numbers = [int(match[1]) for path in paths if (match := _LAYER.search(path))]
    if numbers:
        return numbers[0], numbers[0]
    return (None if paths else last), last
