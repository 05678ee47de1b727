"""activation(gate) * up, the gate of a gated feed-forward layer, as float32 or int8."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    row_chunks,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.quantize_rows import Int8Rows
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.kernels.vector import activate
from graphwright.backends.tvm.target import Cpu

__all__ = ["gated_act"]


def gated_act(
    f: int, *, gate_stride: int, up_stride: int, activation: str, int8: Int8Rows | None = None,
    cpu: Cpu,
) -> Kernel:  # fmt: skip
    """Pointers: gate, up (rows of f elements with these strides), out [rows, f].

    int8: x_q and x_scale of quantize_rows in place of out. Threads share rows then, else pieces of
    them.
    """
    lanes = cpu.lanes

    def columns(gate: Expr, up: Expr, row: Expr, first: Expr, out: Expr, to: Expr, n: int) -> None:
        """The products of n columns of a row from `first` on, to out[to]."""

        def piece(i: Expr, width: int) -> None:
            opened = load(gate, row * gate_stride + first + i, width)
            factor = load(up, row * up_stride + first + i, width)
            store(out, to + i, activate(opened, activation, width) * factor, width)

        vector_loop(n, lanes, piece)

    def body(thread: Expr, threads: Expr, rows: Expr, gate: Expr, up: Expr, *out: Expr) -> None:
        if int8 is None:
            row_chunks(
                rows, f, lanes, thread, threads,
                lambda row, at, n: columns(gate, up, row, at, out[0], row * f + at, n),
            )  # fmt: skip
            return
        products = stage(f)
        with T.serial(*partition(rows, thread, threads)) as row:
            columns(gate, up, row, 0, products, 0, f)
            int8.write(products, row, out[0], out[1], lanes)

    name = kernel_name(
        "gated_act", cpu, f=f, gate=gate_stride, up=up_stride, by=activation,
        int8=None if int8 is None else int8.name,
    )  # fmt: skip
    results = [("out", "float32")] if int8 is None else int8.pointers
    return define(name, [("gate", "float32"), ("up", "float32"), *results], body)
