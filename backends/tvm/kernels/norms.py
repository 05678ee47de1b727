"""RMS norm and layer norm of rows, alone or with the residual addition in front.

A row holds `groups` independent vectors of k elements (the heads, for a norm of queries and keys).
The variance is taken around the mean in a second pass over the row, which is then in the cache.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    load,
    quotient,
    remainder,
    row_sum,
    spread,
    store,
    vector_loop,
)
from graphwright.backends.tvm.target import Cpu

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]


def rms_norm(
    k: int, *, x_stride: int, weight: bool, eps: float, groups: int = 1, cpu: Cpu
) -> Kernel:
    """x * rsqrt(mean(x²) + eps) * weight. Pointers: x, (weight [k]), out [rows, groups * k]."""
    name = kernel_name("rms_norm", cpu, k=k, g=groups, x=x_stride, weight=weight, eps=eps)
    return _norm(name, k, groups, (x_stride,), False, weight, False, eps, cpu)


def layer_norm(
    k: int, *, x_stride: int, weight: bool, bias: bool, eps: float, groups: int = 1, cpu: Cpu
) -> Kernel:
    """(x - mean) * rsqrt(var + eps) * weight + bias. Pointers: x, (weight), (bias), out."""
    name = kernel_name(
        "layer_norm", cpu, k=k, g=groups, x=x_stride, weight=weight, bias=bias, eps=eps
    )
    return _norm(name, k, groups, (x_stride,), True, weight, bias, eps, cpu)


def add_rms_norm(
    k: int, *, x_stride: int, residual_stride: int, weight: bool, eps: float, groups: int = 1,
    cpu: Cpu,
) -> Kernel:  # fmt: skip
    """sum = x + residual, out = rms_norm(sum).

    Pointers: x, residual, (weight), sum, out.
    """
    strides = (x_stride, residual_stride)
    name = kernel_name(
        "add_rms_norm",
        cpu,
        k=k,
        g=groups,
        x=x_stride,
        residual=residual_stride,
        weight=weight,
        eps=eps,
    )
    return _norm(name, k, groups, strides, False, weight, False, eps, cpu)


def add_layer_norm(
    k: int, *, x_stride: int, residual_stride: int, weight: bool, bias: bool, eps: float,
    groups: int = 1, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """sum = x + residual, out = layer_norm(sum).

    Pointers: x, residual, (weight), (bias), sum, out.
    """
    strides = (x_stride, residual_stride)
    name = kernel_name(
        "add_layer_norm", cpu, k=k, g=groups, x=x_stride, residual=residual_stride, weight=weight,
        bias=bias, eps=eps,
    )  # fmt: skip
    return _norm(name, k, groups, strides, True, weight, bias, eps, cpu)


def _norm(
    name: str, k: int, groups: int, strides: tuple[int, ...], centred: bool, weight: bool,
    bias: bool, eps: float, cpu: Cpu,
) -> Kernel:  # fmt: skip
    lanes, adds = cpu.lanes, len(strides) == 2
    names = ["x"] + ["residual"] * adds + ["weight"] * weight + ["bias"] * bias
    names += ["sum"] * adds + ["out"]

    def body(thread: Expr, threads: Expr, rows: Expr, *buffers: Expr) -> None:
        given = dict(zip(names, buffers, strict=True))
        first, last = partition(rows * groups, thread, threads)
        with T.serial(first, last) as item:
            row, inner = T.bind(quotient(item, groups)), T.bind(remainder(item, groups) * k)
            starts = [T.bind(row * stride + inner) for stride in strides]
            source, start = given["x"], starts[0]
            if adds:
                source, start = given["sum"], T.bind(item * k)
                _add(given, starts, start, k, lanes)
            read = _reader(source, start)
            mean = row_sum(k, lanes, read) * T.float32(1 / k) if centred else None
            write = _writer(given, read, T.bind(mean) if centred else None, k, eps, item * k, lanes)
            vector_loop(k, lanes, write)

    return define(name, [(each, "float32") for each in names], body)


def _reader(source: Expr, start: Expr) -> Callable[[Expr, int], Expr]:
    return lambda first, width: load(source, start + first, width)


def _add(given: dict[str, Expr], starts: list[Expr], out: Expr, k: int, lanes: int) -> None:
    def piece(first: Expr, width: int) -> None:
        total = load(given["x"], starts[0] + first, width)
        total = total + load(given["residual"], starts[1] + first, width)
        store(given["sum"], out + first, total, width)

    vector_loop(k, lanes, piece)


def _writer(
    given: dict[str, Expr], read: Callable[[Expr, int], Expr], mean: Expr | None, k: int,
    eps: float, out: Expr, lanes: int,
) -> Callable[[Expr, int], None]:  # fmt: skip
    def centred(first: Expr, width: int) -> Expr:
        value = read(first, width)
        return value if mean is None else value - spread(mean, width)

    squares = row_sum(k, lanes, lambda first, width: _square(centred(first, width)))
    factor = T.bind(T.float32(1) / T.sqrt(squares * T.float32(1 / k) + T.float32(eps)))

    def write(first: Expr, width: int) -> None:
        value = centred(first, width) * spread(factor, width)
        if "weight" in given:
            value = value * load(given["weight"], first, width)
        if "bias" in given:
            value = value + load(given["bias"], first, width)
        store(given["out"], out + first, value, width)

    return write


def _square(value: Expr) -> Expr:
    return value * value
