"""What attention computes at once: a pass of query rows against a chunk of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.attention_shape import CHUNK, AttentionShape, Operands, Tile
from graphwright.backends.tvm.kernels.kernel import Expr, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE
from graphwright.backends.tvm.kernels.loops import quotient, remainder, settle

__all__ = ["Chunk", "Pass", "Unit"]


@dataclass(frozen=True)
class Unit:
    """The rows of a tile and of heads from `head` on, against segment `segment` of the keys.

    tops, sums: of every row the maximum and the sum of the weights so far, from `state` on.
    q_scales, weight_scales: what its query and its weights are multiples of, as integers.
    """

    shape: AttentionShape
    given: Operands
    tile: Tile
    head: Expr
    segment: Expr
    state: Expr
    tops: Expr
    sums: Expr
    q_scales: Expr
    weight_scales: Expr

    @property
    def rows(self) -> int:
        """Query rows: row r is head r % item_heads of token r / item_heads."""
        return self.tile.tokens * self.shape.item_heads

    @property
    def split(self) -> bool:
        """Does the result go into `partial`?"""
        return self.tile.split(self.shape)

    @property
    def kv_head(self) -> Expr:
        """The head of its keys and values."""
        return quotient(self.head, self.shape.group)

    @property
    def keys_start(self) -> Expr:
        """Elements from a block's keys to those of its head."""
        return self.kv_head * self.shape.block.key_elements

    @property
    def values_start(self) -> Expr:
        """The same of values."""
        return self.kv_head * self.shape.block.value_elements

    @property
    def scales_start(self) -> Expr:
        """The same of scales."""
        return self.kv_head * BLOCK_SIZE

    def each_pass(self, body: Callable[[Pass], None]) -> None:
        """Emits body for all rows, pass by pass."""
        passes = self.shape.passes(self.rows)
        total = sum(count for count, _ in passes)
        before = first_row = 0
        for count, rows in passes:
            with T.serial(0, count) as i:
                first = T.bind(first_row + i * rows)
                body(Pass(self, first, rows, T.bind(before + i), total))
            before, first_row = before + count, first_row + count * rows


@dataclass(frozen=True)
class Pass:
    """Rows `first` to `first + rows` of a unit: pass `number` of `total`."""

    unit: Unit
    first: Expr
    rows: int
    number: Expr
    total: int

    def q_at(self, r: int) -> Expr:
        """Where row r starts in q."""
        shape, (token, head) = self.unit.shape, self._place(r)
        return T.bind((self.unit.tile.first + token) * shape.q_stride + head * shape.dim)

    def out_at(self, r: int) -> Expr:
        """Where row r starts in `out`."""
        unit, shape, (token, head) = self.unit, self.unit.shape, self._place(r)
        if unit.split:
            start = unit.tile.first * shape.partial_stride
            return T.bind(start + shape.partial_row(unit.segment, head))
        return T.bind(((unit.tile.first + token) * shape.heads + head) * shape.value_dim)

    def scores_at(self, r: int) -> Expr:
        """Where the scores of row r start in `partial`."""
        unit, shape = self.unit, self.unit.shape
        start = unit.tile.first * shape.partial_stride
        return T.bind(start + shape.partial_scores(unit.segment, self.head_at(r)))

    def query_at(self, r: int) -> Expr:
        """Where the pairs of row r's query start in `partial`."""
        unit, shape = self.unit, self.unit.shape
        start = unit.tile.first * shape.partial_stride
        return T.bind(start + shape.partial_query(unit.segment, self.head_at(r)))

    @property
    def out(self) -> Expr:
        """Where the result is accumulated."""
        return self.unit.given.partial if self.unit.split else self.unit.given.out

    def head_at(self, r: int) -> Expr:
        """The query head of row r."""
        return self._place(r)[1]

    def position_at(self, r: int) -> Expr:
        """The position of row r's token."""
        return self.unit.tile.position + self._place(r)[0]

    def state_at(self, r: int) -> Expr:
        """Where row r's maximum and sum are."""
        return self.unit.state + self.first + r

    def _place(self, r: int) -> tuple[Expr, Expr]:
        row, heads = self.first + r, self.unit.shape.item_heads
        if self.unit.tile.tokens == 1:
            return T.int32(0), self.unit.head + row
        return quotient(row, heads), self.unit.head + remainder(row, heads)


@dataclass(frozen=True)
class Chunk:
    """Up to four blocks: where each one's keys, values and scales start, and its first key's
    position; and where those of the chunk after it are, to ask for them early.

    `count` blocks, of whose keys `valid` have been written.
    """

    starts: Expr
    scales: Expr
    first_keys: Expr
    ahead: Expr
    scales_ahead: Expr
    count: Expr
    valid: Expr

    @staticmethod
    def look_up(shape: AttentionShape, given: Operands, tile: Tile, first: Expr, count: Expr,
                blocks: tuple[Expr, ...], memory: list[Expr]) -> Chunk:  # fmt: skip
        """Blocks `first` to `first + count` of the tile's; `blocks` are their number, how many are
        kept from the start, and the first of the others; `memory` is `Chunk.memory()`."""
        block, (total, kept, low) = shape.block, blocks
        starts, scales, ahead, scales_ahead, first_keys = memory

        def look_up(step: Expr) -> tuple[Expr, Expr]:
            number = settle(tirx.Select(step < kept, step, low + step - kept), "int32")
            entry = tirx.Cast("int64", given.block_table[tile.table + number])
            return number, settle(entry, "int64")

        with T.serial(0, count) as b:
            number, entry = look_up(first + b)
            T.buffer_store(starts, entry * T.int64(block.stride), [b])
            T.buffer_store(scales, entry * T.int64(block.scale_stride), [b])
            T.buffer_store(first_keys, number * BLOCK_SIZE, [b])
            _, entry = look_up(tirx.min(first + b + CHUNK, total - 1))
            T.buffer_store(ahead, entry * T.int64(block.stride), [b])
            if block.scaled:
                T.buffer_store(scales_ahead, entry * T.int64(block.scale_stride), [b])
        last = first_keys[count - 1]
        written = tirx.min(tile.position + tile.tokens - last, T.int32(BLOCK_SIZE))
        valid = settle((count - 1) * BLOCK_SIZE + written, "int32")
        return Chunk(starts, scales, first_keys, ahead, scales_ahead, count, valid)

    @staticmethod
    def memory() -> list[Expr]:
        """Room for what a chunk looks up."""
        return [registers(1, CHUNK, dtype)[0] for dtype in (*["int64"] * 4, "int32")]

    def visible_to_all(self, unit: Unit) -> Expr:
        """Do all rows of the unit see every key?"""
        tile, mask = unit.tile, unit.shape.mask
        first, last = self.first_keys[0], self.first_keys[self.count - 1] + (BLOCK_SIZE - 1)
        newest = tile.position + (tile.tokens - 1)
        conditions = [last <= tile.position]
        if mask.window is not None:
            conditions.append(first > newest - mask.window)
        if mask.chunk is not None:
            conditions.append(first >= quotient(newest, mask.chunk) * mask.chunk)
        return tirx.all(*conditions) if len(conditions) > 1 else conditions[0]
