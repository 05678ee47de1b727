"""Short causal convolutions of a ragged batch, and the rolling state that they read.

The state of a sequence lies in the place of its first block: rows [L-1, channels], oldest first.
`causal_conv` only reads it, `roll_state` writes it in a phase of its own: a token reads rows that
the end of the same step replaces.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.append_kv import advance
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, registers
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    quotient,
    row_chunks,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.vector import constant
from graphwright.backends.tvm.target import Cpu

__all__ = ["causal_conv", "roll_state"]

_UNROLLED = 8  # taps up to which a kernel is written out


def causal_conv(
    channels: int, outputs: int, taps: int, *, x_stride: int, block_stride: int, bias: bool,
    cpu: Cpu,
) -> Kernel:  # fmt: skip
    """Pointers: batch, x (rows of `channels`), weight [taps, outputs], (bias [outputs]), state,
    positions, query_start, block_table, out [T, outputs].

    weight[k] is for the token k before; several outputs a channel lie side by side. The state
    starts at its part of block 0, blocks lie `block_stride` elements apart.
    """
    each = outputs // channels
    pointers = [("batch", "int32"), ("x", "float32"), ("weight", "float32")]
    pointers += [("bias", "float32")] * bias + [("state", "float32"), ("positions", "int64")]
    pointers += [("query_start", "int32"), ("block_table", "int32"), ("out", "float32")]

    def body(thread: Expr, threads: Expr, rows: Expr, *buffers: Expr) -> None:
        given = {name: buffer for (name, _), buffer in zip(pointers, buffers, strict=True)}
        batch, x, state = given["batch"], given["x"], given["state"]
        (sequence,) = registers(1, 1, "int32")
        T.buffer_store(sequence, T.int32(0), [0])

        def chunk(token: Expr, column: Expr, columns: int) -> None:
            advance(sequence, token, batch, given["query_start"])
            position = T.bind(tirx.Cast("int32", given["positions"][token]))
            local = T.bind(token - given["query_start"][sequence[0]])
            entry = given["block_table"][sequence[0] * batch[2]]
            held = T.bind(tirx.Cast("int64", entry) * T.int64(block_stride))

            def step(first: Expr, width: int, add: Callable[[Expr, Expr, Expr], None]) -> None:
                (total,) = registers(1, width)
                at = column + first
                start = load(given["bias"], at, width) if bias else constant(0.0, width)
                store(total, 0, start, width)
                _each_tap(taps, lambda lag: add(total, at, lag))
                store(given["out"], token * outputs + at, load(total, 0, width), width)

            def accumulate(
                total: Expr, at: Expr, lag: Expr, width: int, source: Expr, first: Expr
            ) -> None:
                value = load(source, first + (quotient(at, each) if each > 1 else at), width)
                factor = load(given["weight"], lag * outputs + at, width)
                store(total, 0, load(total, 0, width) + factor * value, width)

            def inside(first: Expr, width: int) -> None:
                def add(total: Expr, at: Expr, lag: Expr) -> None:
                    accumulate(total, at, lag, width, x, (token - lag) * x_stride)

                step(first, width, add)

            def behind(first: Expr, width: int) -> None:
                def add(total: Expr, at: Expr, lag: Expr) -> None:
                    row = taps - 1 - lag + local
                    with T.If(lag <= local):
                        with T.Then():
                            accumulate(total, at, lag, width, x, (token - lag) * x_stride)
                        with T.Else(), T.If(lag <= position), T.Then():
                            accumulate(total, at, lag, width, state, held + row * channels)

                step(first, width, add)

            lanes = cpu.lanes if each == 1 else 1
            with T.If(local >= taps - 1):
                with T.Then():
                    vector_loop(columns, lanes, inside)
                with T.Else():
                    vector_loop(columns, lanes, behind)

        row_chunks(rows, outputs, cpu.lanes, thread, threads, chunk)

    name = kernel_name(
        "causal_conv", cpu, c=channels, n=outputs, l=taps, x=x_stride, bs=block_stride, bias=bias
    )
    return define(name, pointers, body)


def roll_state(channels: int, taps: int, *, x_stride: int, block_stride: int, cpu: Cpu) -> Kernel:
    """Pointers: batch, x, state, positions, query_start, block_table. As the end of gw.causal_conv:
    each sequence of the step keeps its last taps - 1 inputs; those before its start are zero.
    """
    kept = taps - 1

    def body(
        thread: Expr, threads: Expr, rows: Expr, batch: Expr, x: Expr, state: Expr,
        positions: Expr, query_start: Expr, block_table: Expr,
    ) -> None:  # fmt: skip
        def chunk(sequence: Expr, column: Expr, columns: int) -> None:
            begin, end = (T.bind(query_start[sequence + i]) for i in range(2))
            count = T.bind(end - begin)
            entry = block_table[sequence * batch[2]]
            held = T.bind(tirx.Cast("int64", entry) * T.int64(block_stride) + column)

            def keep(row: Expr, known: Expr) -> None:
                def copy(source: Expr, start: Expr) -> Callable[[Expr, int], None]:
                    def piece(first: Expr, width: int) -> None:
                        value = load(source, start + first, width)
                        store(state, held + row * channels + first, value, width)

                    return piece

                def clear(first: Expr, width: int) -> None:
                    zero = constant(0.0, width)
                    store(state, held + row * channels + first, zero, width)

                with T.If(row >= kept - count):
                    with T.Then():
                        source = (end - kept + row) * x_stride + column
                        vector_loop(columns, cpu.lanes, copy(x, source))
                    with T.Else(), T.If(known - kept + row + count >= 0):
                        with T.Then():
                            old = held + (row + count) * channels
                            vector_loop(columns, cpu.lanes, copy(state, old))
                        with T.Else():
                            vector_loop(columns, cpu.lanes, clear)

            with T.If(count > 0), T.Then():
                known = T.bind(tirx.Cast("int32", positions[begin]))
                with T.serial(0, kept) as row:
                    keep(row, known)

        row_chunks(batch[1], channels, cpu.lanes, thread, threads, chunk)

    name = kernel_name("roll_state", cpu, c=channels, l=taps, x=x_stride, bs=block_stride)
    pointers = [("batch", "int32"), ("x", "float32"), ("state", "float32"), ("positions", "int64")]
    return define(name, [*pointers, ("query_start", "int32"), ("block_table", "int32")], body)


def _each_tap(taps: int, body: Callable[[Expr], None]) -> None:
    if taps <= _UNROLLED:
        for lag in range(taps):
            body(lag)
    else:
        with T.serial(0, taps) as lag:
            body(lag)
