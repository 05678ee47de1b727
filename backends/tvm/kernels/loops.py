"""Loops over a row as vectors, with the tail in narrower ones, and sums across the lanes.

Vector accesses through a kernel's raw pointers need the alignment of one element only: TVM assumes
no more of a pointer that comes as a typed handle (tests/backends/test_tvm_kernels.py keeps this).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, partition, registers
from graphwright.backends.tvm.kernels.vector import constant, span, vector_type
from graphwright.backends.tvm.target import Cpu

__all__ = [
    "horizontal",
    "kernel_name",
    "load",
    "quotient",
    "remainder",
    "row_chunks",
    "row_largest",
    "row_sum",
    "settle",
    "spread",
    "store",
    "tail_pieces",
    "unrolled",
    "vector_loop",
    "vector_start",
]

CHUNK_VECTORS = 16  # what one thread takes of a row at least, where rows are shared by threads


def kernel_name(kind: str, cpu: Cpu, **parameters: object) -> str:
    """`kind` and the static parameters that make the kernel, as one identifier."""
    words = [kind]
    for key, value in (*parameters.items(), ("", cpu.name)):
        if isinstance(value, bool):
            words += [key] if value else []
        elif value is not None:
            text = "".join(c if c.isalnum() else "_" for c in str(value))
            words.append(f"{key}{text}")
    return "_".join(words)


def load(buffer: Expr, first: Expr, lanes: int) -> Expr:
    """buffer[first : first + lanes]."""
    return buffer[span(first, lanes)]


def settle(value: Expr, dtype: str) -> Expr:
    """`value` computed here and now. Unlike that of T.bind, TVM's analysis does not look into it.

    The definition of a bound variable is substituted, and simplified at length, in loop bounds and
    in the indices of what follows, even where a buffer that it reads has changed since.
    """
    (register,) = registers(1, 1, dtype)
    T.buffer_store(register, value, [0])
    return register[0]


def quotient(a: Expr, b: Expr) -> Expr:
    """a / b for integers that are not negative: `//` costs more instructions, as it rounds down."""
    return T.truncdiv(a, b)


def remainder(a: Expr, b: Expr) -> Expr:
    """a % b for integers that are not negative."""
    return T.truncmod(a, b)


def spread(value: Expr, lanes: int) -> Expr:
    """The scalar `value` in every lane."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def store(buffer: Expr, first: Expr, value: Expr, lanes: int) -> None:
    """buffer[first : first + lanes] = value."""
    T.buffer_store(buffer, value, [span(first, lanes)])


def tail_pieces(count: int, lanes: int) -> Iterator[tuple[int, int]]:
    """(first, width) that cover count % lanes elements at the end of `count`, widths halving."""
    first = count - count % lanes
    while lanes > 1:
        lanes //= 2
        if count - first >= lanes:
            yield first, lanes
            first += lanes


def vector_start(number: Expr, k: int, stride: int, vectors: int) -> Expr:
    """Where vector `number` starts in rows that are `stride` apart and hold `vectors` of K each."""
    if vectors == 1:
        return number * stride
    return quotient(number, vectors) * stride + remainder(number, vectors) * k


def unrolled(count: int, unroll: int, step: Callable[[Expr, int], None]) -> None:
    """Emits step(i, i % unroll) for i in [0, count), `unroll` to an iteration of a loop."""
    if count >= unroll:
        with T.serial(0, count // unroll) as i:
            for u in range(unroll):
                step(i * unroll + u, u)
    for u in range(count % unroll):
        step(count // unroll * unroll + u, u)


def vector_loop(count: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """Emits body(first, width) for the pieces of [0, count): whole vectors, then the tail."""
    full = count // lanes
    if full == 1:
        body(0, lanes)
    elif full:
        with T.serial(0, full) as i:
            body(i * lanes, lanes)
    for first, width in tail_pieces(count, lanes):
        body(first, width)


def row_sum(count: int, lanes: int, term: Callable[[Expr, int], Expr]) -> Expr:
    """Σ term(first, width) over the pieces of [0, count) and their lanes, as a bound scalar.

    Four independent accumulators hide the latency of the additions.
    """
    full = count // lanes
    ways = max(1, min(4, full))
    parts = registers(ways, lanes)
    tail = registers(1, 1)[0]
    for part in parts:
        store(part, 0, constant(0.0, lanes), lanes)
    T.buffer_store(tail, T.float32(0), [0])
    if full // ways:
        with T.serial(0, full // ways) as i:
            for way, part in enumerate(parts):
                first = (i * ways + way) * lanes
                store(part, 0, load(part, 0, lanes) + term(first, lanes), lanes)
    for rest in range(full // ways * ways, full):
        part = parts[rest % ways]
        store(part, 0, load(part, 0, lanes) + term(rest * lanes, lanes), lanes)
    for first, width in tail_pieces(count, lanes):
        T.buffer_store(tail, tail[0] + horizontal(term(first, width), width, operator.add), [0])
    total = load(parts[0], 0, lanes)
    for part in parts[1:]:
        total = total + load(part, 0, lanes)
    return T.bind(horizontal(total, lanes, operator.add) + tail[0])


def row_largest(x: Expr, first: Expr, count: int, lanes: int) -> Expr:
    """max |x[first : first + count]|, float32, as a bound scalar. NaN if one is.

    Four independent maxima hide the latency of one.
    """
    ways = 4
    most, rest = registers(ways, lanes), registers(1, 1)[0]
    for register in most:
        store(register, 0, constant(0.0, lanes), lanes)
    T.buffer_store(rest, T.float32(0), [0])

    def magnitude(index: Expr, width: int) -> Expr:
        value = load(x, first + index, width)
        return T.call_llvm_pure_intrin(vector_type("float32", width), "llvm.fabs", value)

    def larger(a: Expr, b: Expr) -> Expr:
        return T.call_llvm_pure_intrin(a.ty, "llvm.maximum", a, b)

    def step(i: Expr, way: int) -> None:
        found = larger(load(most[way], 0, lanes), magnitude(i * lanes, lanes))
        store(most[way], 0, found, lanes)

    unrolled(count // lanes, ways, step)
    for index in range(count // lanes * lanes, count):
        T.buffer_store(rest, larger(rest[0], magnitude(index, 1)), [0])
    total = load(most[0], 0, lanes)
    for register in most[1:]:
        total = larger(total, load(register, 0, lanes))
    return T.bind(larger(horizontal(total, lanes, larger), rest[0]))


def horizontal(value: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """The lanes of `value` combined pairwise, halving the vector: a scalar."""
    while lanes > 2:
        lanes //= 2
        half = vector_type("float32", lanes)
        bound = T.bind(value)
        value = combine(T.vectorlow(half, bound), T.vectorhigh(half, bound))
    if lanes == 1:
        return value
    bound = T.bind(value)
    return combine(T.Shuffle([bound], [0]), T.Shuffle([bound], [1]))


def row_chunks(
    rows: Expr, count: int, lanes: int, thread: Expr, threads: Expr,
    body: Callable[[Expr, Expr, int], None],
) -> None:  # fmt: skip
    """Emits body(row, first column, columns) for this thread's share of rows × chunks of a row."""
    size = min(count, CHUNK_VECTORS * lanes)
    whole, rest = divmod(count, size)
    chunks = whole + bool(rest)
    first, last = partition(rows * chunks, thread, threads)
    with T.serial(first, last) as item:
        row, chunk = T.bind(quotient(item, chunks)), T.bind(remainder(item, chunks))
        if not rest:
            body(row, chunk * size, size)
            return
        with T.If(chunk < whole):
            with T.Then():
                body(row, chunk * size, size)
            with T.Else():
                body(row, whole * size, rest)
