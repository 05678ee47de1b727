"""Write this step's keys and values into the paged cache, rounded or quantized to its type."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, KvBlock, store_values
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    quotient,
    remainder,
    row_largest,
    spread,
    vector_loop,
)
from graphwright.backends.tvm.target import Cpu

__all__ = ["advance", "append_kv"]


def append_kv(block: KvBlock, *, k_stride: int, v_stride: int, cpu: Cpu) -> Kernel:
    """Pointers: batch, k, v, k_cache, v_cache, (k_scale, v_scale), positions (int64), query_start,
    block_table.

    k and v hold float32 rows of kv_heads * dim and kv_heads * value_dim with these strides; the
    caches start at the state's part of block 0. As gw.cached_attention quantizes.
    """
    heads, dim, value_dim = block.kv_heads, block.dim, block.value_dim

    def body(
        thread: Expr, threads: Expr, rows: Expr, batch: Expr, k: Expr, v: Expr, k_cache: Expr,
        v_cache: Expr, *rest: Expr,
    ) -> None:  # fmt: skip
        *scales, positions, query_start, block_table = rest
        first, last = partition(rows * heads, thread, threads)
        (sequence,) = registers(1, 1, "int32")
        T.buffer_store(sequence, T.int32(0), [0])
        with T.serial(first, last) as item:
            token, head = T.bind(quotient(item, heads)), T.bind(remainder(item, heads))
            advance(sequence, token, batch, query_start)
            position = T.bind(tirx.Cast("int32", positions[token]))
            slot = T.bind(remainder(position, BLOCK_SIZE))
            entry = block_table[sequence[0] * batch[2] + quotient(position, BLOCK_SIZE)]
            place = T.bind(tirx.Cast("int64", entry))
            start = T.bind(place * T.int64(block.stride))
            keys, values = (
                T.bind(start + head * each) for each in (block.key_elements, block.value_elements)
            )
            k_row, v_row = (
                T.bind(token * k_stride + head * dim),
                T.bind(token * v_stride + head * value_dim),
            )
            if block.scaled:
                scale_at = T.bind(place * T.int64(block.scale_stride) + head * BLOCK_SIZE + slot)
                pair, half = T.bind(quotient(slot, 2)), T.bind(remainder(slot, 2))

                def key_at(d: Expr) -> Expr:
                    return keys + (quotient(d, 2) * BLOCK_SIZE + slot) * 2 + remainder(d, 2)

                def value_at(c: Expr) -> Expr:
                    return values + (pair * value_dim + c) * 2 + half

                k_scale, v_scale = scales
                _append_pairs(k, k_row, dim, k_cache, key_at, k_scale, scale_at, cpu.lanes)
                _append_pairs(v, v_row, value_dim, v_cache, value_at, v_scale, scale_at, cpu.lanes)
                return
            with T.serial(0, dim) as d:
                key_at = keys + d * BLOCK_SIZE + slot
                store_values(k_cache, key_at, k[k_row + d], 1, block.dtype)

            def copy(first: Expr, width: int) -> None:
                value = load(v, v_row + first, width)
                value_at = values + slot * value_dim + first
                store_values(v_cache, value_at, value, width, block.dtype)

            vector_loop(value_dim, cpu.lanes, copy)

    name = kernel_name("append_kv", cpu, block=block_name(block), ks=k_stride, vs=v_stride)
    pointers = [("batch", "int32"), ("k", "float32"), ("v", "float32"), *block.pointers]
    pointers += [("positions", "int64"), ("query_start", "int32"), ("block_table", "int32")]
    return define(name, pointers, body)


def block_name(block: KvBlock) -> str:
    """The block's parameters as a part of a kernel's name."""
    sizes = f"{block.kv_heads}x{block.dim}x{block.value_dim}"
    return f"{sizes}_{block.dtype}_by{block.block_bytes}"


def _append_pairs(
    x: Expr, first: Expr, count: int, cache: Expr, place: Callable[[Expr], Expr], scale: Expr,
    scale_at: Expr, lanes: int,
) -> None:  # fmt: skip
    """cache[place(i)] = x[first + i] over the scale, rounded, for i < count. Vectors are computed
    whole; their bytes go beside the other halves of their pairs."""
    divisor = _scale(x, first, count, scale, scale_at, lanes)

    def copy(start: Expr, width: int) -> None:
        (rounded,) = registers(1, width, "int8")
        value = load(x, first + start, width) / spread(divisor, width)
        store_values(rounded, 0, value, width, "int8")
        for i in range(width):
            T.buffer_store(cache, rounded[i], [place(start + i)])

    vector_loop(count, lanes, copy)


def _scale(x: Expr, first: Expr, count: int, scale: Expr, at: Expr, lanes: int) -> Expr:
    """Stores max|x[first : first + count]| / 127 and returns what to divide by."""
    value = T.bind(row_largest(x, first, count, lanes) / T.float32(127))
    T.buffer_store(scale, value, [at])
    return T.bind(tirx.Select(value == T.float32(0), T.float32(1), value))


def advance(sequence: Expr, token: Expr, batch: Expr, query_start: Expr) -> None:
    """Moves the number in `sequence` on to the sequence of `token`; batch[1] counts them."""
    more = tirx.all(sequence[0] + 1 < batch[1], query_start[sequence[0] + 1] <= token)
    with T.While(more):
        T.buffer_store(sequence, sequence[0] + 1, [0])
