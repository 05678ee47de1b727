"""Write this step's keys and values into the paged cache.

A block of 16 positions holds keys as [kv heads, dim, 16] and values as [kv heads, 16, value dim].
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition, registers
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    quotient,
    remainder,
    store,
    vector_loop,
)
from graphwright.backends.tvm.target import Cpu

__all__ = ["BLOCK_SIZE", "append_kv"]

BLOCK_SIZE = 16


def append_kv(
    kv_heads: int, dim: int, value_dim: int, *, k_stride: int, v_stride: int, block_stride: int,
    cpu: Cpu,
) -> Kernel:  # fmt: skip
    """Pointers: batch, k, v, k_cache, v_cache, positions (int64), query_start, block_table.

    k and v hold rows of kv_heads * dim and kv_heads * value_dim with these strides; the caches
    start at the state's part of block 0, blocks lie `block_stride` elements apart.
    """

    def body(
        thread: Expr, threads: Expr, rows: Expr, batch: Expr, k: Expr, v: Expr, k_cache: Expr,
        v_cache: Expr, positions: Expr, query_start: Expr, block_table: Expr,
    ) -> None:  # fmt: skip
        first, last = partition(rows * kv_heads, thread, threads)
        (sequence,) = registers(1, 1, "int32")
        T.buffer_store(sequence, T.int32(0), [0])
        with T.serial(first, last) as item:
            token, head = T.bind(quotient(item, kv_heads)), T.bind(remainder(item, kv_heads))
            advance(sequence, token, batch, query_start)
            position = T.bind(tirx.Cast("int32", positions[token]))
            slot = T.bind(remainder(position, BLOCK_SIZE))
            entry = block_table[sequence[0] * batch[2] + quotient(position, BLOCK_SIZE)]
            start = T.bind(tirx.Cast("int64", entry) * T.int64(block_stride))
            keys = T.bind(start + head * (dim * BLOCK_SIZE) + slot)
            values = T.bind(start + (head * BLOCK_SIZE + slot) * value_dim)
            with T.serial(0, dim) as d:
                value = k[token * k_stride + head * dim + d]
                T.buffer_store(k_cache, value, [keys + d * BLOCK_SIZE])

            def copy(first: Expr, width: int) -> None:
                value = load(v, token * v_stride + head * value_dim + first, width)
                store(v_cache, values + first, value, width)

            vector_loop(value_dim, cpu.lanes, copy)

    name = kernel_name(
        "append_kv", cpu, h=kv_heads, d=dim, v=value_dim, ks=k_stride, vs=v_stride, bs=block_stride
    )
    pointers = [("batch", "int32"), ("k", "float32"), ("v", "float32"), ("k_cache", "float32")]
    pointers += [("v_cache", "float32"), ("positions", "int64"), ("query_start", "int32")]
    return define(name, [*pointers, ("block_table", "int32")], body)


def advance(sequence: Expr, token: Expr, batch: Expr, query_start: Expr) -> None:
    """Moves the number in `sequence` on to the sequence of `token`; batch[1] counts them."""
    more = tirx.all(sequence[0] + 1 < batch[1], query_start[sequence[0] + 1] <= token)
    with T.While(more):
        T.buffer_store(sequence, sequence[0] + 1, [0])
