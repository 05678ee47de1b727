"""Products whose weight each (token, slot) pair chooses: a grouped GEMM over tiles of one expert.

routed_groups sorts the pairs by expert; a tile takes up to ROWS pairs of one expert and gathers
their rows of x. Tiles exist only for experts that somebody is routed to, so few tokens read only
the weights of their experts, and tiles of the same expert run side by side and share its weights in
the L2 cache. There are at most (pairs / ROWS + experts) tiles, whatever the routing: the grid.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.attention_prefill import tile_of_batch
from graphwright.backends.triton.kernels.epilogue import finish_in_pieces
from graphwright.backends.triton.kernels.kernel import RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.linear import Tiles
from graphwright.backends.triton.kernels.product_tile import product_tile
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.weight_format import WeightFormat

__all__ = ["routed_linear", "routed_tiles"]

_EXPERTS = 64  # whose tiles are counted together


@triton.jit
def routed_linear_kernel(
    batch, order, starts, x, x_scales, weight, scale, zero, bias, residual, out,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW: tl.constexpr, X_STRIDE: tl.constexpr,
    SLOTS: tl.constexpr, SHARED: tl.constexpr, EXPERTS: tl.constexpr, PRESCALE: tl.constexpr,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, CHUNK: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, OPTIONAL: tl.constexpr,
):  # fmt: skip
    expert, number = tile_of_batch(tl.program_id(0), starts, EXPERTS, ROWS, CHUNK)
    if expert >= EXPERTS:
        return
    place = tl.load(starts + expert) + number * ROWS + tl.arange(0, ROWS)
    inside = place < tl.load(starts + expert + 1)
    pair = tl.load(order + place, mask=inside, other=0).to(tl.int64)
    if SHARED:
        at, scale_at = pair // SLOTS * X_STRIDE, pair // SLOTS * GROUPS
    else:
        at, scale_at = pair // SLOTS * X_STRIDE + pair % SLOTS * K, pair * GROUPS
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    matrix = expert.to(tl.int64) * N
    STORED: tl.constexpr = (N + 7) // 8 * 8 if KIND == "w4" else N  # rows of an expert's weight
    scales = scale
    if scale is not None:
        scales = scale + matrix * GROUPS
    zeros = zero
    if zero is not None:
        zeros = zero + matrix * GROUPS
    last = K
    if OPTIONAL:
        last = tl.where(expert == EXPERTS - 1, 0, K)  # the last one is none: nothing is multiplied
    value, _ = product_tile(
        x + at, inside, x_scales, scale_at, weight + expert.to(tl.int64) * (STORED * ROW), scales,
        zeros, None, n, n < N, 0, last, K, KIND, GROUP, GROUPS, ROW, PRESCALE, OUTPUTS, ROWS, STEP,
    )  # fmt: skip
    added = bias
    if bias is not None:
        added = bias + matrix
    first = tl.program_id(1) * OUTPUTS
    finish_in_pieces(
        tl.trans(value), pair, inside, first, added, residual, None, None, None, out, None, None, N,
        RESIDUAL_STRIDE, "none", 0, 0, None,
    )  # fmt: skip


def routed_tiles(pairs: int, experts: int, k: int, format: WeightFormat, dtype: str) -> Tiles:
    """Tiles for buckets of up to `pairs` pairs, by how many an expert gets on average."""
    average = pairs // experts
    if dtype == "float32":
        tiles = Tiles(64, 16, 32, num_stages=1)
    elif average <= 16:
        tiles = Tiles(64, 16, 128)
    elif average <= 128:
        tiles = Tiles(64, 64, 64)
    else:
        tiles = Tiles(128, 128, 64, num_warps=8)
    step = min(tiles.step, format.group) if format.group else tiles.step
    step = min(step, max(32, next_power_of_two(k)))
    return Tiles(tiles.outputs, tiles.rows, step, 1, tiles.num_warps, tiles.num_stages)


def routed_linear(
    experts: int, slots: int, n: int, k: int, format: WeightFormat, tiles: Tiles, *,
    x_stride: int, shared: bool, integer: bool = False, bias: str | None = None,
    dtype: str = "float32", rows: RowCount = "T", residual: int | None = None,
    optional: bool = False,
) -> TritonKernel:  # fmt: skip
    """gw.routed_linear and gw.quantized_routed_linear of the pairs that routed_groups sorted.

    Pointers: batch, order, starts, x (rows of k, or of slots * k where pairs do not share them),
    (x_scales float32, a row of groups for each row of k), weight [E, N, …], (scale), (zero) as in
    WeightFormat, (bias [E, N]), (residual), out [T, slots, N]. Number formats and `integer` as for
    `linear`. starts counts the pairs, and with them the tokens. residual: the distance of its rows,
    of tokens with one slot. optional: the last of the `experts` is none, and has no weight.
    """
    assert residual is None or slots == 1
    assert not (optional and bias)
    assert x_stride >= (k if shared else slots * k) and tiles.splits == 1
    assert not integer or format.kind != "dense"
    return define(
        f"routed_linear_{format.kind}",
        routed_linear_kernel,
        {
            "batch": "int32", "order": "int32", "starts": "int32",
            "x": "int8" if integer else dtype, "x_scales": "float32" if integer else None,
            **format.pointers(), "bias": bias,
            "residual": None if residual is None else dtype, "out": dtype,
        },
        format.constants(k) | {
            "N": n, "X_STRIDE": x_stride, "SLOTS": slots, "SHARED": shared, "EXPERTS": experts,
            "PRESCALE": tiles.rows >= 64, "OUTPUTS": tiles.outputs, "ROWS": tiles.rows,
            "STEP": tiles.step, "CHUNK": min(_EXPERTS, next_power_of_two(experts)),
            "RESIDUAL_STRIDE": residual or 0, "OPTIONAL": optional,
        },
        grid=lambda size: (
            quotient_up(size[rows] * slots, tiles.rows) + min(experts, size[rows] * slots),
            quotient_up(n, tiles.outputs),
            1,
        ),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )  # fmt: skip
