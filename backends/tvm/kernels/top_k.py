"""The k largest values of a vector and where they are; of equal ones the lower index first."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition, registers
from graphwright.backends.tvm.kernels.loops import kernel_name, settle, vector_start
from graphwright.backends.tvm.target import Cpu

__all__ = ["top_k"]


def top_k(e: int, k: int, *, x_stride: int, vectors: int = 1, cpu: Cpu) -> Kernel:
    """Pointers: x float32 [rows, vectors, E] with `x_stride` between rows, values float32 and
    indices int64 [rows, vectors, k].

    By insertion into the sorted list of the best so far; most elements cost one comparison.
    The order of NaN is not defined, but indices stay in 0..E - 1.
    """
    assert 1 <= k <= e, f"the {k} largest of {e} values"

    def body(thread: Expr, threads: Expr, rows: Expr, x: Expr, *outs: Expr) -> None:
        first, last = partition(rows * vectors, thread, threads)
        with T.serial(first, last) as number, T.serial(0, e) as column:
            at = vector_start(number, e, x_stride, vectors) + column
            value = settle(x[at], "float32")
            start = T.bind(number * k)
            with T.If(tirx.any(column < k, value > outs[0][start + (k - 1)])), T.Then():
                _insert(value, column, tirx.min(column, k - 1), start, *outs)

    name = kernel_name("top_k", cpu, e=e, k=k, x=x_stride, vectors=vectors)
    pointers = [("x", "float32"), ("values", "float32"), ("indices", "int64")]
    return define(name, pointers, body)


def _insert(
    value: Expr, index: Expr, before: Expr, start: Expr, values: Expr, indices: Expr
) -> None:
    """Puts `value` behind those of the `before` first of the list that are not less."""
    (place,) = registers(1, 1, "int32")
    T.buffer_store(place, T.int32(0), [0])
    with T.serial(0, before) as i:
        kept = tirx.Cast("int32", values[start + i] >= value)
        T.buffer_store(place, place[0] + kept, [0])
    with T.serial(0, before - settle(place[0], "int32")) as i:
        for each in (values, indices):
            T.buffer_store(each, each[start + before - i - 1], [start + before - i])
    at = settle(start + place[0], "int32")
    T.buffer_store(values, value, [at])
    T.buffer_store(indices, tirx.Cast("int64", index), [at])
