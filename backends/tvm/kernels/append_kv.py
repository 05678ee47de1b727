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

__all__ = ["advance", "append_keys", "append_kv", "block_name"]


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
                    if block.by_row:
                        return keys + slot * dim + d
                    return keys + (quotient(d, 2) * BLOCK_SIZE + slot) * 2 + remainder(d, 2)

                def value_at(c: Expr) -> Expr:
                    if block.by_row:
                        return values + slot * value_dim + c
                    return values + (pair * value_dim + c) * 2 + half

                k_scale, v_scale = scales
                _append_pairs(k, k_row, dim, k_cache, key_at, k_scale, scale_at, cpu.lanes)
                _append_pairs(v, v_row, value_dim, v_cache, value_at, v_scale, scale_at, cpu.lanes)
                return

            def copy(source: Expr, row: Expr, cache: Expr, at: Expr, count: int) -> None:
                def piece(first: Expr, width: int) -> None:
                    value = load(source, row + first, width)
                    store_values(cache, at + first, value, width, block.dtype)

                vector_loop(count, cpu.lanes, piece)

            if block.by_row:
                copy(k, k_row, k_cache, T.bind(keys + slot * dim), dim)
            else:
                with T.serial(0, dim) as d:
                    key_at = keys + d * BLOCK_SIZE + slot
                    store_values(k_cache, key_at, k[k_row + d], 1, block.dtype)
            copy(v, v_row, v_cache, T.bind(values + slot * value_dim), value_dim)

    name = kernel_name("append_kv", cpu, block=block_name(block), ks=k_stride, vs=v_stride)
    pointers = [("batch", "int32"), ("k", "float32"), ("v", "float32"), *block.pointers]
    pointers += [("positions", "int64"), ("query_start", "int32"), ("block_table", "int32")]
    return define(name, pointers, body)


def block_name(block: KvBlock) -> str:
    """The block's parameters as a part of a kernel's name."""
    sizes = f"{block.kv_heads}x{block.dim}x{block.value_dim}"
    return f"{sizes}_{block.dtype}_by{block.block_bytes}{'_rows' * block.by_row}"


def append_keys(block: KvBlock, *, k_stride: int, cpu: Cpu) -> Kernel:
    """Pointers: batch, k, cache, positions (int64), query_start, block_table: as append_kv, for
    index keys, which have no values and are floats."""

    def body(
        thread: Expr, threads: Expr, rows: Expr, batch: Expr, k: Expr, cache: Expr,
        positions: Expr, query_start: Expr, block_table: Expr,
    ) -> None:  # fmt: skip
        first, last = partition(rows * block.kv_heads, thread, threads)
        (sequence,) = registers(1, 1, "int32")
        T.buffer_store(sequence, T.int32(0), [0])
        with T.serial(first, last) as item:
            token = T.bind(quotient(item, block.kv_heads))
            head = T.bind(remainder(item, block.kv_heads))
            advance(sequence, token, batch, query_start)
            position = T.bind(tirx.Cast("int32", positions[token]))
            entry = block_table[sequence[0] * batch[2] + quotient(position, BLOCK_SIZE)]
            start = tirx.Cast("int64", entry) * T.int64(block.stride)
            keys = T.bind(start + head * block.key_elements + remainder(position, BLOCK_SIZE))
            with T.serial(0, block.dim) as d:
                value = k[token * k_stride + head * block.dim + d]
                store_values(cache, keys + d * BLOCK_SIZE, value, 1, block.dtype)

    name = kernel_name("append_keys", cpu, block=block_name(block), ks=k_stride)
    pointers = [("batch", "int32"), ("k", "float32"), block.pointers[0], ("positions", "int64")]
    return define(name, [*pointers, ("query_start", "int32"), ("block_table", "int32")], body)


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
