"""Write this step's keys and values into the paged cache, rounded or quantized to its type."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition, registers
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, KvBlock, store_values
from graphwright.backends.tvm.kernels.loops import (
    horizontal,
    kernel_name,
    load,
    quotient,
    remainder,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.vector import constant, vector_type
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
            keys = T.bind(start + head * (dim * BLOCK_SIZE) + slot)
            values = T.bind(start + (head * BLOCK_SIZE + slot) * value_dim)
            k_row, v_row = (
                T.bind(token * k_stride + head * dim),
                T.bind(token * v_stride + head * value_dim),
            )
            divisors = [T.float32(1), T.float32(1)]
            if block.scaled:
                at = T.bind(place * T.int64(block.scale_stride) + head * BLOCK_SIZE + slot)
                sources = ((k, k_row, dim), (v, v_row, value_dim))
                for i, (scale, source) in enumerate(zip(scales, sources, strict=True)):
                    divisors[i] = _scale(*source, scale, at, cpu.lanes)

            with T.serial(0, dim) as d:
                key = k[k_row + d] / divisors[0] if block.scaled else k[k_row + d]
                store_values(k_cache, keys + d * BLOCK_SIZE, key, 1, block.dtype)

            def copy(first: Expr, width: int) -> None:
                value = load(v, v_row + first, width)
                if block.scaled:
                    value = value / spread(divisors[1], width)
                store_values(v_cache, values + first, value, width, block.dtype)

            vector_loop(value_dim, cpu.lanes, copy)

    name = kernel_name("append_kv", cpu, block=block_name(block), ks=k_stride, vs=v_stride)
    pointers = [("batch", "int32"), ("k", "float32"), ("v", "float32"), *block.pointers]
    pointers += [("positions", "int64"), ("query_start", "int32"), ("block_table", "int32")]
    return define(name, pointers, body)


def block_name(block: KvBlock) -> str:
    """The block's parameters as a part of a kernel's name."""
    sizes = f"{block.kv_heads}x{block.dim}x{block.value_dim}"
    return f"{sizes}_{block.dtype}_by{block.block_bytes}"


def _scale(x: Expr, first: Expr, count: int, scale: Expr, at: Expr, lanes: int) -> Expr:
    """Stores max|x[first : first + count]| / 127 and returns what to divide by."""
    most, rest = registers(1, lanes)[0], registers(1, 1)[0]
    store(most, 0, constant(0.0, lanes), lanes)
    T.buffer_store(rest, T.float32(0), [0])

    def magnitude(index: Expr, width: int) -> Expr:
        value = load(x, first + index, width)
        return T.call_llvm_pure_intrin(vector_type("float32", width), "llvm.fabs", value)

    def larger(a: Expr, b: Expr) -> Expr:
        return T.call_llvm_pure_intrin(a.ty, "llvm.maximum", a, b)

    if count // lanes:
        with T.serial(0, count // lanes) as i:
            found = larger(load(most, 0, lanes), magnitude(i * lanes, lanes))
            store(most, 0, found, lanes)
    for index in range(count // lanes * lanes, count):
        T.buffer_store(rest, larger(rest[0], magnitude(index, 1)), [0])
    top = larger(horizontal(load(most, 0, lanes), lanes, larger), rest[0])
    value = T.bind(top / T.float32(127))
    T.buffer_store(scale, value, [at])
    return T.bind(tirx.Select(value == T.float32(0), T.float32(1), value))


def advance(sequence: Expr, token: Expr, batch: Expr, query_start: Expr) -> None:
    """Moves the number in `sequence` on to the sequence of `token`; batch[1] counts them."""
    more = tirx.all(sequence[0] + 1 < batch[1], query_start[sequence[0] + 1] <= token)
    with T.While(more):
        T.buffer_store(sequence, sequence[0] + 1, [0])
