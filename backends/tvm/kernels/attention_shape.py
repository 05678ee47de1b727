"""How attention is cut: tiles of tokens, items of heads, passes of rows, segments of keys."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.attention_products import FloatProducts, PairProducts
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, KvBlock
from graphwright.backends.tvm.kernels.loops import quotient
from graphwright.ir.masks import Mask
from graphwright.ir.memory import ATTENTION_CHUNK, ATTENTION_SEGMENTS

__all__ = ["CHUNK", "AttentionShape", "Operands", "Tile", "largest_divisor", "segment_start"]

CHUNK = (
    ATTENTION_CHUNK // BLOCK_SIZE
)  # blocks whose scores a pass holds: the maximum is looked for once in 64 keys
SEGMENT_BLOCKS = 16  # blocks of the shortest segment; a segment is a whole number of chunks
RUN_BYTES = 16 << 10  # of a block's keys that a run holds: what comes next is not too far behind
RUN_ROWS = 64  # query rows that a run holds
AHEAD_BYTES = 8 << 10  # asked for before they are needed; more was slower
# By lanes: query rows of a pass, and of a whole tile, four passes.
PASS_ROWS, TILE_ROWS = {16: 12, 8: 6}, {16: 48, 8: 24}


@dataclass(frozen=True)
class AttentionShape:
    """The static parameters, and how the work is cut.

    split: are the keys of tokens that come alone cut into segments? most: tokens of a step.
    pmaddwd: has the CPU that instruction?
    """

    heads: int
    block: KvBlock
    q_stride: int
    scale: float
    mask: Mask
    softcap: float
    lanes: int
    split: bool
    most: int
    pmaddwd: bool = False

    @property
    def dim(self) -> int:
        """Channels of queries and keys."""
        return self.block.dim

    @property
    def value_dim(self) -> int:
        """Channels of values."""
        return self.block.value_dim

    @property
    def products(self) -> FloatProducts | PairProducts:
        """How keys and values are multiplied."""
        if self.block.scaled:
            return PairProducts(self.pmaddwd)
        return FloatProducts(self.block.dtype)

    @property
    def steps(self) -> int:
        """Products of a query with one key: by each channel, or each pair of int8 channels."""
        return self.block.key_steps

    @property
    def vectors(self) -> int:
        """Vectors that hold one value for each key of a block."""
        return BLOCK_SIZE // self.lanes

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.block.kv_heads

    @property
    def item_heads(self) -> int:
        """Heads of one item: all that share a key head, or a part where they are very many."""
        found = largest_divisor(self.group, 16)
        return found if 2 * found > min(self.group, 8) else self.group

    @property
    def items(self) -> int:
        """Items a tile is made of."""
        return self.heads // self.item_heads

    @property
    def run_items(self) -> int:
        """Items of a token that take their turns at each block: in a block, keys of one head follow
        those of another, and short pieces from many places are read at half the speed."""
        keys = max(self.dim, self.value_dim) * BLOCK_SIZE * self.block.itemsize
        most = min(RUN_BYTES // keys, RUN_ROWS // self.item_heads)
        return min(self.items, max(1, most))

    @property
    def blocks_ahead(self) -> int:
        """How many blocks of a run's keys, or values, `AHEAD_BYTES` are."""
        least = min(self.dim, self.value_dim) * BLOCK_SIZE * self.block.itemsize * self.run_items
        return min(CHUNK, -(-AHEAD_BYTES // least))

    @property
    def tile_tokens(self) -> int:
        """Tokens of a whole tile; 1 where no step has as many as one."""
        found = max(1, min(12, TILE_ROWS.get(self.lanes, 24) // self.item_heads))
        return found if found <= self.most else 1

    def passes(self, rows: int) -> list[tuple[int, int]]:
        """(passes, rows of each) that `rows` rows are computed in: few and of nearly equal size.

        Each row takes `vectors` accumulators, and two for values; beside them the registers hold a
        key and a query. With AVX-512 prefill takes 0.77 of the time that passes of 8 rows in tiles
        of 24 took, with 14 rows 0.8, with 16, which leave no registers, 1.0.
        """
        most = PASS_ROWS.get(self.lanes, 4)
        count = -(-rows // most)
        small, larger = divmod(rows, count)
        found = [(larger, small + 1), (count - larger, small)]
        return [each for each in found if each[0]]

    # ---- segments

    @property
    def partial_stride(self) -> int:
        """Floats of one token's partial results: of each segment and head the sum of the values,
        then the maximum and the sum of the weights, then the scores of a chunk, then (where keys
        are int8) the query as pairs of int16."""
        query = self.steps if self.block.scaled else 0
        return ATTENTION_SEGMENTS * self.heads * (self.value_dim + 2 + ATTENTION_CHUNK + query)

    def partial_row(self, segment: Expr, head: Expr) -> Expr:
        """Where in a token's partial results the sum of the values is."""
        return (segment * self.heads + head) * self.value_dim

    def partial_state(self, segment: Expr, head: Expr) -> Expr:
        """Where the maximum is; the sum follows."""
        values = ATTENTION_SEGMENTS * self.heads * self.value_dim
        return values + (segment * self.heads + head) * 2

    def partial_scores(self, segment: Expr, head: Expr) -> Expr:
        """Where the scores are."""
        before = ATTENTION_SEGMENTS * self.heads * (self.value_dim + 2)
        return before + (segment * self.heads + head) * ATTENTION_CHUNK

    def partial_query(self, segment: Expr, head: Expr) -> Expr:
        """Where the query's pairs are."""
        before = ATTENTION_SEGMENTS * self.heads * (self.value_dim + 2 + ATTENTION_CHUNK)
        return before + (segment * self.heads + head) * self.steps


def largest_divisor(number: int, limit: int) -> int:
    return max(each for each in range(1, limit + 1) if number % each == 0)


@dataclass(frozen=True)
class Operands:
    """The kernel's pointers by name."""

    batch: Expr
    q: Expr
    k_cache: Expr
    v_cache: Expr
    positions: Expr
    query_start: Expr
    block_table: Expr
    out: Expr
    slopes: Expr = None
    sinks: Expr = None
    k_scale: Expr = None
    v_scale: Expr = None
    partial: Expr = None


@dataclass(frozen=True)
class Tile:
    """`tokens` tokens from `first` on, the first at `position`; the block table from `table` on.

    The keys they see are `count_blocks` blocks: first the ones that stay visible to all, then those
    from `low_block` to `last_block`. A segment is a run of them. Its length depends on the position
    alone, so that results do not depend on the number of threads.
    """

    first: Expr
    tokens: int
    position: Expr
    table: Expr

    def last_block(self) -> Expr:
        return quotient(self.position + (self.tokens - 1), BLOCK_SIZE)

    def low_block(self, mask: Mask) -> Expr:
        """The first block that the window and the chunk of the first token leave visible."""
        lowest: Expr = T.int32(0)
        if mask.window is not None:
            lowest = tirx.max(lowest, self.position - (mask.window - 1))
        if mask.chunk is not None:
            lowest = tirx.max(lowest, quotient(self.position, mask.chunk) * mask.chunk)
        return quotient(lowest, BLOCK_SIZE)

    def first_blocks(self, mask: Mask) -> Expr:
        """How many blocks before the low one hold keys that stay visible to all."""
        return tirx.min(T.int32(-(-mask.first // BLOCK_SIZE)), self.low_block(mask))

    def count_blocks(self, mask: Mask) -> Expr:
        visible = self.last_block() - self.low_block(mask) + 1
        return visible + self.first_blocks(mask)

    def split(self, shape: AttentionShape) -> bool:
        """May the keys be cut into segments?"""
        return shape.split and self.tokens == 1

    def segments(self, shape: AttentionShape) -> Expr:
        """How many segments the keys are cut into."""
        if not self.split(shape):
            return T.int32(1)
        blocks = self.count_blocks(shape.mask)
        most = quotient(blocks + (SEGMENT_BLOCKS - 1), SEGMENT_BLOCKS)
        return tirx.min(most, T.int32(ATTENTION_SEGMENTS))


def segment_start(number: Expr, segments: Expr, blocks: Expr) -> Expr:
    """The first block of segment `number`: whole chunks, shared as evenly as they divide."""
    chunks = quotient(blocks + (CHUNK - 1), CHUNK)
    return tirx.min(quotient(number * chunks, segments) * CHUNK, blocks)
