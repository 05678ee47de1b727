"""One kernel for a recurrence over the tokens of a ragged batch, made from the graph of a token.

A program takes a part of the states of one sequence (layout.py) through all its tokens of the step:
they are loaded once, stay in registers, and are written back at the end. The rows of the next token
are on their way while a token is computed. Programs wait for nobody. How many tokens there are is
read on the device, so that a captured graph serves any step of its bucket.

Threads that hold the same sum must agree on every bit of it. Where a product is added to that of
another thread in one rounding they do not, as each rounds the other's: sums are of rounded terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from graphwright.backends.scans.body import Body, is_reduction
from graphwright.backends.scans.reads import static_sizes
from graphwright.backends.scans.stages import Place, plan_stages
from graphwright.backends.triton.generated import load, source_of
from graphwright.backends.triton.kernels.kernel import TritonKernel, define
from graphwright.backends.triton.regions.text import INT32, Text, literal
from graphwright.backends.triton.regions.values import Inputs
from graphwright.backends.triton.scans.layout import Layout, layout_of
from graphwright.backends.triton.scans.values import RowLoad, ScanValues
from graphwright.ir.scan_step import ScanStep

__all__ = ["Scan", "scan"]


@dataclass(frozen=True)
class Scan:
    """The kernel of a recurrence, the file that it was loaded from, and its tiles."""

    kernel: TritonKernel
    source: str
    layout: Layout


@lru_cache(maxsize=256)
def scan(
    step: str, strides: tuple[int, ...], dtypes: tuple[str, ...], *, slot_stride: int,
    out: str = "float32",
) -> Scan:  # fmt: skip
    """gw.cached_scan with the step of this text.

    Pointers: batch, rows (`strides` elements apart), weights, state float32, positions int64 [T],
    query_start, block_table, out [T, F]. dtypes: element types in memory of rows and weights; bool
    tensors are int8 of 0 and 1. The state is that of slot 0; slot r lies r * `slot_stride` elements
    before it. A bucket may sample as many rows as a step has sequences. Raises BackendError.
    """
    body = Body.of(ScanStep.parse(step))
    layout = layout_of(plan_stages(body))
    rows = body.placeholders[len(body.states) :][: body.rows]
    names = {node: f"row{number}" for number, node in enumerate(rows)}
    names |= {node: f"weight{number}" for number, node in enumerate(body.weights)}
    writer = _Writer(layout, Inputs(names, dict(zip(rows, strides, strict=True))))
    own = dict(zip(names.values(), dtypes, strict=True))
    pointers = {
        "batch": "int32", **own, "state": "float32", "positions": "int64", "query_start": "int32",
        "block_table": "int32", "out": out,
    }  # fmt: skip
    head = f"def scan({', '.join(pointers)}):"
    source = source_of("a recurrence", head, writer.lines(slot_stride))
    programs = layout.programs
    kernel = define(
        "scan", load(source, "scan"), pointers, {},
        grid=lambda size: (programs, min(size["T"], size["R"]), 1), num_warps=layout.warps,
        fused=not any(is_reduction(stage.node) for stage in layout.stages.order),
    )  # fmt: skip
    return Scan(kernel, source, layout)


class _Writer:
    """The lines of the kernel."""

    def __init__(self, layout: Layout, inputs: Inputs) -> None:
        self.layout, self.body = layout, layout.stages.body
        self.values = ScanValues(layout, inputs)
        self.places = [self._position(Place("state", n)) for n in range(len(self.body.states))]
        self.stores = self._result_stores()
        self.new = [self.values.tile(Place("state", n)) for n in range(len(self.body.states))]

    def _position(self, place: Place, first: int = 0) -> tuple[Text, str | None]:
        """(element of memory, mask) of a place whose elements begin at `first`."""
        position, axes = self.values.place(place)
        at = self.values.bind((position + first).expr(INT32))
        mask = self.values.mask(axes)
        return at, None if mask is None else self.values.bind(mask).code

    def _result_stores(self) -> list[str]:
        found, first = [], 0
        size = sum(math.prod(static_sizes(node)) for node in self.body.results)
        for number, node in enumerate(self.body.results):
            place = Place("result", number)
            at, mask = self._position(place, first)
            value = self.values.tile(place)
            code = value.along(at.axes) if value.axes else value.code
            stored = code if value.is_literal else f"({code}).to(out.dtype.element_ty)"
            found.append(f"tl.store(out + token * {size} + {at.code}, {stored}{_masked(mask)})")
            first += math.prod(static_sizes(node))
        return found

    def lines(self, slot_stride: int) -> list[str]:
        """All inside the function."""
        values, places = self.values, self.places
        return [
            *self._comment(),
            "sequence = tl.program_id(1)",
            "if sequence >= tl.load(batch + 1):",
            "    return",
            "begin = tl.load(query_start + sequence)",
            "count = tl.load(query_start + sequence + 1) - begin",
            "if count == 0:",
            "    return",
            "part = tl.program_id(0)",
            "slot = tl.load(block_table + sequence * tl.load(batch + 2)).to(tl.int64)",
            f"held = state - slot * {slot_stride}",
            "known = tl.load(positions + begin).to(tl.int32)",
            "token = begin.to(tl.int64)",
            *values.setup,
            *(self._loaded_state(number) for number in range(len(places))),
            *(_loaded(row, row.name, "token", None) for row in values.rows),
            "for number in range(0, count):",
            *(f"    {line}" for line in self._token()),
            *(
                f"tl.store(held + {first} + {at.code}, s{number}{_masked(mask)})"
                for number, ((at, mask), first) in enumerate(
                    zip(places, self._firsts(), strict=True)
                )
            ),
        ]

    def _comment(self) -> list[str]:
        """What the states are, and which part a program has."""
        found = []
        for number, state in enumerate(self.body.states):
            place = Place("state", number)
            sizes = " x ".join(map(str, state.sizes))
            held = " x ".join(map(str, self.layout.blocks(place))) or "1"
            found.append(f"# s{number}: {sizes}, of which a program has {held}")
        return found

    def _firsts(self) -> list[int]:
        """Where each state begins in the slot."""
        counts = [state.count for state in self.body.states]
        return [sum(counts[:number]) for number in range(len(counts))]

    def _loaded_state(self, number: int) -> str:
        (at, mask), first = self.places[number], self._firsts()[number]
        initial = literal(self.body.states[number].initial, "float32").code
        some = _mask(mask, at.code, "known")
        return f"s{number} = tl.load(held + {first} + {at.code}, {some}, other={initial})"

    def _token(self) -> list[str]:
        values = self.values
        found = ["ahead = token + 1", "left = count - 1 - number"] if values.rows else []
        found += [_loaded(row, f"{row.name}_ahead", "ahead", "left") for row in values.rows]
        found += [*values.lines, *self.stores]
        found += [f"n{number} = {self._whole(number)}" for number in range(len(self.new))]
        found += [f"s{number} = n{number}" for number in range(len(self.new))]
        found += [f"{row.name} = {row.name}_ahead" for row in values.rows]
        return [*found, "token += 1"]

    def _whole(self, number: int) -> str:
        """A state after the token, as a tile along all of its axes."""
        value, axes = self.new[number], self.places[number][0].axes
        sizes = ", ".join(axis.size for axis in axes)
        if value.is_literal:
            return f"tl.full([{sizes}], {value.code}, tl.float32)"
        if value.axes == axes:
            return value.code
        return f"tl.broadcast_to({value.along(axes)}, [{sizes}])"


def _loaded(row: RowLoad, name: str, token: str, left: str | None) -> str:
    """What `token` has, where the number `left` is not 0."""
    some = _mask(row.mask, row.place, left)
    inside = f", {some}, other=0" if some else ""
    return f"{name} = tl.load({row.pointer} + {token} * {row.stride} + {row.place}{inside})"


def _mask(inside: str | None, tile: str, number: str | None) -> str:
    """Where `inside` is, if the number is not 0; compared along the tile, as masks of one value are
    not spread by the interpreter."""
    parts = [] if inside is None else [inside]
    parts += [] if number is None else [f"({tile} * 0 < {number})"]
    return f"mask={' & '.join(parts)}" if parts else ""


def _masked(mask: str | None) -> str:
    return "" if mask is None else f", mask={mask}"
