"""Rotary position embedding of the first channels of each head, by tables of cosines and sines."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    quotient,
    remainder,
    store,
    vector_loop,
)
from graphwright.backends.tvm.target import Cpu

__all__ = ["rope"]


def rope(
    heads: int, dim: int, rotary: int, *, x_stride: int, cos_stride: int, sin_stride: int,
    interleaved: bool, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """Pointers: x (rows of heads * dim), cos, sin (rows of `rotary`), out [rows, heads * dim]."""

    def body(
        thread: Expr, threads: Expr, rows: Expr, x: Expr, cos: Expr, sin: Expr, out: Expr
    ) -> None:
        first, last = partition(rows * heads, thread, threads)
        with T.serial(first, last) as item:
            row, head = T.bind(quotient(item, heads)), T.bind(remainder(item, heads))
            source, target = T.bind(row * x_stride + head * dim), T.bind(item * dim)
            c, s = T.bind(row * cos_stride), T.bind(row * sin_stride)

            def halves(first: Expr, width: int) -> None:
                second = first + rotary // 2
                a, b = (load(x, source + each, width) for each in (first, second))
                low = a * load(cos, c + first, width) - b * load(sin, s + first, width)
                high = b * load(cos, c + second, width) + a * load(sin, s + second, width)
                store(out, target + first, low, width)
                store(out, target + second, high, width)

            def pair(i: Expr) -> None:
                a, b = x[source + 2 * i], x[source + 2 * i + 1]
                low = a * cos[c + 2 * i] - b * sin[s + 2 * i]
                high = b * cos[c + 2 * i + 1] + a * sin[s + 2 * i + 1]
                T.buffer_store(out, low, [target + 2 * i])
                T.buffer_store(out, high, [target + 2 * i + 1])

            def through(first: Expr, width: int) -> None:
                value = load(x, source + rotary + first, width)
                store(out, target + rotary + first, value, width)

            if interleaved:
                with T.serial(0, rotary // 2) as i:
                    pair(i)
            else:
                vector_loop(rotary // 2, cpu.lanes, halves)
            vector_loop(dim - rotary, cpu.lanes, through)

    name = kernel_name(
        "rope", cpu, h=heads, d=dim, r=rotary, x=x_stride, cos=cos_stride, sin=sin_stride,
        interleaved=interleaved,
    )  # fmt: skip
    return define(name, [(each, "float32") for each in ("x", "cos", "sin", "out")], body)
