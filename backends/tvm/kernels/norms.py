"""RMS norm and layer norm of rows, alone or after the residual addition, as float32 or int8.

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
from graphwright.backends.tvm.kernels.quantize_rows import Int8Rows
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.target import Cpu

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]


def rms_norm(
    k: int, *, x_stride: int, weight: bool, eps: float, groups: int = 1,
    int8: Int8Rows | None = None, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """x * rsqrt(mean(x²) + eps) * weight. Pointers: x, (weight [k]), out [rows, groups * k].

    int8, here and below: x_q and x_scale of quantize_rows in place of out; there is one group.
    """
    return _norm("rms_norm", k, groups, {"x": x_stride}, weight, False, eps, int8, cpu)


def layer_norm(
    k: int, *, x_stride: int, weight: bool, bias: bool, eps: float, groups: int = 1,
    int8: Int8Rows | None = None, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """(x - mean) * rsqrt(var + eps) * weight + bias. Pointers: x, (weight), (bias), out."""
    return _norm("layer_norm", k, groups, {"x": x_stride}, weight, bias, eps, int8, cpu)


def add_rms_norm(
    k: int, *, x_stride: int, residual_stride: int, weight: bool, eps: float, groups: int = 1,
    int8: Int8Rows | None = None, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """sum = x + residual, out = rms_norm(sum).

    Pointers: x, residual, (weight), sum, out.
    """
    strides = {"x": x_stride, "residual": residual_stride}
    return _norm("add_rms_norm", k, groups, strides, weight, False, eps, int8, cpu)


def add_layer_norm(
    k: int, *, x_stride: int, residual_stride: int, weight: bool, bias: bool, eps: float,
    groups: int = 1, int8: Int8Rows | None = None, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """sum = x + residual, out = layer_norm(sum).

    Pointers: x, residual, (weight), (bias), sum, out.
    """
    strides = {"x": x_stride, "residual": residual_stride}
    return _norm("add_layer_norm", k, groups, strides, weight, bias, eps, int8, cpu)


def _norm(
    kind: str, k: int, groups: int, strides: dict[str, int], weight: bool, bias: bool, eps: float,
    int8: Int8Rows | None, cpu: Cpu,
) -> Kernel:  # fmt: skip
    assert int8 is None or groups == 1, f"int8 rows of {groups} vectors"
    lanes, adds, centred = cpu.lanes, "residual" in strides, kind.endswith("layer_norm")
    name = kernel_name(
        kind, cpu, k=k, g=groups, **strides, weight=weight, bias=bias, eps=eps,
        int8=None if int8 is None else int8.name,
    )  # fmt: skip
    floats = [*strides] + ["weight"] * weight + ["bias"] * bias + ["sum"] * adds
    pointers = [(each, "float32") for each in floats]
    pointers += [("out", "float32")] if int8 is None else int8.pointers

    def body(thread: Expr, threads: Expr, rows: Expr, *buffers: Expr) -> None:
        given = dict(zip((each for each, _ in pointers), buffers, strict=True))
        if int8 is not None:
            given["out"] = stage(k)
        first, last = partition(rows * groups, thread, threads)
        with T.serial(first, last) as item:
            row, inner = T.bind(quotient(item, groups)), T.bind(remainder(item, groups) * k)
            starts = [T.bind(row * stride + inner) for stride in strides.values()]
            source, start = given["x"], starts[0]
            if adds:
                source, start = given["sum"], T.bind(item * k)
                _add(given, starts, start, k, lanes)
            read = _reader(source, start)
            mean = row_sum(k, lanes, read) * T.float32(1 / k) if centred else None
            mean, out = T.bind(mean) if centred else None, item * k if int8 is None else 0
            vector_loop(k, lanes, _writer(given, read, mean, k, eps, out, lanes))
            if int8 is not None:
                int8.write(given["out"], row, given["x_q"], given["x_scale"], lanes)

    return define(name, pointers, body)


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
