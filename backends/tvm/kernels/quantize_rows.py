"""Activations to int8 with a scale per row or group of inputs, for integer matrix kernels.

scale = max|x| / 127 and q = round(x / scale), ties to even, in float32: bit for bit what
graphwright.ir.schemes.quantize_activation computes.

A row of the output is `row_size(k, group)` bytes: K values, zeros up to a multiple of 64, then for
each group Σ q as int32, which kernels with an unsigned operand need.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition, registers
from graphwright.backends.tvm.kernels.loops import (
    kernel_name,
    row_largest,
    spread,
    unrolled,
    vector_start,
)
from graphwright.backends.tvm.kernels.vector import (
    at_least,
    at_most,
    constant,
    reduce_lanes,
    span,
    vector_type,
)
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError

__all__ = ["Int8Rows", "group_count", "padded", "quantize_rows", "row_size"]


def padded(k: int) -> int:
    """K rounded up to 64: what a row of packed int8 weights or activations holds."""
    return -(-k // 64) * 64


def group_count(k: int, group: int | None) -> int:
    """Scales per row. Raises BackendError if `group` is not 32, 64 or 128 or does not divide K."""
    if group is None:
        return 1
    if group not in (32, 64, 128) or k % group:
        raise BackendError(
            f"{k} input channels cannot be quantized in groups of {group}; groups are 32, 64 or "
            "128 channels and must divide them."
        )
    return k // group


def row_size(k: int, group: int | None = None) -> int:
    """Bytes of one quantized row, a multiple of 64."""
    return padded(padded(k) + 4 * group_count(k, group))


def quantize_rows(
    k: int, *, x_stride: int, group: int | None = None, vectors: int = 1, cpu: Cpu
) -> Kernel:
    """Pointers: x float32 [rows, K] with `x_stride`, x_q int8 [rows, row_size(k, group)], x_scale
    float32 [rows, K/G or 1].

    A row of x may hold several `vectors` of K elements; each is a row of x_q and x_scale. Threads
    share (vectors x groups): a single one without groups is quantized by one thread.
    """
    groups, lanes = group_count(k, group), cpu.lanes
    length = group or k
    several = vectors if vectors > 1 else None
    name = kernel_name("quantize_rows", cpu, k=k, g=group, x=x_stride, vectors=several)

    def body(thread: Expr, threads: Expr, rows: Expr, x: Expr, x_q: Expr, x_scale: Expr) -> None:
        first, last = partition(rows * (vectors * groups), thread, threads)
        with T.serial(first, last) as unit:
            row = T.bind(T.truncdiv(unit, groups))
            number = T.bind(unit - row * groups)
            start = vector_start(row, k, x_stride, vectors)
            source = T.bind(start + number * length)
            _one_group(x, source, row, number, k, group, x_q, x_scale, lanes)

    return define(name, [("x", "float32"), *Int8Rows(k, group).pointers], body)


@dataclass(frozen=True)
class Int8Rows:
    """How a kernel that computes rows of `k` elements leaves them to integer products."""

    k: int
    group: int | None

    @property
    def pointers(self) -> list[tuple[str, str]]:
        """Names and dtypes of what is written: as quantize_rows."""
        return [("x_q", "int8"), ("x_scale", "float32")]

    @property
    def name(self) -> str:
        """A word for kernels' names."""
        return f"g{self.group}" if self.group else "rows"

    def write(self, x: Expr, row: Expr, x_q: Expr, x_scale: Expr, lanes: int) -> None:
        """Emits the quantization of x[0 : k] as `row`."""
        with T.serial(0, group_count(self.k, self.group)) as number:
            source = T.bind(number * (self.group or self.k))
            _one_group(x, source, row, number, self.k, self.group, x_q, x_scale, lanes)


def _one_group(
    x: Expr, source: Expr, row: Expr, number: Expr, k: int, group: int | None, x_q: Expr,
    x_scale: Expr, lanes: int,
) -> None:  # fmt: skip
    """Quantizes group `number` of a row, which starts at x[source]."""
    groups, stride, length = group_count(k, group), row_size(k, group), group or k
    target = T.bind(row * stride + number * length)
    scale = T.bind(row_largest(x, source, length, lanes) / T.float32(127))
    T.buffer_store(x_scale, scale, [row * groups + number])
    divisor = T.bind(tirx.Select(scale == T.float32(0), T.float32(1), scale))
    total = _quantize(x, source, x_q, target, length, lanes, divisor)
    if k % 64:
        with T.If(number == groups - 1), T.Then(), T.serial(k, padded(k)) as at:
            T.buffer_store(x_q, T.int8(0), [row * stride + at])
    at = row * stride + padded(k) + number * 4
    T.buffer_store(x_q, tirx.reinterpret("int8x4", total), [span(at, 4)])


def _quantize(
    x: Expr, source: Expr, x_q: Expr, target: Expr, length: int, lanes: int, divisor: Expr
) -> Expr:
    """Stores the int8 values of one group and returns their sum."""
    partial, rest = registers(1, lanes, "int32")[0], registers(1, 1, "int32")[0]
    T.buffer_store(partial, constant(0, lanes, "int32"), [span(0, lanes)])
    T.buffer_store(rest, T.int32(0), [0])

    def piece(at: Expr, width: int, total: Expr) -> None:
        real = vector_type("float32", width)
        quotient = x[span(source + at, width)] / spread(divisor, width)
        nearest = T.call_llvm_pure_intrin(real, "llvm.roundeven", quotient)
        bounded = at_most(at_least(nearest, -127.0, width), 127.0, width)
        value = T.bind(tirx.Cast(vector_type("int32", width), bounded))
        T.buffer_store(
            x_q, tirx.Cast(vector_type("int8", width), value), [span(target + at, width)]
        )
        T.buffer_store(total, total[span(0, width)] + value, [span(0, width)])

    unrolled(length // lanes, 2, lambda i, _: piece(i * lanes, lanes, partial))
    for at in range(length // lanes * lanes, length):
        piece(at, 1, rest)
    return reduce_lanes("add", partial[span(0, lanes)], "int32") + rest[0]
