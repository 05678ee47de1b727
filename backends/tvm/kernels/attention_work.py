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

__all__ = ["LINE", "Chunk", "Pass", "Unit"]

LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Unit:
    """The rows of a tile and of heads from `head` on, against segment `segment` of the keys.

    tops, sums: of every row the maximum and the sum of the weights so far.
    """

    shape: AttentionShape
    given: Operands
    tile: Tile
    head: Expr
    segment: Expr
    tops: Expr
    sums: Expr

    @property
    def rows(self) -> int:
        """Query rows: row r is head r % item_heads of token r / item_heads."""
        return self.tile.tokens * self.shape.item_heads

    @property
    def split(self) -> bool:
        """Does the result go into `partial`?"""
        return self.tile.split(self.shape)

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

    def _place(self, r: int) -> tuple[Expr, Expr]:
        row, heads = self.first + r, self.unit.shape.item_heads
        if self.unit.tile.tokens == 1:
            return T.int32(0), self.unit.head + row
        return quotient(row, heads), self.unit.head + remainder(row, heads)


@dataclass(frozen=True)
class Chunk:
    """Up to four blocks: where each one's keys, values and scales for one key head start, and its
    first key's position; and where those of the chunk after it are, to ask for them early.

    `count` blocks, of whose keys `valid` have been written.
    """

    keys: Expr
    values: Expr
    scales: Expr
    first_keys: Expr
    keys_ahead: Expr
    values_ahead: Expr
    count: Expr
    valid: Expr

    @staticmethod
    def look_up(unit: Unit, kv_head: Expr, first: Expr, count: Expr, blocks: tuple[Expr, ...],
                memory: list[Expr]) -> Chunk:  # fmt: skip
        """Blocks `first` to `first + count` of the tile's; `blocks` are their number, how many are
        kept from the start, and the first of the others; `memory` is `Chunk.memory()`."""
        shape, given, tile = unit.shape, unit.given, unit.tile
        block, (total, kept, low) = shape.block, blocks
        keys, values, scales, first_keys, keys_ahead, values_ahead = memory

        def number(step: Expr) -> Expr:
            return settle(tirx.Select(step < kept, step, low + step - kept), "int32")

        def starts(step: Expr) -> tuple[Expr, Expr, Expr, Expr]:
            found = number(step)
            entry = settle(tirx.Cast("int64", given.block_table[tile.table + found]), "int64")
            start = entry * T.int64(block.stride)
            return (
                start + kv_head * (block.dim * BLOCK_SIZE),
                start + kv_head * (block.value_dim * BLOCK_SIZE),
                entry * T.int64(block.scale_stride) + kv_head * BLOCK_SIZE,
                found * BLOCK_SIZE,
            )

        with T.serial(0, count) as b:
            found = starts(first + b)
            for target, value in zip((keys, values, scales, first_keys), found, strict=True):
                T.buffer_store(target, value, [b])
            ahead = starts(tirx.min(first + b + CHUNK, total - 1))
            T.buffer_store(keys_ahead, ahead[0], [b])
            T.buffer_store(values_ahead, ahead[1], [b])
        last = first_keys[count - 1]
        written = tirx.min(tile.position + tile.tokens - last, T.int32(BLOCK_SIZE))
        valid = settle((count - 1) * BLOCK_SIZE + written, "int32")
        return Chunk(keys, values, scales, first_keys, keys_ahead, values_ahead, count, valid)

    @staticmethod
    def memory() -> list[Expr]:
        """Room for what a chunk looks up."""
        places = [registers(1, CHUNK, "int64")[0] for _ in range(5)]
        return [*places[:3], *registers(1, CHUNK, "int32"), *places[3:]]

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

    def fetch_ahead(self, work: Pass, b: Expr) -> None:
        """Asks for a pass's share of the block that comes `CHUNK` blocks after block b."""
        block, given = work.unit.shape.block, work.unit.given
        places = ((given.k_cache, self.keys_ahead, block.dim),
                  (given.v_cache, self.values_ahead, block.value_dim))  # fmt: skip
        for buffer, starts, channels in places:
            lines = -(-channels * BLOCK_SIZE * block.itemsize // LINE)
            start = settle(starts[b], "int64")
            first = T.bind(quotient(work.number * lines, work.total))
            with T.serial(first, quotient((work.number + 1) * lines, work.total)) as line:
                at = start + line * (LINE // block.itemsize)
                T.evaluate(
                    T.call_llvm_intrin(
                        "void", "llvm.prefetch.p0", T.address_of(buffer[at]), T.int32(0),
                        T.int32(2), T.int32(1),
                    )
                )  # fmt: skip
