"""activation(gate) * up, the gate of a gated feed-forward layer."""

from __future__ import annotations

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    row_chunks,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.vector import activate
from graphwright.backends.tvm.target import Cpu

__all__ = ["gated_act"]


def gated_act(f: int, *, gate_stride: int, up_stride: int, activation: str, cpu: Cpu) -> Kernel:
    """Pointers: gate, up (rows of f elements with these strides), out [rows, f]."""

    def body(thread: Expr, threads: Expr, rows: Expr, gate: Expr, up: Expr, out: Expr) -> None:
        def chunk(row: Expr, column: Expr, columns: int) -> None:
            def piece(first: Expr, width: int) -> None:
                opened = activate(
                    load(gate, row * gate_stride + column + first, width), activation, width
                )
                factor = load(up, row * up_stride + column + first, width)
                store(out, row * f + column + first, opened * factor, width)

            vector_loop(columns, cpu.lanes, piece)

        row_chunks(rows, f, cpu.lanes, thread, threads, chunk)

    name = kernel_name("gated_act", cpu, f=f, gate=gate_stride, up=up_stride, by=activation)
    return define(name, [(each, "float32") for each in ("gate", "up", "out")], body)
